"""Surface: the closed skin of a structure as triangles in the patient, smooth and no finer than need be.

The mask is blurred a little, marching cubes draw the level that keeps its volume, Taubin's filter (1995) takes off the
stairs without shrinking, triangles are merged where the skin is flat, and at the end the skin is moved along its normals
by the fraction of a voxel that the volume is still off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from clseg.errors import UsageError
from clseg.spatial.crop import Box
from clseg.spatial.runs import LabelRuns, where

MARGIN = 3  # voxels of nothing around the mask: the blur ends there
BLUR_VOXELS = 0.7
MOST_VOXELS = 1 << 24  # larger boxes are drawn from blocks of voxels, along the axes on which these are short
TAUBIN_STEPS, TAUBIN_SHRINK, TAUBIN_GROW = 15, 0.5, -0.53
KEPT_SHARES = (0.25, 0.5)  # of the triangles; the second where the first would tear the surface
FEW_TRIANGLES = 2000  # so few are all kept
MOST_MOVES, CLOSE_ENOUGH = 12, 1e-4  # of the volume
TIP = "pip install 'clseg[mesh]'"


@dataclass(frozen=True)
class Surface:
    """Triangles of a closed surface: `points` (n, 3) float64 in RAS+ mm, `triangles` (m, 3) int64 indices, counter-clockwise seen from outside."""

    points: np.ndarray
    triangles: np.ndarray

    @property
    def volume_mm3(self) -> float:
        """The enclosed volume by the divergence theorem; negative when the normals point inwards."""
        a, b, c = (self.points[self.triangles[:, corner]] - self._middle for corner in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @property
    def normals(self) -> np.ndarray:
        """Outward normals of the triangles, as long as twice their areas, shape (m, 3)."""
        a, b, c = (self.points[self.triangles[:, corner]] for corner in range(3))
        return np.cross(b - a, c - a)

    @property
    def is_closed(self) -> bool:
        """True when every edge is passed once in each direction: no hole, no sheet, no fold."""
        edges = np.concatenate([self.triangles[:, [0, 1]], self.triangles[:, [1, 2]], self.triangles[:, [2, 0]]])
        there, back = (edges[:, 0] * len(self.points) + edges[:, 1], edges[:, 1] * len(self.points) + edges[:, 0])
        return len(np.unique(there)) == len(there) and bool(np.isin(there, back, assume_unique=True).all())

    @property
    def _middle(self) -> np.ndarray:
        return self.points.mean(axis=0) if len(self.points) else np.zeros(3)


def surface_of(labels: np.ndarray | LabelRuns, id: int, box: Box, affine: np.ndarray) -> Surface:
    """The skin of the structure `id` of a label map (i, j, k) that lies in `box`, in the millimetres of `affine` (RAS+, may be oblique).

    It is closed, also where the structure is cut by the border of the scan, and holds the volume of the voxels.
    Raises UsageError when the tool that merges triangles is not installed.
    """
    check_tools()
    shares, steps = _blocks(where(labels, id, box))
    whole = float(shares.sum(dtype=np.float64))
    drawn = _drawn(shares, whole)
    first = np.array([side.start for side in box])
    voxels = (drawn.points + 0.5) * steps - 0.5 + first  # from the middles of blocks to those of voxels
    surface = _outwards(Surface(voxels @ affine[:3, :3].T + affine[:3, 3], drawn.triangles))
    volume_mm3 = whole * float(np.prod(steps) * abs(np.linalg.det(affine[:3, :3])))
    most_mm = float(np.linalg.norm(affine[:3, :3] * steps, axis=0).max())  # a voxel alone has to grow by more than half of it
    return _filled(_thinned(_smooth(surface)), volume_mm3, most_mm)


def check_tools() -> None:
    """UsageError when fast-simplification is not installed."""
    if not tools_are_there():
        raise UsageError("Surfaces need the package fast-simplification, which is not installed.", tip=TIP)


def tools_are_there() -> bool:
    """Whether fast-simplification (extra `mesh`) is installed."""
    from importlib.util import find_spec

    try:
        return find_spec("fast_simplification") is not None
    except ValueError:  # somebody put a stand-in without a spec in its place
        return False


# ---- drawing ----------------------------------------------------------------------------------------------------------


def _blocks(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of the structure (float32) in blocks of `steps` voxels, few enough to be drawn in little memory."""
    steps, shape = np.ones(3, int), np.array(mask.shape)
    while np.prod(-(-shape // steps)) > MOST_VOXELS:
        steps[np.argmax(shape / steps)] += 1
    shares: np.ndarray = mask
    for axis, step in enumerate(steps):
        if step > 1:
            starts = np.arange(0, shape[axis], step)
            shares = np.add.reduceat(shares, starts, axis=axis, dtype=np.uint16)
    return shares.astype(np.float32, copy=False) / np.float32(np.prod(steps)), steps


def _drawn(shares: np.ndarray, whole: float) -> Surface:
    """The level of the blurred shares that holds as many of their voxels as the structure has, in indices of the array."""
    from scipy import ndimage
    from skimage.measure import marching_cubes

    blurred = np.pad(shares, MARGIN)
    ndimage.gaussian_filter(blurred, BLUR_VOXELS, output=blurred, mode="constant")
    points, triangles, _, _ = marching_cubes(blurred, _level(blurred, max(1, round(whole))), allow_degenerate=False)
    return Surface(points.astype(np.float64) - MARGIN, triangles.astype(np.int64))


def _level(values: np.ndarray, count: int) -> float:
    """A level that `count` of the values are above, about; it is none of the values itself, at which triangles degenerate."""
    flat = values.ravel()
    last_inside = np.partition(flat, flat.size - count)[flat.size - count]
    first_outside = flat[flat < last_inside].max()
    return (float(last_inside) + float(first_outside)) / 2


def _outwards(surface: Surface) -> Surface:
    return surface if surface.volume_mm3 > 0 else replace(surface, triangles=surface.triangles[:, ::-1])


# ---- mending ----------------------------------------------------------------------------------------------------------


def _smooth(surface: Surface) -> Surface:
    """Taubin's filter: every point goes towards the mean of its neighbours, then a little further away from it."""
    from scipy import sparse

    count = len(surface.points)
    a, b, c = surface.triangles.T
    rows, columns = np.concatenate([a, b, c]), np.concatenate([b, c, a])  # every edge is passed once in each direction
    neighbours = sparse.csr_matrix((np.ones(rows.size), (rows, columns)), shape=(count, count))
    mean = sparse.diags(1 / np.maximum(1, np.asarray(neighbours.sum(axis=1)).ravel())) @ neighbours
    points = surface.points
    for _ in range(TAUBIN_STEPS):
        for share in (TAUBIN_SHRINK, TAUBIN_GROW):
            points = points + share * (mean @ points - points)
    return replace(surface, points=points)


def _thinned(surface: Surface) -> Surface:
    """Fewer triangles, by quadric errors (Garland and Heckbert 1997); all of them where the surface would be torn."""
    import fast_simplification

    if len(surface.triangles) <= FEW_TRIANGLES:
        return surface
    middle = surface.points.mean(axis=0)  # near the origin float32 is exact enough
    points, triangles = (surface.points - middle).astype(np.float32), surface.triangles.astype(np.int32)
    for kept in KEPT_SHARES:
        fewer = fast_simplification.simplify(points, triangles, target_reduction=1 - kept)
        thinned = _untangled(Surface(fewer[0].astype(np.float64) + middle, fewer[1].astype(np.int64)))
        if thinned and thinned.is_closed and thinned.volume_mm3 > 0:
            return thinned
    return surface


def _untangled(surface: Surface) -> Surface | None:
    """The surface with sheets that touch along an edge or in a point taken apart there; None where it has a hole.

    Every edge of a triangle is paired with one that is passed the other way; corners that such pairs join are one point.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(surface.triangles)
    start, end = surface.triangles.ravel(), np.roll(surface.triangles, -1, axis=1).ravel()
    after = np.roll(np.arange(3 * count).reshape(-1, 3), -1, axis=1).ravel()  # of every corner the next of its triangle
    there, back = np.lexsort((end, start)), np.lexsort((start, end))
    if not (np.array_equal(start[there], end[back]) and np.array_equal(end[there], start[back])):
        return None
    same = (np.concatenate([there, after[there]]), np.concatenate([after[back], back]))
    _, point = connected_components(coo_matrix((np.ones(6 * count, bool), same), shape=(3 * count, 3 * count)), directed=False)
    places = np.zeros((int(point.max(initial=-1)) + 1, 3))
    places[point] = surface.points[start]
    return Surface(places, point.reshape(-1, 3).astype(np.int64))


def _filled(surface: Surface, volume_mm3: float, most_mm: float) -> Surface:
    """The surface moved along its normals, by at most `most_mm`, until it holds the volume."""
    moved_mm = 0.0
    for _ in range(MOST_MOVES):
        if abs(surface.volume_mm3 - volume_mm3) < CLOSE_ENOUGH * volume_mm3:
            break
        areas = np.linalg.norm(surface.normals, axis=1).sum() / 2
        step = np.clip((volume_mm3 - surface.volume_mm3) / areas, -most_mm - moved_mm, most_mm - moved_mm)
        moved_mm += step
        surface = replace(surface, points=surface.points + step * _directions(surface))
    return surface


def _directions(surface: Surface) -> np.ndarray:
    """Outward directions of length 1 at the points, shape (n, 3): means of the normals around them by area."""
    sums = np.zeros_like(surface.points)
    for corner in range(3):
        np.add.at(sums, surface.triangles[:, corner], surface.normals)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.where(lengths > 0, lengths, 1)
