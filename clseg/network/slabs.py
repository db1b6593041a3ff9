"""Slabs: a large convolution computed a few rows of its first axis at a time, so that what goes in never exists twice, nor joined.

Whether and where is cut depends on shapes alone, so that results do not depend on threads, plans or memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm, prod
from typing import Protocol

import torch
from torch import nn

from clseg.allocator import give_back
from clseg.network import winograd

LARGE = 64 << 20  # bytes that go into a convolution; with fewer there is little to save
HELD = 16 << 20  # bytes of them that are held at a time
FEW = 16  # channels; with fewer it takes longer to turn them than is won
LAST = torch.channels_last_3d


class Source(Protocol):
    """What is convolved, row by row along the first axis: numbers of the shape (1, channels, x, y, z).

    `step` is what the rows asked for begin at multiples of.
    """

    shape: tuple[int, ...]
    step: int

    def fill(self, target: torch.Tensor, first: int, last: int) -> None:
        """Writes the rows `first` to `last` to `target` (1, channels, last - first, y, z)."""
        ...


@dataclass(frozen=True)
class Whole:
    """A feature map."""

    x: torch.Tensor
    step: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    def fill(self, target: torch.Tensor, first: int, last: int) -> None:
        target.copy_(self.x[:, :, first:last])


@dataclass(frozen=True)
class Joined:
    """What comes `up` from `below` and the channels of `skip` that `chosen` picks, side by side."""

    below: torch.Tensor
    up: nn.ConvTranspose3d
    skip: torch.Tensor
    chosen: nn.Module
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, self.channels, *self.skip.shape[2:])

    @property
    def step(self) -> int:
        return self.up.stride[0]

    def fill(self, target: torch.Tensor, first: int, last: int) -> None:
        width = self.up.out_channels
        target[:, :width] = self.up(self.below[:, :, first // self.step : last // self.step])
        target[:, width:] = self.chosen(self.skip[:, :, first:last])


def are_worthwhile(channels: int, voxels: int) -> bool:
    """Whether a convolution of float32 `channels` of one window is computed in slabs."""
    return channels >= FEW and 4 * channels * voxels >= LARGE


def convolved(conv: nn.Conv3d, source: Source, out: torch.Tensor | None = None) -> torch.Tensor:
    """`conv` of the source by oneDNN: (1, outputs, x, y, z), channels last; without a gradient, on a CPU.

    `out` may be memory of the source itself: a row is written when nobody reads it any more.
    """
    give_back()  # what smaller layers have left would come on top
    _, channels, length, *rest = source.shape
    quicker = winograd.pays(conv, source.shape)
    halo, rows = conv.padding[0], _rows(source, conv.padding[0], winograd.ROWS if quicker else 1)
    if out is None:
        out = torch.empty((1, conv.out_channels, length, *rest), memory_format=LAST)
    held = torch.empty((1, channels, rows + 3 * halo, *rest), memory_format=LAST)  # before the new rows 2 · halo of those before
    held[:, :, : 2 * halo] = 0
    quick = winograd.Winograd(conv, held.shape) if quicker else None
    done = 0
    for first in range(0, length, rows):
        last = min(first + rows, length)
        end = 2 * halo + last - first
        source.fill(held[:, :, 2 * halo : end], first, last)
        if last == length:
            held[:, :, end : end + halo] = 0
            end += halo
        begin, stop = (halo if first == 0 else 0), last - (halo if last < length else 0)
        if quick is not None:
            quick(held[:, :, begin:end], out[:, :, done:stop], before=0)
        else:
            out[:, :, done:stop] = _onednn(conv, held[:, :, begin:end])
        done = stop
        held[:, :, : 2 * halo] = held[:, :, rows : rows + 2 * halo]
    del held, quick
    give_back()
    return out


def _rows(source: Source, halo: int, multiple: int) -> int:
    """How many rows are filled in at a time, a multiple of that: about as many as `HELD` has room for."""
    _, channels, _, *rest = source.shape
    wanted = max(HELD // (4 * channels * prod(rest)), 2 * halo, 1)
    step = lcm(source.step, multiple)
    return max(wanted // step, 1) * step if multiple > 1 else -(-wanted // step) * step


def _onednn(conv: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """Rows without padding at their ends."""
    padding = (0, *conv.padding[1:])
    return torch.ops.aten.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups)
