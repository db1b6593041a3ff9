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

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from clseg.catalogue import Anatomy, Catalogue
from clseg.inference.extent import Extent, LabelExtents
from clseg.inference.predictor import Slab
from clseg.spatial.crop import Box
from clseg.volume import Shape, Spacing

FULL = 255  # a probability of 1 in the stored byte
HALF = FULL // 2  # the most that is kept where a structure did not win
FAINT = 5  # below this (0.02) a probability moves no border by a tenth of a voxel and is not kept
LESIONS = 100  # their layer lies on top of all organs
NEAR_MM = 10.0  # how far from a lesion its host is judged by decoders that know pathological cases

Labels = Mapping[str, tuple[str, ...]]
"""decoder → the names of its channels after background"""


class Faint(NamedTuple):
    """Voxels where a structure did not win: flat index into the grid (C order) and probability × 255, FAINT … HALF."""

    index: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Layer:
    """One label map: `labels` uint16 catalogue ids (x, y, z), `score` uint8: the winner's probability × 255, 0 without one.

    `faint` holds, by id, where a structure may reach beyond the voxels that it won.
    """

    labels: np.ndarray
    score: np.ndarray
    faint: dict[int, list[Faint]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What one decoder says in a `box` of the grid: catalogue ids, 0 nothing, and the probability × 255 of each."""

    box: Box
    ids: np.ndarray
    score: np.ndarray

    def at(self, where: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and probabilities (float32) at these voxels of the grid, 0 beyond the box."""
        local = [axis - part.start for axis, part in zip(where, self.box, strict=True)]
        inside = np.all([(axis >= 0) & (axis < n) for axis, n in zip(local, self.ids.shape, strict=True)], axis=0)
        ids, strength = np.zeros(len(inside), np.uint16), np.zeros(len(inside), np.float32)
        place = tuple(axis[inside] for axis in local)
        ids[inside], strength[inside] = self.ids[place], self.score[place] / np.float32(FULL)
        return ids, strength


@dataclass
class Canvas:
    """What has been painted so far on the model's grid of `shape` voxels of `spacing` mm.

    `extents` says in which slices a decoder may speak (one that is not named: in
    all), `label_extents` where it may speak of single labels, `pathological` which decoders were trained on pathological cases.  Every
    slice is painted once, upwards; call `finish` when all are.
    """

    shape: Shape
    wanted: Sequence[Anatomy]
    catalogue: Catalogue
    spacing: Spacing = (1.0, 1.0, 1.0)
    extents: Mapping[str, Extent | None] = field(default_factory=dict)
    pathological: frozenset[str] = frozenset()
    layers: dict[int, Layer] = field(default_factory=dict)
    label_extents: LabelExtents = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name = {a.name: a for a in self.wanted}
        self._table = _Table(self.wanted, self.catalogue)
        for depth in sorted({_depth(a, self.catalogue) for a in self.wanted}):
            self.layers[depth] = Layer(np.zeros(self.shape, np.uint16), np.zeros(self.shape, np.uint8))
        self._waiting: Slab | None = None
        self._labels: Labels = {}
        self._merged = 0  # slices from the bottom that are done; counted only where some have to wait

    def paint(self, slab: Slab, labels: Labels) -> None:
        """Paint finished slices; `labels[decoder]` names the channels after background."""
        if not any(self._lesions(organ, slab, labels) for organ in self._shared(slab, labels)):
            self._merge(slab, labels, {})
            return
        self._labels = labels
        self._waiting = slab if self._waiting is None else _joined(self._waiting, slab)
        self._merge_waiting(_end(self._waiting) - self._reach[2])  # a lesion in the next slab may be near to these

    def paint_whole(self, claims: Sequence[Claim]) -> None:
        """Paint the whole grid at once with all that decoders say about it, by rules 3 and 4."""
        views = {depth: (layer.labels, layer.score) for depth, layer in self.layers.items()}
        disputed = np.zeros(self.shape, bool)
        for claim in claims:
            mine = [int(id) for id in np.unique(claim.ids) if id]
            here = {depth: (labels[claim.box], score[claim.box]) for depth, (labels, score) in views.items()}
            for depth, (there, _) in here.items():
                if self._table.compete(mine, depth):
                    disputed[claim.box] |= self._table.rivals(claim.ids, there)
            self._put(here, claim.ids, claim.score / np.float32(FULL), set(self._table.depth[mine]))
        where = np.nonzero(disputed)
        self._settle(views, where, [claim.at(where) for claim in claims])

    def finish(self) -> None:
        """Paint what had to wait for the slices above it."""
        if self._waiting is not None:
            self._merge_waiting(_end(self._waiting))
            self._waiting = None

    # --- which decoder speaks for an organ

    def _shared(self, slab: Slab, labels: Labels) -> dict[str, list[str]]:
        """Wanted organs that several decoders of the slab know → those decoders, by name."""
        owners: dict[str, list[str]] = {}
        for decoder in sorted(slab.probabilities):
            for name in labels[decoder]:
                if name in self._by_name:
                    owners.setdefault(name, []).append(decoder)
        return {name: decoders for name, decoders in owners.items() if len(decoders) > 1}

    def _lesions(self, organ: str, slab: Slab, labels: Labels) -> dict[str, list[int]]:
        """Decoder → channels of lesions that grow in the organ; empty unless some of its decoders know such cases and some do not."""
        knowing = {d in self.pathological for d in slab.probabilities if organ in labels[d]}
        if knowing != {True, False}:
            return {}
        grows = {name: self.catalogue.grows_in(name, organ) for d in slab.probabilities for name in labels[d] if name in self.catalogue}
        found = {d: [i for i, name in enumerate(labels[d], 1) if grows.get(name)] for d in slab.probabilities}
        return {decoder: channels for decoder, channels in found.items() if channels}

    @property
    def _reach(self) -> Shape:
        """NEAR_MM in whole voxels."""
        return tuple(int(NEAR_MM / s + 1e-6) for s in self.spacing)  # type: ignore[return-value]

    def _merge_waiting(self, until: int) -> None:
        """Merge the waiting slices below `until`; as many below it stay as the next ones need to be judged."""
        slab, labels = self._waiting, self._labels
        first = max(slab.start, self._merged)
        if until > first:
            near = {organ: self._near(organ, slab, labels)[..., first - slab.start : until - slab.start] for organ in self._shared(slab, labels)}
            self._merge(_part(slab, first, until), labels, near)
            self._merged = until
            self._waiting = _part(slab, max(slab.start, until - self._reach[2]), _end(slab))

    def _near(self, organ: str, slab: Slab, labels: Labels) -> torch.Tensor:
        """Voxels within reach of one where a lesion of the organ is its decoder's likeliest answer (a box, not a ball)."""
        fires = torch.zeros(next(iter(slab.probabilities.values())).shape[1:], dtype=torch.bool)
        for decoder, channels in self._lesions(organ, slab, labels).items():
            fires |= torch.isin(slab.probabilities[decoder].argmax(dim=0), torch.tensor(channels))
        sizes = [2 * reach + 1 for reach in self._reach]
        return torch.nn.functional.max_pool3d(fires[None, None].float(), sizes, 1, self._reach)[0, 0] > 0

    def _silences(self, slab: Slab, labels: Labels, near: Mapping[str, torch.Tensor]) -> dict[tuple[str, str], np.ndarray]:
        """(decoder, organ) → where it must not speak for the organ, because another does (rules 1 and 2)."""
        silent = {}
        entropy: dict[str, torch.Tensor] = {}
        for organ, decoders in self._shared(slab, labels).items():
            for decoder in decoders:
                if decoder not in entropy:
                    entropy[decoder] = self._entropy(decoder, slab)
            doubts = torch.stack([self._doubt(entropy[decoder], decoder, organ, slab) for decoder in decoders])
            if organ in near:
                knowing = torch.tensor([decoder in self.pathological for decoder in decoders])
                heard = near[organ] & doubts[knowing].isfinite().any(dim=0)
                doubts[~knowing] = torch.where(heard, torch.inf, doubts[~knowing])
            speaker = doubts.argmin(dim=0)
            for index, decoder in enumerate(decoders):
                silent[decoder, organ] = (speaker != index).numpy()
        return silent

    def _entropy(self, decoder: str, slab: Slab) -> torch.Tensor:
        """H of one decoder, infinite outside its extent."""
        probabilities = slab.probabilities[decoder]
        entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(dim=0)
        return _infinite_beyond(self.extents.get(decoder) or (0, self.shape[2]), entropy, slab)

    def _doubt(self, entropy: torch.Tensor, decoder: str, organ: str, slab: Slab) -> torch.Tensor:
        """The decoder's H where it may speak of the organ, infinite elsewhere."""
        own = self.label_extents.get(decoder, {})
        return _infinite_beyond(own[organ] or (0, 0), entropy.clone(), slab) if organ in own else entropy

    # --- who has a voxel

    def _merge(self, slab: Slab, labels: Labels, near: Mapping[str, torch.Tensor]) -> None:
        """Give every voxel of the slab to those who may share it, then keep where the others were not ruled out."""
        rows = slice(slab.start, _end(slab))
        silent = self._silences(slab, labels, near)
        decoders = sorted(d for d in slab.probabilities if any(name in self._by_name for name in labels[d]))
        claims = [self._claim(d, slab.probabilities[d], labels[d], silent) for d in decoders]
        views = {depth: (layer.labels[:, :, rows], layer.score[:, :, rows]) for depth, layer in self.layers.items()}
        disputed = np.zeros((*self.shape[:2], rows.stop - rows.start), bool)
        for decoder, (ids, strength) in zip(decoders, claims, strict=True):
            mine = [self._by_name[name].id for name in labels[decoder] if name in self._by_name]
            for depth, (there, _) in views.items():
                if self._table.compete(mine, depth):
                    disputed |= self._table.rivals(ids, there)
            self._put(views, ids, strength, set(self._table.depth[mine]))
        where = np.nonzero(disputed)
        self._settle(views, where, [(claim[where], best[where]) for claim, best in claims])
        for decoder in decoders:
            self._keep_faint(decoder, slab, labels[decoder], silent, views)

    def _claim(
        self, decoder: str, probabilities: torch.Tensor, names: tuple[str, ...], silent: Mapping[tuple[str, str], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the wanted structures that are their decoder's likeliest answer (else 0), and that answer's probability."""
        best, winner = probabilities.max(dim=0)  # over all its labels, wanted or not
        ids = np.zeros(len(names) + 1, np.uint16)
        for channel, name in enumerate(names, 1):
            if name in self._by_name:
                ids[channel] = self._by_name[name].id
        claimed = ids[winner.numpy()]
        for name in names:
            if (decoder, name) in silent:
                claimed[(claimed == self._by_name[name].id) & silent[decoder, name]] = 0
        return claimed, best.numpy()

    def _put(self, views: _Views, ids: np.ndarray, strength: np.ndarray, depths: Collection[int]) -> None:
        """Write ids and scores into the layers that they belong to, all of them at `depths`."""
        for depth in depths:
            labels, score = views[int(depth)]
            mine = ids > 0 if len(depths) == 1 else (ids > 0) & (self._table.depth[ids] == depth)
            labels[mine] = ids[mine]
            score[mine] = _byte(strength[mine])

    def _settle(self, views: _Views, where: tuple[np.ndarray, ...], claims: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Give the disputed voxels `where` away anew: from the strongest claim to the weakest, each unless a rival has the voxel by then."""
        if not where[0].size:
            return
        ids, strength = self._ranked(claims)
        for labels, score in views.values():
            labels[where] = score[where] = 0
        for number in range(len(ids)):
            for holder in ids[:number]:
                ids[number][self._table.rivals(ids[number], holder)] = 0
            for depth, (labels, score) in views.items():
                mine = (ids[number] > 0) & (self._table.depth[ids[number]] == depth)
                place = tuple(axis[mine] for axis in where)
                labels[place], score[place] = ids[number][mine], _byte(strength[number][mine])

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

    def _keep_faint(
        self, decoder: str, slab: Slab, names: tuple[str, ...], silent: Mapping[tuple[str, str], np.ndarray], views: _Views
    ) -> None:
        """Keep the probability of every wanted structure of a decoder where it did not win."""
        for channel, name in enumerate(names, 1):
            if name not in self._by_name:
                continue
            id, probability = self._by_name[name].id, slab.probabilities[decoder][channel].numpy()
            layer = self.layers[int(self._table.depth[id])]
            where = (probability >= FAINT / FULL) & (views[int(self._table.depth[id])][0] != id)
            if (decoder, name) in silent:
                where &= ~silent[decoder, name]
            x, y, z = np.nonzero(where)
            value = np.minimum(_byte(probability[x, y, z]), HALF)
            for labels, score in views.values():  # together two rivals have no more than 1
                rival = self._table.rivals(np.full(len(x), id, np.uint16), labels[x, y, z])
                value[rival] = np.minimum(value, FULL - score[x, y, z])[rival]
            index = np.ravel_multi_index((x, y, z + slab.start), self.shape).astype(np.min_scalar_type(math.prod(self.shape)))
            if index.size:
                layer.faint.setdefault(id, []).append(Faint(index[value >= FAINT], value[value >= FAINT]))


_Views = dict[int, tuple[np.ndarray, np.ndarray]]  # depth → labels and score of the slices at hand


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


def _depth(anatomy: Anatomy, catalogue: Catalogue) -> int:
    return LESIONS if anatomy.hosts else catalogue.depth(anatomy.name)


def _byte(probability: np.ndarray) -> np.ndarray:
    return np.rint(probability * FULL).astype(np.uint8)


def _infinite_beyond(extent: Extent, entropy: torch.Tensor, slab: Slab) -> torch.Tensor:
    """`entropy` of the slab, infinite outside the extent, in place."""
    low, high = (max(0, bound - slab.start) for bound in extent)
    entropy[..., :low] = torch.inf
    entropy[..., high:] = torch.inf
    return entropy


def _end(slab: Slab) -> int:
    return slab.start + next(iter(slab.probabilities.values())).shape[-1]


def _part(slab: Slab, first: int, end: int) -> Slab:
    return Slab(first, {name: p[..., first - slab.start : end - slab.start] for name, p in slab.probabilities.items()})


def _joined(below: Slab, above: Slab) -> Slab:
    return Slab(below.start, {name: torch.cat([p, above.probabilities[name]], dim=-1) for name, p in below.probabilities.items()})
