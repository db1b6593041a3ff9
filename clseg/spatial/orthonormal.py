"""Sheared grids (gantry tilt, broken headers): onto a grid with axes at right angles, and back."""

from __future__ import annotations

import numpy as np

from clseg.volume import AIR_HU, Volume


def to_orthonormal(volume: Volume) -> Volume:
    """The scan on the right-angled grid nearest to its own: same spacing, large enough for every voxel; linear, air outside."""
    target = orthonormal_grid(volume)
    return Volume(_look_up(volume, target, order=1, outside=AIR_HU), target.affine)


def orthonormal_grid(volume: Volume) -> Volume:
    """That grid, before anything is resampled: one zero in the scan's type stands for all voxels, so that it takes no memory."""
    axes, spacing = _nearest_rotation(volume.affine), np.array(volume.spacing)
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape], indexing="ij")).reshape(3, -1)
    local = axes.T @ (volume.affine[:3, :3] @ corners + volume.affine[:3, 3:])
    shape = np.ceil((local.max(axis=1) - local.min(axis=1)) / spacing - 1e-3).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = axes @ (local.min(axis=1) + spacing / 2)
    return Volume(np.broadcast_to(np.zeros((), volume.array.dtype), tuple(shape)), affine)


def from_orthonormal(labels: np.ndarray, orthonormal: Volume, like: Volume) -> np.ndarray:
    """A label map of the right-angled grid on the grid of `like`, by nearest voxel."""
    return _look_up(orthonormal.like(labels), like, order=0, outside=0)


def _nearest_rotation(affine: np.ndarray) -> np.ndarray:
    """The orthonormal matrix (maybe with a mirror) closest to the directions of the affine's axes."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(directions)
    return u @ vt


def _look_up(source: Volume, target: Volume, *, order: int, outside: float) -> np.ndarray:
    """Values of `source` at the voxel centres of `target`, in the source's type."""
    from scipy import ndimage

    to_source = np.linalg.inv(source.affine) @ target.affine
    return ndimage.affine_transform(  # "grid-constant": a centre that rounding puts beyond the border is still on it
        source.array, to_source[:3, :3], to_source[:3, 3], target.shape, order=order, cval=outside, mode="grid-constant"
    )
