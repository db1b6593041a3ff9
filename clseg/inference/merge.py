"""Canvas: the label maps that decoders paint on; where they disagree the merge rules decide.

No formula for CL-Net's body-part-guided merge is public.  These are our rules; what
belongs together, grows in what and is smaller than what are columns of the catalogue
(`parent`, `host`, `typical_ml`).

1. Outside its extent (see `extent`) a decoder says nothing, and beyond a label's own nothing of that.
2. The same organ from several decoders: per voxel the decoder with the lower
   entropy H = −Σ p log p speaks for it.  Within NEAR_MM of a lesion that grows in
   the organ, decoders trained on pathological cases go before the others.
3. Different organs on one voxel: a structure and its parts share it; of others the
   one with the higher probability has it, of equals the smaller.
4. A lesion and the organ that hosts it share it too; where one label must be named,
   it is the lesion's, whose layer lies on top.

All decoders of a slab are heard before a voxel is given away, so the order in which
they paint does not matter.  (That some organs come in one piece is in `clean`.)

A structure and its parts lie on different layers (by depth in the catalogue), so
one label map per layer is enough, with one byte per voxel for the winner's
probability.  Where a structure did not win but is not ruled out, its own
probability is kept apart (`Faint`): from both its smooth border is rebuilt, whatever
else is on the layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clseg.catalogue import Anatomy, Catalogue
from clseg.inference.evidence import Claim, Faint, Sheet
from clseg.inference.hearing import FAINT, FULL, HALF, NEAR_MM, Hearing, Labels, Question, as_byte
from clseg.inference.predictor import Slab

__all__ = ["FAINT", "FULL", "HALF", "LESIONS", "NEAR_MM", "Canvas", "Claim", "Faint", "Labels", "Layer", "Question", "depths"]

LESIONS = 100  # their layer lies on top of all organs


@dataclass(frozen=True)
class Layer:
    """One label map: `labels` uint16 catalogue ids (x, y, z), `score` uint8: the winner's probability × 255, 0 without one.

    `faint` holds, by id, where a structure may reach beyond the voxels that it won.
    """

    labels: np.ndarray
    score: np.ndarray
    faint: dict[int, list[Faint]] = field(default_factory=dict)


def depths(wanted: Iterable[Anatomy], catalogue: Catalogue) -> list[int]:
    """The layers that these structures lie on, from whole to part."""
    return sorted({_depth(a, catalogue) for a in wanted})


@dataclass
class Canvas:
    """What has been painted so far as the answer to a question.

    Every slice is painted once, upwards: slabs of all decoders with `paint` and then
    `finish`, or with `merge` what was heard of them (see `hearing`).
    """

    question: Question
    layers: dict[int, Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted, catalogue, shape = self.question.wanted, self.question.catalogue, self.question.shape
        self._table = _Table(wanted, catalogue)
        for depth in depths(wanted, catalogue):
            self.layers[depth] = Layer(np.zeros(shape, np.uint16), np.zeros(shape, np.uint8))
        self._hearing = self.hearing()

    def hearing(self) -> Hearing:
        """A hearing of some of the decoders whose sheets `merge` will get."""
        return Hearing(self.question)

    def paint(self, slab: Slab, labels: Labels) -> None:
        """Paint finished slices; `labels[decoder]` names the channels after background."""
        for sheet in self._hearing.hear(slab, labels):
            self.merge(sheet)

    def finish(self) -> None:
        """Paint what had to wait for the slices above it."""
        for sheet in self._hearing.rest():
            self.merge(sheet)

    def merge(self, sheet: Sheet) -> None:
        """Give every voxel of some slices to those who may share it, then keep where the others were not ruled out."""
        self.decide(sheet)
        for decoder in sorted(sheet.claims):
            self._keep_faint(sheet.claims[decoder].opened(), self._views)

    def decide(self, sheet: Sheet) -> None:
        """Give every voxel of some slices to those who may share it (rules 3 and 4)."""
        disputed = np.zeros((*self.question.shape[:2], sheet.rows.stop - sheet.rows.start), bool)
        decoders = sorted(sheet.claims)
        for decoder in decoders:
            claim = sheet.claims[decoder].opened()
            if claim.ids.size:
                self._paint_one(claim, disputed, sheet.rows.start)
        x, y, z = np.nonzero(disputed)
        where = (x, y, z + sheet.rows.start)
        if x.size:
            self._settle(where, [sheet.claims[decoder].opened().at(where) for decoder in decoders])

    @property
    def _views(self) -> _Views:
        return {depth: (layer.labels, layer.score) for depth, layer in self.layers.items()}

    def _paint_one(self, claim: Claim, disputed: np.ndarray, first: int) -> None:
        """Paint one claim over what is there, and note where it meets rivals."""
        here = {depth: (labels[claim.box], score[claim.box]) for depth, (labels, score) in self._views.items()}
        mine = _present(claim.ids)
        x, y, z = claim.box
        doubt = disputed[x, y, z.start - first : z.stop - first]
        for depth, (there, _) in here.items():
            if self._table.compete(mine, depth):
                doubt |= self._table.rivals(claim.ids, there)
        self._put(here, claim.ids, claim.strength, set(self._table.depth[mine]))

    # --- who has a voxel

    def _put(self, views: _Views, ids: np.ndarray, strength: np.ndarray, depths: Collection[int]) -> None:
        """Write ids and scores into the layers that they belong to, all of them at `depths`."""
        for depth in depths:
            labels, score = views[int(depth)]
            mine = ids > 0 if len(depths) == 1 else (ids > 0) & (self._table.depth[ids] == depth)
            labels[mine] = ids[mine]
            score[mine] = as_byte(strength[mine])

    def _settle(self, where: tuple[np.ndarray, ...], claims: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Give the disputed voxels `where` away anew: from the strongest claim to the weakest, each unless a rival has the voxel by then."""
        views, (ids, strength) = self._views, self._ranked(claims)
        for labels, score in views.values():
            labels[where] = score[where] = 0
        for number in range(len(ids)):
            for holder in ids[:number]:
                ids[number][self._table.rivals(ids[number], holder)] = 0
            for depth, (labels, score) in views.items():
                mine = (ids[number] > 0) & (self._table.depth[ids[number]] == depth)
                place = tuple(axis[mine] for axis in where)
                labels[place], score[place] = ids[number][mine], as_byte(strength[number][mine])

    def _ranked(self, claims: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and strengths (ranks, voxels) of all claims per voxel, the strongest first and of equals the smaller; 0 where there is none."""
        voxel = np.concatenate([np.flatnonzero(ids) for ids, _ in claims])
        ids = np.concatenate([ids[ids > 0] for ids, _ in claims])
        strength = np.concatenate([best[ids > 0] for ids, best in claims])
        order = np.lexsort((self._table.size[ids], -strength, voxel))
        voxel, ids, strength = voxel[order], ids[order], strength[order]
        rank = np.arange(len(voxel)) - np.searchsorted(voxel, voxel)
        shape = (int(rank.max()) + 1, len(claims[0][0]))
        ranked_ids, ranked_strength = np.zeros(shape, np.uint16), np.zeros(shape, np.float32)
        ranked_ids[rank, voxel], ranked_strength[rank, voxel] = ids, strength
        return ranked_ids, ranked_strength

    # --- what may lie beyond

    def _keep_faint(self, claim: Claim, views: _Views) -> None:
        """Keep the probability of every structure that a decoder does not rule out where it did not win."""
        for id in sorted({*claim.faint, *_present(claim.ids)}):
            depth = int(self._table.depth[id])
            index, value = self._not_won(id, claim, views[depth][0])
            x, y, z = np.unravel_index(index, self.question.shape)
            for labels, score in views.values():  # together two rivals have no more than 1
                rival = self._table.rivals(np.full(len(index), id, np.uint16), labels[x, y, z])
                value[rival] = np.minimum(value, FULL - score[x, y, z])[rival]
            kept = value >= FAINT
            if index.size:
                self.layers[depth].faint.setdefault(id, []).append(Faint(index[kept], value[kept]))

    def _not_won(self, id: int, claim: Claim, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxels (flat index, rising) where the structure is claimed or faint and another has the voxel, and its probability × 255."""
        lost = (claim.ids == id) & (labels[claim.box] != id) & (claim.strength >= FAINT / FULL)
        x, y, z = np.nonzero(lost)
        corner = [part.start for part in claim.box]
        place = np.ravel_multi_index((x + corner[0], y + corner[1], z + corner[2]), self.question.shape)
        strength = np.minimum(as_byte(claim.strength[lost]), HALF)
        faint = claim.faint.get(id)
        if faint is None:
            return place.astype(np.min_scalar_type(labels.size)), strength
        beaten = labels[np.unravel_index(faint.index, self.question.shape)] != id
        index = np.concatenate([faint.index[beaten], place.astype(faint.index.dtype)])
        value = np.concatenate([faint.value[beaten], strength])
        order = np.argsort(index) if place.size else slice(None)
        return index[order], value[order]


_Views = dict[int, tuple[np.ndarray, np.ndarray]]  # depth → labels and score


class _Table:
    """What the catalogue says about wanted ids: arrays over ids 0 … the largest, where 0 is nothing."""

    def __init__(self, wanted: Sequence[Anatomy], catalogue: Catalogue) -> None:
        self._ids = ids = [a.id for a in wanted]
        self._place = self._over(ids, range(len(ids)))
        self._overlap = np.array([[catalogue.may_overlap(a.name, b.name) for b in wanted] for a in wanted], bool)
        self.depth = self._over(ids, [_depth(a, catalogue) for a in wanted], nothing=-1)
        small_first = sorted(wanted, key=lambda a: (a.typical_ml, a.id))
        self.size = self._over([a.id for a in small_first], range(len(ids)))

    def compete(self, ids: Sequence[int], depth: int) -> bool:
        """Whether one of these structures may not share a voxel with one of another structure at `depth`."""
        there = self.depth[self._ids] == depth
        return not bool(self._overlap[np.ix_(self._place[list(ids)], there)].all())

    def rivals(self, ids: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Where two different structures meet that may not share a voxel."""
        met = (ids > 0) & (others > 0)
        met[met] = ~self._overlap[self._place[ids[met]], self._place[others[met]]]
        return met

    @staticmethod
    def _over(ids: Sequence[int], values: Iterable[int], nothing: int = 0) -> np.ndarray:
        table = np.full(max(ids, default=0) + 1, nothing, np.intp)
        table[list(ids)] = list(values)
        return table


def _present(ids: np.ndarray) -> list[int]:
    """The ids above 0 in an array."""
    counts = np.bincount(ids.ravel())
    return [int(id) for id in np.flatnonzero(counts) if id]


def _depth(anatomy: Anatomy, catalogue: Catalogue) -> int:
    return LESIONS if anatomy.hosts else catalogue.depth(anatomy.name)
