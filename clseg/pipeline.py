"""segment(): inference as one paragraph; Segmenter: the same for scan after scan with one loaded model."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import clseg
from clseg.asked import asked, catalogue_of
from clseg.io.check import CheckedScan, check
from clseg.io.convert import to_volume
from clseg.io.files import AnyPath, read, sha256_of
from clseg.io.finding import told
from clseg.progress import SILENT, Progress
from clseg.segmentation import Segmentation
from clseg.settings import Settings
from clseg.spatial.orthonormal import from_orthonormal, to_orthonormal
from clseg.spatial.runs import LabelRuns
from clseg.stopwatch import Stopwatch
from clseg.volume import Volume
from clseg.weights.cache import fetch, manifest

if TYPE_CHECKING:
    from clseg.inference.parts import Parts

Image = Any  # a path, Volume, nibabel or SimpleITK image, or (array, affine): what clseg.io.convert and clseg.io.files understand

__all__ = ["Segmentation", "Segmenter", "Settings", "segment"]


def segment(
    image: Image, roi: str | Iterable[str] = ("all",), *, series: str | None = None, report: Progress = SILENT, **settings: Any
) -> Segmentation:
    """Segment one CT.

    `image` is a path (NIfTI, NRRD, MetaImage, DICOM in a folder, zip or multi-frame
    file), a Volume in HU, a nibabel or SimpleITK image, or (array, affine) in RAS+ mm;
    `series` names one of several DICOM series by UID or number.  `roi` are groups,
    structures or synonyms (`chest`, `liver,aorta`).  All else is a field of
    `clseg.Settings`: `model`, `device`, `step`, `fast`, `max_memory`, `threads`,
    `restore`, `confidence_map`, `offline`, `sources`.  The result lies on the grid of `image`.

    Raises UsageError for unknown names before anything is read or loaded, InputError
    when the image is not a usable CT, WeightsError when weights are missing.
    """
    return Segmenter(roi, report=report, **settings)(image, series=series)


@dataclass(frozen=True)
class Opened:
    """A scan that was read and found usable; `sha256` is that of the file it came from, `stopwatch` has run since.

    `source` is the path that it was read from, None for what was given as an image, and
    `series` the DICOM series that was named.
    """

    source: str | None
    scan: Volume
    checked: CheckedScan
    sha256: str | None
    stopwatch: Stopwatch
    series: str | None = None


class Segmenter:
    """Segments scan after scan; names are checked when it is made, weights are loaded for the first scan and kept.

    Those of imported networks are checked then, and read whenever it is a network's turn:
    one scan at a time has them in memory, others wait.

        segmenter = Segmenter(["chest"])
        for path in paths:
            segmenter(path).save(path.with_suffix(".out"))

    `open` and `segment` are the two halves of a call: reading needs no model, so that
    the next scan can be read while one is segmented.  Errors as `clseg.segment`.
    """

    def __init__(self, roi: str | Iterable[str] = ("all",), *, report: Progress = SILENT, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.report = report
        listing = manifest(sources=self.settings.sources, offline=self.settings.offline)
        self._holders = listing.labels_of(self.settings.model)
        self._catalogue = catalogue_of(listing, self.settings.model)
        self.wanted = asked(listing, self.settings.model, [roi] if isinstance(roi, str) else roi)
        self._assets = listing.assets_for(self.settings.model, [a.name for a in self.wanted])
        self._device = ""
        self._parts: Parts | None = None

    def __call__(self, image: Image, *, series: str | None = None) -> Segmentation:
        return self.segment(self.open(image, series=series))

    def open(self, image: Image, *, series: str | None = None, hashed: Callable[[AnyPath], str] = sha256_of) -> Opened:
        """Read a scan and see whether it is a usable CT; `hashed` gives the sha256 of its file, and is asked when it has been read."""
        stopwatch = Stopwatch()
        with stopwatch.lap("read"), self.report.stage("Reading"):
            scan, digest = _read(image, series, hashed, self.report)
            checked = check(scan)
            for warning in checked.warnings:
                self.report.warn(warning)
        return Opened(str(image) if _is_path(image) else None, scan, checked, digest, stopwatch, series)

    def segment(self, opened: Opened) -> Segmentation:
        """Find the wanted structures."""
        parts = self._loaded(opened.stopwatch)
        from clseg.inference.confidence import FULL, Confidence
        from clseg.inference.infer import Task, check_copy, infer

        given, stopwatch = opened.checked.volume, Stopwatch(list(opened.stopwatch.laps))
        confidence, sheared = Confidence(keep_map=self.settings.confidence_map), opened.checked.needs_orthonormal
        task = Task(self.wanted, self._catalogue, self.settings, self._device, stopwatch, self.report, confidence, given if sheared else None)
        if sheared:
            check_copy(given, parts, task)
        straight = to_orthonormal(given) if sheared else given
        layers, unreachable = infer(straight, parts, task)
        arrays = [ids if straight is given else LabelRuns.of(from_orthonormal(np.asarray(ids), straight, given)) for ids in layers]
        sure = confidence.map
        if sure is None and self.settings.confidence_map:  # nobody was asked
            sure = np.full(straight.shape, FULL, np.uint8, order="F")
        if sure is not None and straight is not given:
            sure = FULL - from_orthonormal(FULL - sure, straight, given)  # 255 beyond, not 0
        facts = self._facts(opened)
        read_from = None if opened.source is None else (opened.source, opened.series)
        known = {"certainties": confidence.certainties, "confidence_map": sure, "read_from": read_from}
        return Segmentation(given, tuple(arrays), self.wanted, frozenset(unreachable), facts, stopwatch, **known)

    @property
    def weights(self) -> dict[str, str]:
        """The sha256 of every asset that is needed, by its name."""
        return {asset.name: asset.sha256 for asset in self._assets}

    def fetch(self) -> dict[str, Path]:
        """The files of the weights, by asset name; downloaded where they are not on this machine."""
        return fetch(self._assets, sources=self.settings.sources, offline=self.settings.offline, report=self.report)

    def load(self) -> None:
        """Load the weights now instead of with the first scan."""
        self._loaded(Stopwatch())

    def _loaded(self, stopwatch: Stopwatch) -> Parts:
        """The model, loaded the first time."""
        if self._parts is None:
            self._device = _device(self.settings.device, self.settings.threads)
            with stopwatch.lap("weights"):
                files = self.fetch()
                with self.report.stage("Loading weights"):
                    self._parts = self._load(files)
            count = len(self._parts.answering)
            self.report.detail(f"{count} decoder{'s' * (count != 1)} on {self._device}")
        return self._parts

    def _load(self, files: dict[str, Path]) -> Parts:
        from clseg.inference.parts import load_parts

        return load_parts(self._assets, files, {decoder for a in self.wanted for decoder in self._holders[a.name]})

    def _facts(self, opened: Opened) -> dict[str, Any]:
        """What run.json says about input, weights and program."""
        import torch

        scan, settings = opened.scan, self.settings
        versions = {"clseg": clseg.__version__, "torch": torch.__version__, "numpy": np.__version__}
        return {
            "versions": {**versions, "python": platform.python_version()},
            "input": {
                "path": opened.source,
                "sha256": opened.sha256,
                "shape": list(scan.shape),
                "spacing_mm": list(scan.spacing),
                "orientation": scan.orientation,
                "affine": scan.affine.tolist(),
            },
            "model": {"name": settings.model, "weights": self.weights},
            "device": self._device,
            "threads": torch.get_num_threads(),
            "step": settings.step,
            "fast": settings.fast,
            "max_memory": settings.max_memory,
            "restore": settings.restore,
        }


def _is_path(image: Image) -> bool:
    return isinstance(image, (str, os.PathLike))


def _read(image: Image, series: str | None, hashed: Callable[[AnyPath], str], report: Progress) -> tuple[Volume, str | None]:
    """The scan and the sha256 of the file that it came from."""
    if not _is_path(image):
        return to_volume(image), None
    volume = read(image, series=series, found=told(report))
    return volume, hashed(image) if Path(image).is_file() else None


def _device(wanted: str, threads: int) -> str:
    import torch

    from clseg.inference.engine import choose_device

    if threads:
        torch.set_num_threads(threads)
    return choose_device(wanted)
