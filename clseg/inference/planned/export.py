"""Export: mean scores on the network's grid → label map and winner's probability on the scan's, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from clseg.inference.engine import on_device
from clseg.inference.planned.prepare import View, nonzero_bounds, scan_axes
from clseg.inference.planned.resample import coarse_axis
from clseg.network.plan import Plan
from clseg.spatial.crop import Box
from clseg.spatial.runs import LabelRuns
from clseg.volume import Volume

FULL = 255  # a probability of 1 in the stored byte
CHUNK = 1 << 20  # about so many voxels of the scan at a time, which bounds memory


@dataclass(frozen=True)
class LabelMap:
    """One answer in the `box` of the scan that holds all of it: channel numbers, 0 background, and the winner's probability × 255."""

    box: Box
    labels: np.ndarray
    score: np.ndarray

    def kept(self) -> KeptMap:
        """What is kept until all networks have answered."""
        planes = [(self.labels[:, :, k].T, self.score[:, :, k].T) for k in range(self.labels.shape[2])]
        return KeptMap(self.box, LabelRuns.of(self.labels), tuple(score[labels > 0] for labels, score in planes))


@dataclass(frozen=True)
class KeptMap:
    """A LabelMap without what nobody needs to know who has a voxel: runs of labels, and of every slice the probabilities where one is.

    The maps of several networks wait for each other; in a long scan their voxels would be most of the memory.
    """

    box: Box
    labels: LabelRuns
    _scores: tuple[np.ndarray, ...]

    def part(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Labels uint16 and probabilities × 255 uint8 (0 where no label is) of some slices of the box, (i, j, n)."""
        labels = self.labels[:, :, rows]
        score = np.zeros(labels.shape, np.uint8, order="F")
        for k, one in enumerate(self._scores[rows]):
            score[:, :, k].T[labels[:, :, k].T > 0] = one
        return labels, score


@dataclass
class Export:
    """Collects the rows of one answer, in their order, and gives away what is finished.

    "linear": every channel goes back to the voxels of the box by itself, then the largest
    wins; only a few rows and one channel of them are held.  "nearest": the largest wins,
    then the label map goes back.
    """

    view: View
    plan: Plan
    _labels: np.ndarray = field(init=False, repr=False)
    _score: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._labels = np.zeros(self.view.cropped, np.uint8)
        self._score = np.zeros(self.view.cropped, np.uint8)
        self._axes = _axes(self.view, self.plan)
        self._first, self._held = 0, torch.zeros(0)  # rows of the network's grid that later rows of the box need
        self._done = 0  # rows of the box

    def add(self, start: int, scores: torch.Tensor) -> None:
        """Rows from `start`, (channels, rows, …); they follow on those before.  Worked on where they are, in main memory where there is no room."""
        on_device(lambda device: self._add(start, scores.to(device)), str(scores.device))

    def _add(self, start: int, scores: torch.Tensor) -> None:
        if self._held.numel():
            start, scores = self._first, torch.cat([self._held.to(scores.device), scores], dim=1)
        if len(scores) > 256:
            self._labels = self._labels.astype(np.uint16, copy=False)
        end = start + scores.shape[1]
        low, high, _ = self._axes[0]
        ready = len(high) if end == self.view.shape[0] else int(np.searchsorted(high, end))  # `high` never falls
        step = max(1, CHUNK // (self.view.cropped[1] * self.view.cropped[2]))
        for first in range(self._done, ready, step):
            self._fill(slice(first, min(first + step, ready)), start, scores)
        self._done = max(self._done, ready)
        kept = max(start, min(end, int(low[ready]))) if ready < len(low) else end
        self._first, self._held = kept, scores[:, kept - start :].clone()

    def finished(self, scan: Volume) -> LabelMap:
        """What was found, on the grid of `scan`."""
        placed = []
        for values in (self._labels, self._score):
            whole = np.zeros(self.view.scan_shape, values.dtype)
            whole[self.view.box] = values
            placed.append(scan_axes(whole, scan, self.plan))
        labels, score = placed
        box = tuple(slice(*bound) for bound in nonzero_bounds(labels)) if labels.any() else (slice(0, 0),) * 3
        return LabelMap(box, labels[box], score[box])  # type: ignore[arg-type]

    def _fill(self, rows: slice, start: int, scores: torch.Tensor) -> None:
        """Some rows of the box from the rows of scores that begin at `start`."""
        low, high, share = (axis[rows] for axis in self._axes[0])
        places = [_Place.of(axis, number, scores.device) for number, axis in enumerate([(low - start, high - start, share), *self._axes[1:]])]
        winner = _nearest_winner if self.plan.export == "nearest" else _linear_winner
        labels, score = winner(scores, places, self.plan.averaged)
        self._labels[rows] = labels.cpu().numpy()
        self._score[rows] = (score * FULL).round().clamp(0, FULL).to(torch.uint8).cpu().numpy()


_Axis = tuple[np.ndarray, np.ndarray, np.ndarray]
"""per voxel of the box two voxels of the network's grid and the share of the second, float32"""


@dataclass(frozen=True)
class _Place:
    """An _Axis where scores are: `share` is None where no voxel lies between two, `low` a slice where they follow on each other."""

    low: torch.Tensor | slice
    high: torch.Tensor
    share: torch.Tensor | None

    @classmethod
    def of(cls, axis: _Axis, number: int, device: torch.device) -> _Place:
        low, high, share = axis
        by = torch.from_numpy(share).to(device).reshape([-1 if a == number else 1 for a in range(3)]) if share.any() else None
        if by is None and (np.diff(low) == 1).all():
            return cls(slice(int(low[0]), int(low[-1]) + 1), torch.empty(0), None)
        return cls(torch.from_numpy(low).to(device), torch.from_numpy(high).to(device), by)

    def __len__(self) -> int:
        return self.low.stop - self.low.start if isinstance(self.low, slice) else len(self.low)

    def between(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        """`values` at these voxels of an axis: a part of them where that is all."""
        if isinstance(self.low, slice):
            return values.narrow(axis, self.low.start, len(self))
        first = values.index_select(axis, self.low)
        return first if self.share is None else torch.lerp(first, values.index_select(axis, self.high), self.share)


def _linear_winner(scores: torch.Tensor, places: list[_Place], averaged: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest channel and its probability, channel by channel: only the best so far and the sum of exponentials are kept."""
    ceiling = _interpolated(scores.amax(dim=0), places)  # no channel is above it, so that no exponential is above 1
    best, label = _interpolated(scores[0], places), torch.zeros(ceiling.shape, dtype=torch.int16, device=scores.device)
    total = torch.exp(best - ceiling) if averaged == "logits" else None
    for channel in range(1, len(scores)):
        one = _interpolated(scores[channel], places)
        label.masked_fill_(one > best, channel)
        best = torch.maximum(best, one)
        if total is not None:
            total += (one - ceiling).exp_()
    if total is None:
        return label, best
    return label, torch.exp(best - ceiling) / total.clamp(min=torch.finfo(total.dtype).tiny)


def _nearest_winner(scores: torch.Tensor, places: list[_Place], averaged: str) -> tuple[torch.Tensor, torch.Tensor]:
    picked = scores
    for axis, place in enumerate(places, 1):
        picked = place.between(picked, axis)
    probabilities = torch.softmax(picked, dim=0) if averaged == "logits" else picked
    score, label = probabilities.max(dim=0)
    return label, score


def _interpolated(values: torch.Tensor, places: list[_Place]) -> torch.Tensor:
    """These voxels between those of `values`, which has three axes; a part of it where all are its own."""
    if all(place.share is not None for place in places[1:]):  # linear in the plane: torch does both axes at once
        rows = places[0].between(values, 0)
        return torch.nn.functional.interpolate(rows[None], size=[len(place) for place in places[1:]], mode="bilinear", align_corners=False)[0]
    for axis, place in enumerate(places):
        values = place.between(values, axis)
    return values


def _axes(view: View, plan: Plan) -> list[_Axis]:
    """How the voxels of the box lie on the network's grid, axis by axis."""
    if plan.export == "nearest":
        return [_picked(n, m) for n, m in zip(view.shape, view.cropped, strict=True)]
    apart = coarse_axis(plan.answer, plan.spacing_mm, view.spacing)
    orders = [plan.answer.order_across if axis == apart else plan.answer.order for axis in range(3)]
    sizes = zip(view.shape, view.cropped, orders, strict=True)
    return [_between(n, m) if order else _rounded(n, m) for n, m, order in sizes]


def _between(n_in: int, n_out: int) -> _Axis:
    """Linear between the two nearest voxels; the outermost beyond the border."""
    place = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, n_in - 1), (place - low).astype(np.float32)


def _rounded(n_in: int, n_out: int) -> _Axis:
    """The nearest voxel, of two equally near ones the later, as in a spline of order 0."""
    place = np.floor((np.arange(n_out) + 0.5) * (n_in / n_out))
    near = np.clip(place, 0, n_in - 1).astype(np.int64)
    return near, near, np.zeros(n_out, np.float32)


def _picked(n_in: int, n_out: int) -> _Axis:
    """floor(i · n_in / n_out), as torch's nearest neighbour does."""
    near = np.minimum(np.floor(np.arange(n_out, dtype=np.float32) * np.float32(n_in / n_out)).astype(np.int64), n_in - 1)
    return near, near, np.zeros(n_out, np.float32)
