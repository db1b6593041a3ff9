"""Cost: what a decoder weighs and how much it computes, from its spec alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from clseg.network import slabs
from clseg.network.spec import DecoderSpec, EncoderSpec, Join, Stage, Triple, joins, reached

SUPPORT_KERNEL = 27  # weights per channel pair of a support head's 3 x 3 x 3 convolution
SLABS = 3  # rows that are held, those of their convolution, and what came up for them, in units of slabs.HELD


@dataclass(frozen=True)
class Cost:
    """`parameters` of a decoder, and the `flops` of its convolutions for one window (a multiply-add is two)."""

    parameters: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.flops + other.flops)


def cost(spec: DecoderSpec, encoder: EncoderSpec, patch: Triple) -> Cost:
    """Cost of the decoder `spec` on one window of `patch` voxels, without encoder and supporters.

    All heads are weighed; only those of the finest stage compute, as in inference.
    WeightsError when the decoder cannot stand on `encoder`.
    """
    total = Cost(0, 0)
    outputs, others = len(spec.labels) + 1, sum(len(supporter.labels) + 1 for supporter in spec.supporters)
    last = len(spec.stages) - 1
    voxels_of = _voxels(encoder, patch)[-2::-1][: len(spec.stages)]
    stages = zip(spec.stages, joins(spec, encoder), voxels_of, strict=True)
    for index, (stage, join, voxels) in enumerate(stages):
        # each voxel above comes from one voxel below: stride³ weights a pair, one multiplication each
        total += Cost(prod(join.stride) * join.below * stage.up, 2 * join.below * stage.up * voxels)
        total += Cost((stage.up + outputs) * spec.bias, 0)
        inputs = stage.up + join.skip
        for width in stage.convs:
            total += _convolution(inputs, width, prod(stage.kernel), voxels) + Cost(3 * width, 0)  # bias, scale, shift
            inputs = width
        seen = voxels if index == last else 0
        total += _convolution(inputs, outputs, 1, seen)
        if others:
            total += _support_head(outputs, others, seen)
    return total


def window_bytes(encoder: EncoderSpec, decoders: Sequence[DecoderSpec], patch: Triple) -> int:
    """About what is held while windows of `patch` voxels are computed one by one on a CPU, one decoder after another.

    The most of encoder and decoders, step by step; of several decoders also the logits just
    handed out; the weights once more, which oneDNN turns; a tenth for what the allocator keeps.
    """
    voxels, alone = _voxels(encoder, patch), len(decoders) == 1
    weights = sum(cost(spec, encoder, patch).parameters for spec in decoders)
    handed_out = 0 if alone else max((len(spec.labels) + 1 for spec in decoders), default=0)
    supports = sum(len(one.labels) + 1 for one in {one for spec in decoders for one in spec.supporters})
    decoding = max((_decoding(spec, encoder, voxels, patch, alone) for spec in decoders), default=0.0)
    most = max(_encoding(encoder, voxels), decoding + (handed_out + 1.2 * supports) * prod(patch))
    return int(1.1 * 4 * (most + weights)) + SLABS * slabs.HELD


def _encoding(encoder: EncoderSpec, voxels: Sequence[int]) -> int:
    """Numbers that the encoder holds at most: the features so far, and what a level makes beside its own."""
    residual, kept, most = encoder.block == "residual", 0, 0
    before = encoder.levels[0].width * voxels[0] if residual else 0  # the stem's
    for level, count in zip(encoder.levels, voxels, strict=True):
        kept += level.width * count
        again = _made(level.width, level.width, count) if residual or level.convs > 1 else 0
        most = max(most, before + kept + (again + residual * level.width) * count)
        before = 0
    return most


def _decoding(spec: DecoderSpec, encoder: EncoderSpec, voxels: Sequence[int], patch: Triple, alone: bool) -> float:
    """Numbers that a decoder holds at most, features included, which it uses up where it runs `alone`."""
    features = [level.width * count for level, count in zip(encoder.levels, voxels, strict=True)]
    kept, below, most, count = sum(features[:-1]), features[-1], 0, voxels[-1]
    for stage, join, level, count in zip(spec.stages, joins(spec, encoder), reached(spec, encoder), voxels[-2::-1], strict=False):
        with_skip, without = _stage(stage, join, level.width if alone else 0, count)
        most = max(most, kept + below + with_skip * count)
        kept -= alone * level.width * count
        most = max(most, kept + below + without * count)
        below = stage.convs[-1] * count
    outputs = len(spec.labels) + 1
    grown = 1.5 * outputs * prod(patch) if count < prod(patch) else 0
    return max(most, kept + below + outputs * count + max(grown, _supporting(spec) * count))


def _stage(stage: Stage, join: Join, spent: int, count: int) -> tuple[int, int]:
    """Channels that a stage makes while it needs the skip, of which `spent` may be written over, and those that it holds afterwards."""
    joined, first = stage.up + join.skip, stage.convs[0]
    later = max((a + _made(a, b, count) for a, b in pairwise(stage.convs)), default=0)
    if prod(stage.kernel) == 1:  # folded: what comes up, and the same in its places
        return 2 * first, max(first, later)
    if slabs.are_worthwhile(joined, count):
        return (0 if spent == first else first), max(first, later)
    picked = join.skip if stage.skip is not None else 0
    return stage.up + picked + joined, max(joined + _made(joined, first, count), later)


def _made(inputs: int, outputs: int, count: int) -> int:
    """Channels that a convolution makes beside its input; none where the result is written over that."""
    if inputs == outputs and slabs.are_worthwhile(inputs, count):
        return 0
    return outputs + (slabs.FEW if inputs < slabs.FEW else 0)  # so many oneDNN computes with at least


def _supporting(spec: DecoderSpec) -> int:
    """Channels that a support head makes: the logits joined, and twice as many from them."""
    joined = len(spec.labels) + 1 + sum(len(one.labels) + 1 for one in spec.supporters)
    return joined + _made(joined, 2 * joined, 1) if spec.supporters else 0


def _convolution(inputs: int, outputs: int, kernel: int, voxels: int) -> Cost:
    """A convolution without bias; what it computes at the border counts in full."""
    weights = inputs * outputs * kernel
    return Cost(weights, 2 * weights * voxels)


def _support_head(own: int, others: int, voxels: int) -> Cost:
    hidden = 2 * (own + others)
    mix = _convolution(own + others, hidden, SUPPORT_KERNEL, voxels) + Cost(3 * hidden, 0)
    return mix + _convolution(hidden, own, 1, voxels) + Cost(1, 0)  # the gate


def _voxels(encoder: EncoderSpec, patch: Triple) -> list[int]:
    """Voxels of the feature map of every level, full resolution first."""
    sizes, counts = patch, []
    for level in encoder.levels:
        sizes = tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(sizes, level.kernel, level.stride, strict=True))
        counts.append(prod(sizes))
    return counts
