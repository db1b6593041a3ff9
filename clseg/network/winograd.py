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
    """Write `conv` of `x` (1, inputs, rows, y, z) to `out` (1, outputs, rows, y, z), both float32 with channels last.

    Row i of `out` is made of the rows i − `before` to i − `before` + 2 of `x`, and zeros beyond its ends.
    """
    source, target = _flat(x), _flat(out)
    (_, _, *plane), rows = x.shape[1:], len(target)
    kernels = torch.tensordot(WEIGHT, conv.weight, dims=([1], [2]))  # (6, outputs, inputs, y, z)
    biases = [conv.bias if number == BIASED else None for number in range(READ)]
    tiles = max(1, TOGETHER // (ROWS * source[0].nbytes))
    mixed = source.new_empty(READ, tiles, source.shape[1])
    for first in range(0, rows, ROWS * tiles):
        count = min(tiles, -(-(rows - first) // ROWS))
        for tile in range(count):
            read = _rows(source, first + ROWS * tile - before)
            mixed[:, tile].copy_(INPUT @ read) if tiles > 1 else torch.mm(INPUT, read, out=mixed[:, 0])
        parts = zip(mixed[:, :count].unflatten(2, (*plane, -1)), kernels, biases, strict=True)
        made = torch.stack([_across(conv, *part) for part in parts])
        _put(OUTPUT @ made, target, first, count)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """One window as (rows, all else), channels fastest."""
    return x.permute(0, 2, 3, 4, 1)[0].flatten(1)


def _rows(source: torch.Tensor, first: int) -> torch.Tensor:
    """READ rows from `first`, zeros beyond the ends."""
    low, high = max(first, 0), min(first + READ, len(source))
    if high - low == READ:
        return source[low:high]
    padded = source.new_zeros(READ, source.shape[1])
    padded[low - first : high - first] = source[low:high]
    return padded


def _across(conv: nn.Conv3d, rows: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Rows (count, y, z, inputs) convolved in the other two axes: (count · y · z · outputs)."""
    found = torch.ops.aten.mkldnn_convolution(rows.permute(0, 3, 1, 2), kernel, bias, conv.padding[1:], (1, 1), (1, 1), 1)
    return found.permute(0, 2, 3, 1).reshape(-1)


def _put(made: torch.Tensor, target: torch.Tensor, first: int, tiles: int) -> None:
    """Rows (4, tiles · all else) in their places; those beyond the end are left out."""
    rows = made.view(ROWS, tiles, -1).transpose(0, 1).flatten(0, 1) if tiles > 1 else made
    last = min(first + ROWS * tiles, len(target))
    target[first:last] = rows[: last - first]
