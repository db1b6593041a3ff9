"""Surround: the body where no structure is labelled, and what lies around it."""

from __future__ import annotations

import numpy as np
import torch

from clseg.recipe import SynthesisRecipe
from clseg.training.synthesis.fields import share_below, smooth, soft, tubes
from clseg.training.synthesis.scene import Scene
from clseg.training.synthesis.tables import Palette

SKIN_MM = 2.0
LAYER_MM = 7.0  # sheets of muscle in the wall of the belly


def surround(scene: Scene, palette: Palette, rule: SynthesisRecipe, rng: np.random.Generator) -> torch.Tensor:
    """HU of everything but structures, float32 (x, y, z)."""
    shape, within, around = rng.spawn(3)
    wall_mm = shape.uniform(*rule.wall_mm) * torch.exp(0.3 * smooth(scene.hull.shape, scene.spacing, 45.0, shape))
    flesh = _flesh(scene, palette, wall_mm, within)
    skin_at, back_mm = _skin(scene, wall_mm, rule, shape)
    hu = flesh + soft(skin_at + SKIN_MM) * (palette.mean["skin"] - flesh)
    body = soft(-skin_at)
    return body * hu + (1 - body) * _air(scene, back_mm, palette, rule, around)


def _flesh(scene: Scene, palette: Palette, wall_mm: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Fat with muscles in it, and the wall of muscle around the trunk."""
    shape, spacing = scene.hull.shape, scene.spacing
    fine, middle, coarse = (smooth(shape, spacing, wave, rng) for wave in (5.0, 13.0, 26.0))
    muscle = palette.mean["muscle"] + 8 * fine + 6 * middle
    fat = palette.mean["fat"] + 5 * fine + 6 * middle
    around = palette.muscle_around[scene.near]
    bulk = soft((around - share_below(0.8 * coarse + 0.6 * middle)) * 12)
    wall = _wall(scene, palette, wall_mm, middle)
    inside = soft(-scene.hull - 4)
    share = torch.maximum(bulk * inside, wall)
    hu = fat + share * (muscle - fat)
    hu = hu + (1 - share) * _threads(scene, palette, middle, coarse, rng) * (palette.mean["vein"] + 20 - fat)
    return hu + _lumps(scene, palette, share, rng)


def _wall(scene: Scene, palette: Palette, wall_mm: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    """Share of muscle: a sheet outside the ribs and the belly's content, thin where a muscle lies there already."""
    thickness = wall_mm * (1 - palette.covered[scene.near])
    sheet = soft(thickness - scene.hull) * soft(scene.hull + 3)
    gaps = (torch.cos(2 * torch.pi * (scene.hull + 2 * middle) / LAYER_MM) > 0.86) & (scene.hull > 2)
    return sheet * torch.where(gaps, 0.55, 1.0)


def _threads(
    scene: Scene, palette: Palette, middle: torch.Tensor, coarse: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """Vessels and strands in fat, 0 to 1, more of them deep in the body."""
    other = smooth(scene.hull.shape, scene.spacing, 11.0, rng)
    width = float(rng.uniform(0.08, 0.3))
    thick = tubes(middle, other, width)
    deep = soft(-scene.hull - 6) * 0.8 + 0.2
    return (thick * deep * float(rng.uniform(0.3, 1.1))).clamp(0, 1)


def _lumps(scene: Scene, palette: Palette, share: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Now and then something of soft tissue that nobody labelled, deep inside."""
    if rng.random() < 0.35:
        return torch.zeros(())
    field = smooth(scene.hull.shape, scene.spacing, float(rng.uniform(14, 40)), rng)
    height = float(rng.uniform(0.9, 2.2))
    what = palette.mean["gland"] if rng.random() < 0.7 else palette.mean["bowel_fluid"]
    lump = soft((field - height) * 8) * soft(-scene.hull - 15) * (1 - share)
    return lump * (what - palette.mean["fat"])


def _skin(
    scene: Scene, wall_mm: torch.Tensor, rule: SynthesisRecipe, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """mm outside the skin, and where the back is; if the case does not show it, fat of drawn thickness lies on the wall."""
    if scene.surface is not None:
        return scene.surface, scene.back_mm
    low, high = np.log(np.maximum(rule.fat_mm, 0.5))
    fat_mm = float(np.exp(rng.uniform(low, high)))
    back, side = rng.uniform(-0.25, 0.25, 2)
    lean = 1 + back * torch.tanh(scene.front / 80) + side * torch.tanh(scene.right.abs() / 100 - 1)
    uneven = torch.exp(0.2 * smooth(scene.hull.shape, scene.spacing, 110.0, rng))
    return scene.hull - (wall_mm + fat_mm * lean * uneven + SKIN_MM), scene.back_mm - fat_mm


def _air(
    scene: Scene, back_mm: float, palette: Palette, rule: SynthesisRecipe, rng: np.random.Generator
) -> torch.Tensor:
    """Air with a couch behind the back and arms at the sides."""
    hu = torch.full(scene.hull.shape, -1000.0)
    if rng.random() < rule.table_probability:
        hu = _couch(scene, hu, back_mm, palette, rng)
    if rng.random() < rule.arms_probability:
        hu = _arms(scene, hu, palette, rng)
    return hu


def _couch(scene: Scene, hu: torch.Tensor, back_mm: float, palette: Palette, rng: np.random.Generator) -> torch.Tensor:
    """A shell around foam, flat or hollow, below the rearmost place of the body."""
    top = back_mm - rng.uniform(5, 35)
    hollow = rng.uniform(0, 0.0016)
    half, thick, shell = rng.uniform(180, 260), rng.uniform(18, 70), rng.uniform(2.5, 5)
    below = top + hollow * (scene.right**2).clamp(max=half**2) - scene.front
    within = torch.minimum(torch.minimum(below, thick - below), half - scene.right.abs())
    hu = torch.where(within > 0, palette.mean["foam"], hu)
    return torch.where((within > 0) & (within < shell), palette.mean["couch"], hu)


def _arms(scene: Scene, hu: torch.Tensor, palette: Palette, rng: np.random.Generator) -> torch.Tensor:
    """Cylinders of bone in muscle in fat at both sides."""
    aside, front, radius = rng.uniform(190, 260), rng.uniform(-60, 30), rng.uniform(30, 48)
    tilt = rng.uniform(-0.2, 0.2, 2)
    away = torch.hypot(
        scene.right.abs() - aside - float(tilt[0]) * scene.up * 0.3, scene.front - front - float(tilt[1]) * scene.up
    )
    bone = rng.uniform(9, 13)
    for reach, tissue in (
        (radius, "fat"),
        (radius - rng.uniform(3, 14), "muscle"),
        (bone, "cortex"),
        (bone * 0.55, "spongiosa_long"),
    ):
        hu = torch.where(away < reach, palette.mean[tissue], hu)
    return hu
