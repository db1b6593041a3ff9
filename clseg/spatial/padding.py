"""Padding: zeros that somebody filled in around a scan by resampling, cutting out or masking.  0 HU is water, and a network sees a bath."""

from __future__ import annotations

import math

import numpy as np

from clseg.spatial.crop import Box, filled_slices
from clseg.spatial.orient import box_before, to_orientation
from clseg.volume import AIR_HU, Volume

AIR_BELOW = -900.0  # HU
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


def scanned(scan: Volume, margin_mm: float = 0.0) -> Box:
    """Which part of the array holds a scan: without the slices of one value that somebody has put above or below it.

    Slices of one value are padding where the slice beside them has other air than that (a scanner's is noisy) or
    hardly a voxel of it; where all air is one and the same value somebody has wiped it, and the body ends by itself.
    Beside padding the part ends `margin_mm` earlier.
    """
    standing = to_orientation(scan, "RAS")
    array, kept = standing.array, filled_slices(standing.array)
    border = math.floor(margin_mm / standing.spacing[2])
    first, last = 0, array.shape[2]
    if kept.start > 0 and _goes_on(array[:, :, kept.start], array[0, 0, kept.start - 1]):
        first = kept.start + border
    if kept.stop < last and _goes_on(array[:, :, kept.stop - 1], array[0, 0, kept.stop]):
        last = kept.stop - border
    x, y, z = array.shape
    return box_before(scan, (slice(0, x), slice(0, y), slice(min(first, z - 1), max(last, 1))))


def _goes_on(outermost: np.ndarray, value: float) -> bool:
    """Whether the outermost slice that was scanned shows that the slices of one `value` beyond it were not."""
    share = 0.01 * outermost.size
    other_air = np.count_nonzero((outermost < AIR_BELOW) & (outermost != value))
    return bool(other_air > share or np.count_nonzero(outermost == value) < share)


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
