"""Confidence: how sure decoders are of what they paint, summed while their probabilities pass by.

Nothing of this changes a label.  What is kept are a few sums per structure, and where
a map is wanted one byte per voxel.  Every decoder is judged by itself, in the voxels
where the structure is its likeliest answer, before decoders are merged and specks are
removed: so no voxel has to wait for another decoder, and the numbers do not depend on
what else was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from clseg.inference.merge import FULL
from clseg.inference.planned.export import LabelMap
from clseg.inference.predictor import Slab
from clseg.inference.prepare import Placement
from clseg.review import Certainty
from clseg.spatial.orient import to_orientation
from clseg.volume import Shape, Volume

ROWS = 8  # slices of the scan that are interpolated at a time


@dataclass
class Confidence:
    """Collects what the decoders of one scan say; with `keep_map` also a `map`."""

    keep_map: bool = False
    _sums: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _grid: np.ndarray | None = field(default=None, repr=False)
    _map: np.ndarray | None = field(default=None, repr=False)

    def hear(self, slab: Slab, labels: Mapping[str, tuple[str, ...]], shape: Shape) -> None:
        """Finished slices of a grid of `shape`; `labels[decoder]` names the channels after background."""
        for decoder, probabilities in slab.probabilities.items():
            best, winner = probabilities.max(dim=0)
            if bool(winner.any()):
                self._add(labels[decoder], _sums(probabilities, best, winner))
            if self.keep_map:
                self._lower(best, slab.start, shape)

    def hear_map(self, found: LabelMap, labels: tuple[str, ...], shape: Shape) -> None:
        """The finished map of an imported network on the scan's grid of `shape`."""
        sums = np.zeros((len(labels) + 1, _Column.COUNT))
        for label, score in zip(found.labels, found.score, strict=True):  # a plane at a time: counting takes 16 bytes per voxel
            sums[:, _Column.VOXELS] += np.bincount(label.ravel(), minlength=len(sums))
            sums[:, _Column.PROBABILITY] += np.bincount(label.ravel(), score.ravel(), minlength=len(sums)) / FULL
        self._add(labels, sums[1:])
        if self.keep_map:
            if self._map is None:
                self._map = np.full(shape, FULL, np.uint8)
            np.minimum(self._map[found.box], found.score, out=self._map[found.box])

    def settle(self, placement: Placement, like: Volume) -> None:
        """Bring what was heard of on a model's grid to that of `like`; nothing where no map is wanted."""
        if self._grid is not None:
            mine, self._grid = onto_scan(self._grid, placement, like), None
            self._map = mine if self._map is None else np.minimum(self._map, mine, out=self._map)

    @property
    def map(self) -> np.ndarray | None:
        """On the scan's grid the probability × 255 of what was painted (uint8); None where it was not wanted.

        Where several decoders speak it is that of the least sure; 255 where none did.
        """
        return self._map

    @property
    def certainties(self) -> dict[str, Certainty]:
        """What is known of every structure that some decoder found, by name."""
        return {name: _certainty(sums) for name, sums in sorted(self._sums.items())}

    def _add(self, labels: tuple[str, ...], sums: np.ndarray) -> None:
        for name, mine in zip(labels, sums, strict=True):
            if name and mine[_Column.VOXELS]:
                self._sums[name] = self._sums.get(name, 0) + mine

    def _lower(self, best: torch.Tensor, start: int, shape: Shape) -> None:
        if self._grid is None:
            self._grid = np.full(shape, FULL, np.uint8)
        rows = self._grid[:, :, start : start + best.shape[2]]
        np.minimum(rows, (best * FULL).round().to(torch.uint8).numpy(), out=rows)


def onto_scan(sure: np.ndarray, placement: Placement, like: Volume) -> np.ndarray:
    """Bytes of a model's grid on the grid of `like`, linear between voxels, in Fortran order; 255 beyond what was computed."""
    out = np.full(like.shape, FULL, np.uint8, order="F")
    turned = to_orientation(Volume(out, like.affine), placement.orientation).array  # a view
    wx, wy, wz = (weights.astype(np.float32, copy=False) for weights in placement.outward)
    for first in range(0, turned.shape[2], ROWS):
        used = np.flatnonzero(wz[first : first + ROWS].any(axis=0))
        if used.size:
            part = slice(int(used[0]), int(used[-1]) + 1)
            doubt = (FULL - sure[:, :, part]).astype(np.float32) @ wz[first : first + ROWS, part].T  # (x, y, slices)
            for k in range(doubt.shape[2]):
                turned[:, :, first + k] = FULL - np.rint(wx @ doubt[:, :, k] @ wy.T)
    return out


class _Column:
    """What is summed of a label."""

    VOXELS, PROBABILITY, JUDGED, MARGIN, BOUNDARY, BOUNDARY_MARGIN, BOUNDARY_ENTROPY = range(7)  # judged: those with a margin
    COUNT = 7


def _sums(probabilities: torch.Tensor, best: torch.Tensor, winner: torch.Tensor) -> np.ndarray:
    """What is summed of every label, (labels, columns) float64, of a slab's probabilities (labels + 1, x, y, z)."""
    labels = len(probabilities) - 1
    mine = winner > 0
    own, label = best[mine], winner[mine].numpy() - 1
    inside = probabilities[:, mine]
    margin = own - inside.topk(2, dim=0).values[1]
    at = _beside_another(winner)[mine]
    there = inside[:, at]
    entropy = -torch.special.xlogy(there, there).sum(dim=0) / math.log(labels + 1)
    edge = at.numpy()
    voxels = np.bincount(label, minlength=labels)
    columns = [
        voxels,
        _per_label(label, own, labels),
        voxels,
        _per_label(label, margin, labels),
        np.bincount(label[edge], minlength=labels),
        _per_label(label[edge], margin[at], labels),
        _per_label(label[edge], entropy, labels),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _per_label(label: np.ndarray, values: torch.Tensor, labels: int) -> np.ndarray:
    return np.bincount(label, values.numpy(), minlength=labels)


def _beside_another(winner: torch.Tensor) -> torch.Tensor:
    """Voxels (x, y, z) with another class at one of their four sides in the slice; slices do not look at each other."""
    edge = torch.zeros_like(winner, dtype=torch.bool)
    for axis in (0, 1):
        n = winner.shape[axis] - 1
        differs = winner.narrow(axis, 1, n) != winner.narrow(axis, 0, n)
        edge.narrow(axis, 1, n).logical_or_(differs)
        edge.narrow(axis, 0, n).logical_or_(differs)
    return edge


def _certainty(sums: np.ndarray) -> Certainty:
    voxels, probability, judged, margin, boundary, boundary_margin, boundary_entropy = (float(one) for one in sums)
    inner = margin / judged if judged else None
    outer = (boundary_margin / boundary, boundary_entropy / boundary) if boundary else (None, None)
    return Certainty(probability / voxels, inner, *outer)
