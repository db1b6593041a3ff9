"""Pieces: how many parts a large mask has, without numbering all of its voxels at once."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

_SLAB_VOXELS = 1 << 22  # what is numbered at a time, four bytes a voxel


class Mask(Protocol):
    """A boolean array (i, j, k), or what gives its planes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def count_pieces(mask: Mask) -> int:
    """Parts of a boolean mask (i, j, k), where voxels that share a face, an edge or a corner belong together.

    Slabs that share a plane are numbered one by one; pieces that meet in the plane are one.
    """
    rows = max(1, _SLAB_VOXELS // max(1, math.prod(mask.shape[1:])))
    pieces, pairs = 0, []
    above: np.ndarray | None = None  # the plane that the last slab shares with the next, numbered
    for first in range(0, max(1, len(mask) - 1), rows):
        numbers, count = _numbered(mask[first : first + rows + 1])
        if above is not None:
            pairs.append(_met(above, numbers[0], pieces))
        above = _shifted(numbers[-1], pieces)
        pieces += count
    return pieces if not pairs else _joined(pieces, np.concatenate(pairs))


def _numbered(mask: np.ndarray) -> tuple[np.ndarray, int]:
    import cc3d

    numbers = mask.view(np.uint8)  # cc3d 4.1 fails on booleans in rows of three voxels, and is no faster on them
    return cc3d.connected_components(numbers, connectivity=26, return_N=True)


def _shifted(plane: np.ndarray, before: int) -> np.ndarray:
    """Numbers that no slab before has had."""
    return np.where(plane > 0, plane.astype(np.int64) + before, 0)


def _met(above: np.ndarray, here: np.ndarray, before: int) -> np.ndarray:
    """Pairs (n, 2) of numbers of one voxel in two slabs."""
    there = above > 0
    pairs = np.stack([above[there], here[there].astype(np.int64) + before])
    new = np.any(pairs[:, 1:] != pairs[:, :-1], axis=0)  # neighbours mostly have the same: few are left to be sorted
    return np.unique(pairs[:, np.flatnonzero(np.append(True, new))[: pairs.shape[1]]].T, axis=0)


def _joined(count: int, pairs: np.ndarray) -> int:
    """How many are left of `count` pieces when pairs of them (numbered from 1) are one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = (pairs - 1).T
    graph = coo_array((np.ones(len(pairs), bool), (one, other)), shape=(count, count))
    return int(connected_components(graph, directed=False, return_labels=False))
