"""Resampling as nnU-Net and CL-Net do it: splines between lattices whose borders coincide.

Output voxel i lies at (i + 0.5) · n_in / n_out − 0.5 of the input; beyond the border the
outermost voxel is repeated; values stay within those of the input.  Where voxels are
much longer along one axis, slices are resampled one by one and then picked
(`Resampling.separate`).  A spline is linear in its values and one axis does not
mind the others, so that it is a matrix per axis.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from clseg.network.plan import Resampling
from clseg.volume import Shape, Spacing

ANISOTROPIC = 3.0  # a longest edge of more than so many shortest ones is resampled slice by slice


def new_shape(shape: Shape, spacing: Spacing, target: Spacing) -> Shape:
    """Voxels of `target` spacing for `shape` of `spacing` (mm), rounded half to even as Python does."""
    return tuple(max(1, round(s / t * n)) for n, s, t in zip(shape, spacing, target, strict=True))  # type: ignore[return-value]


def coarse_axis(rule: Resampling, spacing: Spacing, target: Spacing) -> int | None:
    """The axis along which slices are picked and not interpolated, if there is one; `target` is asked where `spacing` is even."""
    if rule.separate == "never":
        return None
    uneven = [spacing] if rule.separate == "always" else [s for s in (spacing, target) if max(s) / min(s) > ANISOTROPIC]
    longest = [axis for axis, edge in enumerate(uneven[0]) if edge == max(uneven[0])] if uneven else []
    return longest[0] if len(longest) == 1 else None


def resample(array: torch.Tensor, shape: Shape, rule: Resampling, spacing: Spacing, target: Spacing) -> torch.Tensor:
    """`array` (three axes, `spacing` mm) with `shape` voxels of `target` mm, float32; the array itself where shapes agree."""
    array = array.float()
    if tuple(array.shape) == tuple(shape):
        return array
    apart = coarse_axis(rule, spacing, target)
    out = array
    for axis in sorted(range(3), key=lambda a: shape[a] / array.shape[a]):  # what shrinks most first
        if axis != apart and shape[axis] != array.shape[axis]:
            out = _along(out, spline(array.shape[axis], shape[axis], rule.order), axis)
    out = _within(out, array, apart)
    if apart is None or shape[apart] == array.shape[apart]:
        return out
    across = spline(array.shape[apart], shape[apart], rule.order_across)
    return _along(out, across, apart)


@lru_cache(maxsize=32)
def spline(n_in: int, n_out: int, order: int) -> np.ndarray:
    """Weights (n_out, n_in), float32, of a spline of `order` along one axis; rows sum to 1."""
    from scipy import ndimage

    def zoomed(values: np.ndarray) -> np.ndarray:
        return ndimage.zoom(values, n_out / n_in, order=order, mode="nearest", grid_mode=True)

    return np.stack([zoomed(row) for row in np.eye(n_in)], axis=1).astype(np.float32)


def _along(array: torch.Tensor, weights: np.ndarray, axis: int) -> torch.Tensor:
    matrix = torch.from_numpy(weights).to(array.device)
    return torch.movedim(torch.tensordot(matrix, array, dims=([1], [axis])), 0, axis)


def _within(out: torch.Tensor, array: torch.Tensor, apart: int | None) -> torch.Tensor:
    """Values cut to the range of the input: of the whole, or of its slice where slices are resampled one by one."""
    if apart is None:
        return out.clamp(array.min(), array.max())
    others = [axis for axis in range(3) if axis != apart]
    return torch.minimum(torch.maximum(out, array.amin(others, keepdim=True)), array.amax(others, keepdim=True))
