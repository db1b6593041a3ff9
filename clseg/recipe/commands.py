"""One recipe per training command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clseg.recipe import check
from clseg.recipe.knob import knob
from clseg.recipe.parts import (
    AugmentRecipe,
    DatasetRecipe,
    DecoderRecipe,
    EncoderRecipe,
    GridRecipe,
    IntensityRecipe,
    LadderRecipe,
    OptimRecipe,
    SupportRecipe,
    SynthesisRecipe,
    ValidationRecipe,
)


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every run needs."""

    name: str = knob("of the run", example="my_run")
    description: str = knob("one line for the model card", "")
    licence: str = knob("of the weights; say what the data's licences allow", "")
    seed: int = knob("of every random choice", 0)
    threads: int = knob("0 leaves torch's choice", 0)
    device: str = knob("auto, cpu, cuda, cuda:N or mps", "auto")
    split: str = knob("cases to learn from", "train")
    dataset: tuple[DatasetRecipe, ...] = knob("cases with the same kind of labels; as many as there are")
    augment: AugmentRecipe = knob("", make=AugmentRecipe)
    synthesis: SynthesisRecipe = knob("", make=SynthesisRecipe)
    optim: OptimRecipe = knob("", make=OptimRecipe)
    validation: ValidationRecipe = knob("", make=ValidationRecipe)
    folder: Path = knob("relative paths start here", make=Path.cwd, hidden=True)

    @property
    def judged_on_training(self) -> bool:
        """Whether decoders are judged on the cases that they learn from, and nothing is held out."""
        return self.validation.split == self.split


@dataclass(frozen=True, kw_only=True)
class Recipe(Common):
    """`clseg train`: a general encoder and its decoders, jointly."""

    grid: GridRecipe = knob("", make=GridRecipe)
    intensity: IntensityRecipe = knob("", make=IntensityRecipe)
    encoder: EncoderRecipe | None = knob("", make=EncoderRecipe)  # None: a frozen one, made elsewhere
    decoder: tuple[DecoderRecipe, ...] = knob("one organ family each")
    bodypart: str = knob("weights of a body-part regressor (`clseg bodypart train`), from which decoders get their ranges; empty: none", "")
    start: str = knob("weights/ of an earlier run to go on from: parts of the same name, which must have the same shape; empty: random weights", "")
    frozen: bool = knob("leave the encoder as it is in `start`, so that decoders elsewhere that stand on it go on fitting", False)

    def __post_init__(self) -> None:
        check.recipe(self)


@dataclass(frozen=True, kw_only=True)
class LearnRecipe(Common):
    """`clseg learn`: new decoders on the frozen encoder of a model; everything the model knew stays as it is."""

    model: str = knob("the model whose encoder is used, and which the new decoders join", "starter")
    into: str = knob("list the new decoders in this model instead; empty: in the same", "")
    decoder: tuple[DecoderRecipe, ...] = knob("one organ family each")
    support: SupportRecipe = knob("", make=SupportRecipe)
    ladder: LadderRecipe = knob("", make=LadderRecipe)
    probe: str = knob("a CT to prove on that earlier organs did not change; empty: a synthetic torso", "")

    def __post_init__(self) -> None:
        check.learn(self)


@dataclass(frozen=True, kw_only=True)
class UpdateRecipe(Common):
    """`clseg update`: an existing decoder learns from new cases of the same organs, as an average of old and new."""

    model: str = knob("the model that holds the decoder", "starter")
    decoder: str = knob("which decoder, by its name in the manifest, with or without the model before it", example="neuraxis")
    open_ends: dict[str, str] = knob("structures contoured only in part along z: inferior, superior or both; those of other decoders of the model are passed over", make=dict)
    keep: float = knob("share of the old weights in the result", 0.5)
    allowed_loss: float = knob("mean Dice that the old cases may lose; more is refused", 0.01)
    widths: tuple[int, ...] = knob("channels per stage to which the decoder grows first, coarsest stage first; empty: as it is", ())
    finer: int = knob("channels of a further stage, one level finer, that the decoder gets first, at least those of its last; 0: it ends where it did", 0)
    balance: int = knob("at the end move every label's bias to where Dice is highest on at most so many training cases; 0: leave it", 0)
    old: tuple[DatasetRecipe, ...] = knob("held-out cases of what it learned from before (split: validation.split)", ())
    probe: str = knob("a CT to prove on that other organs did not change; empty: a synthetic torso", "")

    @property
    def grows(self) -> bool:
        """Whether the decoder becomes another network before it learns."""
        return bool(self.widths or self.finer)

    def __post_init__(self) -> None:
        check.update(self)


@dataclass(frozen=True, kw_only=True)
class PruneRecipe(Common):
    """`clseg prune MODEL DECODER`: the lottery-ticket ladder for an existing decoder."""

    open_ends: dict[str, str] = knob("structures contoured only in part along z: inferior, superior or both; those of other decoders of the model are passed over", make=dict)
    ladder: LadderRecipe = knob("", make=LadderRecipe)
    into: str = knob("list the pruned decoder in this model instead of in its own place; empty: replace", "")
    probe: str = knob("a CT to prove on that other organs did not change; empty: a synthetic torso", "")

    def __post_init__(self) -> None:
        check.prune(self)
