"""Linear resampling between concentric lattices, one small matrix per axis.

Two lattices are concentric when the centres of their boxes coincide.  Going from
one to the other and back is then the same function with the arguments swapped,
and flipping an axis before or after gives the same numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from clseg.volume import Shape, Spacing

if TYPE_CHECKING:
    import torch


def covering_shape(shape: Shape, spacing: Spacing, target: Spacing) -> Shape:
    """Fewest voxels of `target` spacing (mm) whose concentric box covers `shape` × `spacing`."""
    return tuple(max(1, math.ceil(n * s / t - 1e-3)) for n, s, t in zip(shape, spacing, target, strict=True))  # type: ignore[return-value]


def axis_weights(n_in: int, s_in: float, n_out: int, s_out: float) -> np.ndarray:
    """Weights (n_out, n_in), float32, rows summing to 1: linear interpolation along one axis.

    When `s_out` > `s_in` the triangle is widened to `s_out`, so that every input
    voxel counts (anti-aliasing) instead of one in many.  Beyond the border the
    outermost voxel is repeated.
    """
    centre_in = (np.arange(n_out) - (n_out - 1) / 2) * (s_out / s_in) + (n_in - 1) / 2
    width = max(1.0, s_out / s_in)
    centre_in = np.clip(centre_in, 0, n_in - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(n_in)[None, :] - centre_in[:, None]) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resample(array: torch.Tensor, spacing: Spacing, shape: Shape, target: Spacing) -> torch.Tensor:
    """`array` (x, y, z) with `spacing` mm on the concentric lattice of `shape` and `target` mm; float32.

    The axis that shrinks most goes first, so that little is computed and little
    memory is held.
    """
    import torch

    out = array
    order = sorted(range(3), key=lambda axis: shape[axis] / array.shape[axis])
    for axis in order:
        if shape[axis] == array.shape[axis] and spacing[axis] == target[axis]:
            continue
        weights = axis_weights(array.shape[axis], spacing[axis], shape[axis], target[axis])
        out = _along(out.float(), torch.from_numpy(weights).to(array.device), axis)
    return out.float()


def _along(array: torch.Tensor, weights: torch.Tensor, axis: int) -> torch.Tensor:
    """`weights` applied along one axis; each is a plain matrix product without copies of the input."""
    if axis == 0:
        return (weights @ array.reshape(array.shape[0], -1)).reshape(-1, *array.shape[1:])
    if axis == 1:
        return weights @ array  # batched over x
    return array @ weights.T
