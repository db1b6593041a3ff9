"""Linear resampling between concentric lattices, one small matrix per axis.

Two lattices are concentric when the centres of their boxes coincide.  Going from
one to the other and back is then the same function with the arguments swapped,
and flipping an axis before or after gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clseg.volume import Shape, Spacing

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 22  # voxels that are resampled at a time


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
    """`array` (x, y, z) with `spacing` mm on the concentric lattice of `shape` and `target` mm; float32."""
    axes = zip(array.shape, spacing, shape, target, strict=True)
    return interpolate(array, [axis_weights(n, s, m, t) for n, s, m, t in axes])


def interpolate(array: np.ndarray | torch.Tensor, weights: Sequence[np.ndarray], device: str | None = None) -> torch.Tensor:
    """`weights[a]` (n_out, n_in) applied along every axis a of `array`; float32, on `device` (default: where it is).

    Only what the weights look at is read.  The axis that shrinks most goes first,
    so that little is computed; the array goes through in parts along the axis that is left
    for last, so that little memory is held.  Axes whose weights change nothing are left alone.

    An array of numpy is a scan, which lies in its file with x running fastest: it is gone
    through like that, for to turn it round costs as much as all the rest.  The sums are the
    same, to the last digit, however it is stored.
    """
    if isinstance(array, np.ndarray):
        return _interpolate(array.T, weights[::-1], device).permute(2, 1, 0).contiguous()
    return _interpolate(array, weights, device)


def _interpolate(array: np.ndarray | torch.Tensor, weights: Sequence[np.ndarray], device: str | None) -> torch.Tensor:
    import torch

    used = [np.flatnonzero(w.any(axis=0)) for w in weights]
    box = tuple(slice(int(u[0]), int(u[-1]) + 1) for u in used)
    small = [w[:, part] for w, part in zip(weights, box, strict=True)]
    *first, last = sorted(range(3), key=lambda a: small[a].shape[0] / small[a].shape[1])
    blocks = _blocks(array[box], last)
    if len(blocks) == 1:
        return _applied(blocks[0], small, [*first, last], device)
    shape = [array[box].shape[a] if a == last else len(small[a]) for a in range(3)]
    out = torch.empty(shape, device=device or getattr(array, "device", None))
    for block, place in zip(blocks, _blocks(out, last, like=array[box]), strict=True):
        place[...] = _applied(block, small, first, device)
    return _applied(out, small, [last], device)


def _blocks(array: Any, axis: int, like: Any = None) -> list[Any]:
    """Views of a large array in parts along an axis, so that what is computed in floating point is never all of a scan."""
    whole = array if like is None else like
    step = max(1, BLOCK * whole.shape[axis] // math.prod(whole.shape))
    return [array[(slice(None),) * axis + (slice(start, start + step),)] for start in range(0, array.shape[axis], step)]


def _applied(array: np.ndarray | torch.Tensor, weights: Sequence[np.ndarray], axes: Sequence[int], device: str | None) -> torch.Tensor:
    import torch

    out = torch.from_numpy(_native(array)) if isinstance(array, np.ndarray) else array
    out = out.to(device or out.device)
    for axis in axes:
        if not np.array_equal(weights[axis], np.eye(len(weights[axis]), dtype=np.float32)):
            out = _along(out.float(), torch.from_numpy(np.ascontiguousarray(weights[axis])).to(out.device), axis)
    return out.float()


def _native(array: np.ndarray) -> np.ndarray:
    """Contiguous, in the byte order of this machine: torch knows no other (files may be big-endian)."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _along(array: torch.Tensor, weights: torch.Tensor, axis: int) -> torch.Tensor:
    """`weights` applied along one axis; each is a plain matrix product without copies of the input."""
    if axis == 0:
        return (weights @ array.reshape(array.shape[0], -1)).reshape(-1, *array.shape[1:])
    if axis == 1:
        return weights @ array  # batched over x
    return array @ weights.T
