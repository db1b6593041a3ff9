"""Canvas: the label maps that decoders paint on; where they disagree the merge rules decide.

No formula for CL-Net's body-part-guided merge is public.  These are our rules:

1. Outside a decoder's body-part range its organs have no probability (see `extent`).
2. The same organ from several decoders: per voxel the decoder with the lower
   entropy H = −Σ p log p speaks for it.
3. Different organs on one voxel: a structure and its parts may overlap; otherwise
   the higher probability wins, and of equals the decoder that paints later.
4. A tumour and the organ that hosts it may overlap; where one label must be named,
   it is the tumour's.

A structure and its parts lie on different layers (by depth in the catalogue), so
one label map per layer is enough, with one byte per voxel for the winner's
probability from which smooth borders are rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from clseg.catalogue import Anatomy, Catalogue
from clseg.inference.predictor import Slab

FULL = 255  # a probability of 1 in the stored byte
TUMOURS = 100  # their layer lies on top of all organs


@dataclass(frozen=True)
class Layer:
    """One label map: `labels` uint16 catalogue ids (x, y, z), `score` uint8: the winner's probability × 255.

    Where `labels` is 0 the score is the background's.
    """

    labels: np.ndarray
    score: np.ndarray


@dataclass
class Canvas:
    """What has been painted so far on the model's grid of `shape`."""

    shape: tuple[int, int, int]
    wanted: Sequence[Anatomy]
    catalogue: Catalogue
    layers: dict[int, Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name = {a.name: a for a in self.wanted}
        self._rank = np.zeros(max((a.id for a in self.wanted), default=0) + 1, np.intp)
        self._rank[[a.id for a in self.wanted]] = np.arange(len(self.wanted))
        self._overlap = _overlaps(self.wanted, self.catalogue)
        for depth in sorted({self._depth(a) for a in self.wanted}):
            self.layers[depth] = Layer(np.zeros(self.shape, np.uint16), np.full(self.shape, FULL, np.uint8))

    def paint(self, slab: Slab, labels: dict[str, tuple[str, ...]]) -> None:
        """Paint finished slices; `labels[decoder]` names the channels after background."""
        rows = slice(slab.start, slab.start + next(iter(slab.probabilities.values())).shape[-1])
        chosen = _speakers(slab, labels)
        for decoder, probabilities in slab.probabilities.items():
            wanted = [i for i, name in enumerate(labels[decoder]) if name in self._by_name]
            if wanted:
                silent = chosen.get(decoder)
                self._paint_one(probabilities, [labels[decoder][i] for i in wanted], wanted, rows, silent)

    def _paint_one(
        self,
        probabilities: torch.Tensor,
        names: list[str],
        channels: list[int],
        rows: slice,
        silent: dict[str, torch.Tensor] | None,
    ) -> None:
        """One decoder's winners, layer by layer."""
        best, winner = probabilities.max(dim=0)  # over all its labels, wanted or not
        score = (best * FULL).round().to(torch.uint8).numpy()
        ids = np.zeros(probabilities.shape[0], np.uint16)
        for name, channel in zip(names, channels, strict=True):
            ids[channel + 1] = self._by_name[name].id
        labels = ids[winner.numpy()]
        if silent:
            for name in set(names) & set(silent):
                quiet = silent[name]
                labels[(labels == self._by_name[name].id) & quiet.numpy()] = 0
        for depth in {self._depth(self._by_name[name]) for name in names}:
            mine = [self._by_name[name].id for name in names if self._depth(self._by_name[name]) == depth]
            here = labels if len(mine) == len(names) else np.where(np.isin(labels, mine), labels, 0)
            self._put(depth, rows, here, score, winner.numpy() == 0)

    def _put(self, depth: int, rows: slice, labels: np.ndarray, score: np.ndarray, background: np.ndarray) -> None:
        """Let `labels` compete with everything that may not share a voxel with them."""
        new = labels > 0
        for layer in self.layers.values():  # who loses to one rival takes nothing from the others
            new &= ~(self._rivals(new, labels, layer.labels[:, :, rows]) & (layer.score[:, :, rows] > score))
        for other_depth, layer in self.layers.items():
            if other_depth != depth:
                there = layer.labels[:, :, rows]
                beaten = self._rivals(new, labels, there)
                there[beaten] = 0
                layer.score[:, :, rows][beaten] = score[beaten]
        layer = self.layers[depth]
        here, held = layer.labels[:, :, rows], layer.score[:, :, rows]
        open_ground = (here == 0) & ~new & background
        held[open_ground] = np.minimum(held[open_ground], score[open_ground])
        here[new] = labels[new]
        held[new] = score[new]

    def _rivals(self, new: np.ndarray, labels: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Where new labels meet one that may not share a voxel with them."""
        met = new & (there > 0)
        met[met] = ~self._overlap[self._rank[labels[met]], self._rank[there[met]]]
        return met

    def _depth(self, anatomy: Anatomy) -> int:
        return TUMOURS if anatomy.hosts else self.catalogue.depth(anatomy.name)


def _overlaps(wanted: Sequence[Anatomy], catalogue: Catalogue) -> np.ndarray:
    """Table over `wanted`: may these two share a voxel?"""
    return np.array([[_may_overlap(a, b, catalogue) for b in wanted] for a in wanted], bool).reshape(len(wanted), -1)


def _may_overlap(a: Anatomy, b: Anatomy, catalogue: Catalogue) -> bool:
    """A structure and its parts; a tumour and its host, the host's parts and what the host is part of."""
    hosts = [(host, other.name) for one, other in ((a, b), (b, a)) for host in one.hosts]
    return catalogue.related(a.name, b.name) or any(catalogue.related(host, other) for host, other in hosts)


def _speakers(slab: Slab, labels: dict[str, tuple[str, ...]]) -> dict[str, dict[str, torch.Tensor]]:
    """Per decoder and organ that others know too: where it must be silent, because another is surer."""
    owners: dict[str, list[str]] = {}
    for decoder in slab.probabilities:
        for name in labels[decoder]:
            owners.setdefault(name, []).append(decoder)
    silent: dict[str, dict[str, torch.Tensor]] = {}
    for name, decoders in owners.items():
        if len(decoders) > 1:
            entropies = torch.stack([_entropy(slab.probabilities[d]) for d in decoders])
            surest = entropies.argmin(dim=0)
            for index, decoder in enumerate(decoders):
                silent.setdefault(decoder, {})[name] = surest != index
    return silent


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(dim=0)
