"""Source: the DICOM series that a scan was read from, as results must refer to it: patient, study, images and where they lie."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import numpy as np

from clseg.errors import InputError
from clseg.io.dicom import source_images
from clseg.io.dicom.headers import Bounded, Slice, damage_told, images, is_dicom
from clseg.io.dicom.series import DUPLICATE_MM, choose
from clseg.io.dicom.stack import RAGGED, UNEVEN, first_at_every_height, in_order
from clseg.io.dicom.unpack import unpacked
from clseg.io.files import AnyPath, existing
from clseg.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NO_DATE, NO_TIME = "19700101", "000000"  # where the series has none: the same input gives the same bytes

_NAMESPACE = UUID("6e2f4a1c-8a57-5d0b-9a44-6d3c0c1f7e21")  # of the UIDs made here
_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientIdentityRemoved", "DeidentificationMethod")
_STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription")
_NAMES = ("PatientName", "ReferringPhysicianName")
_IMAGE = ("SeriesInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator", "Modality", "LossyImageCompression")
_WHEN = (("SeriesDate", "SeriesTime"), ("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"), ("StudyDate", "StudyTime"))
_REQUIRED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator")
_DATE, _TIME = r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"
_FORMS = {"PatientBirthDate": _DATE, "PatientSex": "[MFO]", "PatientIdentityRemoved": "YES|NO", "LossyImageCompression": "00|01"}
_UNIT = 1e-4  # how far directions may be off and still be the same
_BESIDE_MM = 0.01


@dataclass(frozen=True)
class Plane:
    """One slice k of a scan: `position` (3,) is the centre of its first voxel (LPS, mm), `image` what of the source lies in that plane."""

    position: np.ndarray
    image: Slice | None


@dataclass(frozen=True)
class Grid:
    """A scan's grid as DICOM says it: `row`, `column` (3,) are the directions of i and j, `size` and `pixel_mm` their numbers and steps, `step_mm` is from plane to plane."""

    size: tuple[int, int]
    row: np.ndarray
    column: np.ndarray
    pixel_mm: tuple[float, float]
    step_mm: float
    planes: tuple[Plane, ...]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    def is_of(self, plane: Plane) -> bool:
        """Whether the pixels of a plane are those of its image, within 1e-3 mm."""
        image = plane.image
        if image is None or image.size != self.size:
            return False
        steps = [self.row * self.pixel_mm[0] - image.row * image.pixel_mm[0], self.column * self.pixel_mm[1] - image.column * image.pixel_mm[1]]
        off_mm = np.abs(plane.position - image.position) + np.abs(steps[0]) * self.size[0] + np.abs(steps[1]) * self.size[1]
        return bool(off_mm.max() < 1e-3)


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The `images` of one series, by height, one at every height; `facts` is what a result says of patient, study and frame of reference.

    `facts` holds nothing else of the headers: no devices, no institutions, no private elements.  What is missing or
    malformed in the header is empty there; dates and times of the series are `date` and `time`.
    """

    images: tuple[Slice, ...]
    facts: Dataset
    date: str
    time: str

    @property
    def uid(self) -> str:
        return self.images[0].series

    @property
    def frame_of_reference(self) -> str:
        return str(self.facts.FrameOfReferenceUID)

    @cached_property
    def files(self) -> tuple[Slice, ...]:
        """One image of every file, in the order of the images; a multi-frame file counts once."""
        first: dict[str, Slice] = {}
        for image in self.images:
            first.setdefault(image.uid, image)
        return tuple(first.values())

    def charset(self, texts: Iterable[str]) -> str:
        """What a result that also holds these texts is written in: Latin 1, which all programs read, where it is all ASCII; else UTF-8."""
        ascii_only = all(text.isascii() for text in (*texts, *(str(element.value) for element in self.facts)))
        return "ISO_IR 100" if ascii_only else "ISO_IR 192"

    def grid_of(self, scan: Volume) -> Grid:
        """Where the voxels of a scan in this series' patient coordinates lie.

        Where they are the pixels of the images, planes lie exactly where the images do.  Elsewhere (tilt straightened,
        gaps filled, another grid) they lie where the scan's affine says, and those in the plane of an image refer to it.
        InputError for an affine whose first two axes are not at right angles.
        """
        return self._own_grid(scan) if self._is(scan) else self._other_grid(scan)

    def _is(self, scan: Volume) -> bool:
        """Whether voxel (i, j, k) is column i, row j of image k, but for what `stack.build` leaves uncorrected."""
        first = self.images[0]
        if scan.shape != (*first.size, len(self.images)):
            return False
        affine = _lps(scan.affine)
        turned = np.abs(affine[:, :2] - np.stack([first.row * first.pixel_mm[0], first.column * first.pixel_mm[1]], axis=1)) * first.size
        off = np.array([image.position - affine @ [0, 0, k, 1] for k, image in enumerate(self.images)])
        beside = np.abs(off @ np.stack([first.row, first.column], axis=1)) / first.pixel_mm
        above = np.abs(off @ first.normal) / abs(affine[:, 2] @ first.normal)
        return bool(turned.max() < _BESIDE_MM and beside.max() <= RAGGED + _UNIT and above.max() <= UNEVEN + _UNIT)

    def _own_grid(self, scan: Volume) -> Grid:
        first = self.images[0]
        step_mm = abs(float(_lps(scan.affine)[:, 2] @ first.normal))
        return Grid(first.size, first.row, first.column, first.pixel_mm, step_mm, tuple(Plane(image.position, image) for image in self.images))

    def _other_grid(self, scan: Volume) -> Grid:
        affine = _lps(scan.affine)
        i, j, _ = scan.spacing
        row, column = affine[:, 0] / i, affine[:, 1] / j
        if abs(row @ column) > 1e-3:
            raise InputError(f"The scan's axes are not at right angles (cosine {row @ column:.4f}), which DICOM cannot say.", tip="Resample the scan onto a straight grid.")
        column = column - (column @ row) * row
        grid = Grid(scan.shape[:2], row, column / np.linalg.norm(column), (i, j), 0.0, ())
        positions = [affine @ [0, 0, k, 1] for k in range(scan.shape[2])]
        planes = tuple(Plane(position, self._image_in_plane(grid.normal, position)) for position in positions)
        return replace(grid, planes=planes, step_mm=abs(float(affine[:, 2] @ grid.normal)))

    def _image_in_plane(self, normal: np.ndarray, position: np.ndarray) -> Slice | None:
        mine = self.images[0].normal
        if abs(mine @ normal) < 1 - _UNIT**2:
            return None
        away = np.abs([(image.position - position) @ mine for image in self.images])
        nearest = int(away.argmin())
        return self.images[nearest] if away[nearest] <= DUPLICATE_MM else None


def source_of(path: AnyPath, series: str | None = None) -> SourceSeries | None:
    """The series that `read(path, series=series)` makes its volume of; None where `path` is no DICOM.

    Everything is read here: the files of a zip archive are not needed later.  Raises what `read` raises, and InputError
    where the images have no UIDs by which a result could refer to them.
    """
    path = existing(path)
    if path.is_dir():
        return _series(source_images(path, series=series), path)
    with open(path, "rb") as stream:
        start = stream.read(4)
    if start in (b"PK\x03\x04", b"PK\x05\x06"):
        with unpacked(path) as folder:
            return _series(source_images(folder, series=series, called=path), path)
    return _series(choose(images(path), path, series=series), path) if is_dicom(path) else None


@contextmanager
def unheeded() -> Iterator[None]:
    """pydicom and highdicom warn of values that are out of form; those came with the source, and nobody here can mend them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def uid_of(*parts: str) -> str:
    """A UID (2.25.…) that depends on the parts alone."""
    return f"2.25.{uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def _series(slices: Sequence[Slice], place: Path) -> SourceSeries:
    ordered, heights = in_order(slices)
    chosen = tuple(one for one, first in zip(ordered, first_at_every_height(heights), strict=True) if first)
    header = _header(chosen[0].path)
    _refuse_nameless(chosen, header, place)
    date, time = next(_dated(header), (NO_DATE, NO_TIME))
    with unheeded():
        return SourceSeries(chosen, _facts(header), date, time)


def _header(file: Path) -> Dataset:
    from pydicom import dcmread

    tags = [*_PATIENT, *_STUDY, *_NAMES, *_IMAGE, "SpecificCharacterSet", *(name for pair in _WHEN for name in pair)]
    with damage_told(file), Bounded(file) as stream:
        header = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
        header.decode()
        return header


def _refuse_nameless(chosen: Sequence[Slice], header: Dataset, place: Path) -> None:
    missing = [name for name in ("StudyInstanceUID", "SeriesInstanceUID") if not header.get(name)]
    missing += [] if all(one.uid for one in chosen) else ["SOPInstanceUID"]
    if missing:
        raise InputError(
            f"The DICOM images in '{place}' have no {' and no '.join(missing)}, by which DICOM results refer to their scan.",
            tip="Export the series again with its UIDs, or write another type of results.",
        )


def _dated(header: Dataset) -> Iterator[tuple[str, str]]:
    """The dates with their times that the header holds, that of the series first."""
    for date, time in _WHEN:
        if _formed(header, date):
            yield _formed(header, date), _formed(header, time) or NO_TIME


def _facts(header: Dataset) -> Dataset:
    """What results copy; required elements are there even where the header has none, for then they are empty."""
    from pydicom.dataset import Dataset

    facts = Dataset()
    for name in (*_PATIENT, *_STUDY, *_NAMES, *_IMAGE):
        value = _formed(header, name)
        if value or name in _REQUIRED:
            setattr(facts, name, value)
    if not facts.get("FrameOfReferenceUID"):
        facts.FrameOfReferenceUID = uid_of("frame of reference", header.SeriesInstanceUID)
    if not facts.get("Modality"):
        facts.Modality = "CT"
    return facts


def _formed(header: Dataset, name: str) -> str:
    """An element as text; empty where it is missing or not of its form."""
    value = header.get(name)
    text = "" if value is None else _one_line(value)
    form = _FORMS.get(name) or (_DATE if name.endswith("Date") else _TIME if name.endswith("Time") else None)
    return text if form is None or re.fullmatch(form, text) else ""


def _one_line(value: Any) -> str:
    from pydicom.multival import MultiValue

    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value).strip()


def _lps(affine: np.ndarray) -> np.ndarray:
    """The first three rows of a RAS+ affine, in DICOM's LPS."""
    return affine[:3] * [[-1.0], [-1.0], [1.0]]
