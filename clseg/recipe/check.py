"""What a schema cannot say: sizes that must agree, names that must be unique, supporters without a circle."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from clseg.catalogue import Catalogue
from clseg.errors import RecipeError

if TYPE_CHECKING:
    from clseg.recipe.commands import Common, LearnRecipe, PruneRecipe, Recipe, UpdateRecipe
    from clseg.recipe.parts import (
        AugmentRecipe,
        DatasetRecipe,
        DecoderRecipe,
        EncoderRecipe,
        LadderRecipe,
        OptimRecipe,
        SynthesisRecipe,
    )

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
ENDS = {"inferior", "superior", "both"}
FORMATS = {"folders": "index", "csv": "index", "nnunet": "path", "totalsegmentator": "path", "results": "path"}  # and the key that says where


def recipe(plan: Recipe) -> None:
    """Checks of `clseg train`."""
    _common(plan)
    _decoders(plan.decoder)
    _mirror(plan)
    if plan.encoder is not None:
        _encoder(plan.encoder, plan.grid.patch)
        _stages(plan)
    if plan.frozen and not plan.start:
        raise RecipeError("frozen leaves the encoder as it is in `start`, which is empty.", tip="Name the weights/ of an earlier run, or set frozen = false.")
    along_z = [d.name for d in plan.decoder if d.open_ends] + [d.name for d in plan.dataset if d.absent_above]
    if along_z and not plan.grid.orientation.endswith("S"):
        raise RecipeError(
            f"open_ends and absent_above (in '{along_z[0]}') need an orientation whose last axis points up, such as RAS, "
            f"given {plan.grid.orientation}."
        )


def _stages(plan: Recipe) -> None:
    """Decoders as deep as the encoder, and none that needs another to be finished first."""
    stages = len(plan.encoder.widths) - 1
    for decoder in plan.decoder:
        if len(decoder.widths) > stages:
            raise RecipeError(f"Decoder '{decoder.name}' has {len(decoder.widths)} stages, the encoder has levels for {stages} at most.")
        if decoder.supporters:
            raise RecipeError(
                f"Decoder '{decoder.name}' names supporters, but `clseg train` trains all decoders at once.",
                tip="Learn it with `clseg learn` when its supporters exist.",
            )


def learn(plan: LearnRecipe) -> None:
    """Checks of `clseg learn`."""
    _common(plan)
    _decoders(plan.decoder)
    _mirror(plan)
    _ladder(plan.ladder)
    if plan.support.iterations < 1 or plan.support.rate <= 0:
        raise RecipeError("[support] needs iterations of 1 or more and a rate above 0.")
    if plan.into and not re.fullmatch(NAME, plan.into):
        raise RecipeError(f"into names a model: letters, digits, ., _ and -, given '{plan.into}'.")
    for decoder in plan.decoder:
        if len(plan.ladder.multiple) not in (1, len(decoder.widths)):
            raise RecipeError(f"ladder.multiple is one number or one per stage of decoder '{decoder.name}', given {list(plan.ladder.multiple)}.")
    names = {decoder.name: decoder for decoder in plan.decoder}
    for decoder in plan.decoder:
        if not (decoder.listed or decoder.experimental):
            raise RecipeError(f"Decoder '{decoder.name}' has unlisted structures alone: nobody could ask for it.")
        if silent := [one for one in decoder.supporters if one in names and not names[one].listed]:
            raise RecipeError(f"Decoder '{decoder.name}' wants the supporter '{silent[0]}', none of whose structures is listed in the model.")
    graph = {d.name: [s for s in d.supporters if s in names] for d in plan.decoder}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise RecipeError(f"Supporters form a circle: {' → '.join(error.args[1])}.") from error


def update(plan: UpdateRecipe) -> None:
    """Checks of `clseg update`."""
    _common(plan, least=0 if plan.balance else 1)
    _datasets(plan.old, "old", needed=False)
    _open_ends("open_ends", plan.open_ends)
    if not 0 <= plan.keep <= 1:
        raise RecipeError(f"keep is a share between 0 and 1, given {plan.keep}.")
    if plan.finer < 0:
        raise RecipeError(f"finer is a number of channels, or 0 for none, given {plan.finer}.")
    if plan.balance < 0:
        raise RecipeError(f"balance is a number of cases, 0 or more, given {plan.balance}.")
    if plan.allowed_loss < 0:
        raise RecipeError(f"allowed_loss is a Dice of 0 or more, given {plan.allowed_loss}.")


def prune(plan: PruneRecipe) -> None:
    """Checks of `clseg prune`."""
    _common(plan)
    _ladder(plan.ladder)
    if plan.into and not re.fullmatch(NAME, plan.into):
        raise RecipeError(f"into names a model: letters, digits, ., _ and -, given '{plan.into}'.")
    _open_ends("open_ends", plan.open_ends)


def _mirror(plan: Recipe | LearnRecipe) -> None:
    """A mirrored left kidney is a right one: whatever has a side needs its partner in the same decoder."""
    if not plan.augment.mirror:
        return
    for decoder in plan.decoder:
        catalogue = Catalogue.builtin().with_structures(decoder.labels)
        for label in decoder.labels:
            if catalogue[label].side and catalogue[label].partner not in decoder.labels:
                raise RecipeError(
                    f"augment.mirror exchanges left and right, but '{label}' has no partner in decoder '{decoder.name}'.",
                    tip="Set augment.mirror = false in this recipe, or give the decoder both sides.",
                )


def _synthesis(rule: SynthesisRecipe) -> None:
    shares = (rule.native, rule.arterial, rule.venous)
    if min(shares) < 0 or max(shares) <= 0:
        raise RecipeError(f"[synthesis] needs native, arterial and venous of 0 or more, one above 0, given {list(shares)}.")
    for name, value in vars(rule).items():
        if isinstance(value, tuple) and not 0 <= value[0] <= value[1]:
            raise RecipeError(f"synthesis.{name} is a smallest and a largest value of 0 or more, given {list(value)}.")
        if name.endswith("_probability") and not 0 <= value <= 1:
            raise RecipeError(f"synthesis.{name} is a probability between 0 and 1, given {value}.")
        if isinstance(value, (int, float)) and value < 0:
            raise RecipeError(f"synthesis.{name} is 0 or more, given {value}.")
    if rule.deform_wave_mm[0] <= 0 or rule.organ_scale[0] <= 0:
        raise RecipeError("synthesis.deform_wave_mm and organ_scale must be above 0.")


def _common(plan: Common, least: int = 1) -> None:
    if not re.fullmatch(NAME, plan.name):
        raise RecipeError(f"A recipe's name becomes a file name: letters, digits, ., _ and -, given '{plan.name}'.")
    _datasets(plan.dataset, "dataset", needed=True)
    _synthesis(plan.synthesis)
    optim = plan.optim
    if optim.precision not in ("float32", "bfloat16", "float16"):
        raise RecipeError(f"optim.precision is float32, bfloat16 or float16, given '{optim.precision}'.")
    if optim.iterations < least or min(optim.batch, optim.deep_supervision, optim.checkpoint_every) < 1 or optim.rate <= 0:
        raise RecipeError("[optim] needs iterations, batch, deep_supervision and checkpoint_every of 1 or more and a rate above 0.")
    if optim.workers < 0:
        raise RecipeError(f"optim.workers is a number of processes, 0 or more, given {optim.workers}.")
    _optim(optim)
    _augment(plan.augment)
    if not 0 <= plan.seed < 2**63 or plan.threads < 0:
        raise RecipeError(f"seed is between 0 and 2**63 and threads 0 or more, given {plan.seed} and {plan.threads}.")
    if min(plan.validation.cases, plan.validation.every) < 0:
        raise RecipeError("[validation] needs cases and every of 0 or more.")


def _optim(rule: OptimRecipe) -> None:
    for name in ("average", "foreground", "negatives"):
        value = getattr(rule, name)
        if not 0 <= value <= 1:
            raise RecipeError(f"optim.{name} is between 0 and 1, given {value}.")
    for name in ("weight_decay", "warmup", "power"):
        value = getattr(rule, name)
        if not 0 <= value < math.inf:
            raise RecipeError(f"optim.{name} is 0 or more, given {value}.")
    if not 0 < rule.rate < math.inf or not rule.clip_norm > 0:
        raise RecipeError(f"optim.rate and clip_norm must be above 0, given {rule.rate} and {rule.clip_norm}.")


def _augment(rule: AugmentRecipe) -> None:
    for name, value in vars(rule).items():
        if isinstance(value, tuple) and not 0 < value[0] <= value[1] < math.inf:
            raise RecipeError(f"augment.{name} is a smallest and a largest value above 0, given {list(value)}.")
        if name.endswith("_probability") and not 0 <= value <= 1:
            raise RecipeError(f"augment.{name} is a probability between 0 and 1, given {value}.")
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise RecipeError(f"augment.{name} is 0 or more, given {value}.")
    if rule.stretch >= 1:
        raise RecipeError(f"augment.stretch is a share below 1, given {rule.stretch}.")


def _encoder(encoder: EncoderRecipe, patch: Sequence[int]) -> None:
    levels = len(encoder.widths)
    if not levels == len(encoder.strides) == len(encoder.kernels) == len(encoder.convs) >= 2:
        raise RecipeError("[encoder] widths, strides, kernels and convs need one entry per level, at least two levels.")
    if min(*encoder.widths, *encoder.strides, *encoder.kernels, *encoder.convs, *patch) < 1:
        raise RecipeError("[encoder] widths, strides, kernels and convs and the patch must be 1 or more.")
    stride = 1
    for s in encoder.strides:
        stride *= s
    if any(p % stride for p in patch):
        raise RecipeError(f"The patch {patch} must be divisible by the product of the strides, {stride}.")
    if max(patch) == stride:
        raise RecipeError(f"The patch {patch} must be larger than the product of the strides, {stride}.")


def _datasets(datasets: Sequence[DatasetRecipe], key: str, *, needed: bool) -> None:
    if not datasets:
        if needed:
            raise RecipeError(f"A recipe needs at least one [[{key}]].")
        return
    _unique(key, [d.name for d in datasets])
    weights = [d.weight for d in datasets]
    if min(weights) < 0 or max(weights) <= 0:
        raise RecipeError(f"Datasets need weights of 0 or more, at least one above 0, given {weights}.")
    for dataset in datasets:
        for name, source in dataset.masks.items():
            if not re.fullmatch(r"[^:]+(:\d+)?", source):
                raise RecipeError(f"masks.{name} of dataset '{dataset.name}' is 'file' or 'file:value', given '{source}'.")
        _dataset(dataset)


def _dataset(dataset: DatasetRecipe) -> None:
    """A dataset must say where it is, in the words of its format."""
    if dataset.format not in FORMATS:
        raise RecipeError(f"The format of dataset '{dataset.name}' is {', '.join(FORMATS)}, given '{dataset.format}'.")
    place = FORMATS[dataset.format]
    (other,) = {"index", "path"} - {place}
    if not getattr(dataset, place):
        raise RecipeError(f"Dataset '{dataset.name}' lacks '{place}': its format '{dataset.format}' needs it.")
    if getattr(dataset, other):
        raise RecipeError(f"Dataset '{dataset.name}' of the format '{dataset.format}' is found by '{place}', but '{other}' is given.")
    if dataset.masks and dataset.format != "folders":
        raise RecipeError(f"Dataset '{dataset.name}' has masks, which belong to the format 'folders', given '{dataset.format}'.")
    if not 0 <= dataset.val_share < 1 or dataset.fold < 0:
        raise RecipeError(f"Dataset '{dataset.name}' needs a val_share from 0 to below 1 and a fold of 0 or more.")


def _decoders(decoders: Sequence[DecoderRecipe]) -> None:
    if not decoders:
        raise RecipeError("A recipe needs at least one [[decoder]].")
    _unique("decoder", [d.name for d in decoders])
    for decoder in decoders:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", decoder.name) or decoder.name == "encoder":
            raise RecipeError(
                f"A decoder's name becomes a file name: letters, digits, _ and -, but not 'encoder', given '{decoder.name}'."
            )
        if not decoder.labels or len(set(decoder.labels)) != len(decoder.labels):
            raise RecipeError(f"Decoder '{decoder.name}' needs labels, each once, given {list(decoder.labels)}.")
        if not len(decoder.widths) == len(decoder.kernels) == len(decoder.convs) >= 1:
            raise RecipeError(f"Decoder '{decoder.name}' needs as many widths as kernels and convs, one per stage.")
        if min(*decoder.widths, *decoder.kernels, *decoder.convs) < 1:
            raise RecipeError(f"widths, kernels and convs of decoder '{decoder.name}' must be 1 or more.")
        _open_ends(f"open_ends of decoder '{decoder.name}'", decoder.open_ends, decoder.labels)
        _limits(decoder)
        _offered(decoder)
        _unique(f"supporter of decoder '{decoder.name}'", decoder.supporters)


def _limits(decoder: DecoderRecipe) -> None:
    by_label = decoder.limits if isinstance(decoder.limits, dict) else {}
    if unknown := sorted(set(by_label) - set(decoder.labels)):
        raise RecipeError(f"limits of decoder '{decoder.name}' name '{unknown[0]}', which is none of its labels.")
    for one in map(decoder.limits_of, decoder.labels):
        if one and not (len(one) == 2 and one[0] < one[1]):
            raise RecipeError(f"limits of decoder '{decoder.name}' are [low, high], given {list(one)}.")


def _offered(decoder: DecoderRecipe) -> None:
    held_back = (*decoder.experimental, *decoder.unlisted)
    if unknown := [label for label in held_back if label not in decoder.labels]:
        raise RecipeError(f"Decoder '{decoder.name}' has no label '{unknown[0]}' that could be experimental or unlisted.")
    _unique(f"experimental or unlisted structure of decoder '{decoder.name}'", held_back)


def _ladder(ladder: LadderRecipe) -> None:
    if ladder.coarser < 0:
        raise RecipeError(f"ladder.coarser is how many stages may go, 0 or more, given {ladder.coarser}.")
    for name, rungs in (("structured", ladder.structured), ("unstructured", ladder.unstructured)):
        if list(rungs) != sorted(set(rungs)) or any(not 0 < rung < 1 for rung in rungs):
            raise RecipeError(f"ladder.{name} must rise between 0 and 1, given {list(rungs)}.")
    if ladder.save not in ("time", "weights"):
        raise RecipeError(f"ladder.save is time or weights, given '{ladder.save}'.")
    if min((*ladder.multiple, ladder.iterations), default=0) < 1 or not ladder.multiple or min(ladder.retries, ladder.recovery, ladder.allowed_loss) < 0:
        raise RecipeError("[ladder] needs multiple and iterations of 1 or more and retries, recovery and allowed_loss of 0 or more.")


def _open_ends(where: str, ends: dict[str, str], labels: Sequence[str] | None = None) -> None:
    if (labels is not None and set(ends) - set(labels)) or set(ends.values()) - ENDS:
        raise RecipeError(f"{where} must map its labels to inferior, superior or both.")


def _unique(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise RecipeError(f"Every {kind} needs a name of its own, given {list(names)}.")
