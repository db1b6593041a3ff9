"""Agreement: the share of voxels in which clseg says what nnU-Net says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clseg.io.files import read
from clseg.io.labels import read_label_names


def agreement(ours: Path, theirs: Sequence[tuple[Path, Sequence[str]]]) -> float:
    """Share of equal voxels of our label map and those of one or several models, each with its labels (1, 2, … in this order).

    Where several models claim a voxel, one of their labels must be ours: which of them wins is the
    merge's business (the last model in TotalSegmentator, the surest in clseg), not the network's.
    """
    names = {name: number for number, name in (read_label_names(ours) or {}).items()}
    labels, parts = read(ours), [read(file) for file, _ in theirs]
    if any(not part.same_grid(labels, tolerance_mm=0.01) for part in parts):
        raise RuntimeError(f"{ours} and {theirs[0][0]} lie on different grids.")
    tables = [np.array([0, *(names.get(label, -1) for label in known)], np.int32) for _, known in theirs]
    same = sum(int(_same(row, [table[part.array[..., z]] for part, table in zip(parts, tables, strict=True)]).sum()) for z, row in enumerate(np.moveaxis(labels.array, 2, 0)))
    return same / labels.array.size


def equal_voxels(one: Path, other: Path) -> float:
    """Share of equal voxels of two label maps with the same numbers for the same structures."""
    first, second = (read(file) for file in (one, other))
    if not first.same_grid(second, tolerance_mm=0.01):
        raise RuntimeError(f"{one} and {other} lie on different grids.")
    return sum(int((first.array[..., z] == second.array[..., z]).sum()) for z in range(first.shape[2])) / first.array.size


def _same(ours: np.ndarray, theirs: Sequence[np.ndarray]) -> np.ndarray:
    """Per voxel whether `ours` is one of the labels claimed; 0 where none is."""
    claimed = np.zeros(ours.shape, bool)
    equal = np.zeros(ours.shape, bool)
    for one in theirs:
        claimed |= one != 0
        equal |= (one != 0) & (one == ours)
    return np.where(claimed, equal, ours == 0)
