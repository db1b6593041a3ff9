"""Windows: where the network looks, and how much every voxel of its answer counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from clseg.errors import UsageError
from clseg.volume import Shape

if TYPE_CHECKING:
    import torch


def starts(size: int, patch: int, step: float) -> list[int]:
    """First voxels of windows of `patch` voxels along an axis of `size`, at most `step` · `patch` (and never less than one voxel) apart.

    The last window ends at the border.  `size` must be at least `patch`.
    """
    if not 0 < step <= 1:
        raise UsageError(f"The step is a share of the window between 0 and 1, given {step}.")
    stride = max(1, math.floor(patch * step + 1e-9))  # whole voxels, so that rounding below never widens a gap
    count = math.ceil((size - patch) / stride) + 1
    if count == 1:
        return [0]
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def gaussian(patch: Shape, sigma: float = 1 / 8) -> torch.Tensor:
    """Importance of every voxel of a window, float32 `patch`: a Gaussian with `sigma` of the edge, 1 in the middle.

    The far corners are kept above 1e-3, so that no voxel is ever divided by nothing.
    """
    import torch

    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n * sigma)) ** 2) for n in patch]
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return weight.clamp(min=1e-3)


def move_down(rows: torch.Tensor, count: int) -> None:
    """`rows` moved towards the first by `count` in place, zeros behind; so many at a time that none is read after it was written."""
    kept = max(0, len(rows) - count)
    for first in range(0, kept, count):
        last = min(first + count, kept)
        rows[first:last] = rows[first + count : last + count]
    rows[kept:] = 0
