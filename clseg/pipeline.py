"""segment(): inference as one paragraph."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clseg
from clseg.catalogue import Anatomy, Catalogue
from clseg.inference.device import check_spelling
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

if TYPE_CHECKING:
    import torch

    from clseg.inference.extent import Extent
    from clseg.inference.merge import Layer
    from clseg.inference.parts import Parts
    from clseg.inference.prepare import Placement

Image = Any  # a path, Volume, nibabel or SimpleITK image, or (array, affine): what clseg.io.convert and clseg.io.files understand

__all__ = ["Segmentation", "segment"]


def segment(
    image: Image,
    roi: str | Iterable[str] = ("all",),
    *,
    model: str = "starter",
    device: str = "auto",
    step: float = 0.5,
    threads: int = 0,
    offline: bool = False,
    series: str | None = None,
    report: Progress = SILENT,
) -> Segmentation:
    """Segment one CT.

    `image` is a path (NIfTI, NRRD, MetaImage, DICOM in a folder, zip or multi-frame
    file), a Volume in HU, a nibabel or SimpleITK image, or (array, affine) in RAS+ mm;
    `series` names one of several DICOM series by UID or number.  `roi` are groups,
    structures or synonyms (`chest`, `liver,aorta`).  `step` is the distance between
    windows as a share of the window; `threads` 0 leaves torch's choice.  `offline`
    opens no socket.  The result lies on the grid of `image`.

    Raises UsageError for unknown names before anything is read or loaded, InputError
    when the image is not a usable CT, WeightsError when weights are missing.
    """
    stopwatch = Stopwatch()
    listing = manifest()
    holders = listing.labels_of(model)
    catalogue = Catalogue.builtin().with_structures(holders)
    wanted = catalogue.select([roi] if isinstance(roi, str) else roi, among=holders)
    check_spelling(device)
    assets = listing.assets_for(model, [a.name for a in wanted])

    with stopwatch.lap("read"), report.stage("Reading"):
        scan, digest = _read(image, series, report)
        checked = check(scan)
        for warning in checked.warnings:
            report.warn(warning)
    device = _device(device, threads)  # brings torch, for which bad input need not wait
    straight = to_orthonormal(checked.volume) if checked.needs_orthonormal else checked.volume

    with stopwatch.lap("weights"), report.stage("Loading weights"):
        files = fetch(assets, offline=offline)
        parts = _load(assets, files, {decoder for a in wanted for decoder in holders[a.name]})
    report.detail(f"{len(parts.answering)} decoders on {device}")

    layers, placement, unreachable = _infer(straight, parts, wanted, catalogue, device, step, stopwatch, report)

    with stopwatch.lap("restore"), report.stage("Restoring", len(layers)) as advance:
        arrays = []
        for layer in layers:
            arrays.append(_onto_scan(layer, placement, straight, checked.volume))
            advance(1)
    facts = _facts(model, assets, device, step, scan, image, digest)
    return Segmentation(checked.volume, tuple(arrays), wanted, frozenset(unreachable), facts, stopwatch)


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
    device: str,
    step: float,
    stopwatch: Stopwatch,
    report: Progress,
) -> tuple[list[Layer], Placement, list[str]]:
    """Label maps on the model's grid, where they lie in the scan, and the structures whose decoders were out of range."""
    from clseg.inference.clean import clean
    from clseg.inference.engine import Engine
    from clseg.inference.merge import Canvas
    from clseg.inference.parts import slabs
    from clseg.inference.predictor import Predictor
    from clseg.inference.prepare import onto_grid, place

    with stopwatch.lap("prepare"), report.stage("Preparing"):
        oriented, placement = place(scan, parts.grid)
        hu = onto_grid(oriented.array, placement)
    with stopwatch.lap("locate"), report.stage("Locating"):
        reach = _reach(parts, hu, placement, report)
    labels = parts.labels
    canvas = Canvas(placement.shape, wanted, catalogue, placement.spacing, reach, parts.pathological)

    predictors = [Predictor(Engine(model, device, notify=report.warn), step=step) for model in parts.models]
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
    reachable = {label for name, extent in reach.items() if extent is not None for label in labels[name]}
    return list(canvas.layers.values()), placement, [a.name for a in wanted if a.name not in reachable]


def _reach(parts: Parts, hu: torch.Tensor, placement: Placement, report: Progress) -> dict[str, Extent | None]:
    """Which slices every decoder may paint; slices are scored only when some decoder has a range."""
    from clseg.inference.bodypart import score_grid, upside_down
    from clseg.inference.extent import extents

    ranged = any(wanted is not None for model in parts.models for wanted in model.slices.values())
    scores = None
    if ranged and parts.scorer is not None:
        scores = score_grid(hu, placement.spacing, parts.scorer, placement.orientation)
    if scores is not None and upside_down(scores):
        report.warn("The body seems to lie upside down: its parts come from head to feet where the header says feet to head; organs may be missed.")
    return {name: extent for model in parts.models for name, extent in extents(model, placement.shape[2], scores).items()}


def _onto_scan(layer: Layer, placement: Placement, straight: Volume, scan: Volume) -> Any:
    from clseg.inference.restore import restore

    ids = restore(layer, placement, straight)
    return ids if straight is scan else from_orthonormal(ids, straight, scan)


def _facts(
    model: str, assets: Sequence[Asset], device: str, step: float, scan: Volume, image: Image, digest: str | None
) -> dict[str, Any]:
    """What run.json says about input, weights and program."""
    import numpy
    import torch

    versions = {"clseg": clseg.__version__, "torch": torch.__version__, "numpy": numpy.__version__}
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
        "device": device,
        "threads": torch.get_num_threads(),
        "step": step,
    }
