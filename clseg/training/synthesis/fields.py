"""Fields: smooth random functions of a place, made on few knots and spread out by cubic B-splines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

SOFT_MM = 1.2
SHARE = 0.3317  # standard deviation of a spline of unit knots in 3-D: (151/315)^(3/2)


def smooth(shape: Sequence[int], spacing: Sequence[float], wave_mm: float, rng: np.random.Generator) -> torch.Tensor:
    """A normal field (mean 0, standard deviation 1) over `shape` voxels; knots lie `wave_mm` apart. float32 (x, y, z)."""
    knots = knots_for(shape, spacing, wave_mm)
    return spread(noise(knots, rng), shape) / SHARE


def knots_for(shape: Sequence[int], spacing: Sequence[float], wave_mm: float) -> tuple[int, ...]:
    """Knots per axis: at least 4, at most one per voxel and a margin."""
    return tuple(max(4, min(n, round(n * s / wave_mm)) + 3) for n, s in zip(shape, spacing, strict=True))


def noise(shape: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
    """Independent standard normal numbers, float32, on the device that is the default where this is called."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(int(rng.integers(2**62)))
    return torch.randn(tuple(shape), generator=generator)


def spread(knots: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Cubic B-spline of `knots` (kx, ky, kz) on `shape` voxels; the outermost knots lie beyond the border."""
    x, y, z = (spline(k, n, knots.device) for k, n in zip(knots.shape, shape, strict=True))
    first = (x @ knots.reshape(len(knots), -1)).reshape(-1, *knots.shape[1:])
    return y @ first @ z.T


@lru_cache(maxsize=256)
def spline(knots: int, voxels: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Weights (voxels, knots) of cubic B-splines, rows summing to 1."""
    place = 1 + (torch.arange(voxels, dtype=torch.float64, device=device) + 0.5) / voxels * (knots - 3)
    far = (place[:, None] - torch.arange(knots, dtype=torch.float64, device=device)[None]).abs()
    near = 2 / 3 - far**2 + far**3 / 2
    tail = (2 - far).clamp(min=0) ** 3 / 6
    return torch.where(far < 1, near, tail).float()


def share_below(field: torch.Tensor) -> torch.Tensor:
    """The share of a normal field that lies below each value: uniform between 0 and 1."""
    return torch.special.ndtr(field)


def tubes(first: torch.Tensor, second: torch.Tensor, width: float) -> torch.Tensor:
    """Where two smooth fields are both near 0 there are winding tubes: 1 on their middle lines, 0 away from them."""
    return torch.exp(-(first**2 + second**2) / (2 * width**2))


def soft(mm: torch.Tensor) -> torch.Tensor:
    """0 well below 0 mm, 1 well above, with a border of about SOFT_MM."""
    return torch.sigmoid(mm / (SOFT_MM / 2))
