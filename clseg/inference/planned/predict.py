"""Predict: windows over what a planned network sees → mean scores, handed out as soon as no window touches them any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, product

import torch

from clseg.inference.engine import Engine, main_memory, on_device
from clseg.inference.planned.windows import gaussian, starts
from clseg.inference.window import move_down
from clseg.network.plan import Plan
from clseg.volume import Shape

ROWS = 16  # finished rows that are handed out at once


@dataclass(frozen=True)
class Source:
    """A decoder that answers, and the engine that holds it."""

    engine: Engine
    decoder: str


Answers = Mapping[str, Sequence[Source]]
"""name of an answer → the decoders whose scores are averaged for it: one, or the folds of an ensemble"""


@dataclass(frozen=True)
class Rows:
    """Finished rows along the network's first axis from `start`: per answer mean scores (channels, rows, …), background first, where they were collected."""

    start: int
    scores: Mapping[str, torch.Tensor]


def window_count(shape: Shape, plan: Plan, step: float, answers: Answers) -> int:
    """How often `advance` is called for an image of `shape`."""
    count = len(engines(answers))
    for size, patch in zip(shape, plan.patch, strict=True):
        count *= len(starts(max(size, patch), patch, step))
    return count


def predict(
    image: torch.Tensor,
    plan: Plan,
    answers: Answers,
    *,
    step: float = 0.5,
    advance: Callable[[int], None] = lambda windows: None,
) -> Iterator[Rows]:
    """Rows of the mean scores for `image` (three axes, prepared, on any device), first to last.

    The mean is of logits or of probabilities, as the plan says, float32, weighted by a
    Gaussian, over windows, flips and the decoders of an answer.  An encoder runs once
    a window (and flip) for all its decoders.  MemoryError when main memory is used up.
    """
    with main_memory():
        yield from _rows(image, plan, answers, step, advance)


def _rows(image: torch.Tensor, plan: Plan, answers: Answers, step: float, advance: Callable[[int], None]) -> Iterator[Rows]:
    padded, offset = _pad(image, plan.patch)
    places = [starts(n, p, step) for n, p in zip(padded.shape, plan.patch, strict=True)]
    sums = _Sums(answers, padded.shape, torch.from_numpy(gaussian(plan.patch)))
    for first, following in zip(places[0], [*places[0][1:], padded.shape[0]], strict=True):
        for corner in product(places[1], places[2]):
            tile = padded[_window((first, *corner), plan.patch)]
            sums.add(corner, _scores(tile, plan, answers, advance))
        for start in range(0, following - first, ROWS):
            rows = slice(start, min(start + ROWS, following - first))
            yield from _unpadded(first + start, sums.mean(rows), offset, image.shape)
        if following < padded.shape[0]:
            sums.forget(following - first)


class _Sums:
    """Weighted sums of scores in the rows that windows still touch; the first of them are the next to be finished.

    They are where the first engine collects results, until any of them has to leave the device.
    """

    def __init__(self, answers: Answers, shape: Sequence[int], weight: torch.Tensor) -> None:
        held = (len(weight), *shape[1:])
        asked = engines(answers)
        self.engine = asked[0]
        self.counts = {name: len(sources) for name, sources in answers.items()}
        self.sums: dict[str, torch.Tensor] = {}
        self.weight, self.weights = weight, torch.zeros(0)
        for engine in asked:
            engine.collecting.add(self)
        self.weights = self.engine.zeros(*held)
        for name, sources in answers.items():
            self.sums[name] = self.engine.zeros(_channels(sources), *held)
        self.weight = weight.to(self.weights.device)

    def add(self, corner: tuple[int, int], scores: Iterable[tuple[str, torch.Tensor]]) -> None:
        """The scores (channels, …) of all sources for the window at `corner` of the rows held."""
        there = _window((0, *corner), self.weight.shape)
        self.weights[there] += self.weight
        for name, values in scores:
            self.sums[name][(slice(None), *there)].addcmul_(values.to(self.weight.device), self.weight)

    def mean(self, rows: slice) -> dict[str, torch.Tensor]:
        """Mean scores of some of the rows held."""
        return {name: self.engine.collected(partial(self._mean, name, rows)) for name in self.sums}

    def _mean(self, name: str, rows: slice) -> torch.Tensor:
        return self.sums[name][:, rows] / (self.counts[name] * self.weights[rows])

    def forget(self, count: int) -> None:
        """The first `count` rows go, empty ones come behind."""
        for held in (*(channel for sums in self.sums.values() for channel in sums), self.weights):
            move_down(held, count)

    def leave(self) -> None:
        self.sums |= {name: one.cpu() for name, one in self.sums.items()}
        self.weight, self.weights = self.weight.cpu(), self.weights.cpu()


def _window(corner: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + n) for first, n in zip(corner, size, strict=True))


def _scores(tile: torch.Tensor, plan: Plan, answers: Answers, advance: Callable[[int], None]) -> Iterator[tuple[str, torch.Tensor]]:
    """(answer, scores (channels, …)) of every decoder for one window, the mean over flips."""
    for engine in engines(answers):
        owners = {one.decoder: name for name, sources in answers.items() for one in sources if one.engine is engine}
        total: dict[str, torch.Tensor] = {}
        flips = _flips(plan.mirror_axes)
        for axes in flips:
            seen = on_device(lambda device, axes=axes: tile.to(device).flip(axes)[None, None], str(tile.device))
            for decoder, logits in engine(seen, owners):
                total[decoder] = engine.collected(partial(_added, engine, total.get(decoder), logits[0], axes, plan.averaged))
        for decoder, scores in total.items():
            yield owners[decoder], engine.collected(partial(_divided, engine, scores, len(flips)))
        advance(1)


def _added(engine: Engine, total: torch.Tensor | None, logits: torch.Tensor, axes: Sequence[int], averaged: str) -> torch.Tensor:
    """The total of flips so far, and the scores of one more, turned back."""
    scores = logits.to(engine.collects_on)
    scores = scores.flip([axis + 1 for axis in axes]) if axes else scores
    scores = torch.softmax(scores, dim=0) if averaged == "probabilities" else scores
    return scores if total is None else total.to(scores.device) + scores


def _divided(engine: Engine, total: torch.Tensor, flips: int) -> torch.Tensor:
    """The mean of so many flips."""
    total = total.to(engine.collects_on)
    return total / flips if flips > 1 else total


def _flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of the axes, none first."""
    return list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))


def engines(answers: Answers) -> list[Engine]:
    """The engines that the answers come from, each once."""
    return list({id(one.engine): one.engine for sources in answers.values() for one in sources}.values())


def _channels(sources: Sequence[Source]) -> int:
    return len(sources[0].engine.model.decoders[sources[0].decoder].spec.labels) + 1


def _pad(image: torch.Tensor, patch: Shape) -> tuple[torch.Tensor, list[int]]:
    """Zeros around an image that is smaller than the window, the smaller half before; and how many came before."""
    missing = [max(0, p - n) for n, p in zip(image.shape, patch, strict=True)]
    before = [one // 2 for one in missing]
    sides = [side for one in reversed(missing) for side in (one // 2, one - one // 2)]
    if not any(sides):
        return image, before
    return on_device(lambda device: torch.nn.functional.pad(image.to(device), sides), str(image.device)), before


def _unpadded(start: int, scores: Mapping[str, torch.Tensor], offset: list[int], shape: torch.Size) -> Iterator[Rows]:
    """The part of some rows that lies in the image, if any."""
    count = next(iter(scores.values())).shape[1]
    low, high = max(start, offset[0]), min(start + count, offset[0] + shape[0])
    if low < high:
        y, x = (slice(o, o + n) for o, n in zip(offset[1:], shape[1:], strict=True))
        yield Rows(low - offset[0], {name: one[:, low - start : high - start, y, x] for name, one in scores.items()})
