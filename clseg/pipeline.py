"""segment(): inference as one paragraph."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import clseg
from clseg.catalogue import Anatomy, Catalogue
from clseg.errors import UsageError
from clseg.inference.device import check_spelling, check_threads
from clseg.io.check import check
from clseg.io.convert import to_volume
from clseg.io.files import read, sha256_of
from clseg.io.finding import NOTE, Finding
from clseg.manifest import Asset
from clseg.progress import SILENT, Progress
from clseg.segmentation import Segmentation
from clseg.spatial.orthonormal import from_orthonormal, to_orthonormal
from clseg.stopwatch import Stopwatch
from clseg.volume import Volume
from clseg.weights.cache import fetch, manifest
from clseg.weights.sources import Sources

if TYPE_CHECKING:
    import torch

    from clseg.inference.extent import Extent
    from clseg.inference.parts import Parts
    from clseg.inference.prepare import Placement

UPSIDE_DOWN = "The body seems to lie upside down: its parts come from head to feet where the header says feet to head; organs may be missed."

Image = Any  # a path, Volume, nibabel or SimpleITK image, or (array, affine): what clseg.io.convert and clseg.io.files understand

RESTORING = ("smooth", "nearest")

__all__ = ["Segmentation", "segment"]


def segment(
    image: Image,
    roi: str | Iterable[str] = ("all",),
    *,
    model: str = "starter",
    device: str = "auto",
    step: float = 0.5,
    threads: int = 0,
    restore: str = "smooth",
    offline: bool = False,
    series: str | None = None,
    sources: Sources = Sources(),
    report: Progress = SILENT,
) -> Segmentation:
    """Segment one CT.

    `image` is a path (NIfTI, NRRD, MetaImage, DICOM in a folder, zip or multi-frame
    file), a Volume in HU, a nibabel or SimpleITK image, or (array, affine) in RAS+ mm;
    `series` names one of several DICOM series by UID or number.  `roi` are groups,
    structures or synonyms (`chest`, `liver,aorta`).  `step` is the distance between
    windows as a share of the window; `threads` 0 leaves torch's choice; `restore` brings
    labels back to the scan with `smooth` borders or by `nearest` neighbour.  `offline`
    opens no socket; `sources` says where weights come from (a mirror, another manifest).
    The result lies on the grid of `image`.

    Raises UsageError for unknown names before anything is read or loaded, InputError
    when the image is not a usable CT, WeightsError when weights are missing.
    """
    stopwatch = Stopwatch()
    listing = manifest(sources=sources, offline=offline)
    holders = listing.labels_of(model)
    catalogue = Catalogue.builtin().with_structures(holders)
    wanted = catalogue.select([roi] if isinstance(roi, str) else roi, among=holders)
    check_spelling(device)
    check_threads(threads)
    if restore not in RESTORING:
        raise UsageError(f"Unknown way to restore '{restore}', expected {' or '.join(RESTORING)}.")
    assets = listing.assets_for(model, [a.name for a in wanted])

    with stopwatch.lap("read"), report.stage("Reading"):
        scan, digest = _read(image, series, report)
        checked = check(scan)
        for warning in checked.warnings:
            report.warn(warning)
    device = _device(device, threads)  # brings torch, for which bad input need not wait
    straight = to_orthonormal(checked.volume) if checked.needs_orthonormal else checked.volume

    with stopwatch.lap("weights"):
        files = fetch(assets, sources=sources, offline=offline, report=report)
        with report.stage("Loading weights"):
            parts = _load(assets, files, {decoder for a in wanted for decoder in holders[a.name]})
    report.detail(f"{len(parts.answering)} decoders on {device}")

    way = _Way(device, step, restore)
    layers, unreachable = _infer(straight, parts, wanted, catalogue, way, stopwatch, report)
    arrays = [ids if straight is checked.volume else from_orthonormal(ids, straight, checked.volume) for ids in layers]
    facts = _facts(model, assets, way, scan, image, digest)
    return Segmentation(checked.volume, tuple(arrays), wanted, frozenset(unreachable), facts, stopwatch)


@dataclass(frozen=True)
class _Way:
    """How a scan is segmented: on which device, at which step between windows, and how labels come back to the scan."""

    device: str
    step: float
    restore: str


def _read(image: Image, series: str | None, report: Progress) -> tuple[Volume, str | None]:
    """The scan and the sha256 of the file that it came from."""
    if not isinstance(image, (str, os.PathLike)):
        return to_volume(image), None
    volume = read(image, series=series, found=lambda finding: _tell(report, finding))
    return volume, sha256_of(image) if Path(image).is_file() else None


def _tell(report: Progress, finding: Finding) -> None:
    say = report.note if finding.level == NOTE else report.warn
    say(f"{finding.text} {finding.mend}".strip())


def _device(wanted: str, threads: int) -> str:
    import torch

    from clseg.inference.engine import choose_device

    if threads:
        torch.set_num_threads(threads)
    return choose_device(wanted)


def _load(assets: Sequence[Asset], files: dict[str, Path], answering: set[str]) -> Parts:
    from clseg.inference.parts import load_parts

    return load_parts(assets, files, answering)


def _infer(
    scan: Volume,
    parts: Parts,
    wanted: tuple[Anatomy, ...],
    catalogue: Catalogue,
    way: _Way,
    stopwatch: Stopwatch,
    report: Progress,
) -> tuple[list[np.ndarray], list[str]]:
    """Label maps on the scan's grid, parts later, and the structures whose decoders were out of range.

    Decoders with a plan run as it says, the others the house's way; where both want a
    voxel of a layer, it belongs to those with a plan.
    """
    layers, reached = _planned(scan, parts, wanted, catalogue, way, stopwatch, report) if parts.planned else ({}, set())
    if parts.models:
        ours, ours_reached = _house(scan, parts, wanted, catalogue, way, stopwatch, report)
        reached |= ours_reached
        for depth, ids in ours.items():
            layers[depth] = np.where(layers[depth] > 0, layers[depth], ids) if depth in layers else ids
    ordered = [np.asfortranarray(layers[depth]) for depth in sorted(layers)]
    return ordered, [a.name for a in wanted if a.name not in reached]


def _planned(
    scan: Volume,
    parts: Parts,
    wanted: tuple[Anatomy, ...],
    catalogue: Catalogue,
    way: _Way,
    stopwatch: Stopwatch,
    report: Progress,
) -> tuple[dict[int, np.ndarray], set[str]]:
    """Layers by depth of what decoders with a plan find, and the structures that they looked for."""
    from clseg.inference.engine import Engine
    from clseg.inference.planned.run import answers_of, compose, segment_planned, windows_of

    with stopwatch.lap("planned"):
        engines = [Engine(model, way.device, notify=report.warn) for model in parts.planned]
        answers = answers_of(engines, scan, _slice_scores(scan, parts, report))
        if way.restore == "nearest":
            answers = [replace(answer, plan=replace(answer.plan, export="nearest")) for answer in answers]
        with report.stage("Segmenting", windows_of(answers, way.step)) as advance:
            found = list(segment_planned(scan, answers, step=way.step, advance=advance))
        layers = compose(scan, found, wanted, catalogue)
    return layers, {label for answer in answers for label in answer.labels}


def _slice_scores(scan: Volume, parts: Parts, report: Progress) -> np.ndarray | None:
    """How high in the body every slice lies, 0 pelvis … 100 eyes, where the model can say it and some decoder wants to know."""
    from clseg.inference.bodypart import score_scan, upside_down
    from clseg.inference.planned.body import their_scores

    plans = [model.decoders[name].spec.plan for model in parts.planned for name in model.slices]
    if parts.scorer is None or all(plan is None or plan.score_range is None for plan in plans):
        return None
    scores = score_scan(scan, parts.scorer).values
    if upside_down(scores):
        report.warn(UPSIDE_DOWN)
    return their_scores(scores)


def _house(
    scan: Volume,
    parts: Parts,
    wanted: tuple[Anatomy, ...],
    catalogue: Catalogue,
    way: _Way,
    stopwatch: Stopwatch,
    report: Progress,
) -> tuple[dict[int, np.ndarray], set[str]]:
    """Layers by depth of what decoders without a plan find, and the structures whose decoders were in range."""
    from clseg.inference.clean import clean
    from clseg.inference.engine import Engine
    from clseg.inference.merge import Canvas
    from clseg.inference.parts import slabs
    from clseg.inference.predictor import Predictor
    from clseg.inference.prepare import onto_grid, place
    from clseg.inference.restore import restore

    with stopwatch.lap("prepare"), report.stage("Preparing"):
        oriented, placement = place(scan, parts.grid)
        hu = onto_grid(oriented.array, placement)
    with stopwatch.lap("locate"), report.stage("Locating"):
        reach = _reach(parts, hu, placement, report)
    labels = parts.labels
    canvas = Canvas(placement.shape, wanted, catalogue, placement.spacing, reach, parts.pathological)

    predictors = [Predictor(Engine(model, way.device, notify=report.warn), step=way.step) for model in parts.models]
    windows = math.prod(len(starts) for starts in predictors[0].windows(placement.shape))
    with stopwatch.lap("segment"), report.stage("Segmenting", windows * len(predictors)) as advance:
        for predictor in predictors:
            predictor.advance = advance
        for slab in slabs(predictors, hu, reach):
            canvas.paint(slab, labels)
        canvas.finish()

    with stopwatch.lap("clean"), report.stage("Cleaning"):
        voxel_mm3 = placement.spacing[0] * placement.spacing[1] * placement.spacing[2]
        for layer in canvas.layers.values():
            clean(layer, wanted, voxel_mm3)
    restored = {}
    with stopwatch.lap("restore"), report.stage("Restoring", len(canvas.layers)) as advance:
        for depth, layer in canvas.layers.items():
            restored[depth] = restore(layer, placement, scan, smooth=way.restore == "smooth")
            advance(1)
    return restored, {label for name, extent in reach.items() if extent is not None for label in labels[name]}


def _reach(parts: Parts, hu: torch.Tensor, placement: Placement, report: Progress) -> dict[str, Extent | None]:
    """Which slices every decoder may paint; slices are scored only when some decoder has a range."""
    from clseg.inference.bodypart import score_grid, upside_down
    from clseg.inference.extent import extents

    ranged = any(wanted is not None for model in parts.models for wanted in model.slices.values())
    scores = None
    if ranged and parts.scorer is not None:
        scores = score_grid(hu, placement.spacing, parts.scorer, placement.orientation)
    if scores is not None and upside_down(scores):
        report.warn(UPSIDE_DOWN)
    return {name: extent for model in parts.models for name, extent in extents(model, placement.shape[2], scores).items()}


def _facts(
    model: str, assets: Sequence[Asset], way: _Way, scan: Volume, image: Image, digest: str | None
) -> dict[str, Any]:
    """What run.json says about input, weights and program."""
    import torch

    versions = {"clseg": clseg.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "input": {
            "path": str(image) if isinstance(image, (str, os.PathLike)) else None,
            "sha256": digest,
            "shape": list(scan.shape),
            "spacing_mm": list(scan.spacing),
            "orientation": scan.orientation,
            "affine": scan.affine.tolist(),
        },
        "model": {"name": model, "weights": {a.name: a.sha256 for a in assets}},
        "device": way.device,
        "threads": torch.get_num_threads(),
        "step": way.step,
        "restore": way.restore,
    }
