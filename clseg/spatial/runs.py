"""Runs: a label map kept as runs of equal labels, some fiftieth of the memory that its voxels take.

The map of a long scan is as large as the scan, and a result has several.  Whoever needs
voxels takes them box by box: `runs[i, j, k]` with three slices is an array, as of an array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from clseg.spatial.crop import Box
from clseg.volume import Shape

Runs = tuple[np.ndarray, np.ndarray]
"""where the runs of a slice begin, uint32, and their values"""

_PART_VOXELS = 1 << 20  # what is put together at a time


@dataclass(frozen=True, eq=False)
class LabelRuns:
    """A uint16 label map of `shape` (i, j, k): for every slice k where runs begin, and their labels; slices that are not there are empty.

    A run goes on in Fortran order (i fastest) until the next one begins, beyond rows but not beyond its slice; the first of
    a slice begins at 0.
    """

    shape: Shape
    _slices: dict[int, Runs] = field(default_factory=dict, repr=False)

    dtype = np.dtype(np.uint16)
    ndim = 3

    @classmethod
    def of(cls, labels: np.ndarray) -> LabelRuns:
        """An array (i, j, k) of whole numbers up to 65535 as runs."""
        runs = cls(labels.shape)  # type: ignore[arg-type]
        step = max(1, _PART_VOXELS // max(1, labels.shape[0] * labels.shape[1]))
        for first in range(0, labels.shape[2], step):
            runs.put(first, labels[:, :, first : first + step])
        return runs

    def put(self, first: int, labels: np.ndarray) -> None:
        """Set the slices from `first` on to an array (i, j, n)."""
        flat = labels.T.reshape(labels.shape[2], -1)  # a view of an array in Fortran order
        for k in range(len(flat)):
            self._slices.pop(first + k, None)
            if flat[k].any():
                starts = np.flatnonzero(flat[k, 1:] != flat[k, :-1]) + 1
                starts = np.concatenate([[0], starts]).astype(np.uint32)
                self._slices[first + k] = starts, flat[k, starts].astype(np.uint16)

    @property
    def size(self) -> int:
        """Voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the runs."""
        return sum(starts.nbytes + labels.nbytes for starts, labels in self._slices.values())

    def __getitem__(self, box: Box) -> np.ndarray:
        """The voxels of a box, uint16 in Fortran order; three slices without a step."""
        return self._drawn(box, self._slices, np.uint16)

    def where(self, label: int, box: Box) -> np.ndarray:
        """The mask of a label above 0 in a box, boolean in Fortran order."""
        there = {k: (starts, labels == label) for k, (starts, labels) in self._within(box[2]) if label in labels}
        return self._drawn(box, there, np.bool_)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:, :, :] if dtype is None else self[:, :, :].astype(dtype, copy=False)

    def listed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Slice, first voxel in it, length and label of every run of a label above 0, in the order of the file."""
        area = self.shape[0] * self.shape[1]
        found = [np.zeros((4, 0), np.int64)]
        for k in sorted(self._slices):
            starts, labels = self._slices[k]
            lengths = np.diff(starts.astype(np.int64), append=area)
            there = labels > 0
            found.append(np.stack([np.full(int(there.sum()), k), starts[there], lengths[there], labels[there]]))
        return tuple(np.concatenate(found, axis=1))  # type: ignore[return-value]

    def _within(self, part: slice) -> Iterator[tuple[int, Runs]]:
        """The slices of a part of the third axis that are not empty."""
        return ((k, self._slices[k]) for k in range(*part.indices(self.shape[2])) if k in self._slices)

    def _drawn(self, box: Box, slices: Mapping[int, Runs], dtype: type) -> np.ndarray:
        """The values of these slices in a box."""
        i, j, k = (range(*part.indices(length)) for part, length in zip(box, self.shape, strict=True))
        found = np.zeros((len(i), len(j), len(k)), dtype, order="F")
        if found.size:
            for number, at in enumerate(k):
                if at in slices:
                    found[:, :, number] = self._rows(slices[at], j)[:, i.start : i.stop].T
        return found

    def _rows(self, runs: Runs, j: range) -> np.ndarray:
        """Rows j of a slice, (j, i)."""
        starts, values = runs
        low, high = j.start * self.shape[0], j.stop * self.shape[0]
        first, last = np.searchsorted(starts, low, side="right") - 1, np.searchsorted(starts, high)
        edges = np.empty(last - first + 1, np.int64)
        edges[0], edges[1:-1], edges[-1] = low, starts[first + 1 : last], high
        return np.repeat(values[first:last], edges[1:] - edges[:-1]).reshape(len(j), self.shape[0])


def where(labels: np.ndarray | LabelRuns, label: int, box: Box) -> np.ndarray:
    """The mask of a label above 0 in a box of a label map, boolean."""
    return labels.where(label, box) if isinstance(labels, LabelRuns) else labels[box] == label


def slices_of(labels: np.ndarray | LabelRuns, most: int = _PART_VOXELS) -> Iterator[tuple[slice, np.ndarray]]:
    """A label map (i, j, k) in parts of about `most` voxels along k: which slices, and their labels."""
    step = max(1, most // max(1, labels.shape[0] * labels.shape[1]))
    for first in range(0, labels.shape[2], step):
        rows = slice(first, min(first + step, labels.shape[2]))
        yield rows, labels[:, :, rows]
