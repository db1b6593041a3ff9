"""Regions: the box and the number of voxels of every label of a map, found in one pass over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clseg.spatial.crop import Box
from clseg.spatial.runs import LabelRuns

_SLAB_VOXELS = 1 << 22  # what is looked at at once: about the size of a processor's cache


@dataclass(frozen=True)
class Region:
    """Where one label lies: `box` is the smallest that holds all of its `voxels`, one slice per axis."""

    box: Box
    voxels: int


def regions(labels: np.ndarray | LabelRuns) -> dict[int, Region]:
    """Label → its Region, for every label above 0 of an integer label map (i, j, k), in ascending order.

    Rows are cut into runs of equal labels, and only runs are counted: faster than to look at every voxel by itself, and
    in any order of memory.
    """
    if isinstance(labels, LabelRuns):
        found = _extents_of_runs(labels)
        return {label: _region(found[label], np.array([2, 1, 0])) for label in sorted(found)}
    axes = memory_order(labels)
    turned = labels.transpose(axes)
    found: dict[int, np.ndarray] = {}
    for extents in _slab_extents(turned):
        for label, extent in extents.items():
            found[label] = _joined(found[label], extent) if label in found else extent
    back = np.argsort(axes)
    return {label: _region(found[label], back) for label in sorted(found)}


def memory_order(array: np.ndarray) -> tuple[int, int, int]:
    """Axes from the slowest to the fastest in memory: files come in Fortran order, and going across it is slow."""
    i, j, k = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    return i, j, k


def _slab_extents(labels: np.ndarray) -> Iterator[dict[int, np.ndarray]]:
    """Per group of slices: label → its lowest and highest index along every axis and its voxels, as seven numbers."""
    rows = max(1, _SLAB_VOXELS // max(1, labels[0].size))
    for first in range(0, len(labels), rows):
        slab = np.ascontiguousarray(labels[first : first + rows])
        if slab.any():
            yield _extents(slab, first)


def _extents(slab: np.ndarray, first: int) -> dict[int, np.ndarray]:
    ids, starts, lengths = _runs(slab)
    rows, k = np.divmod(starts, slab.shape[2])
    i, j = np.divmod(rows, slab.shape[1])
    return _gathered(ids, (i + first, j, k), (i + first, j, k + lengths - 1), lengths)


def _extents_of_runs(runs: LabelRuns) -> dict[int, np.ndarray]:
    """The same of runs that may go beyond their row: such a run touches both ends of rows."""
    k, starts, lengths, ids = runs.listed()
    first, low = np.divmod(starts, runs.shape[0])
    last, high = np.divmod(starts + lengths - 1, runs.shape[0])
    beyond = last > first
    low[beyond], high[beyond] = 0, runs.shape[0] - 1
    return _gathered(ids, (k, first, low), (k, last, high), lengths)


def _gathered(ids: np.ndarray, low: Sequence[np.ndarray], high: Sequence[np.ndarray], voxels: np.ndarray) -> dict[int, np.ndarray]:
    """Label → the lowest `low` and the highest `high` of its runs along three axes, and the sum of its `voxels`."""
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    if not ids.size:
        return {}
    edges = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1))
    lowest = [np.minimum.reduceat(axis[order], edges) for axis in low]
    highest = [np.maximum.reduceat(axis[order], edges) for axis in high]
    counts = np.add.reduceat(voxels[order], edges)
    return dict(zip(ids[edges].tolist(), np.stack([*lowest, *highest, counts], axis=1), strict=True))


def _runs(slab: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, first voxel (flat index) and length of every run of a label above 0 along the last axis."""
    flat = slab.reshape(-1)
    new = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=new[1:])
    new[:: slab.shape[2]] = True  # a run ends with its row
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=flat.size)
    labelled = flat[starts] > 0
    return flat[starts][labelled], starts[labelled], lengths[labelled]


def _joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(one[:3], other[:3]), np.maximum(one[3:6], other[3:6]), one[6:] + other[6:]])


def _region(extent: np.ndarray, back: np.ndarray) -> Region:
    """From seven numbers in the order of memory to a Region along the axes that the caller knows."""
    low, high = extent[:3][back], extent[3:6][back]
    return Region(tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)), int(extent[6]))  # type: ignore[arg-type]
