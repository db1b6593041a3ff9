"""Segments: what every format writer gets: label maps on the scan's grid, and the structures that are in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clseg.catalogue import Anatomy
from clseg.spatial.crop import Box, around
from clseg.spatial.regions import Region, regions
from clseg.spatial.runs import LabelRuns, slices_of, where
from clseg.volume import Volume


@dataclass(frozen=True)
class Segments:
    """`layers` are maps of catalogue ids on the grid of `scan`, arrays or runs; a structure and its parts overlap, so they lie on different ones.

    `wanted` are the structures that were looked for, in the order of the catalogue;
    those with at least one voxel are `present`.  `model` is the name of the model that
    found them, empty where none did.
    """

    scan: Volume
    layers: tuple[np.ndarray | LabelRuns, ...]
    wanted: tuple[Anatomy, ...]
    model: str = ""

    @cached_property
    def regions(self) -> tuple[dict[int, Region], ...]:
        """Where every id lies, layer by layer."""
        return tuple(regions(layer) for layer in self.layers)

    @cached_property
    def present(self) -> tuple[Anatomy, ...]:
        """The structures that have at least one voxel."""
        return tuple(a for a in self.wanted if any(a.id in there for there in self.regions))

    def pieces(self, anatomy: Anatomy) -> Iterator[tuple[np.ndarray | LabelRuns, Box]]:
        """The layers that hold the structure, with the box in which it lies there; one layer but for joined results."""
        for layer, there in zip(self.layers, self.regions, strict=True):
            if anatomy.id in there:
                yield layer, there[anatomy.id].box

    def cut(self, anatomy: Anatomy) -> tuple[np.ndarray, Box]:
        """The boolean mask of a structure that is present in the smallest box around it, and that box."""
        pieces = list(self.pieces(anatomy))
        box = around([box for _, box in pieces])
        found = where(pieces[0][0], anatomy.id, box)
        for layer, _ in pieces[1:]:
            found |= where(layer, anatomy.id, box)
        return found, box

    def mask(self, anatomy: Anatomy) -> np.ndarray:
        """Boolean mask of one structure, shape of the scan."""
        found = np.zeros(self.scan.shape, bool, order="F")
        for layer, box in self.pieces(anatomy):
            found[box] |= where(layer, anatomy.id, box)
        return found

    def flat(self) -> np.ndarray:
        """One uint16 map, shape of the scan; where structures overlap the part hides the whole."""
        one = np.zeros(self.scan.shape, np.uint16, order="F")
        for rows, labels in self.flat_slices():
            one[:, :, rows] = labels
        return one

    def flat_slices(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The same, some slices at a time: which slices, and their labels, uint16 (i, j, n) in Fortran order."""
        for rows, empty in slices_of(LabelRuns(self.scan.shape)):
            for layer in self.layers:
                labels = layer[:, :, rows]
                np.copyto(empty, labels, where=labels > 0, casting="unsafe")
            yield rows, empty
