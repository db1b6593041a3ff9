"""Specs: the shape of every network as data, stored in the checkpoint it describes.

A spec is plain numbers, so that thinner encoders, pruned decoders with a width of
their own per layer, and foreign networks are all the same code with other numbers.
Axes are in the order of the model's own orientation (`Grid.orientation`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from clseg.errors import WeightsError
from clseg.network.plan import SCHEMES, Plan, exactly, plan_from_dict

Triple = tuple[int, int, int]

BLOCKS = ("plain", "residual")
MISMATCHES = ("", "crop", "resize")
_LATER = {"later": True}  # fields that older files lack; left out where they have their default, so that fingerprints stay


@dataclass(frozen=True)
class Intensity:
    """HU → network input: clip to [`low`, `high`], subtract `mean`, divide by `sd` (all HU)."""

    low: float
    high: float
    mean: float
    sd: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.sd > 0):
            raise WeightsError(f"An intensity rule needs low < high and sd > 0, given {self}.")


@dataclass(frozen=True)
class Grid:
    """The grid that a network was trained on.

    `orientation` says where the three axes point (e.g. 'RAS'), `spacing` their
    voxel size in mm, `patch` the window in voxels.
    """

    orientation: str
    spacing: tuple[float, float, float]
    patch: Triple

    def __post_init__(self) -> None:
        pairs = sorted("LRPAIS".index(c) // 2 for c in self.orientation if c in "LRPAIS")
        if len(self.orientation) != 3 or pairs != [0, 1, 2]:
            raise WeightsError(f"An orientation is three letters such as RAS, given '{self.orientation}'.")
        if min(self.spacing) <= 0 or min(self.patch) < 1:
            raise WeightsError(f"Spacing and patch must be positive, given {self.spacing} and {self.patch}.")


@dataclass(frozen=True)
class Level:
    """One level of the encoder: `convs` convolutions of `width` channels, the first with `stride`."""

    width: int
    stride: Triple
    kernel: Triple
    convs: int


@dataclass(frozen=True)
class EncoderSpec:
    """The general encoder: its levels from full resolution to bottleneck, and what it eats.

    `levels[0].stride` may be larger than 1 (a strided stem); logits are then
    upsampled trilinearly to the patch.  `block` is what a level is made of: "plain"
    convolutions, or "residual" blocks of two behind a stem, as in nnU-Net's ResEnc;
    `convs` then counts blocks.  `scheme` is "ct" where `intensity` is how HU become its
    input; another word (see `clseg.network.plan.SCHEMES`) means that only decoders with a
    plan can be run on it, and none be learned.
    """

    levels: tuple[Level, ...]
    grid: Grid
    intensity: Intensity
    channels: int = 1
    norm: str = "instance"
    block: str = field(default="plain", metadata=_LATER)
    scheme: str = field(default="ct", metadata=_LATER)

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise WeightsError("An encoder has at least two levels.")
        if self.block not in BLOCKS:
            raise WeightsError(f"An encoder is built of {' or '.join(BLOCKS)} blocks, given '{self.block}'.")
        if self.scheme not in SCHEMES:
            raise WeightsError(f"An encoder's intensity scheme is one of {', '.join(SCHEMES)}, given '{self.scheme}'.")
        if self.norm != "instance":
            raise WeightsError(f"Only 'instance' normalisation is known, given '{self.norm}'.")

    @property
    def total_stride(self) -> Triple:
        """Product of all strides: windows must be divisible by it."""
        total = [1, 1, 1]
        for level in self.levels:
            total = [t * s for t, s in zip(total, level.stride, strict=True)]
        return tuple(total)  # type: ignore[return-value]


@dataclass(frozen=True)
class Stage:
    """One step of a decoder: transposed convolution to `up` channels, join the skip, then `convs` widths in turn.

    `skip` are the indices of the encoder's channels that this stage reads, rising; None: all.
    """

    up: int
    convs: tuple[int, ...]
    kernel: Triple
    skip: tuple[int, ...] | None = field(default=None, metadata=_LATER)

    def __post_init__(self) -> None:
        if self.skip is None:
            return
        whole = all(isinstance(channel, int) and channel >= 0 for channel in self.skip)
        if not whole or list(self.skip) != sorted(set(self.skip)):
            raise WeightsError(f"The skip channels of a stage are indices from 0, rising, each once, given {self.skip}.")


@dataclass(frozen=True)
class Supporter:
    """A frozen decoder whose logits help another one: its name, its labels and the fingerprint of its weights."""

    name: str
    labels: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class DecoderSpec:
    """One decoder: `stages` from the bottleneck up, `labels` without background.

    With fewer stages than the encoder has steps its logits are coarser than the window,
    and are upsampled trilinearly: in training a finest stage costs as much as all others together.

    `last_activation` is False where the last convolution of every stage goes
    without LeakyReLU, as in CL-Net; a stage with a single convolution keeps it.
    `supporters` are the decoders whose logits feed its support heads, in this order;
    `support_bias` is whether the last convolution of those heads has a bias, `bias`
    whether transposed convolutions and heads have one.  `mismatch` says what happens
    where a window is not divisible by the strides and a stage meets a skip of another
    size: "crop" both around their centres to what they share, "resize" what comes from
    below to the skip; "" is an error.  `plan` is what the program that trained the
    decoder does around it (None: it is one of ours).
    """

    stages: tuple[Stage, ...]
    labels: tuple[str, ...]
    last_activation: bool = False
    supporters: tuple[Supporter, ...] = field(default=(), metadata=_LATER)
    bias: bool = field(default=False, metadata=_LATER)
    plan: Plan | None = field(default=None, metadata=_LATER)
    mismatch: str = field(default="", metadata=_LATER)
    support_bias: bool = field(default=False, metadata=_LATER)

    def __post_init__(self) -> None:
        if self.mismatch not in MISMATCHES:
            raise WeightsError(f"A decoder's mismatch is one of {', '.join(map(repr, MISMATCHES))}, given {self.mismatch!r}.")
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise WeightsError(f"A decoder needs labels, each once, given {self.labels}.")
        names = [supporter.name for supporter in self.supporters]
        if len(set(names)) != len(names):
            raise WeightsError(f"A decoder names each of its supporters once, given {', '.join(names)}.")


@dataclass(frozen=True)
class Join:
    """Where a stage meets the encoder: channels from below, the factor to grow by, channels of the skip that it reads."""

    below: int
    stride: Triple
    skip: int


def joins(spec: DecoderSpec, encoder: EncoderSpec) -> tuple[Join, ...]:
    """One Join per stage of `spec`; WeightsError when the decoder cannot stand on `encoder`."""
    if not 1 <= len(spec.stages) < len(encoder.levels):
        told = f"A decoder for this encoder has 1 to {len(encoder.levels) - 1} stages, this spec has {len(spec.stages)}."
        raise WeightsError(told)
    below = [encoder.levels[-1].width, *(stage.convs[-1] for stage in spec.stages[:-1])]
    strides = [level.stride for level in encoder.levels[:0:-1]]
    skips = [_skip_width(i, stage, level) for i, (stage, level) in enumerate(zip(spec.stages, reached(spec, encoder), strict=True))]
    return tuple(map(Join, below, strides, skips))


def reached(spec: DecoderSpec, encoder: EncoderSpec) -> tuple[Level, ...]:
    """The encoder's levels whose features the stages of `spec` read, in their order: from the bottleneck's neighbour up."""
    return encoder.levels[-2::-1][: len(spec.stages)]


def _skip_width(index: int, stage: Stage, level: Level) -> int:
    if stage.skip is None:
        return level.width
    if stage.skip and stage.skip[-1] >= level.width:
        raise WeightsError(f"Stage {index} reads skip channel {stage.skip[-1]}, the encoder's level has {level.width} (0 to {level.width - 1}).")
    return len(stage.skip)


def paper_encoder(grid: Grid, intensity: Intensity) -> EncoderSpec:
    """The general encoder of CL-Net (arXiv 2503.12698): 32…320 channels, strides 1, [2,2,1], 4 × 2.

    The anisotropic step is the last axis (head-foot in RAS), which the paper
    writes first.  14 006 112 parameters with two convolutions per level.
    """
    widths = (32, 64, 128, 256, 320, 320)
    strides = ((1, 1, 1), (2, 2, 1), *((2, 2, 2),) * 4)
    kernels = ((3, 3, 1), *((3, 3, 3),) * 5)
    levels = tuple(Level(w, s, k, 2) for w, s, k in zip(widths, strides, kernels, strict=True))
    return EncoderSpec(levels, grid, intensity)


def paper_decoder(labels: tuple[str, ...], base_width: int = 32) -> DecoderSpec:
    """A dense CL-Net decoder: widths min(b·2^i, 320) from the bottleneck down to b, two convolutions a stage."""
    widths = [max(base_width, min(base_width * 2**i, 320)) for i in (4, 3, 2, 1, 0)]
    return DecoderSpec(tuple(Stage(w, (w, w), (3, 3, 3)) for w in widths), labels)


def to_dict(spec: Any) -> Any:
    """A spec as plain JSON types."""
    if isinstance(spec, tuple):
        return tuple(map(to_dict, spec))
    if not dataclasses.is_dataclass(spec):
        return spec
    kept = [f.name for f in dataclasses.fields(spec) if "later" not in f.metadata or getattr(spec, f.name) != f.default]
    return {name: to_dict(getattr(spec, name)) for name in kept}


def encoder_from_dict(data: dict[str, Any]) -> EncoderSpec:
    """Inverse of `to_dict` for an encoder; raises WeightsError when a field is missing or unknown."""
    try:
        fields = exactly(EncoderSpec, data)
        levels = tuple(Level(**exactly(Level, v)) for v in fields["levels"])
        grid, intensity = Grid(**exactly(Grid, fields["grid"])), Intensity(**exactly(Intensity, fields["intensity"]))
        return EncoderSpec(**{**fields, "levels": levels, "grid": grid, "intensity": intensity})
    except TypeError as error:
        raise WeightsError(f"The encoder's spec is not usable: {error}.") from error


def decoder_from_dict(data: dict[str, Any]) -> DecoderSpec:
    """Inverse of `to_dict` for a decoder; raises WeightsError when a field is missing or unknown."""
    try:
        fields = exactly(DecoderSpec, data)
        stages = tuple(Stage(**exactly(Stage, v)) for v in fields["stages"])
        supporters = tuple(Supporter(**exactly(Supporter, v)) for v in fields.get("supporters", ()))
        plan = plan_from_dict(fields["plan"]) if fields.get("plan") is not None else None
        return DecoderSpec(**{**fields, "stages": stages, "supporters": supporters, "plan": plan})
    except TypeError as error:
        raise WeightsError(f"The decoder's spec is not usable: {error}.") from error
