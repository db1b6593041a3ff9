"""Scene: what a patch sees of an atlas, deformed: structures, distances, and where in the body every voxel is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clseg.recipe import SynthesisRecipe
from clseg.training.synthesis.atlas import HALF_MM, Atlas, axis_along
from clseg.training.synthesis.deform import displacement
from clseg.training.synthesis.fields import smooth
from clseg.training.synthesis.tables import Palette
from clseg.volume import Shape, Spacing

UNKNOWN = 255


@dataclass(frozen=True)
class Pose:
    """Where a patch lies: `shape` voxels of `spacing` mm around `centre_mm` (from the atlas's middle), turned by `matrix` (mm to mm)."""

    shape: Shape
    spacing: Spacing
    centre_mm: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True)
class Scene:
    """`near` int64: nearest structure; `depth`, `hull`, `surface` mm as in the atlas; `ids` uint8, 0 none, 255 beyond the scan.

    `right`, `front`, `up`: mm from the atlas's middle in the directions of the patient,
    before deformation.  `beyond` is True where the label map ends.  All (x, y, z).
    """

    near: torch.Tensor
    depth: torch.Tensor
    hull: torch.Tensor
    surface: torch.Tensor | None
    ids: torch.Tensor
    right: torch.Tensor
    front: torch.Tensor
    up: torch.Tensor
    beyond: torch.Tensor
    back_mm: float  # the rearmost place of skin or outline
    spacing: Spacing


def look(atlas: Atlas, pose: Pose, palette: Palette, rule: SynthesisRecipe, rng: np.random.Generator) -> Scene:
    """The scene of a patch; borders of structures are moved by what the palette says."""
    place = _places(pose)
    bent = place + displacement(pose.shape, pose.spacing, rule, rng)
    voxel = bent / atlas.spacing_mm + torch.tensor([(n - 1) / 2 for n in atlas.shape]).view(3, 1, 1, 1)
    near, linear = _sample(atlas, voxel)
    aside = _aside(atlas, voxel)

    sway = smooth(pose.shape, pose.spacing, 30.0, rng)
    near = near.long()
    depth = linear[0] / HALF_MM + palette.border_mm[near] * (0.75 + 0.5 * sway).clamp(-0.5, 2)
    right, front, up = (_towards(place, atlas.orientation, letter) for letter in "RAS")
    half_mm = atlas.shape[axis_along(atlas.orientation, "S")[0]] * atlas.spacing_mm / 2
    beyond = up.abs() > half_mm
    beyond |= _cropped(up, rule, rng)
    ids = torch.where(depth > 0, near, 0).to(torch.uint8).masked_fill_(beyond, UNKNOWN)
    surface = linear[2] + aside if atlas.surface is not None else None
    return Scene(near, depth, linear[1] + aside, surface, ids, right, front, up, beyond, atlas.back_mm, pose.spacing)


def _places(pose: Pose) -> torch.Tensor:
    """mm from the atlas's middle of every voxel, float32 (3, x, y, z)."""
    steps = pose.matrix * np.array(pose.spacing)
    total = torch.tensor(pose.centre_mm, dtype=torch.float32).view(3, 1, 1, 1)
    for axis, n in enumerate(pose.shape):
        along = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2).view([-1 if a == axis else 1 for a in range(3)])
        total = total + torch.tensor(steps[:, axis], dtype=torch.float32).view(3, 1, 1, 1) * along
    return total


def _sample(atlas: Atlas, voxel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`near` by nearest voxel, depth, hull and surface linearly, from the part of the atlas that is looked at."""
    low = [int(v) for v in voxel.amin((1, 2, 3)).floor().tolist()]
    high = [int(v) for v in voxel.amax((1, 2, 3)).ceil().tolist()]
    low = [min(max(0, a - 1), n - 2) for a, n in zip(low, atlas.shape, strict=True)]
    high = [max(min(n, b + 2), a + 2) for a, b, n in zip(low, high, atlas.shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    size = torch.tensor([b - a for a, b in zip(low, high, strict=True)], dtype=torch.float32).view(3, 1, 1, 1)
    scaled = (voxel - torch.tensor(low, dtype=torch.float32).view(3, 1, 1, 1)) * (2 / (size - 1)) - 1
    lattice = scaled.flip(0).permute(1, 2, 3, 0)[None]
    held = atlas.maps(str(voxel.device))
    maps = [held.depth, held.hull, *([held.surface] if held.surface is not None else [])]
    linear = torch.stack([m[box] for m in maps]).float()
    near = held.near[box].float()
    look_up = torch.nn.functional.grid_sample
    return (
        look_up(near[None, None], lattice, mode="nearest", padding_mode="border", align_corners=True)[0, 0],
        look_up(linear[None], lattice, mode="bilinear", padding_mode="border", align_corners=True)[0],
    )


def _aside(atlas: Atlas, voxel: torch.Tensor) -> torch.Tensor:
    """mm beyond the atlas to the sides, front or back; 0 within."""
    up = axis_along(atlas.orientation, "S")[0]
    sides = [axis for axis in range(3) if axis != up]
    return sum((voxel[a] - voxel[a].clamp(0, atlas.shape[a] - 1)).abs() for a in sides) * atlas.spacing_mm  # type: ignore[return-value]


def _towards(place: torch.Tensor, orientation: str, letter: str) -> torch.Tensor:
    axis, sign = axis_along(orientation, letter)
    return place[axis] * sign


def _cropped(up: torch.Tensor, rule: SynthesisRecipe, rng: np.random.Generator) -> torch.Tensor:
    """Where a shorter scan would have ended: above or below a level within the patch."""
    if rng.random() >= rule.crop_probability:
        return torch.zeros(up.shape, dtype=torch.bool)
    level = float(up.min()) + rng.uniform(0.05, 0.45) * float(up.max() - up.min())
    if rng.random() < 0.5:
        return up < level
    return up > float(up.max() + up.min()) - level
