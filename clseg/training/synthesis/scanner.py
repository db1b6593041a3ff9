"""Scanner: what the machine makes of a body: blur, noise, streaks, cupping, metal, a field of view that ends."""

from __future__ import annotations

import numpy as np
import torch

from clseg.recipe import SynthesisRecipe
from clseg.training.synthesis.fields import noise, spread
from clseg.training.synthesis.scene import Scene
from clseg.training.synthesis.tables import FORMS, Palette
from clseg.volume import AIR_HU


def scan(
    scene: Scene, hu: torch.Tensor, palette: Palette, rule: SynthesisRecipe, rng: np.random.Generator
) -> torch.Tensor:
    """The patch as a scanner shows it; air where the scan ends. float32 (x, y, z)."""
    if rng.random() < rule.metal_probability:
        hu = _metal(scene, hu, palette, rng)
    hu = _blurred(hu, float(rng.uniform(*rule.blur_voxels)))
    hu = hu + _noise(hu.shape, float(rng.uniform(*rule.noise_hu)), rng)
    if rng.random() < rule.streak_probability:
        hu = hu + _streaks(scene, rng)
    hu = hu + float(rng.uniform(-1, 1)) * rule.cupping_hu * (scene.hull.clamp(-100, 0) / 100)
    outside = scene.beyond
    if rng.random() < rule.field_probability:
        radius = float(rng.uniform(120, 220))
        outside = outside | (torch.hypot(scene.right, scene.front) > radius)
    return hu.clamp(AIR_HU, 3071.0).masked_fill(outside, AIR_HU)


def _blurred(hu: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur, `sigma` in voxels; the border repeats."""
    x, y, z = (_gauss(n, sigma) for n in hu.shape)
    first = (x @ hu.reshape(len(x), -1)).reshape(hu.shape)
    return y @ first @ z.T


def _gauss(n: int, sigma: float) -> torch.Tensor:
    """Rows of a Gaussian (n, n), each summing to 1."""
    away = torch.arange(n, dtype=torch.float32)[:, None] - torch.arange(n, dtype=torch.float32)[None]
    weights = torch.exp(-(away**2) / (2 * max(sigma, 1e-3) ** 2))
    return weights / weights.sum(1, keepdim=True)


def _noise(shape: torch.Size, sd: float, rng: np.random.Generator) -> torch.Tensor:
    """Normal noise, partly correlated between neighbours as reconstruction filters leave it."""
    white = noise(shape, rng)
    share = float(rng.uniform(0, 1))
    sigma = float(rng.uniform(0.5, 1.0))
    grain = _blurred(noise(shape, rng), sigma)
    grain = grain / grain.std().clamp(min=1e-6)
    return sd * (np.sqrt(1 - share) * white + np.sqrt(share) * grain)


def _streaks(scene: Scene, rng: np.random.Generator) -> torch.Tensor:
    """Stripes from side to side that differ from slice to slice, stronger in some slices and deep in the body."""
    x, y, z = scene.right.shape
    stripes = spread(noise((6, y, z), rng), (x, y, z))
    strength = torch.exp(0.7 * noise((1, 1, z), rng)).clamp(max=2.5)
    deep = (-scene.hull / 60).clamp(0, 1) ** 2
    return float(rng.uniform(8, 35)) * stripes * strength * deep


def _metal(scene: Scene, hu: torch.Tensor, palette: Palette, rng: np.random.Generator) -> torch.Tensor:
    """A ball of metal in a bone, with dark and bright rays in its slices."""
    bones = torch.nonzero((palette.form[scene.near] == FORMS.index("bone")) & (scene.depth > 4))
    if len(bones) == 0:
        return hu
    centre = bones[int(rng.integers(len(bones)))]
    at = [float(one[tuple(centre)]) for one in (scene.right, scene.front, scene.up)]
    right, front, up = scene.right - at[0], scene.front - at[1], scene.up - at[2]
    radius = float(rng.uniform(4, 16))
    flat = torch.hypot(right, front)
    rays = sum(
        float(rng.normal()) / (k**0.5) * torch.cos(k * torch.atan2(front, right) + float(rng.uniform(0, 6.28)))
        for k in range(2, 11, 2)
    )
    fade = torch.exp(-(flat - radius).clamp(min=0) / float(rng.uniform(20, 70))) * (up.abs() < radius)
    hu = hu + float(rng.uniform(80, 500)) * rays * fade
    return torch.where(torch.hypot(flat, up) < radius, palette.mean["metal"], hu)
