"""Random changes to one patch: geometry when it is cut out, intensity afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clseg.catalogue import Catalogue
from clseg.recipe import AugmentRecipe
from clseg.spatial.resample import resample
from clseg.volume import AIR_HU, Spacing


def random_matrix(rng: np.random.Generator, rule: AugmentRecipe) -> np.ndarray:
    """3×3 matrix from mm in the patch to mm in the source: a rotation about each axis times a scale."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(rng.uniform(-rule.rotation_deg, rule.rotation_deg, 3))):
        turn = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    common = np.exp(rng.uniform(*np.log(rule.scale)))
    each = np.exp(rng.uniform(-rule.stretch, rule.stretch, 3))
    return matrix @ np.diag(common * each)


def in_voxels(matrix: np.ndarray, spacing: Spacing) -> np.ndarray:
    """A matrix between mm as one between voxels of `spacing` mm, so that a turn stays a turn where they are no cubes."""
    return matrix * (np.array(spacing)[None, :] / np.array(spacing)[:, None])


def maybe_mirrored(matrix: np.ndarray, orientation: str, rng: np.random.Generator) -> np.ndarray:
    """The matrix, half of the time with left and right swapped."""
    if rng.random() < 0.5:
        return matrix
    flip = np.array([-1.0 if letter in "LR" else 1.0 for letter in orientation])
    return matrix * flip[None, :]


def other_sides(labels: Sequence[str]) -> np.ndarray:
    """What each value of a target is called in a mirror: uint8 (256,), left and right of a pair exchanged, all else as it is."""
    catalogue = Catalogue.builtin().with_structures(labels)
    table = np.arange(256, dtype=np.uint8)
    for value, label in enumerate(labels, 1):
        partner = catalogue[label].partner
        if partner in labels:
            table[value] = list(labels).index(partner) + 1
    return table


def change_intensity(
    hu: torch.Tensor, body: torch.Tensor | None, rng: np.random.Generator, rule: AugmentRecipe, spacing_mm: float
) -> torch.Tensor:
    """Contrast and offset of tissue, blur, thick slices, noise, and an emptied outside; HU in, HU out (x, y, z).

    `spacing_mm` is the voxel size along the last axis; `body` the body's mask, if known.
    """
    if body is not None and rng.random() < rule.clear_outside_probability:
        hu = torch.where(body, hu, torch.full_like(hu, AIR_HU))
    soft = hu > -900
    changed = hu * rng.uniform(*rule.contrast) + rng.uniform(-rule.shift_hu, rule.shift_hu)
    hu = torch.where(soft, changed, hu)
    if rng.random() < rule.blur_probability:
        hu = _blur(hu, rng.uniform(min(0.3, rule.blur_voxels), rule.blur_voxels))
    if rng.random() < rule.thick_slices_probability:
        hu = _thick_slices(hu, spacing_mm, rng.uniform(*rule.thick_slices_mm))
    if rng.random() < rule.noise_probability:
        noise = torch.Generator(hu.device).manual_seed(int(rng.integers(2**31)))
        hu = hu + torch.randn(hu.shape, generator=noise, device=hu.device) * rng.uniform(0, rule.noise_hu)
    return hu


def _blur(hu: torch.Tensor, sigma: float) -> torch.Tensor:
    x = torch.arange(-2, 3, dtype=torch.float32, device=hu.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = hu[None, None]
    for axis in range(3):
        shape, pad = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = 5
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = 2
        out = torch.nn.functional.conv3d(torch.nn.functional.pad(out, pad, mode="replicate"), kernel.view(shape))
    return out[0, 0]


def _thick_slices(hu: torch.Tensor, spacing_mm: float, thickness_mm: float) -> torch.Tensor:
    """What the same body looks like when reconstructed in thicker slices along the last axis."""
    unit = (1.0, 1.0, spacing_mm)
    count = max(2, round(hu.shape[2] * spacing_mm / thickness_mm))
    thick = (1.0, 1.0, hu.shape[2] * spacing_mm / count)
    return resample(resample(hu, unit, (*hu.shape[:2], count), thick), thick, tuple(hu.shape), unit)
