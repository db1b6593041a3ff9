"""The recipe of the body-part regressor: `clseg bodypart train`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from clseg.errors import RecipeError
from clseg.recipe.knob import knob
from clseg.recipe.parts import DatasetRecipe


@dataclass(frozen=True)
class ScorerRecipe:
    """The slice-score network: one 3x3 convolution of step 2 per level, mean and maximum, one number."""

    widths: tuple[int, ...] = knob("channels per level; every level halves the slice", (8, 24, 48, 64, 96))
    size: int = knob("edge of a slice, pixels", 128)
    spacing_mm: float = knob("edge of a pixel, mm", 3.5)
    low_hu: float = knob("HU that becomes -1", -1000.0)
    high_hu: float = knob("HU that becomes 1", 1500.0)
    smooth_mm: float = knob("sigma of the smoothing of scores along z, mm", 10.0)


@dataclass(frozen=True)
class OrderRecipe:
    """The loss of slice order (clnet): mean squared difference of sigmoid(beta * dz) and sigmoid(alpha * dscore) over pairs of slices."""

    alpha: float = knob("factor on differences of scores", 1.0)
    beta_per_mm: float = knob("factor on differences of height, 1/mm", 0.01)
    slices: int = knob("slices drawn from one scan in a step", 8)
    window_mm: float = knob("half of the draws look at one stretch of this length, mm; the others at the whole scan", 120.0)
    across: float = knob("weight of pairs from two scans that landmarks place in one body; 0 for order within scans alone", 0.5)


@dataclass(frozen=True)
class SliceAugmentRecipe:
    """Random changes to slices: geometry and contrast once per scan, noise per slice."""

    rotation_deg: float = knob("largest turn, degrees", 15.0)
    scale: tuple[float, float] = knob("smallest and largest scale", (0.85, 1.2))
    shift_mm: float = knob("largest shift, mm", 40.0)
    mirror_probability: float = knob("flip left and right: heights have no side", 0.5)
    contrast: tuple[float, float] = knob("smallest and largest factor on HU", (0.85, 1.15))
    shift_hu: float = knob("largest offset of tissue, HU", 40.0)
    noise_hu: float = knob("largest standard deviation of noise, HU", 60.0)
    clear_outside_probability: float = knob("everything beyond the body becomes air", 0.3)
    crop_probability: float = knob("a field of view smaller than the body", 0.2)
    crop: tuple[float, float] = knob("smallest and largest share of the slice's edge that such a field of view keeps", (0.5, 1.0))


@dataclass(frozen=True)
class ScorerOptimRecipe:
    """AdamW, linear warm-up, polynomial decay; what is kept is the exponential moving average of the weights."""

    iterations: int = knob("steps", 8000)
    batch: int = knob("scans per step", 6)
    rate: float = knob("highest learning rate", 3e-3)
    weight_decay: float = knob("of convolutions; biases and norms are not decayed", 1e-2)
    warmup: int = knob("steps until the highest rate", 200)
    power: float = knob("of the polynomial decay to zero", 0.9)
    clip_norm: float = knob("largest norm of the gradient", 1.0)
    average: float = knob("decay of the moving average per step", 0.998)
    checkpoint_every: int = knob("steps between saved states", 500)

    precision: ClassVar[str] = "float32"
    workers: ClassVar[int] = 0
    record: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class BodypartRecipe:
    """`clseg bodypart train`: a network that says how high in the body a slice lies, 0 = pelvis bottom, 1 = head top."""

    name: str = knob("of the run", example="my_bodypart")
    description: str = knob("one line for the model card", "")
    licence: str = knob("of the weights; say what the data's licences allow", "")
    seed: int = knob("of every random choice", 0)
    threads: int = knob("0 leaves torch's choice", 1)
    split: str = knob("cases to learn from", "train")
    validation_split: str = knob("cases to measure on; their labels are used for landmarks only", "val")
    landmarks: str = knob("CSV of landmarks read by eye: case, landmark, z_mm above the centre of the lowest slice; empty for none", "")
    dataset: tuple[DatasetRecipe, ...] = knob("cases; labels and masks give landmarks, the order of slices needs none")
    scorer: ScorerRecipe = knob("", make=ScorerRecipe)
    order: OrderRecipe = knob("", make=OrderRecipe)
    augment: SliceAugmentRecipe = knob("", make=SliceAugmentRecipe)
    optim: ScorerOptimRecipe = knob("", make=ScorerOptimRecipe)
    folder: Path = knob("relative paths start here", make=Path.cwd, hidden=True)

    def __post_init__(self) -> None:
        check(self)


def check(plan: BodypartRecipe) -> None:
    """What a schema cannot say."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", plan.name):
        raise RecipeError(f"A recipe's name becomes a file name: letters, digits, ., _ and -, given '{plan.name}'.")
    if not plan.dataset or not any(dataset.weight > 0 for dataset in plan.dataset):
        raise RecipeError("A body-part recipe needs at least one [[dataset]] with a weight above 0.")
    scorer, order, optim = plan.scorer, plan.order, plan.optim
    if not scorer.widths or min(scorer.widths) < 1 or scorer.size < 2 ** len(scorer.widths):
        raise RecipeError(f"[scorer] needs widths of 1 or more and a size of at least 2 to the power of their number, given {scorer}.")
    if scorer.spacing_mm <= 0 or scorer.low_hu >= scorer.high_hu or scorer.smooth_mm < 0:
        raise RecipeError("[scorer] needs spacing_mm above 0, low_hu below high_hu and smooth_mm of 0 or more.")
    if order.slices < 2 or min(order.alpha, order.beta_per_mm, order.window_mm) <= 0 or order.across < 0:
        raise RecipeError("[order] needs 2 or more slices, positive alpha, beta_per_mm and window_mm, and across of 0 or more.")
    if min(optim.iterations, optim.batch, optim.checkpoint_every) < 1 or optim.rate <= 0:
        raise RecipeError("[optim] needs iterations, batch and checkpoint_every of 1 or more and a rate above 0.")
