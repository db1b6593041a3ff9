"""Slim: whole channels of a decoder are ranked, chosen and cut out; what is left is a smaller decoder, not a mask.

    keep = plan_widths(decoder, encoder, 0.5)        # which channels stay
    small = slim(decoder, encoder, keep)             # rebuilt: spec, weights, norms, heads
    trained = slice_tensors(trained, keep)           # the saved weights for late rewinding, likewise

A stage has a width of its own in every place: channels of the transposed
convolution (`up`), channels read of the encoder (`skip`), outputs of each
convolution.  Heads and support heads keep their outputs.

Importance flows from the finest logits backwards (as in NISP, Yu et al., arXiv
1711.05908): an output hands its importance to the inputs it reads, in proportion to
|weights| (L1) × strength of the input.  A convolution's channel is as strong as the
L1 of its filter, against the layer's mean, times |InstanceNorm scale|; channels
that are joined from below and from the encoder are as strong as measured
(`measured`), else 1 for the encoder's and the L1 of the filter against the
layer's mean for `up`.  A stage's joined channels share 1, so that no stage counts
less for being deep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import nn

from clseg.errors import RecipeError, TrainingError, WeightsError
from clseg.network.decoder import Decoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Join, Stage, joins, reached

Indices = tuple[int, ...]
Place = tuple[int, int]  # stage, and where in it: UP, SKIP, or CONVS and on for the convolutions
Ranks = dict[Place, list[tuple[float, int]]]  # per place its channels as (importance, index), the dearest first
UP, SKIP, CONVS = 0, 1, 2
SAVED = ("weights", "time")
CHANNEL = 180  # multiplications in the time that one channel of a voxel takes through memory and norm (measured, x86, one thread)


@dataclass(frozen=True)
class StageKeep:
    """Channels of one stage that stay, as rising indices into those it has now (`skip`: into those it reads now)."""

    up: Indices
    skip: Indices
    convs: tuple[Indices, ...]

    @property
    def places(self) -> tuple[Indices, ...]:
        """`up`, `skip`, then each convolution."""
        return (self.up, self.skip, *self.convs)


@dataclass(frozen=True)
class Keep:
    """Channels of a decoder that stay, stage by stage from the bottleneck up; stages that are not named go, the finest first."""

    stages: tuple[StageKeep, ...]

    @classmethod
    def all(cls, spec: DecoderSpec, encoder: EncoderSpec) -> Keep:
        """Everything stays."""
        return cls(
            tuple(
                StageKeep(_every(stage.up), _every(join.skip), tuple(map(_every, stage.convs)))
                for stage, join in zip(spec.stages, joins(spec, encoder), strict=True)
            )
        )

    def coarser(self) -> Keep:
        """The same without the finest stage."""
        return Keep(self.stages[:-1])

    @property
    def channels(self) -> int:
        """How many channels stay, skips included."""
        return sum(len(place) for stage in self.stages for place in stage.places)


def channels(spec: DecoderSpec, encoder: EncoderSpec) -> int:
    """How many channels a decoder has in all places: what a structured target is a share of."""
    return Keep.all(spec, encoder).channels


# --- cutting -------------------------------------------------------------------------------------------------------


def slim(decoder: Decoder, encoder: EncoderSpec, keep: Keep) -> Decoder:
    """A new decoder with the channels of `keep` and their weights; `decoder` stays as it is.

    Channels that had no effect can be cut without changing the logits.  Raises
    WeightsError when `keep` names channels that are not there, or none where one is needed.
    """
    _refuse_other(keep, Keep.all(decoder.spec, encoder))
    stages = tuple(
        replace(stage, up=len(kept.up), convs=tuple(map(len, kept.convs)), skip=_skip(stage, kept.skip, level.width))
        for stage, kept, level in zip(decoder.spec.stages, keep.stages, reached(decoder.spec, encoder), strict=False)
    )
    tensors = slice_tensors(decoder.state_dict(), keep)
    with torch.random.fork_rng(devices=[]):  # building draws weights that are overwritten at once
        small = Decoder(replace(decoder.spec, stages=stages), encoder)
    weight = next(decoder.parameters())
    small.to(weight.device, weight.dtype).load_state_dict(tensors)
    wanted = {name: parameter.requires_grad for name, parameter in decoder.named_parameters()}
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(wanted[name])
    return small.train(decoder.training)


def slice_tensors(tensors: Mapping[str, torch.Tensor], keep: Keep) -> dict[str, torch.Tensor]:
    """The weights of a decoder, by name, without the channels that go: what `slim` does, for averages and saved weights."""
    stays = {str(stage) for stage in range(len(keep.stages))}  # every name is `part.stage.…`
    sliced = {name: tensor.detach().clone() for name, tensor in tensors.items() if name.split(".")[1] in stays}
    below: Indices | None = None  # the bottleneck stays whole
    for i, kept in enumerate(keep.stages):
        up = f"ups.{i}.weight"  # (inputs, outputs, x, y, z)
        joined = (*kept.up, *(tensors[up].shape[1] + channel for channel in kept.skip))
        sliced[up] = _picked(_picked(tensors[up], 0, below), 1, kept.up)
        if (bias := f"ups.{i}.bias") in tensors:
            sliced[bias] = _picked(tensors[bias], 0, kept.up)
        inputs: Indices = joined
        for j, outputs in enumerate(kept.convs):
            block = f"convs.{i}.{j}"
            weight = f"{block}.conv.weight"  # (outputs, inputs, x, y, z)
            sliced[weight] = _picked(_picked(tensors[weight], 1, inputs), 0, outputs)
            for name in ("conv.bias", "norm.weight", "norm.bias"):
                sliced[f"{block}.{name}"] = _picked(tensors[f"{block}.{name}"], 0, outputs)
            inputs = outputs
        sliced[f"heads.{i}.weight"] = _picked(tensors[f"heads.{i}.weight"], 1, inputs)
        below = inputs
    return sliced


def _picked(tensor: torch.Tensor, axis: int, wanted: Indices | None) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor if wanted is None else tensor.index_select(axis, torch.tensor(wanted, dtype=torch.long, device=tensor.device))


def _skip(stage: Stage, kept: Indices, width: int) -> Indices | None:
    """The encoder's channels that are read; None, as in a dense decoder, when that is all of them."""
    read = kept if stage.skip is None else tuple(stage.skip[channel] for channel in kept)
    return None if read == _every(width) else read


def _refuse_other(keep: Keep, whole: Keep) -> None:
    if not keep.stages or [len(s.places) for s in keep.stages] != [len(s.places) for s in whole.stages[: len(keep.stages)]]:
        raise WeightsError("The channels to keep are those of a decoder with other stages or convolutions.")
    for i, (kept, there) in enumerate(zip(keep.stages, whole.stages, strict=False)):
        for part, (mine, all_) in enumerate(zip(kept.places, there.places, strict=True)):
            if list(mine) != sorted(set(mine) & set(all_)) or not (mine or part == SKIP):
                name = ("up", "skip")[part] if part < CONVS else f"convolution {part - CONVS}"
                raise WeightsError(f"Stage {i} has {len(all_)} channels at its {name}, which cannot be cut down to {list(mine)[:8]}.")


# --- ranking -------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Mean |x| of the channels that every stage joins, from below first, then from the encoder; filled by `measured`."""

    sums: list[torch.Tensor | None]
    calls: int = 0

    @property
    def joined(self) -> list[torch.Tensor]:
        if not self.calls or any(one is None for one in self.sums):
            raise WeightsError("No activation was measured: run the decoder on some patches first.")
        return [one / self.calls for one in self.sums if one is not None]


@contextmanager
def measured(decoder: Decoder) -> Iterator[Measured]:
    """Inside, every run of the decoder adds to the Measured that is handed out."""
    result = Measured([None] * len(decoder.convs))

    def watch(stage: int):
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            size = inputs[0].detach().abs().double().mean(dim=(0, 2, 3, 4)).cpu()
            before = result.sums[stage]
            result.sums[stage] = size if before is None else before + size
            result.calls += stage == 0

        return hook

    handles = [part[0].register_forward_pre_hook(watch(stage)) for stage, part in enumerate(decoder.convs)]
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class StageImportance:
    """Importance of every channel of a stage; `up` and `skip` together share 1, and each of `convs` does."""

    up: torch.Tensor
    skip: torch.Tensor
    convs: tuple[torch.Tensor, ...] = field(default=())


@torch.no_grad()
def importance(decoder: Decoder, activations: Sequence[torch.Tensor] | None = None) -> tuple[StageImportance, ...]:
    """How much of the finest logits flows through each channel, stage by stage from the bottleneck up.

    `activations` are those of `Measured.joined`.  Only the head of the finest stage
    counts: the others serve training.
    """
    found: list[StageImportance] = []
    wanted = torch.ones(len(decoder.spec.labels) + 1, dtype=torch.float64)
    reader = _l1(decoder.heads[-1].weight)  # (outputs, inputs)
    for i in reversed(range(len(decoder.convs))):
        blocks, convs = list(decoder.convs[i]), []
        for block in reversed(blocks):
            wanted = _flow(wanted, reader, _relative(_l1(block.conv.weight).sum(dim=1)) * block.norm.weight.abs().double().cpu())
            convs.append(wanted)
            reader = _l1(block.conv.weight)
        ups = _l1(decoder.ups[i].weight).T  # (outputs, inputs)
        strength = activations[i] if activations is not None else _strength(ups, reader.shape[1])
        joined = _flow(wanted, reader, strength.double())
        up, skip = joined.split([len(ups), len(joined) - len(ups)])
        found.append(StageImportance(up, skip, tuple(reversed(convs))))
        wanted, reader = up, ups
    return tuple(reversed(found))


def _l1(weight: torch.Tensor) -> torch.Tensor:
    """Sums of |w| over the kernel: (first axis, second axis), in double precision on the CPU."""
    return weight.detach().abs().double().sum(dim=(2, 3, 4)).cpu()


def _relative(sizes: torch.Tensor) -> torch.Tensor:
    """Against their mean; zeros where all are zero."""
    return sizes / sizes.mean().clamp(min=1e-300)


def _strength(ups: torch.Tensor, joined: int) -> torch.Tensor:
    return torch.cat([_relative(ups.sum(dim=1)), torch.ones(joined - len(ups), dtype=torch.float64)])


def _flow(wanted: torch.Tensor, reader: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Importance of inputs (sum 1, or 0 where nothing is read) from that of the outputs and `reader` (outputs, inputs)."""
    flow = reader * strength
    shares = flow / flow.sum(dim=1, keepdim=True).clamp(min=1e-300)
    inputs = wanted @ shares
    return inputs / inputs.sum().clamp(min=1e-300)


# --- choosing ------------------------------------------------------------------------------------------------------


def plan_widths(
    decoder: Decoder,
    encoder: EncoderSpec,
    target: float,
    multiple: int | Sequence[int] = 8,
    *,
    dense_channels: int | None = None,
    activations: Sequence[torch.Tensor] | None = None,
    thrift: float = 0.5,
    save: str = "weights",
) -> Keep:
    """Which channels stay when a share `target` of all channels is to go.

    Widths become multiples of `multiple` (one for all stages, or one per stage from
    the bottleneck up) and never smaller; what is narrower from the start stays.
    Channels go in groups, always the cheapest next, until the number of channels gone
    is as near to the target as these steps lead.  A group's price is
    −log(share of its place's importance that is left after it) / (what it saves)^`thrift`:
    the emptier a place, the dearer what is left there.  `thrift` 0 looks at importance
    alone, 1 pays for everything saved alike.  What is saved are `weights`, for small
    files, or `time`, for fast decoders.  `dense_channels`: what `target` is a
    share of, when `decoder` is smaller already (default: its own channels).  Raises
    TrainingError when a weight is not a number.

    The same decoder always gives the same plan.  A plan that keeps everything, or as much
    as the one before, means that there is nothing left to take.
    """
    if save not in SAVED:
        raise RecipeError(f"Pruning saves {' or '.join(SAVED)}, given '{save}'.")
    rule = _Rule(decoder.spec, joins(decoder.spec, encoder), _steps(multiple, len(decoder.spec.stages)), thrift, save)
    if not 0 <= target < 1:
        raise RecipeError(f"A pruning target is a share from 0 to below 1, given {target}.")
    ranks = _ranked(importance(decoder, activations))
    widths = {place: len(values) for place, values in ranks.items()}
    have = sum(widths.values())
    wanted = have - (1 - target) * (have if dense_channels is None else dense_channels)  # channels to go

    gone = 0
    while gone < wanted:
        chosen = _cheapest(ranks, widths, rule)
        if chosen is None:
            break
        place, width = chosen
        step = widths[place] - width
        if gone + step - wanted > wanted - gone:
            break
        widths[place], gone = width, gone + step
    return _kept(ranks, widths, decoder.spec)


def _steps(multiple: int | Sequence[int], stages: int) -> tuple[int, ...]:
    steps = (multiple,) * stages if isinstance(multiple, int) else tuple(multiple)
    if len(steps) != stages or min(steps) < 1:
        raise RecipeError(f"Widths need a multiple of at least 1 for each of {stages} stages, given {multiple}.")
    return steps


def _ranked(importances: Sequence[StageImportance]) -> Ranks:
    """Per place its channels as (importance, index), the dearest first; of equals the first index."""
    ranks: Ranks = {}
    for i, stage in enumerate(importances):
        for part, values in enumerate((stage.up, stage.skip, *stage.convs)):
            if not bool(values.isfinite().all()):
                raise TrainingError(f"The channels of stage {i} cannot be ranked: a weight or an activation is not a number.")
            ranks[i, part] = sorted(((float(v), c) for c, v in enumerate(values)), key=lambda pair: (-pair[0], pair[1]))
    return ranks


def _cheapest(ranks: Ranks, widths: Mapping[Place, int], rule: _Rule) -> tuple[Place, int] | None:
    """The place to make narrower and its next width; None when there is none that would save something."""
    whole = rule.cost(widths)
    offers = []
    for place, width in widths.items():
        step = rule.steps[place[0]]
        smaller = (width - 1) // step * step
        if smaller < step:
            continue
        left = sum(value for value, _ in ranks[place][:width])
        lost = sum(value for value, _ in ranks[place][smaller:width])
        saved = whole - rule.cost({**widths, place: smaller})
        if lost and not saved:
            continue  # it would cost something for nothing
        price = -math.log1p(-lost / left) / saved**rule.thrift if lost else 0.0
        offers.append((price, -saved, place, smaller))
    return min(offers)[2:] if offers else None


@dataclass(frozen=True)
class _Rule:
    """What prices depend on besides importance: steps of the widths per stage, the decoder's wiring, thrift, what to save."""

    spec: DecoderSpec
    wiring: Sequence[Join]
    steps: tuple[int, ...]
    thrift: float
    save: str = "weights"

    def cost(self, widths: Mapping[Place, int]) -> int:
        """Of a decoder with these widths, in weights or in multiplications' worth of time for a bottleneck of one voxel."""
        return self.weights(widths) if self.save == "weights" else self.time(widths)

    def time(self, widths: Mapping[Place, int]) -> int:
        """Per stage its voxels × (multiplications of a voxel + what moving its channels costs).

        Where a stage is folded (`clseg.network.fold`) its first convolution reads what is
        below and the encoder's features, whatever comes up or is skipped.
        """
        total, below, voxels = 0, self.wiring[0].below, 1
        for i, (stage, join) in enumerate(zip(self.spec.stages, self.wiring, strict=True)):
            voxels *= prod(join.stride)
            if stage.convs and prod(stage.kernel) == 1:
                multiplications, moved, below = 0, 0, below + join.skip
            else:
                multiplications, moved = below * widths[i, UP], widths[i, UP] + widths[i, SKIP]
                below = moved
            for j in range(len(stage.convs)):
                multiplications += below * widths[i, CONVS + j] * prod(stage.kernel)
                below = widths[i, CONVS + j]
                moved += below
            total += voxels * (multiplications + CHANNEL * moved)
        return total

    def weights(self, widths: Mapping[Place, int]) -> int:
        """Convolution weights of a decoder with these widths."""
        total, below = 0, self.wiring[0].below
        for i, (stage, join) in enumerate(zip(self.spec.stages, self.wiring, strict=True)):
            total += below * widths[i, UP] * prod(join.stride)
            below = widths[i, UP] + widths[i, SKIP]
            for j in range(len(stage.convs)):
                total += below * widths[i, CONVS + j] * prod(stage.kernel)
                below = widths[i, CONVS + j]
            total += below * (len(self.spec.labels) + 1)
        return total


def _kept(ranks: Ranks, widths: Mapping[Place, int], spec: DecoderSpec) -> Keep:
    def best(place: Place) -> Indices:
        return tuple(sorted(channel for _, channel in ranks[place][: widths[place]]))

    return Keep(
        tuple(
            StageKeep(best((i, UP)), best((i, SKIP)), tuple(best((i, CONVS + j)) for j in range(len(stage.convs))))
            for i, stage in enumerate(spec.stages)
        )
    )


def _every(width: int) -> Indices:
    return tuple(range(width))
