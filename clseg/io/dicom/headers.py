"""Headers: find DICOM images in files and folders, and read of every image what tells where it lies and what it is."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clseg.errors import ClsegError, InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MOST_FILES = 100_000
_MOST_FRAMES = 20_000
_TAGS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber",
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ConvolutionKernel", "InstanceNumber", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "RescaleType", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_IMAGES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # CT, enhanced CT, converted CT


@dataclass(frozen=True, eq=False)
class Slice:
    """One image of a series: the file, or one frame of it, and what its header says.

    `position` (3,) is the centre of the first pixel and `row`, `column` (3,) the directions in which column and row
    numbers grow, in DICOM's patient coordinates (LPS, mm); None where the header has none.  `pixel_mm` are the distances
    between columns and between rows.  HU = stored value × `slope` + `intercept`.  `phase` tells apart images that lie at
    the same place for a reason, such as time points.  `uid` and `sop_class` name the file, which holds so many `frames`.
    """

    path: Path
    frame: int
    uid: str
    series: str
    number: int | None
    description: str
    modality: str
    kind: tuple[str, ...]
    size: tuple[int, int]  # columns, rows
    position: np.ndarray | None
    row: np.ndarray | None
    column: np.ndarray | None
    pixel_mm: tuple[float, float] | None
    slope: float
    intercept: float
    rescaled: bool
    instance: int
    phase: tuple[str, ...]
    sop_class: str = ""
    frames: int = 1

    @property
    def placed(self) -> bool:
        return self.position is not None and self.row is not None and self.pixel_mm is not None

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    @property
    def localizer(self) -> bool:
        return "LOCALIZER" in self.kind


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes pydicom, GDCM or numpy say becomes an InputError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ClsegError, MemoryError):
        raise
    except Exception as error:  # foreign code on foreign bytes: any error is one of the file
        raise InputError(f"The DICOM file '{path}' is damaged or of an unknown kind: {_first_line(error)}.", tip="Export or copy the series again.") from error


class Bounded(io.BufferedReader):
    """A file that never sets aside more memory than it has bytes, whatever length a damaged element claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._bytes = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._bytes - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def is_dicom(path: Path) -> bool:
    """Whether the first bytes are those of a DICOM file, with or without its preamble."""
    try:
        with open(path, "rb") as stream:
            return looks_like_dicom(stream.read(132))
    except OSError:
        return False


def looks_like_dicom(start: bytes) -> bool:
    """True for 128 bytes and 'DICM', and for files of old that begin at once with group 0008 or 0002 and a short length."""
    return start[128:132] == b"DICM" or (start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00" and len(start) == 132)


def dicom_files(folder: Path) -> list[Path]:
    """All DICOM files of a folder and the folders in it, by name; InputError for a folder with more than 100,000 files."""
    found, seen = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(names)
        if seen > _MOST_FILES:
            raise InputError(f"The folder '{folder}' holds more than {_MOST_FILES:,} files, expected those of one study.", tip="Give the folder of the series.")
        files = (Path(place, name) for name in sorted(names) if not name.startswith("."))
        found += [file for file in files if is_dicom(file)]
    return found


def headers(files: Iterable[Path], unreadable: Callable[[Path], object]) -> list[Slice]:
    """The images of all files; `unreadable` is called with files that are damaged."""
    found = []
    for file in files:
        try:
            found += images(file)
        except InputError:
            unreadable(file)
    return found


def images(file: Path) -> list[Slice]:
    """The images of one file: one, or one per frame; none for what is no image.  InputError for a damaged file."""
    from pydicom import dcmread

    with damage_told(file), Bounded(file) as stream:
        header = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
        kind = getattr(header.file_meta, "MediaStorageSOPClassUID", "") if hasattr(header, "file_meta") else ""
        if "Rows" not in header or "Columns" not in header:
            if kind in _IMAGES:
                raise InputError(f"The DICOM file '{file}' is damaged: it ends within its header.", tip="Export or copy the series again.")
            return []  # a report, a structure set, a directory
        frames = int(header.get("NumberOfFrames") or 1)
        if not 1 <= frames <= _MOST_FRAMES:
            raise InputError(f"The DICOM file '{file}' says that it has {frames} frames, expected 1 to {_MOST_FRAMES}.")
        per_frame = header.get("PerFrameFunctionalGroupsSequence")
        if per_frame is None:
            return [_plain(file, header, frame) for frame in range(frames)]
        shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
        return [_enhanced(file, header, frame, [group, shared]) for frame, group in zip(range(frames), per_frame, strict=True)]


def _plain(file: Path, header: Dataset, frame: int) -> Slice:
    """An image whose place stands in the header itself; several frames without a place of their own have none."""
    alone = int(header.get("NumberOfFrames") or 1) == 1
    return _slice(file, header, frame, {
        "position": header.get("ImagePositionPatient") if alone else None,
        "orientation": header.get("ImageOrientationPatient"),
        "spacing": header.get("PixelSpacing"),
        "slope": header.get("RescaleSlope"),
        "intercept": header.get("RescaleIntercept"),
        "kind": header.get("ImageType"),
        "phase": [header.get(name) for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers", "ConvolutionKernel")],
    })  # fmt: skip


def _enhanced(file: Path, header: Dataset, frame: int, groups: list[Dataset | None]) -> Slice:
    """A frame of an enhanced CT: its own functional group first, then the one of all frames, then the header."""

    def said(sequence: str, name: str) -> Any:
        for group in groups:
            items = group.get(sequence) if group is not None else None
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        return header.get(name)

    content = "FrameContentSequence"
    return _slice(file, header, frame, {
        "position": said("PlanePositionSequence", "ImagePositionPatient"),
        "orientation": said("PlaneOrientationSequence", "ImageOrientationPatient"),
        "spacing": said("PixelMeasuresSequence", "PixelSpacing"),
        "slope": said("PixelValueTransformationSequence", "RescaleSlope"),
        "intercept": said("PixelValueTransformationSequence", "RescaleIntercept"),
        "kind": said("CTImageFrameTypeSequence", "FrameType") or header.get("ImageType"),
        "phase": [said(content, "TemporalPositionIndex"), said(content, "FrameAcquisitionNumber"), said("CTReconstructionSequence", "ConvolutionKernel")],
    })  # fmt: skip


def _slice(file: Path, header: Dataset, frame: int, own: dict[str, Any]) -> Slice:
    orientation, spacing = _numbers(own["orientation"], 6), _numbers(own["spacing"], 2)
    row, column = (None, None) if orientation is None else _directions(orientation)
    return Slice(
        path=file,
        frame=frame,
        uid=str(header.get("SOPInstanceUID") or ""),
        series=str(header.get("SeriesInstanceUID") or "without a UID"),
        number=_whole(header.get("SeriesNumber")),
        description=" ".join(str(header.get("SeriesDescription") or "").split())[:64],
        modality=str(header.get("Modality") or "").strip().upper(),
        kind=tuple(str(word).upper() for word in _listed(own["kind"])),
        size=(int(header.Columns), int(header.Rows)),
        position=_numbers(own["position"], 3),
        row=row,
        column=column,
        pixel_mm=None if spacing is None or spacing.min() <= 0 else (float(spacing[1]), float(spacing[0])),  # DICOM names rows first
        slope=_number(own["slope"], 1.0),
        intercept=_number(own["intercept"], 0.0),
        rescaled=own["intercept"] not in (None, ""),
        instance=_whole(header.get("InstanceNumber")) or 0,
        phase=tuple("" if value is None else str(value) for value in own["phase"]),
        sop_class=str(header.get("SOPClassUID") or _IMAGES[0]),
        frames=int(header.get("NumberOfFrames") or 1),
    )


def _directions(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Unit vectors at right angles; none where the header's are not nearly so.  Rounding to six digits is undone."""
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(0.9 < length < 1.1 for length in lengths) or abs(row @ column) > 0.01:
        return None, None
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _numbers(value: Any, count: int) -> np.ndarray | None:
    if value is None or isinstance(value, str) or len(value) != count:
        return None
    numbers = np.array([float(part) for part in value])
    return numbers if np.isfinite(numbers).all() and np.abs(numbers).max() < 1e6 else None


def _number(value: Any, otherwise: float) -> float:
    number = otherwise if value in (None, "") else float(value)
    if not np.isfinite(number):
        raise InputError(f"A rescale value is {number}, expected a number.")
    return number


def _whole(value: Any) -> int | None:
    return None if value in (None, "") else int(value)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')[:160]}" if lines else type(error).__name__
