"""Radiomics: first-order and shape features of one structure, named and defined as PyRadiomics does.

No kept library with these names installs on every Python that clseg runs on, so
they are computed here, and the tests hold them against the published values of
the IBSI's digital phantom (Zwanenburg et al., arXiv 1612.07003, chapter 5).

Nothing is resampled, normalised or cut to a range before; PyRadiomics' defaults
are the same (`binWidth` 25, no resampling).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from clseg.volume import Spacing, Volume

BIN_WIDTH = 25.0  # HU; PyRadiomics' default
FIRST_ORDER = (
    "10Percentile", "90Percentile", "Energy", "Entropy", "InterquartileRange", "Kurtosis", "Maximum", "MeanAbsoluteDeviation",
    "Mean", "Median", "Minimum", "Range", "RobustMeanAbsoluteDeviation", "RootMeanSquared", "Skewness", "TotalEnergy", "Uniformity", "Variance",
)  # fmt: skip
SHAPE = (
    "Elongation", "Flatness", "LeastAxisLength", "MajorAxisLength", "Maximum2DDiameterColumn", "Maximum2DDiameterRow", "Maximum2DDiameterSlice",
    "Maximum3DDiameter", "MeshVolume", "MinorAxisLength", "Sphericity", "SurfaceArea", "SurfaceVolumeRatio", "VoxelVolume",
)  # fmt: skip
FEATURES = (*(f"original_shape_{name}" for name in SHAPE), *(f"original_firstorder_{name}" for name in FIRST_ORDER))

Features = dict[str, float | None]

_SLAB_VOXELS = 1 << 22  # of which the surface is found at once
_FEW = 256  # points; fewer are compared pair by pair without looking for their hull


def features(mask: np.ndarray, ct: Volume, *, bin_width: float = BIN_WIDTH) -> Features:
    """All of FEATURES of the voxels where `mask` (boolean, shape of the CT) is True; None where one has no meaning.

    Lengths are in mm, computed from the voxel size along the array's axes, as PyRadiomics
    does: Slice, Column and Row are planes of constant k, j and i.  Voxels without a
    finite value count for the shape alone.
    """
    named: Features = dict.fromkeys(FEATURES)
    if mask.any():
        box = _box(mask)
        inside, values = mask[box], ct.array[box][mask[box]]
        named |= {f"original_shape_{name}": value for name, value in shape(inside, ct.spacing).items()}
        named |= {f"original_firstorder_{name}": value for name, value in first_order(values, ct.voxel_mm3, bin_width=bin_width).items()}
    return named


def first_order(values: np.ndarray, voxel_mm3: float, *, bin_width: float = BIN_WIDTH) -> Features:
    """The FIRST_ORDER features of a structure's values (1-D, HU); all None when none of them is finite.

    As PyRadiomics has it: kurtosis is 3 for a normal distribution; percentiles are
    interpolated linearly; variance is the population's; entropy (bits) and
    uniformity are those of bins `bin_width` wide that begin at its multiples.
    """
    levels, counts = _histogram(values)
    if not levels.size:
        return dict.fromkeys(FIRST_ORDER)
    share = counts / counts.sum()
    mean = float(share @ levels)
    second, third, fourth = (float(share @ (levels - mean) ** power) for power in (2, 3, 4))
    p10, p25, p50, p75, p90 = _percentiles(levels, counts, (10, 25, 50, 75, 90))
    bins = _bins(levels, share, bin_width)
    energy = float(counts @ levels**2)
    return {
        "10Percentile": p10,
        "90Percentile": p90,
        "Energy": energy,
        "Entropy": abs(float(bins @ np.log2(bins))),  # no negative zero
        "InterquartileRange": p75 - p25,
        "Kurtosis": fourth / second**2 if second else 0.0,
        "Maximum": float(levels[-1]),
        "MeanAbsoluteDeviation": float(share @ np.abs(levels - mean)),
        "Mean": mean,
        "Median": p50,
        "Minimum": float(levels[0]),
        "Range": float(levels[-1] - levels[0]),
        "RobustMeanAbsoluteDeviation": _robust_deviation(levels, counts, p10, p90),
        "RootMeanSquared": float(np.sqrt(energy / counts.sum())),
        "Skewness": third / second**1.5 if second else 0.0,
        "TotalEnergy": energy * voxel_mm3,
        "Uniformity": float(bins @ bins),
        "Variance": second,
    }


def shape(mask: np.ndarray, spacing: Spacing) -> Features:
    """The SHAPE features of a boolean array (i, j, k) with at least one True, mm.

    Surface, volume and diameters are of the mesh halfway between voxel centres
    (marching cubes), axis lengths are those of an ellipsoid with the same moments.
    """
    vertices, area, volume = _surface(mask, np.asarray(spacing))
    least, minor, major = _axis_lengths(mask, np.asarray(spacing))
    row, column, slice_ = (_widest(_planes(vertices, axis), spacing) for axis in range(3))
    return {
        "Elongation": minor / major if major else None,
        "Flatness": least / major if major else None,
        "LeastAxisLength": least,
        "MajorAxisLength": major,
        "Maximum2DDiameterColumn": column,
        "Maximum2DDiameterRow": row,
        "Maximum2DDiameterSlice": slice_,
        "Maximum3DDiameter": _widest([vertices], spacing),
        "MeshVolume": volume,
        "MinorAxisLength": minor,
        "Sphericity": (36 * np.pi * volume**2) ** (1 / 3) / area,
        "SurfaceArea": area,
        "SurfaceVolumeRatio": area / volume,
        "VoxelVolume": float(np.count_nonzero(mask) * np.prod(spacing)),
    }


def to_rows(features: Mapping[str, Features]) -> tuple[list[str], list[list[object]]]:
    """Header and rows for a CSV file: structure → its features, one row each; None stays None."""
    return ["structure", *FEATURES], [[name, *(one[feature] for feature in FEATURES)] for name, one in features.items()]


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box that holds all of the mask."""
    ends = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    i, j, k = (slice(int(first), int(last) + 1) for first, last in ends)
    return i, j, k


# ---- values -----------------------------------------------------------------------------------------------------------


def _histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different finite values in ascending order (float64) and how often each is there."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if values.dtype.kind == "f" or values.dtype.itemsize > 2 or not values.size:
        levels, counts = np.unique(values, return_counts=True)
        return levels.astype(np.float64), counts
    low = int(values.min())
    counts = np.bincount(np.subtract(values, low, dtype=np.intp))
    return low + np.flatnonzero(counts).astype(np.float64), counts[counts > 0]


def _percentiles(levels: np.ndarray, counts: np.ndarray, percents: Iterable[float]) -> list[float]:
    """Interpolated linearly between neighbours, as np.percentile does."""
    upto = np.cumsum(counts)
    ranks = (upto[-1] - 1) * np.asarray(list(percents)) / 100
    lower, upper = (levels[np.searchsorted(upto, round(ranks), side="right")] for round in (np.floor, np.ceil))
    return [float(value) for value in lower + (upper - lower) * (ranks - np.floor(ranks))]


def _bins(levels: np.ndarray, share: np.ndarray, width: float) -> np.ndarray:
    """The share of values in every bin that is not empty."""
    shares = np.bincount((np.floor(levels / width) - np.floor(levels[0] / width)).astype(np.intp), weights=share)
    return shares[shares > 0]


def _robust_deviation(levels: np.ndarray, counts: np.ndarray, p10: float, p90: float) -> float:
    """Mean absolute deviation, from their own mean, of the values between the 10th and the 90th percentile."""
    middle = (levels >= p10) & (levels <= p90)
    levels, share = levels[middle], counts[middle] / counts[middle].sum()
    return float(share @ np.abs(levels - share @ levels))


# ---- shape ------------------------------------------------------------------------------------------------------------


def _surface(mask: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Outermost mesh vertices (points, 3), in half voxels as integers; area in mm² and volume in mm³ of the mesh."""
    points, area, volume = [], 0.0, 0.0
    for start, vertices, faces in _meshes(np.pad(mask, 1)):
        halves = np.rint(2 * vertices).astype(np.int32) + np.array([2 * start, 0, 0], np.int32)
        a, b, c = (halves[faces[:, corner]] * (spacing / 2) for corner in range(3))
        area += float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()) / 2
        volume += float((np.cross(a, b) * c).sum()) / 6
        points.append(_outermost(halves))
    return _outermost(np.concatenate(points)), area, abs(volume)


def _meshes(mask: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First slice, vertices and faces of the surface, slab by slab along the first axis; slabs share a slice, but no face."""
    from skimage.measure import marching_cubes

    depth = max(1, _SLAB_VOXELS // mask[0].size)
    for start in range(0, len(mask) - 1, depth):
        slab = mask[start : start + depth + 1]
        if slab.any() and not slab.all():
            vertices, faces, _, _ = marching_cubes(slab.astype(np.float32), 0.5)
            yield start, vertices, faces


def _axis_lengths(mask: np.ndarray, spacing: np.ndarray) -> tuple[float, float, float]:
    """Least, minor and major axis: four times the roots of the eigenvalues of the voxels' covariance."""
    variances = np.linalg.eigvalsh(_covariance(mask) * np.outer(spacing, spacing)).clip(0)
    least, minor, major = (4 * np.sqrt(variances)).tolist()
    return least, minor, major


def _covariance(mask: np.ndarray) -> np.ndarray:
    """Of the indices of the mask's voxels (3, 3), population's; from counts per plane, for a list of all voxels may be gigabytes."""
    covariance = np.zeros((3, 3))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        share = mask.sum(axis=3 - one - other) / np.count_nonzero(mask)
        rows, columns = (np.arange(length) - np.arange(length) @ share.sum(axis=1 - n) for n, length in enumerate(share.shape))
        covariance[one, one], covariance[other, other] = share.sum(axis=1) @ rows**2, share.sum(axis=0) @ columns**2
        covariance[one, other] = covariance[other, one] = rows @ share @ columns
    return covariance


def _planes(points: np.ndarray, axis: int) -> list[np.ndarray]:
    """The points grouped by their place along an axis."""
    ordered = points[np.argsort(points[:, axis], kind="stable")]
    return np.split(ordered, np.flatnonzero(np.diff(ordered[:, axis])) + 1)


def _widest(groups: Iterable[np.ndarray], spacing: Spacing) -> float:
    """The largest distance in mm of two points of the same group; groups too small to hold it are passed over."""
    widest = 0.0
    for points in groups:
        places = points * (np.asarray(spacing) / 2)
        if np.linalg.norm(np.ptp(places, axis=0)) > widest:
            widest = max(widest, _diameter(places))
    return widest


def _diameter(places: np.ndarray) -> float:
    """The largest distance of two of the points (n, 3), which lies between corners of their hull."""
    from scipy.spatial.distance import cdist

    corners = _corners(places)
    return max(float(cdist(corners[first : first + _FEW], corners).max()) for first in range(0, len(corners), _FEW))


def _corners(places: np.ndarray) -> np.ndarray:
    from scipy.spatial import ConvexHull, QhullError

    axes = np.flatnonzero(np.ptp(places, axis=0))  # without those along which a plane has no extent
    if len(places) < _FEW or len(axes) < 2:
        return places
    try:
        return places[ConvexHull(places[:, axes]).vertices]
    except QhullError:  # all on one line or in one plane
        return places


def _outermost(points: np.ndarray) -> np.ndarray:
    """The points that are first or last of a row along some axis; corners of a hull, in space or in a plane across an axis, are."""
    kept = np.zeros(len(points), bool)
    for axis in range(3):
        kept |= _ends(points, axis)
    return points[kept]


def _ends(points: np.ndarray, axis: int) -> np.ndarray:
    """Which points are first or last among those with the same other two coordinates."""
    others = [other for other in range(3) if other != axis]
    order = np.lexsort((points[:, axis], *(points[:, other] for other in others)))
    rows = points[order][:, others]
    new = np.ones(len(points), bool)
    new[1:] = (np.diff(rows, axis=0) != 0).any(axis=1)
    last = np.append(new[1:], True)
    ends = np.zeros(len(points), bool)
    ends[order[new | last]] = True
    return ends
