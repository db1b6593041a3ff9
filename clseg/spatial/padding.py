"""Padding: zeros that somebody filled in around a scan by resampling, cutting out or masking.  0 HU is water, and a network sees a bath."""

from __future__ import annotations

import numpy as np

from clseg.volume import AIR_HU, Volume

LEAST = 0.05  # share of voxels of exactly 0 from which on they may be padding
SAMPLE = 1_000_000


def zeros_around(array: np.ndarray) -> np.ndarray | None:
    """Where the padding of a CT (x, y, z; HU) is; None where there is none.

    Zeros are padding when they fill the corners or a whole face of the array, make up 5 % of it
    or more and are far commoner than what lies within 5 HU of them; of these those that
    reach the border count.  A scan without a colder voxel has no padding: it was made with a window.
    """
    if min(array.shape) < 2 or not _is_padded(array):
        return None
    from scipy import ndimage

    parts, _ = ndimage.label(array == 0)
    outside = np.unique(np.concatenate([face.ravel() for face in _faces(parts)]))
    return np.isin(parts, outside[outside > 0])


def air_around(scan: Volume) -> Volume:
    """The scan with air in the place of padding; the scan itself where it has none."""
    padding = zeros_around(scan.array)
    if padding is None:
        return scan
    wide = scan.array.dtype.kind == "f" or scan.array.dtype.itemsize > 1
    return scan.like(np.where(padding, np.asarray(AIR_HU, scan.array.dtype if wide else np.int16), scan.array))


def sampled(array: np.ndarray) -> np.ndarray:
    """Up to about a million voxels on a coarser grid, flat, float32."""
    step = max(1, int(np.ceil((array.size / SAMPLE) ** (1 / 3))))
    steps = tuple(slice(None, None, step if length > 2 * step else 1) for length in array.shape)
    return array[steps].ravel(order="K").astype(np.float32)


def _is_padded(array: np.ndarray) -> bool:
    corners = array[:: array.shape[0] - 1, :: array.shape[1] - 1, :: array.shape[2] - 1]
    if corners.any() and all(face.any() for face in _faces(array)):
        return False
    sample = sampled(array)
    share = np.count_nonzero(sample == 0) / sample.size
    beside = np.count_nonzero(np.abs(sample) <= 5) / sample.size - share
    return bool(sample.min() < 0 and share > LEAST and beside < share / 5)


def _faces(array: np.ndarray) -> list[np.ndarray]:
    """The six faces, not copied: `take` would first bring a whole scan into another order."""
    return [np.moveaxis(array, axis, 0)[end] for axis in range(3) for end in (0, -1)]
