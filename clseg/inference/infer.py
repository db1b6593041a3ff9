"""Infer: everything from a checked scan to label maps on its grid."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clseg.allocator import give_back
from clseg.catalogue import Anatomy, Catalogue
from clseg.footprint import resident
from clseg.inference.bodypart import score_grid, score_scan, upside_down
from clseg.inference.clean import clean
from clseg.inference.confidence import Confidence
from clseg.inference.engine import Engine, on_device, prepared_on
from clseg.inference.evidence import Sheet, united
from clseg.inference.extent import Extent, Reach, extents, label_extents
from clseg.inference.memory import SLACK, Chunk, House, Imported, Plan, refused
from clseg.inference.merge import Canvas, Question
from clseg.inference.parts import Parts, slabs
from clseg.inference.planned.body import their_scores
from clseg.inference.planned.run import HELD_BYTES, answers_of, compose, grouped, segment_planned, windows_of
from clseg.inference.predictor import Predictor
from clseg.inference.prepare import Placement, beyond_filled, onto_grid, place
from clseg.inference.restore import restore
from clseg.inference.sideways import bands, middles
from clseg.progress import SILENT, Progress
from clseg.settings import Settings
from clseg.spatial.orthonormal import orthonormal_grid
from clseg.spatial.padding import air_around
from clseg.spatial.runs import LabelRuns, slices_of
from clseg.stopwatch import Stopwatch
from clseg.volume import Volume

if TYPE_CHECKING:
    import torch

UPSIDE_DOWN = "The body seems to lie upside down: its parts come from head to feet where the header says feet to head; organs may be missed."

Layers = dict[int, LabelRuns]
"""depth in the catalogue → ids on the scan's grid"""


@dataclass(frozen=True)
class Task:
    """What is wanted of a scan, how, on which device, who hears of it, and who notes how sure the decoders are.

    `given` is the scan itself where what is looked at is its straightened copy.
    """

    wanted: tuple[Anatomy, ...]
    catalogue: Catalogue
    settings: Settings = field(default_factory=Settings)
    device: str = "cpu"
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    report: Progress = SILENT
    confidence: Confidence = field(default_factory=Confidence)
    given: Volume | None = None


def infer(scan: Volume, parts: Parts, task: Task) -> tuple[list[LabelRuns], list[str]]:
    """Label maps on the scan's grid, parts later, and the structures whose decoders were out of range.

    Decoders with a plan run as it says (some look at what is not 0), the others the house's way, for
    which zeros around the scan are air; where both want a
    voxel of a layer, it belongs to those with a plan.
    """
    if task.settings.max_memory is not None:
        give_back()  # what the scan before this one has left would be counted as held
    layers, reached = planned(scan, parts, task) if parts.planned else ({}, set())
    if parts.models:
        ours, ours_reached = house(air_around(scan), parts, task)
        reached |= ours_reached
        for depth, ids in ours.items():
            layers[depth] = _filled_up(layers[depth], ids) if depth in layers else ids
    return [layers[depth] for depth in sorted(layers)], [a.name for a in task.wanted if a.name not in reached]


def check_copy(scan: Volume, parts: Parts, task: Task) -> None:
    """UsageError when under the limit of memory not even the straightened copy of a scan has room; told before it is made.

    What the house's decoders take is named as if the body filled the scan: how far it reaches is seen on the copy.
    """
    limit = task.settings.max_memory
    if limit is None:
        return
    give_back()
    grid = orthonormal_grid(scan)
    placement = place(grid, parts.grid)[1] if parts.models else None
    held = resident() + grid.array.size * grid.array.itemsize
    if held + SLACK <= limit:
        return
    if placement is not None:
        held += scan.array.nbytes  # of a mapped file what has not been looked at is not in memory yet; making the copy looks at all
        House(parts, task.wanted, task.catalogue, placement, grid, held, confidence=task.confidence.keep_map, given=scan).plan(limit)
    raise refused(limit, held + SLACK)


def _filled_up(first: LabelRuns, second: LabelRuns) -> LabelRuns:
    """`first`, and `second` where that is empty."""
    both = LabelRuns(first.shape)
    for rows, labels in slices_of(first):
        both.put(rows.start, np.where(labels == 0, second[:, :, rows], labels))
    return both


# ---- decoders with a plan of another program --------------------------------------------------------------------------


def planned(scan: Volume, parts: Parts, task: Task) -> tuple[Layers, set[str]]:
    """What decoders with a plan find, and the structures that they looked for."""
    settings, stopwatch = task.settings, task.stopwatch
    with stopwatch.lap("look"):
        engines = [Engine(model, task.device, notify=task.report.warn) for model in parts.planned]
        answers = answers_of(engines, scan, slice_scores(scan, parts, task.report))
        answers = [replace(answer, labels=parts.spoken(answer.sources[0].decoder, answer.labels)) for answer in answers]
        if settings.restore == "nearest":
            answers = [replace(answer, plan=replace(answer.plan, export="nearest")) for answer in answers]
    memory = Imported(grouped(answers, math.inf), task.wanted, task.catalogue, scan, resident(), task.confidence.keep_map, task.given)
    plan = memory.plan(settings.max_memory, HELD_BYTES)
    tell(plan, task)
    with task.report.stage("Segmenting", windows_of(answers, settings.step, plan.share)) as advance:
        found = []
        with parts.turn, closing(segment_planned(scan, answers, step=settings.step, held=plan.share, advance=advance, stopwatch=stopwatch)) as label_maps:
            for answer, label_map in label_maps:
                task.confidence.hear_map(label_map, answer.labels, scan.shape)
                found.append((answer, label_map.kept()))
    with stopwatch.lap("compose"):
        layers = compose(scan, found, task.wanted, task.catalogue)
    return layers, {label for answer in answers for label in answer.labels if label}


def tell(plan: Plan, task: Task) -> None:
    """The plan of memory for those who asked for more."""
    for line in plan.lines(task.settings.max_memory):
        task.report.detail(line)


def slice_scores(scan: Volume, parts: Parts, report: Progress) -> np.ndarray | None:
    """How high in the body every slice lies, 0 pelvis … 100 eyes, where the model can say it and some decoder wants to know."""
    plans = [model.decoders[name].spec.plan for model in parts.planned for name in model.slices]
    if parts.scorer is None or all(plan is None or plan.score_range is None for plan in plans):
        return None
    scores = score_scan(scan, parts.scorer).values
    if upside_down(scores):
        report.warn(UPSIDE_DOWN)
    return their_scores(scores)


# ---- the house's own decoders -----------------------------------------------------------------------------------------


def house(scan: Volume, parts: Parts, task: Task) -> tuple[Layers, set[str]]:
    """What decoders without a plan find, and the structures whose decoders were in range."""
    stopwatch, report = task.stopwatch, task.report
    with stopwatch.lap("prepare"), report.stage("Preparing"):
        oriented, placement = place(scan, parts.grid)
        memory = House(parts, task.wanted, task.catalogue, placement, scan, resident(), confidence=task.confidence.keep_map, given=task.given)
        memory.plan(task.settings.max_memory)  # refused before anything is computed
        hu = on_device(partial(onto_grid, oriented.array, placement), prepared_on(task.device))
    with stopwatch.lap("locate"), report.stage("Locating"):
        reach = slices_in_reach(parts, hu.cpu(), placement, report, [a.name for a in task.wanted])
    plan = memory.plan(task.settings.max_memory, reach.decoders)
    tell(plan, task)
    with stopwatch.lap("segment"):
        canvas = _painted(hu, placement, parts, reach, plan.chunks, task)
        del hu
        give_back()
    with stopwatch.lap("clean"), report.stage("Cleaning"):
        beyond = beyond_filled(oriented.array, placement)
        for layer in canvas.layers.values():
            for part in beyond:
                layer.labels[:, :, part] = 0
            clean(layer, task.wanted, math.prod(placement.spacing))
    restored: Layers = {}
    with stopwatch.lap("restore"), report.stage("Restoring", len(canvas.layers)) as advance:
        for depth, layer in canvas.layers.items():
            restored[depth] = restore(layer, placement, scan, smooth=task.settings.restore == "smooth")
            advance(1)
        task.confidence.settle(placement, scan)
    return restored, {label for name in reach.decoders for label in reach.reached(name, parts.labels[name])}


def slices_in_reach(parts: Parts, hu: torch.Tensor, placement: Placement, report: Progress, wanted: Collection[str]) -> Reach:
    """Which slices every decoder may paint for the structures that are wanted, and its labels; slices are scored only when something has a range."""
    ranged = any(span is not None for model in parts.models for span in model.slices.values())
    ranged = ranged or any(name in model.label_slices for model in parts.models for name in model.slices)
    scores = None
    if ranged and parts.scorer is not None:
        scores = score_grid(hu, placement.spacing, parts.scorer, placement.orientation)
    if scores is not None and upside_down(scores):
        report.warn(UPSIDE_DOWN)
    decoders = {name: extent for model in parts.models for name, extent in extents(model, placement.shape[2], scores, wanted, parts.labels).items()}
    labels = {name: own for model in parts.models for name, own in label_extents(model, placement.shape[2], scores).items()}
    return Reach(decoders, labels, _bands(parts, hu, placement))


def _bands(parts: Parts, hu: torch.Tensor, placement: Placement) -> dict[str, np.ndarray]:
    """Per answering decoder that is known to stay near the middle of the body, between which voxels it does."""
    known = {name: span for model in parts.models for name, span in model.sideways.items() if name in model.slices}
    if not known:
        return {}
    middle = middles(hu.numpy(), placement.spacing)
    each = {name: bands(middle, span, placement.spacing[0], placement.orientation) for name, span in known.items()}
    return {name: band for name, band in each.items() if band is not None}


def _painted(
    hu: torch.Tensor, placement: Placement, parts: Parts, reach: Reach, chunks: Sequence[Chunk], task: Task
) -> Canvas:
    """The canvas with all that the decoders say about the scan on the model's grid, each chunk of them in a pass of its own."""
    canvas = Canvas(Question(placement.shape, task.wanted, task.catalogue, placement.spacing, reach, parts.pathological))
    engines = [Engine(model, task.device, notify=task.report.warn) for model in parts.models]
    predictors = [Predictor(engine, step=task.settings.step, label_extents=reach.labels, bands=reach.bands) for engine in engines]
    windows = math.prod(len(starts) for starts in predictors[0].windows(placement.shape))
    with task.report.stage("Segmenting", windows * len(predictors) * len(chunks)) as advance:
        for predictor in predictors:
            predictor.advance = advance
        heard = (_heard(canvas, predictors, hu, {name: reach.decoders[name] for name in chunk}, parts, task) for chunk in chunks)
        if len(chunks) > 1:
            heard = iter([united([[sheet.packed() for sheet in sheets] for sheets in heard], placement.shape[2])])
        for sheets in heard:
            for sheet in sheets:
                canvas.merge(sheet)
    return canvas


def _heard(
    canvas: Canvas, predictors: Sequence[Predictor], hu: torch.Tensor, extents: dict[str, Extent | None], parts: Parts, task: Task
) -> Iterator[Sheet]:
    """What the decoders named in `extents` say, from the lowest slice up."""
    hearing = canvas.hearing()
    for slab in slabs(predictors, hu, extents):
        task.confidence.hear(slab, parts.labels, canvas.question.shape)
        yield from hearing.hear(slab, parts.labels)
    yield from hearing.rest()
