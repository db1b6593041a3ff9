"""Fold: where a stage begins with a 1×1×1 convolution, what comes up and the skip are read in turn, and nothing is joined.

A transposed convolution and a 1×1×1 convolution are both linear and nothing lies between
them, so that two matrices do the work of three: one from what is below to the voxels that
come up from it, one from the skip.  A small decoder that ends at full resolution takes half
the time so (LOG.md, 2026-11-26).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from clseg.network.slabs import LAST, Joined

if TYPE_CHECKING:
    from clseg.network.blocks import PointConv, Up


def fold(conv: PointConv, joined: Joined) -> torch.Tensor:
    """`conv` of what is joined, less its bias, which a norm takes away: (1, outputs, x, y, z) in float32, channels first."""
    width = joined.up.out_channels
    of_below, of_skip = conv.weight.flatten(1).split([width, conv.in_channels - width], dim=1)
    raised = _raised(joined.up, of_below, joined.below)
    raised.view(len(of_below), -1).addmm_(joined.chosen.spread(of_skip, joined.skip.shape[1]), _columns(joined.skip))
    return raised


def _raised(up: Up, weight: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """`weight` (outputs, channels that come up) of what comes up from `below`, its bias left out likewise."""
    (inputs, channels, *stride), size = up.weight.shape, below.shape[2:]
    matrix = weight @ up.weight.permute(1, 2, 3, 4, 0).reshape(channels, -1)  # (outputs, strides · inputs)
    matrix = matrix.view(-1, inputs)  # rows: output, then the place within the stride
    placed = (matrix @ _columns(below)).view(-1, *stride, *size).permute(0, 4, 1, 5, 2, 6, 3)
    return placed.contiguous().view(1, len(weight), *(n * s for n, s in zip(size, stride, strict=True)))


def _columns(x: torch.Tensor) -> torch.Tensor:
    """One window (1, channels, x, y, z) as (channels, voxels), wherever its channels lie in memory."""
    if x.is_contiguous(memory_format=LAST):
        return x.permute(0, 2, 3, 4, 1).view(-1, x.shape[1]).T
    return x.flatten(2)[0]
