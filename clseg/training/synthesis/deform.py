"""Deform: smooth displacements of a patch, in mm, strong enough for another body and too smooth to fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clseg.recipe import SynthesisRecipe
from clseg.training.synthesis.fields import SHARE, knots_for, noise, spread

STEEPEST = 0.2  # standard deviation of a displacement per mm between knots; folding needs a slope of 1, five times this
KNOT_MM = 18.0  # organs are moved on knots of this distance


def displacement(
    shape: Sequence[int], spacing: Sequence[float], rule: SynthesisRecipe, rng: np.random.Generator
) -> torch.Tensor:
    """How far every voxel looks away from its place, mm, float32 (3, x, y, z)."""
    wave = rng.uniform(*rule.deform_wave_mm)
    sd = rng.uniform(0.2, 1) * min(rule.deform_mm / 2.5, STEEPEST * wave)
    broad = noise((3, *knots_for(shape, spacing, wave)), rng) * sd / SHARE
    limit = max(rule.deform_mm, 1e-6)
    local = _organs(shape, spacing, rule, rng)
    return torch.stack(
        [limit * torch.tanh(spread(b, shape) / limit) + spread(n, shape) for b, n in zip(broad, local, strict=True)]
    )


def _organs(
    shape: Sequence[int], spacing: Sequence[float], rule: SynthesisRecipe, rng: np.random.Generator
) -> torch.Tensor:
    """Bumps that swell, shrink and move what lies in them, on knots: mm, (3, kx, ky, kz)."""
    knots = knots_for(shape, spacing, KNOT_MM)
    size = torch.tensor([n * s for n, s in zip(shape, spacing, strict=True)], dtype=torch.float32)
    axes = [(torch.arange(k) - 1) / (k - 3) * s for k, s in zip(knots, size.tolist(), strict=True)]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    total = torch.zeros_like(place)
    for _ in range(rule.organs):
        centre = torch.tensor(rng.uniform(0.15, 0.85, 3), dtype=torch.float32) * size
        sigma = rng.uniform(1.3, 3.0) * KNOT_MM
        zoom = 1 / float(np.exp(rng.uniform(*np.log(rule.organ_scale)))) - 1
        steepest = 2.2  # a Gaussian of height 1 falls by at most 1 / (e^0.5 sigma)
        move = torch.tensor(rng.uniform(-1, 1, 3) * min(rule.organ_shift_mm, sigma / steepest), dtype=torch.float32)
        away = place - centre[:, None, None, None]
        near = torch.exp(-(away**2).sum(0) / (2 * sigma**2))
        total += near * (zoom * away + move[:, None, None, None])
    return total
