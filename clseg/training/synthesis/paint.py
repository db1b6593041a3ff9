"""Paint: structures in the HU of their tissues, with shell and core, vessels and content."""

from __future__ import annotations

import numpy as np
import torch

from clseg.training.synthesis.fields import share_below, smooth, soft, tubes
from clseg.training.synthesis.scene import Scene
from clseg.training.synthesis.tables import FORMS, Palette

LESION_HU = (-45.0, 45.0)


def paint_organs(scene: Scene, palette: Palette, around: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """HU of the patch: structures over what surrounds them, float32 (x, y, z)."""
    shape, spacing, near, depth = scene.near.shape, scene.spacing, scene.near, scene.depth
    fine, middle, coarse = (smooth(shape, spacing, wave, rng) for wave in (4.5, 12.0, 26.0))
    form = palette.form[near]
    core = palette.core_hu[near] + palette.fine_hu[near] * fine + palette.coarse_hu[near] * middle
    core = core + palette.branch_hu[near] * _branches(scene, middle, rng)
    core = torch.where(form == FORMS.index("hollow"), _content(scene, palette, fine, middle, coarse, rng), core)
    core = torch.where(form == FORMS.index("lung"), _lung(scene, core, coarse, rng), core)
    core = torch.where(form == FORMS.index("muscle"), _streaky(core, palette, middle, fine), core)
    shell = palette.shell_hu[near] + 0.6 * palette.fine_hu[near] * fine
    hu = core + soft(palette.shell_mm[near] - depth) * (shell - core)
    hu = hu + _lesions(scene, form, rng)
    return around + soft(depth) * (hu - around)


def _branches(scene: Scene, middle: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Vessels within organs, 0 to 1; thick and thin ones."""
    other, thin_one, thin_two = (
        smooth(scene.near.shape, scene.spacing, wave, rng) for wave in (14.0, 9.0, 9.0)
    )
    return torch.maximum(tubes(middle, other, float(rng.uniform(0.1, 0.22))), 0.7 * tubes(thin_one, thin_two, 0.2))


def _content(
    scene: Scene,
    palette: Palette,
    fine: torch.Tensor,
    middle: torch.Tensor,
    coarse: torch.Tensor,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Gas in front, fluid, stool and now and then contrast medium in hollow organs."""
    near = scene.near
    front = scene.front - scene.front.mean()
    high = share_below((coarse + 0.4 * middle + front / 45) / 1.4)
    solid = share_below(0.8 * middle - 0.6 * coarse)
    fluid = palette.mean["bowel_fluid"] + 8 * fine
    if rng.random() < 0.2:
        fluid = fluid + (palette.mean["bowel_contrast"] - fluid) * soft((middle + float(rng.uniform(-1, 1.5))) * 4)
    stool = palette.mean["stool"] + 90 * fine + 40 * middle
    hu = torch.where(solid < palette.stool[near], stool, fluid)
    return torch.where(high > 1 - palette.gas[near], palette.mean["gas"], hu)


def _lung(scene: Scene, hu: torch.Tensor, coarse: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Denser towards the back; now and then a part without air."""
    hu = hu - float(rng.uniform(0, 0.5)) * (scene.front + 40)
    if rng.random() < 0.2:
        solid = soft((coarse - float(rng.uniform(1.0, 2.2)) - scene.front / 120) * 5)
        hu = hu + solid * (float(rng.uniform(-300, 50)) - hu)
    return hu.clamp(min=-1000)


def _streaky(hu: torch.Tensor, palette: Palette, middle: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Streaks of fat in a muscle."""
    streak = torch.exp(-((middle + 0.3 * fine) ** 2) / 0.02)
    return hu + 0.35 * streak * (palette.mean["fat"] - hu)


def _lesions(scene: Scene, form: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Now and then round spots of another density deep in solid organs."""
    if rng.random() < 0.7:
        return torch.zeros(())
    field = smooth(scene.near.shape, scene.spacing, float(rng.uniform(8, 20)), rng)
    deep = soft(scene.depth - 4) * (form == FORMS.index("solid"))
    return soft((field - 1.9) * 6) * deep * float(rng.uniform(*LESION_HU))
