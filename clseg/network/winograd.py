"""Winograd: a 3 × … × … convolution with half of the multiplications, on a CPU without a gradient.

Four rows along the first axis are made of six rows that go in: six combinations of these are
convolved in the other two axes, each with a kernel of its own, and the four rows are
combinations of what comes out: F(4, 3) of Lavin and Gray (arXiv 1509.09308, 4.3) along one
axis, the other two left to oneDNN.  That takes 6 · 9 instead of 4 · 27 multiplications per
channel pair.  Results differ from the plain convolution's by about 5e-6 of their largest
value; they depend on shapes alone, not on threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

ROWS, KERNEL = 4, 3
READ = ROWS + KERNEL - 1
LEAST = ((64, 14**3), (32, 100**3))  # channels in and out, and voxels; with fewer, memory takes longer than what is saved (LOG.md, 2026-11-26)
TOGETHER = 4 << 20  # bytes of input whose combinations are convolved at a time, where four rows have fewer

INPUT = torch.tensor([
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
    [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
    [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
    [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
    [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
])  # fmt: skip
"""Bᵀ: the six combinations of six rows"""
WEIGHT = torch.tensor([
    [1 / 4, 0.0, 0.0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0.0, 0.0, 1.0],
])  # fmt: skip
"""G: the kernels of the other axes from the three along the first"""
OUTPUT = torch.tensor([
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
    [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
    [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
])  # fmt: skip
"""Aᵀ: four rows from what was convolved"""
BIASED = 1  # the combination that counts once in every row, so that a bias added to it is added to all


def pays(conv: nn.Conv3d, shape: Sequence[int]) -> bool:
    """Whether `conv` of one window of `shape` (1, channels, x, y, z) is worth computing so."""
    _, channels, *size = shape
    plain = conv.kernel_size[0] == KERNEL and set((*conv.stride, *conv.dilation, conv.groups, shape[0])) == {1}
    same = tuple(conv.padding) == tuple(k // 2 for k in conv.kernel_size)
    return plain and same and any(min(channels, conv.out_channels) >= few and prod(size) >= voxels for few, voxels in LEAST)


def convolved(conv: nn.Conv3d, x: torch.Tensor, out: torch.Tensor, before: int = 1) -> None:
    """Write `conv` of `x` (1, inputs, rows, y, z) to `out` (1, outputs, rows, y, z), both float32 with channels last; see `Winograd`."""
    Winograd(conv, tuple(x.shape))(x, out, before)


class Winograd:
    """A convolution of rows of one plane: its kernels are combined once, its memory is asked for once."""

    def __init__(self, conv: nn.Conv3d, shape: Sequence[int]) -> None:
        """`shape` (1, inputs, rows, y, z) is that of what goes in at a time."""
        _, inputs, rows, *self.plane = shape
        self.padding = conv.padding[1:]
        self.kernels = torch.tensordot(WEIGHT, conv.weight, dims=([1], [2]))  # (6, outputs, inputs, y, z)
        self.biases = [conv.bias if number == BIASED else None for number in range(READ)]
        tiles = max(1, min(TOGETHER // (4 * ROWS * inputs * prod(self.plane)), -(-rows // ROWS)))
        self.mixed = torch.empty(READ, tiles, inputs * prod(self.plane))
        self.made = torch.empty(READ, tiles, conv.out_channels * prod(self.plane))

    def __call__(self, x: torch.Tensor, out: torch.Tensor, before: int = 1) -> None:
        """Write what is made of `x` to `out`, both float32 with channels last.

        Row i of `out` is made of the rows i − `before` to i − `before` + 2 of `x`, and zeros beyond its ends.
        """
        source, target = _flat(x), _flat(out)
        tiles = self.mixed.shape[1]
        for first in range(0, len(target), ROWS * tiles):
            firsts = range(first, min(first + ROWS * tiles, len(target)), ROWS)
            for tile, row in enumerate(firsts):
                low, high = max(row - before, 0), min(row - before + READ, len(source))
                torch.mm(INPUT[:, low - row + before : high - row + before], source[low:high], out=self.mixed[:, tile])
            for number in range(READ):
                self._across(number, len(firsts))
            for tile, row in enumerate(firsts):
                rows = target[row : row + ROWS]  # fewer at the end
                torch.mm(OUTPUT[: len(rows)], self.made[:, tile], out=rows)

    def _across(self, number: int, tiles: int) -> None:
        """One combination of rows convolved in the other two axes."""
        rows = self.mixed[number, :tiles].unflatten(1, (*self.plane, -1)).permute(0, 3, 1, 2)
        found = torch.ops.aten.mkldnn_convolution(rows, self.kernels[number], self.biases[number], self.padding, (1, 1), (1, 1), 1)
        self.made[number, :tiles] = found.permute(0, 2, 3, 1).flatten(1)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """One window as (rows, all else), channels fastest: a view."""
    return x.permute(0, 2, 3, 4, 1)[0].flatten(1)
