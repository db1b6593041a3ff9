"""Run: all planned decoders of a scan, each as its own program would, composed into layers on the scan's grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clseg.catalogue import Anatomy, Catalogue
from clseg.errors import WeightsError
from clseg.inference.engine import Engine, prepared_on
from clseg.inference.evidence import Claim, Sheet
from clseg.inference.merge import FULL, Canvas, Question, depths
from clseg.inference.planned.body import Body
from clseg.inference.planned.export import Export, KeptMap, LabelMap
from clseg.inference.planned.predict import Source, engines, predict, window_count
from clseg.inference.planned.prepare import View, look, prepare
from clseg.network.plan import Plan
from clseg.network.spec import DecoderSpec
from clseg.spatial.runs import LabelRuns
from clseg.stopwatch import Laps, Stopwatch
from clseg.volume import Volume

HELD_BYTES = 2 << 30  # of sums over windows that are not finished; many decoders on a fine grid would fill the memory
COMPOSED = 1 << 21  # voxels of the scan that are composed at a time


@dataclass(frozen=True)
class Answer:
    """One label map to be: where its decoders look, their plan, the decoders (one, or the folds of an ensemble), their labels."""

    name: str
    view: View
    plan: Plan
    sources: tuple[Source, ...]
    labels: tuple[str, ...]


def answers_of(engines: Sequence[Engine], scan: Volume, scores: Sequence[float] | None = None) -> list[Answer]:
    """What the answering decoders of these engines say together: folds of one training are one answer.

    `scores` says how high in the body every slice lies, from the feet up, 0 pelvis … 100
    eyes; decoders whose organs cannot be in the scan have no answer.

    WeightsError when decoders of one ensemble have different plans or labels.
    """
    found: dict[str, list[Source]] = {}
    for engine in engines:
        for name in engine.model.slices:
            plan = _spec(Source(engine, name)).plan
            found.setdefault(plan.ensemble or name, []).append(Source(engine, name))
    body = Body(scan, scores)
    views: dict[Plan, View | None] = {}
    answers = [_answer(name, tuple(sources), body, views) for name, sources in found.items()]
    return [answer for answer in answers if answer is not None]


def grouped(answers: Sequence[Answer], held: float | None = None) -> list[list[Answer]]:
    """Answers that share windows and encoder passes: equal view, same engines, no more than `held` bytes of unfinished scores (HELD_BYTES)."""
    groups: dict[tuple[View, tuple[int, ...]], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.view, tuple(sorted({id(one.engine) for one in answer.sources}))), []).append(answer)
    return [portion for group in groups.values() for portion in _portions(group, HELD_BYTES if held is None else held)]


def engines_of(group: Sequence[Answer]) -> list[Engine]:
    """The engines that the answers of a group come from, each once."""
    return engines(_by_name(group))


def engines_in_memory(groups: Sequence[Sequence[Answer]], number: int) -> list[Engine]:
    """The engines whose weights are there while group `number` runs (none after the last): from their first group to their last."""
    before, later = ([engine for group in some for engine in engines_of(group)] for some in (groups[: number + 1], groups[number:]))
    return [engine for engine in dict.fromkeys(later) if engine in before]


def unfinished(answer: Answer) -> int:
    """Bytes of one answer's scores in the rows that windows still touch."""
    plane = [max(n, p) for n, p in zip(answer.view.shape, answer.view.plan.patch, strict=True)]
    return 4 * (len(answer.labels) + 1) * answer.view.plan.patch[0] * plane[1] * plane[2]


def windows_of(answers: Sequence[Answer], step: float, held: float | None = None) -> int:
    """How many encoder windows `segment_planned` will compute."""
    return sum(window_count(group[0].view.shape, group[0].view.plan, step, _by_name(group)) for group in grouped(answers, held))


def segment_planned(
    scan: Volume,
    answers: Sequence[Answer],
    *,
    step: float = 0.5,
    held: float | None = None,
    advance: Callable[[int], None] = lambda windows: None,
    stopwatch: Stopwatch | None = None,
) -> Iterator[tuple[Answer, LabelMap]]:
    """The label map of every answer on the grid of `scan`, as soon as it is there; `held` as in `grouped`.

    A network is in memory from the first group that it answers in to the last.
    `stopwatch` gets one lap each for all that loads, prepares, segments and exports.
    """
    clock = Laps(stopwatch or Stopwatch())
    groups = grouped(answers, held)
    try:
        for number, group in enumerate(groups):
            exports = _exported(scan, group, step, advance, clock)
            _rest(engine for engine in engines_of(group) if engine not in engines_in_memory(groups, number + 1))
            for answer in group:
                with clock.lap("export"):
                    label_map = exports.pop(answer.name).finished(scan)
                yield answer, label_map
        clock.note()
    finally:
        _rest(engine for group in groups for engine in engines_of(group))


def _exported(scan: Volume, group: Sequence[Answer], step: float, advance: Callable[[int], None], clock: Laps) -> dict[str, Export]:
    """What the answers of a group are on the grid of `scan`, all windows computed."""
    view = group[0].view
    with clock.lap("load"):
        for engine in engines_of(group):
            engine.wake()
    exports = {answer.name: Export(view, answer.plan) for answer in group}
    with clock.lap("prepare"):
        image = prepare(scan, view, prepared_on(engines_of(group)[0].device))
    finished = predict(image, view.plan, _by_name(group), step=step, advance=advance)
    while True:
        with clock.lap("segment"):
            rows = next(finished, None)
        if rows is None:
            return exports
        with clock.lap("export"):
            for name, scores in rows.scores.items():
                exports[name].add(rows.start, scores)
        del rows, scores


def _rest(engines: Iterable[Engine]) -> None:
    for engine in engines:
        engine.rest()


def compose(
    scan: Volume, found: Sequence[tuple[Answer, KeptMap]], wanted: Sequence[Anatomy], catalogue: Catalogue
) -> dict[int, LabelRuns]:
    """Label maps of several answers → one map of catalogue ids per depth; see `clseg.inference.merge`, rules 3 and 4.

    Some slices at a time: what competes for a voxel lies in it.
    """
    held = {label for answer, _ in found for label in answer.labels}
    mine = [anatomy for anatomy in wanted if anatomy.name in held]
    ids = {anatomy.name: anatomy.id for anatomy in mine}
    tables = {answer.name: np.array([0, *(ids.get(label, 0) for label in answer.labels)], np.uint16) for answer, _ in found}
    layers = {depth: LabelRuns(scan.shape) for depth in depths(mine, catalogue)}
    step = min(scan.shape[2], max(1, COMPOSED // math.prod(scan.shape[:2])))
    canvas = Canvas(Question((*scan.shape[:2], step), mine, catalogue, scan.spacing))
    for first in range(0, scan.shape[2], step):
        rows = slice(first, min(first + step, scan.shape[2]))
        claims = {answer.name: _claim(label_map, tables[answer.name], rows) for answer, label_map in found}
        canvas.decide(Sheet(slice(0, rows.stop - rows.start), claims))
        for depth, layer in canvas.layers.items():
            if layer.labels.any():
                layers[depth].put(rows.start, layer.labels[:, :, : rows.stop - rows.start])
                layer.labels[...] = layer.score[...] = 0
    return layers


def _claim(label_map: KeptMap, table: np.ndarray, rows: slice) -> Claim:
    """What a label map says in some slices of the scan; the first of them is slice 0 of the claim."""
    x, y, z = label_map.box
    first, last = max(z.start, rows.start), max(z.start, min(z.stop, rows.stop))
    inside = slice(first - z.start, max(first, last) - z.start)
    labels, score = label_map.part(inside)
    depth = slice(first - rows.start, first - rows.start + labels.shape[2])
    return Claim((x, y, depth), table[labels], score / np.float32(FULL))


def _portions(group: Sequence[Answer], most: float) -> Iterator[list[Answer]]:
    """The group in as few parts as memory allows, of one answer at least."""
    portion: list[Answer] = []
    held = 0
    for answer in group:
        needed = unfinished(answer)
        if portion and held + needed > most:
            yield portion
            portion, held = [], 0
        portion.append(answer)
        held += needed
    yield portion


def _answer(name: str, sources: tuple[Source, ...], body: Body, views: dict[Plan, View | None]) -> Answer | None:
    """The answer of these decoders; `views` keeps what was found out about the scan for others."""
    specs = [_spec(source) for source in sources]
    if any((spec.plan, spec.labels) != (specs[0].plan, specs[0].labels) for spec in specs):
        raise WeightsError(f"The decoders of the ensemble '{name}' have different plans or labels, so that they cannot be averaged.")
    plan = specs[0].plan
    assert plan is not None  # only decoders with a plan are asked here
    key = replace(plan.sight, room=plan.room, score_range=plan.score_range)
    if key not in views:
        views[key] = look(body.scan, plan, body)
    view = views[key]
    return view and Answer(name, view, plan, sources, specs[0].labels)


def _spec(source: Source) -> DecoderSpec:
    return source.engine.model.decoders[source.decoder].spec


def _by_name(group: Sequence[Answer]) -> Mapping[str, Sequence[Source]]:
    return {answer.name: answer.sources for answer in group}
