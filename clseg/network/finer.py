"""A decoder that ends one level finer and says at first about what it said, on finer voxels.

The counterpart of the first rungs of pruning, which take the finest stages away.  As
`clseg.network.fold` shows, a stage of 1×1×1 convolutions costs little even at full resolution.

The new stage hands on what the last one made: its transposed convolution copies every
channel to the voxels that come up, its convolution reads next to nothing else, and
its norm, which would take away a channel's mean and spread, gives those back that the
channel has where the last norm's output is normally distributed.  Its head is the last one's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from clseg.errors import WeightsError
from clseg.network.decoder import Decoder
from clseg.network.spec import EncoderSpec, Stage
from clseg.network.widen import FAINT, WIDEST

if TYPE_CHECKING:
    import numpy as np

POINT = (1, 1, 1)
NODES = 64  # of the quadrature over a normal distribution


def finer(decoder: Decoder, width: int, encoder: EncoderSpec, seed: int = 0) -> Decoder:
    """`decoder` with one more stage of `width` channels: transposed convolution, skip, one 1×1×1 convolution.

    The first channels are those of the last stage, so that there must be at least as many; others begin as in a new decoder.
    Logits at the coarser levels are what they were; those at the new one are close to the finest of these, each on all voxels above it
    (less so where the last stage ended without activation: the new one has one).
    Raises WeightsError where the encoder has no finer level, and for a width that is smaller or above 1024.
    """
    stages = decoder.spec.stages
    if len(stages) >= len(encoder.levels) - 1:
        raise WeightsError("The decoder ends at the finest level of its encoder.", tip="Leave `finer` out.")
    least = stages[-1].convs[-1]
    if not least <= width <= WIDEST:
        raise WeightsError(f"A finer stage has as many channels as the one before, {least}, to {WIDEST}, given {width}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = Decoder(replace(decoder.spec, stages=(*stages, Stage(width, (width,), POINT))), encoder)
    grown.load_state_dict({**grown.state_dict(), **decoder.state_dict()})
    _hand_on(grown, least)
    return grown


@torch.no_grad()
def _hand_on(grown: Decoder, count: int) -> None:
    """The first `count` channels of the last stage become those of the stage before."""
    up, block, head = grown.ups[-1], grown.convs[-1][0], grown.heads[-1]
    before, last = grown.convs[-2][-1], grown.heads[-2]
    same = torch.eye(count)[:, :, None, None, None]
    up.weight[:, :count] *= FAINT  # (inputs, outputs, strides); not zero, which would be taken for pruned
    up.weight[:, :count] += same
    block.conv.weight[:count] *= FAINT
    block.conv.weight[:count, :count] += same
    block.norm.bias[:count], block.norm.weight[:count] = _moments(before.norm, before.act)
    head.weight[:, count:] *= FAINT
    head.weight[:, :count] = last.weight
    for bias in (up.bias, block.conv.bias):
        if bias is not None:
            bias[:count] = 0
    if head.bias is not None:
        head.bias[:] = last.bias
    if grown.support:
        grown.support[-1].load_state_dict(grown.support[-2].state_dict())


def _moments(norm: nn.InstanceNorm3d, act: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every channel behind norm and activation, what is normalised being normally distributed."""
    nodes, weights = (torch.from_numpy(one).to(norm.weight) for one in _normal())
    values = act(norm.weight[:, None] * nodes + norm.bias[:, None])
    mean = (values * weights).sum(1)
    return mean, ((values - mean[:, None]).square() * weights).sum(1).sqrt()


def _normal() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the standard normal distribution (Gauss–Hermite)."""
    from numpy.polynomial.hermite_e import hermegauss

    nodes, weights = hermegauss(NODES)
    return nodes, weights / math.sqrt(2 * math.pi)
