"""Cost: what a decoder weighs and how much it computes, from its spec alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from clseg.network.spec import DecoderSpec, EncoderSpec, Triple, joins

SUPPORT_KERNEL = 27  # weights per channel pair of a support head's 3 x 3 x 3 convolution


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

    The features of all levels; of the widest stage what goes into a convolution and out
    of it, each also in the order that oneDNN computes in; logits and their upsampling;
    the weights once more.  Measured within a tenth on five networks (LOG.md).
    """
    voxels = _voxels(encoder, patch)
    features = sum(level.width * count for level, count in zip(encoder.levels, voxels, strict=True))
    through = max((_through(spec, encoder, voxels) for spec in decoders), default=0)
    logits = 1.5 * max((len(spec.labels) + 1 for spec in decoders), default=0) * prod(patch)
    supports = sum(len(one.labels) + 1 for one in {one for spec in decoders for one in spec.supporters}) * prod(patch)
    weights = sum(cost(spec, encoder, patch).parameters for spec in decoders)
    return int(1.1 * 4 * (features + through + logits + 1.2 * supports + weights))


def _through(spec: DecoderSpec, encoder: EncoderSpec, voxels: Sequence[int]) -> int:
    """Numbers that the widest stage of a decoder holds at once."""
    stages = zip(spec.stages, joins(spec, encoder), voxels[-2::-1], strict=False)
    return max(2 * (stage.up + join.skip + max(stage.convs)) * count for stage, join, count in stages)


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
