"""Regions: the box and the number of voxels of every label of a map, found in one pass over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clseg.spatial.crop import Box

_SLAB_VOXELS = 1 << 22  # what is looked at at once: about the size of a processor's cache


@dataclass(frozen=True)
class Region:
    """Where one label lies: `box` is the smallest that holds all of its `voxels`, one slice per axis."""

    box: Box
    voxels: int


def regions(labels: np.ndarray) -> dict[int, Region]:
    """Label → its Region, for every label above 0 of an integer array (i, j, k), in ascending order.

    Rows are cut into runs of equal labels, and only runs are counted: faster than to look at every voxel by itself, and
    in any order of memory.
    """
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
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    edges = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1)) if ids.size else ids
    low = [np.minimum.reduceat(axis[order], edges) for axis in (i + first, j, k)]
    high = [np.maximum.reduceat(axis[order], edges) for axis in (i + first, j, k + lengths - 1)]
    voxels = np.add.reduceat(lengths[order], edges)
    return dict(zip(ids[edges].tolist(), np.stack([*low, *high, voxels], axis=1), strict=True))


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
