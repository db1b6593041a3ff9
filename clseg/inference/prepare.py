"""From the scanner's grid to the model's and back, in one place so that both ways agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clseg.network.spec import Grid, Intensity
from clseg.spatial.crop import Box, body_box, filled_slices
from clseg.spatial.orient import to_orientation
from clseg.spatial.padding import scanned
from clseg.spatial.resample import axis_weights, covering_shape, interpolate
from clseg.volume import Shape, Spacing, Volume

if TYPE_CHECKING:
    import torch


SNAP = 8  # voxels


@dataclass(frozen=True)
class Placement:
    """How an array on a model's grid lies in the scan it came from.

    The scan, turned to `orientation`, has `scan_shape` voxels of `scan_spacing` mm.
    A lattice of `spacing` mm that covers it is concentric with it, so that it does
    not depend on how the scan is stored; `box` is the part of that lattice where
    the body is, and what is computed.
    """

    orientation: str
    scan_shape: Shape
    scan_spacing: Spacing
    lattice: Shape
    spacing: Spacing
    box: Box

    @property
    def shape(self) -> Shape:
        """Voxels of `box`."""
        return tuple(part.stop - part.start for part in self.box)  # type: ignore[return-value]

    @property
    def inward(self) -> list[np.ndarray]:
        """Per axis the weights (box voxels, scan voxels) that take the scan to the model's grid."""
        axes = zip(self.scan_shape, self.scan_spacing, self.lattice, self.spacing, self.box, strict=True)
        return [axis_weights(n, s, m, t)[part] for n, s, m, t, part in axes]

    @property
    def outward(self) -> list[np.ndarray]:
        """Per axis the weights (scan voxels, box voxels) that take the model's grid to the scan; rows beyond the box sum to less than 1."""
        axes = zip(self.scan_shape, self.scan_spacing, self.lattice, self.spacing, self.box, strict=True)
        return [axis_weights(m, t, n, s)[:, part] for n, s, m, t, part in axes]


def place(scan: Volume, grid: Grid) -> tuple[Volume, Placement]:
    """The scan in the model's orientation (a view) and where its body lies on the model's lattice."""
    oriented = to_orientation(scan, grid.orientation)
    lattice = covering_shape(oriented.shape, oriented.spacing, grid.spacing)
    body = body_box(oriented.array, oriented.spacing)
    axes = zip(body, scanned(oriented), oriented.shape, oriented.spacing, lattice, grid.spacing, strict=True)
    box = tuple(_on_lattice(part, there, n, s, m, t) for part, there, n, s, m, t in axes)
    return oriented, Placement(grid.orientation, oriented.shape, oriented.spacing, lattice, grid.spacing, box)  # type: ignore[arg-type]


def _on_lattice(part: slice, there: slice, n: int, s: float, m: int, t: float) -> slice:
    """The voxels of a lattice (`m` of `t` mm) that cover a part of a concentric axis (`n` of `s` mm).

    Both ends lie on multiples of SNAP, so that windows fall on the same places in copies of a
    scan that are stored with other voxel sizes, or where what was scanned, `there`, ends.
    """
    first, last = ((edge - n / 2) * s / t + m / 2 for edge in (part.start, part.stop))
    inside = _middles_in(there, n, s, m, t)
    low, high = math.floor((first + 1e-3) / SNAP) * SNAP, math.ceil((last - 1e-3) / SNAP) * SNAP
    cut = slice(max(inside.start, low), min(inside.stop, high))
    return cut if cut.start < cut.stop else slice(max(0, low), min(m, high))


def _middles_in(part: slice, n: int, s: float, m: int, t: float) -> slice:
    """The voxels of a lattice (`m` of `t` mm) whose middles lie in a part of a concentric axis (`n` of `s` mm), and those beyond the axis at its ends."""
    first, last = ((edge - n / 2) * s / t + m / 2 for edge in (part.start, part.stop))
    return slice(math.ceil(first - 0.5) if part.start > 0 else 0, math.floor(last - 0.5) + 1 if part.stop < n else m)


def beyond_filled(oriented: np.ndarray, placement: Placement) -> list[slice]:
    """The slices of the box that lie, at one end or the other, where nothing was scanned (see `filled_slices`)."""
    axis = (placement.scan_shape[2], placement.scan_spacing[2], placement.lattice[2], placement.spacing[2])
    kept, box = _middles_in(filled_slices(oriented), *axis), placement.box[2]
    low, high = max(0, kept.start - box.start), min(placement.shape[2], kept.stop - box.start)
    return [part for part in (slice(0, low), slice(max(0, high), placement.shape[2])) if part.stop > part.start]


def onto_grid(oriented: np.ndarray, placement: Placement, device: str = "cpu") -> torch.Tensor:
    """An array in the model's orientation, cut and resampled to the model's grid: float32 (x, y, z)."""
    return interpolate(oriented, placement.inward, device)


def normalise(hu: torch.Tensor, rule: Intensity) -> torch.Tensor:
    """HU → network input, float32."""
    return (hu.clamp(rule.low, rule.high) - rule.mean) / rule.sd
