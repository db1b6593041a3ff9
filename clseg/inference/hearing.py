"""Hearing: what decoders say about finished slices, after those that know the same organ have settled which of them speaks for it.

Rules 1 and 2 of `clseg.inference.merge`; whose the voxel is in the end is decided there.
Decoders that have to be heard together (`bonds`) must be in one hearing; apart from
that every hearing gives the claims that one of all decoders would give.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from clseg.catalogue import Anatomy, Catalogue
from clseg.inference.evidence import Claim, Faint, Sheet
from clseg.inference.extent import Extent, Reach
from clseg.inference.predictor import Slab
from clseg.volume import Shape, Spacing

FULL = 255  # a probability of 1 in the stored byte
HALF = FULL // 2  # the most that is kept where a structure did not win
FAINT = 5  # below this (0.02) a probability moves no border by a tenth of a voxel and is not kept
NEAR_MM = 10.0  # how far from a lesion its host is judged by decoders that know pathological cases

Labels = Mapping[str, tuple[str, ...]]
"""decoder → the names of its channels after background"""


def bonds(labels: Labels, wanted: Collection[str], catalogue: Catalogue, pathological: Collection[str] = ()) -> list[list[str]]:
    """The decoders in groups that have to be heard together, each in the order given: those that know the same wanted organ, and
    where some of these know pathological cases and some do not, those of lesions that grow in it.
    """
    group = {decoder: [decoder] for decoder in labels}
    for one, other in _bound(labels, wanted, catalogue, pathological):
        if group[one] is not group[other]:
            group[one] += group[other]
            group |= dict.fromkeys(group[one], group[one])
    found = {id(members): sorted(members, key=list(labels).index) for members in group.values()}
    return list(found.values())


def _bound(labels: Labels, wanted: Collection[str], catalogue: Catalogue, pathological: Collection[str]) -> Iterator[tuple[str, str]]:
    for organ in wanted:
        owners = [decoder for decoder in labels if organ in labels[decoder]]
        yield from ((owners[0], other) for other in owners[1:])
        if {decoder in pathological for decoder in owners} == {True, False}:
            yield from ((owners[0], decoder) for decoder in labels if _lesions(labels[decoder], organ, catalogue))


def _lesions(names: Sequence[str], organ: str, catalogue: Catalogue) -> list[int]:
    """The channels of lesions that grow in the organ."""
    return [channel for channel, name in enumerate(names, 1) if name in catalogue and catalogue.grows_in(name, organ)]


@dataclass(frozen=True)
class Question:
    """What decoders are asked: which structures are where on the model's grid of `shape` voxels of `spacing` mm.

    `reach` says in which slices a decoder may speak (one that is not named: in all), and
    of which of its labels, `pathological` which decoders were trained on pathological cases.
    """

    shape: Shape
    wanted: Sequence[Anatomy]
    catalogue: Catalogue
    spacing: Spacing = (1.0, 1.0, 1.0)
    reach: Reach = field(default_factory=lambda: Reach({}))
    pathological: frozenset[str] = frozenset()


@dataclass
class Hearing:
    """Hears slabs from the bottom up and hands out claims as soon as nothing above can change them."""

    question: Question

    def __post_init__(self) -> None:
        self._ids = {a.name: a.id for a in self.question.wanted}
        self._waiting: Slab | None = None
        self._labels: Labels = {}
        self._heard = 0  # slices from the bottom that are done; counted only where some have to wait

    def hear(self, slab: Slab, labels: Labels) -> Iterator[Sheet]:
        """What can be said by now; `labels[decoder]` names the channels after background."""
        if not any(self._lesions(organ, slab, labels) for organ in self._shared(slab, labels)):
            yield self._sheet(slab, labels, {})
            return
        self._labels = labels
        self._waiting = slab if self._waiting is None else _joined(self._waiting, slab)
        yield from self._until(_end(self._waiting) - self._reach[2])  # a lesion in the next slab may be near to these

    def rest(self) -> Iterator[Sheet]:
        """What had to wait for the slices above it."""
        if self._waiting is not None:
            yield from self._until(_end(self._waiting))
            self._waiting = None

    # --- which decoder speaks for an organ

    def _shared(self, slab: Slab, labels: Labels) -> dict[str, list[str]]:
        """Wanted organs that several decoders of the slab know → those decoders, by name."""
        owners: dict[str, list[str]] = {}
        for decoder in sorted(slab.probabilities):
            for name in labels[decoder]:
                if name in self._ids:
                    owners.setdefault(name, []).append(decoder)
        return {name: decoders for name, decoders in owners.items() if len(decoders) > 1}

    def _lesions(self, organ: str, slab: Slab, labels: Labels) -> dict[str, list[int]]:
        """Decoder → channels of lesions that grow in the organ; empty unless some of its decoders know such cases and some do not."""
        knowing = {d in self.question.pathological for d in slab.probabilities if organ in labels[d]}
        if knowing != {True, False}:
            return {}
        found = {d: _lesions(labels[d], organ, self.question.catalogue) for d in slab.probabilities}
        return {decoder: channels for decoder, channels in found.items() if channels}

    @property
    def _reach(self) -> Shape:
        """NEAR_MM in whole voxels."""
        return tuple(int(NEAR_MM / s + 1e-6) for s in self.question.spacing)  # type: ignore[return-value]

    def _until(self, until: int) -> Iterator[Sheet]:
        """The waiting slices below `until`; as many below it stay as the next ones need to be judged."""
        slab, labels = self._waiting, self._labels
        assert slab is not None
        first = max(slab.start, self._heard)
        if until > first:
            near = {organ: self._near(organ, slab, labels)[..., first - slab.start : until - slab.start] for organ in self._shared(slab, labels)}
            yield self._sheet(_part(slab, first, until), labels, near)
            self._heard = until
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
                knowing = torch.tensor([decoder in self.question.pathological for decoder in decoders])
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
        return _infinite_beyond(self.question.reach.decoders.get(decoder) or (0, self.question.shape[2]), entropy, slab)

    def _doubt(self, entropy: torch.Tensor, decoder: str, organ: str, slab: Slab) -> torch.Tensor:
        """The decoder's H where it may speak of the organ, infinite elsewhere."""
        own = self.question.reach.labels.get(decoder, {})
        return _infinite_beyond(own[organ] or (0, 0), entropy.clone(), slab) if organ in own else entropy

    # --- what it says

    def _sheet(self, slab: Slab, labels: Labels, near: Mapping[str, torch.Tensor]) -> Sheet:
        silent = self._silences(slab, labels, near)
        decoders = sorted(d for d in slab.probabilities if any(name in self._ids for name in labels[d]))
        claims = {decoder: self._claim(decoder, slab, labels[decoder], silent) for decoder in decoders}
        return Sheet(slice(slab.start, _end(slab)), claims)

    def _claim(self, decoder: str, slab: Slab, names: tuple[str, ...], silent: Mapping[tuple[str, str], np.ndarray]) -> Claim:
        """Where wanted structures are their decoder's likeliest answer, with that answer's probability, and where they are faint."""
        probabilities = slab.probabilities[decoder]
        best, winner = probabilities.max(dim=0)  # over all its labels, wanted or not
        table = np.array([0, *(self._ids.get(name, 0) for name in names)], np.uint16)
        claimed = table[winner.numpy()]
        for name in names:
            if (decoder, name) in silent:
                claimed[(claimed == self._ids[name]) & silent[decoder, name]] = 0
        faint = {}
        for channel, name in enumerate(names, 1):
            if name in self._ids:
                one = self._faint(probabilities[channel].numpy(), claimed == self._ids[name], silent.get((decoder, name)), slab.start)
                faint |= {self._ids[name]: one} if one.index.size else {}
        x, y, depth = claimed.shape
        box = (slice(0, x), slice(0, y), slice(slab.start, slab.start + depth))
        return Claim(box, claimed, best.numpy(), faint).tight()

    def _faint(self, probability: np.ndarray, claimed: np.ndarray, silent: np.ndarray | None, start: int) -> Faint:
        """Where a structure is not its decoder's likeliest answer, but not ruled out."""
        where = (probability >= FAINT / FULL) & ~claimed
        if silent is not None:
            where &= ~silent
        x, y, z = np.nonzero(where)
        index = np.ravel_multi_index((x, y, z + start), self.question.shape).astype(np.min_scalar_type(math.prod(self.question.shape)))
        return Faint(index, np.minimum(as_byte(probability[x, y, z]), HALF))


def as_byte(probability: np.ndarray) -> np.ndarray:
    """A probability × 255."""
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
