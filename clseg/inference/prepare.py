"""From the scanner's grid to the model's and back, in one place so that both ways agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clseg.network.spec import Grid, Intensity
from clseg.spatial.crop import Box, body_box
from clseg.spatial.orient import to_orientation
from clseg.spatial.resample import covering_shape, resample
from clseg.volume import Shape, Spacing, Volume

if TYPE_CHECKING:
    import torch

AIR_HU = -1024


@dataclass(frozen=True)
class Placement:
    """How an array on a model's grid lies in the scan it came from.

    `box` cuts the scan after reorientation to `orientation`; the model's lattice
    of `shape` × `spacing` mm is concentric with that box.
    """

    orientation: str
    box: Box
    box_shape: Shape
    box_spacing: Spacing
    shape: Shape
    spacing: Spacing


def place(scan: Volume, grid: Grid) -> tuple[Volume, Placement]:
    """The scan in the model's orientation (a view) and where its body lies on the model's lattice."""
    oriented = to_orientation(scan, grid.orientation)
    box = body_box(oriented.array, oriented.spacing)
    box_shape: Shape = tuple(s.stop - s.start for s in box)  # type: ignore[assignment]
    shape = covering_shape(box_shape, oriented.spacing, grid.spacing)
    return oriented, Placement(grid.orientation, box, box_shape, oriented.spacing, shape, grid.spacing)


def onto_grid(oriented: np.ndarray, placement: Placement, device: str = "cpu") -> torch.Tensor:
    """An array in the model's orientation, cut and resampled to the model's lattice: float32 (x, y, z)."""
    import torch

    cut = np.ascontiguousarray(oriented[placement.box])
    return resample(torch.from_numpy(cut).to(device), placement.box_spacing, placement.shape, placement.spacing)


def normalise(hu: torch.Tensor, rule: Intensity) -> torch.Tensor:
    """HU → network input, float32."""
    return (hu.clamp(rule.low, rule.high) - rule.mean) / rule.sd
