"""Evidence: what a decoder says about finished slices, no larger than what it claims, so that it can be kept until all are heard.

Where memory is short, decoders run in chunks, each over the whole scan; of a chunk only
this is kept.  Who has a voxel is decided from it when all have been heard, by the same
code and with the same numbers as when all run at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from clseg.spatial.crop import Box


class Faint(NamedTuple):
    """Voxels where a structure did not win: flat index into the grid (C order) and probability × 255."""

    index: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Claim:
    """What one decoder says in a `box` of the grid: catalogue ids, 0 nothing, and the probability of each (float32, 0 … 1).

    `faint` holds, by id, where a structure is not the decoder's likeliest answer but not ruled out.
    """

    box: Box
    ids: np.ndarray
    strength: np.ndarray
    faint: Mapping[int, Faint] = field(default_factory=dict)

    def opened(self) -> Claim:
        return self

    def at(self, where: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and probabilities (float32) at these voxels of the grid, 0 beyond the box."""
        local = [axis - part.start for axis, part in zip(where, self.box, strict=True)]
        inside = np.all([(axis >= 0) & (axis < n) for axis, n in zip(local, self.ids.shape, strict=True)], axis=0)
        ids, strength = np.zeros(len(inside), np.uint16), np.zeros(len(inside), np.float32)
        place = tuple(axis[inside] for axis in local)
        ids[inside], strength[inside] = self.ids[place], self.strength[place]
        return ids, strength

    def cut(self, rows: slice, depth: int) -> Claim:
        """The part in some slices of a grid that has `depth` of them."""
        x, y, z = self.box
        z = slice(max(z.start, rows.start), max(z.start, min(z.stop, rows.stop)))
        inside = slice(z.start - self.box[2].start, z.stop - self.box[2].start)
        faint = {id: _between(one, rows, depth) for id, one in self.faint.items()}
        return Claim((x, y, z), self.ids[..., inside], self.strength[..., inside], faint)

    def tight(self) -> Claim:
        """The same in the smallest box that holds all that is claimed."""
        box = _around(self.ids)
        outer = tuple(slice(b.start + part.start, b.start + part.stop) for b, part in zip(self.box, box, strict=True))
        return Claim(outer, self.ids[box], self.strength[box], self.faint)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Packed:
    """A claim to keep: a bit per voxel of its box, and six bytes per voxel that is claimed."""

    box: Box
    bits: np.ndarray
    ids: np.ndarray
    strength: np.ndarray
    faint: Mapping[int, Faint]

    @staticmethod
    def of(claim: Claim) -> Packed:
        claimed = claim.ids > 0
        return Packed(claim.box, np.packbits(claimed), claim.ids[claimed], claim.strength[claimed], claim.faint)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.bits, self.ids, self.strength, *(a for one in self.faint.values() for a in one)))

    def opened(self) -> Claim:
        """The claim as it was, with no probabilities where nothing is claimed."""
        shape = tuple(part.stop - part.start for part in self.box)
        claimed = np.unpackbits(self.bits, count=math.prod(shape)).view(bool).reshape(shape)
        ids, strength = np.zeros(shape, np.uint16), np.zeros(shape, np.float32)
        ids[claimed], strength[claimed] = self.ids, self.strength
        return Claim(self.box, ids, strength, self.faint)


@dataclass(frozen=True)
class Excerpt:
    """Some slices of a claim that is kept, opened when they are looked at."""

    whole: Packed
    rows: slice
    depth: int

    def opened(self) -> Claim:
        return self.whole.opened().cut(self.rows, self.depth)


@dataclass(frozen=True)
class Sheet:
    """Slices `rows` of the grid: decoder → its claim, or something that opens to it."""

    rows: slice
    claims: Mapping[str, Claim | Packed | Excerpt]

    def packed(self) -> Sheet:
        return Sheet(self.rows, {name: Packed.of(claim.opened()) for name, claim in self.claims.items()})


def united(chunks: Sequence[Sequence[Sheet]], depth: int) -> Iterator[Sheet]:
    """Sheets with the claims of all chunks, from the lowest slice up; every chunk has sheets for all of `depth` slices, cut anywhere."""
    edges = sorted({edge for sheets in chunks for sheet in sheets for edge in (sheet.rows.start, sheet.rows.stop)})
    at = [0] * len(chunks)
    for first, last in pairwise(edges):
        claims: dict[str, Claim | Packed | Excerpt] = {}
        for number, sheets in enumerate(chunks):
            while sheets[at[number]].rows.stop <= first:
                at[number] += 1
            sheet, rows = sheets[at[number]], slice(first, last)
            whole = sheet.rows == rows
            claims |= sheet.claims if whole else {name: Excerpt(one, rows, depth) for name, one in sheet.claims.items()}  # type: ignore[arg-type]
        yield Sheet(slice(first, last), claims)


def _between(faint: Faint, rows: slice, depth: int) -> Faint:
    z = faint.index % depth
    inside = (z >= rows.start) & (z < rows.stop)
    return Faint(faint.index[inside], faint.value[inside])


def _around(ids: np.ndarray) -> Box:
    """The smallest box around all that is not 0; an empty one where nothing is."""
    found = []
    plane = ids.any(axis=2)
    for profile in (plane.any(axis=1), plane.any(axis=0), ids.any(axis=(0, 1)) if plane.any() else np.zeros(0, bool)):
        there = np.flatnonzero(profile)
        found.append(slice(int(there[0]), int(there[-1]) + 1) if there.size else slice(0, 0))
    return tuple(found)  # type: ignore[return-value]
