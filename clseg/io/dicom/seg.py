"""SEG: structures as one DICOM Segmentation that refers to the series they were found in, written with highdicom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clseg import __version__
from clseg.catalogue import Anatomy
from clseg.errors import OutputError, UsageError
from clseg.io.dicom.codes import OWN_SCHEME, OWN_SCHEME_NAME, Code, category_of, code_of, label_of, regions_of, side_of
from clseg.io.dicom.headers import Slice
from clseg.io.dicom.source import Grid, SourceSeries, uid_of, unheeded
from clseg.io.files import AnyPath, writing
from clseg.io.segments import Segments
from clseg.spatial.runs import LabelRuns, slices_of

if TYPE_CHECKING:
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.dataset import Dataset

KINDS = ("binary", "labelmap")
SERIES_AFTER = 1000  # the result's series number is the source's and so many

_CT = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True)
class _Map:
    """What does not overlap: `labels` (k, j, i) holds `numbers` of `anatomies`, in the same order."""

    labels: np.ndarray
    anatomies: tuple[Anatomy, ...]
    numbers: tuple[int, ...]


def write_seg(file: AnyPath, segments: Segments, source: SourceSeries | None, *, kind: str = "binary", model: str = "") -> bool:
    """Write all structures that are present into one file; False, and no file, where there is none.

    `kind` "binary" has one plane of bits per structure and slice, and structures may overlap; "labelmap" has one plane per
    slice whose values are the ids of the catalogue, and where structures overlap the part hides the whole.  Planes without
    a voxel are left out.  `model` is named among the parameters of the algorithm.  The same input gives the same bytes.

    Raises UsageError for another `kind` and without a `source`, OutputError where highdicom is not installed or the file
    cannot be written, InputError for a scan that DICOM cannot place.
    """
    if kind not in KINDS:
        raise UsageError(f"A DICOM segmentation is {' or '.join(KINDS)}, given: '{kind}'.")
    check_seg(source)
    if not segments.present:
        return False
    with unheeded():
        seg = _segmentation(segments, source, kind, model)
        with writing(file) as stream:
            seg.save_as(stream, enforce_file_format=True)
    return True


def check_seg(source: SourceSeries | None) -> None:
    """Raises UsageError without a source and OutputError without highdicom."""
    if source is None:
        raise UsageError("A DICOM segmentation refers to the DICOM series of its scan, but this scan is none.", tip="Give the DICOM series, or choose another type of results.")
    check_highdicom()


def check_highdicom() -> None:
    """OutputError without highdicom, which can be known before a scan is segmented."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise OutputError("Writing DICOM segmentations needs highdicom, which is not installed.", tip="pip install 'clseg[dicom]'") from error


def _segmentation(segments: Segments, source: SourceSeries, kind: str, model: str) -> Segmentation:
    maps = [_flat(segments)] if kind == "labelmap" else list(_layers(segments))
    grid = source.grid_of(segments.scan)
    planes = _stand_ins(grid, source)
    parts = [_part(one, planes, source, kind, model) for one in maps]
    seg = parts[0]
    if len(parts) > 1:
        _join(seg, parts, maps)
        seg.SegmentsOverlap = "YES" if _overlap(segments.layers) else "NO"
    _refer(seg, grid, source)
    _settle(seg, source, kind, model)
    return seg


# ---- what goes in -----------------------------------------------------------------------------------------------------


def _flat(segments: Segments) -> _Map:
    """One map of catalogue ids; a structure that others hide altogether is not in it."""
    flat = segments.flat().T
    seen = np.bincount(flat.ravel())
    there = tuple(sorted((a for a in segments.present if seen[a.id]), key=lambda a: a.id))
    kept = np.where(np.isin(np.arange(len(seen)), [a.id for a in there]), np.arange(len(seen)), 0)
    return _Map(kept.astype(flat.dtype)[flat], there, tuple(a.id for a in there))


def _layers(segments: Segments) -> Iterator[_Map]:
    """The layers, and every structure that lies on several of them as a map of its own; numbers count within a map."""
    holding = {a.id: list(segments.pieces(a)) for a in segments.present}
    for layer in segments.layers:
        mine = tuple(a for a in segments.present if len(holding[a.id]) == 1 and holding[a.id][0][0] is layer)
        if mine:
            yield _numbered(layer, mine)
    for anatomy in segments.present:
        if len(holding[anatomy.id]) > 1:
            yield _Map(segments.mask(anatomy).T.astype(np.uint8), (anatomy,), (1,))


def _numbered(layer: np.ndarray | LabelRuns, anatomies: tuple[Anatomy, ...]) -> _Map:
    labels = np.asarray(layer).T
    number = np.zeros(int(labels.max()) + 1, np.uint8 if len(anatomies) < 256 else np.uint16)
    numbers = tuple(range(1, len(anatomies) + 1))
    number[[a.id for a in anatomies]] = numbers
    return _Map(number[labels], anatomies, numbers)


def _overlap(layers: Sequence[np.ndarray | LabelRuns]) -> bool:
    for rows, labels in slices_of(layers[0]):
        covered = labels > 0
        for layer in layers[1:]:
            there = layer[:, :, rows] > 0
            if np.any(covered & there):
                return True
            covered |= there
    return False


def _stand_ins(grid: Grid, source: SourceSeries) -> list[Dataset]:
    """For every plane of the scan a single CT slice that lies exactly there, for highdicom takes geometry and references from such; `_refer` puts the real ones in."""
    from pydicom.dataset import Dataset

    found = []
    for k, plane in enumerate(grid.planes):
        data = Dataset()
        data.update(source.facts)
        data.SOPClassUID, data.SOPInstanceUID = _CT, _stand_in(k)
        data.Columns, data.Rows = grid.size
        data.PixelSpacing = _decimals(reversed(grid.pixel_mm))
        data.SliceThickness, data.SpacingBetweenSlices = _decimals([grid.step_mm, grid.step_mm])
        data.ImageOrientationPatient = _decimals([*grid.row, *grid.column])
        data.ImagePositionPatient = _decimals(plane.position)
        found.append(data)
    return found


def _stand_in(k: int) -> str:
    return uid_of("plane", str(k))


def _decimals(numbers: Iterable[float]) -> list[str]:
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(number)) for number in numbers]


# ---- highdicom --------------------------------------------------------------------------------------------------------


def _part(one: _Map, planes: Sequence[Dataset], source: SourceSeries, kind: str, model: str) -> Segmentation:
    """The Segmentation of structures that do not overlap."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.seg import Segmentation

    algorithm = _algorithm(model)
    own = [a for a in one.anatomies if code_of(a)[1] == OWN_SCHEME]
    return Segmentation(
        source_images=planes,
        pixel_array=one.labels,
        segmentation_type=kind.upper(),
        segment_descriptions=[_described(a, number, source, algorithm) for a, number in zip(one.anatomies, one.numbers, strict=True)],
        series_instance_uid="2.25.0",
        series_number=min((source.images[0].number or 0) + SERIES_AFTER, 2**31 - 1),
        sop_instance_uid="2.25.0",
        instance_number=1,
        manufacturer="clseg",
        manufacturer_model_name="clseg",
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="Structures found by clseg",
        series_description="Segmentation by clseg",
        content_date=source.date,
        content_time=source.time,
        series_date=source.date,
        series_time=source.time,
        specific_character_set=source.charset([model, *(a.name for a in one.anatomies)]),
        coding_schemes=[CodingSchemeIdentificationItem(designator=OWN_SCHEME, name=OWN_SCHEME_NAME)] if own else None,
    )


def _algorithm(model: str) -> AlgorithmIdentificationSequence:
    from highdicom.content import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    parameters = {"model": model} if model else None
    return AlgorithmIdentificationSequence("clseg", codes.cid7162.ArtificialIntelligence, __version__, source="clseg", parameters=parameters)


def _described(anatomy: Anatomy, number: int, source: SourceSeries, algorithm: AlgorithmIdentificationSequence) -> SegmentDescription:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    regions = [_concept(code) for code in regions_of(anatomy)]
    described = SegmentDescription(
        segment_number=number,
        segment_label=label_of(anatomy),
        segmented_property_category=_concept(category_of(anatomy).code),
        segmented_property_type=_concept(code_of(anatomy)),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_id=label_of(anatomy),
        tracking_uid=uid_of("tracking", source.uid, anatomy.name),
        anatomic_regions=regions or None,
        display_color=CIELabColor.from_rgb(*anatomy.colour),
    )
    if side := side_of(anatomy):
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_concept(side)]
    return described


def _concept(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    value, scheme, meaning = code
    return CodedConcept(value, scheme, meaning)


# ---- several maps in one file -----------------------------------------------------------------------------------------


def _join(seg: Segmentation, parts: Sequence[Segmentation], maps: Sequence[_Map]) -> None:
    """Bring the frames of all parts into the first, its segments in the order of the catalogue: highdicom takes overlapping structures only as one array with a volume each."""
    ids = sorted(a.id for one in maps for a in one.anatomies)
    final = {id: number for number, id in enumerate(ids, 1)}
    described, frames, packed = {}, [], _Bits()
    for part, one in zip(parts, maps, strict=True):
        numbers = [final[a.id] for a in one.anatomies]
        for item, number in zip(part.SegmentSequence, numbers, strict=True):
            item.SegmentNumber = number
            described[number] = item
        frames += _renumbered(part, numbers)
        packed.add(part.PixelData, int(part.NumberOfFrames) * part.Rows * part.Columns)
    _rank_planes(frames, seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient)
    seg.SegmentSequence = [described[number] for number in sorted(described)]
    seg.SpecificCharacterSet = "ISO_IR 192" if any(part.SpecificCharacterSet == "ISO_IR 192" for part in parts) else "ISO_IR 100"
    seg.PerFrameFunctionalGroupsSequence, seg.NumberOfFrames, seg.PixelData = frames, len(frames), packed.padded()
    for part in parts:
        if "CodingSchemeIdentificationSequence" in part:
            seg.CodingSchemeIdentificationSequence = part.CodingSchemeIdentificationSequence
    if "DimensionOrganizationType" in seg:
        del seg.DimensionOrganizationType


def _renumbered(part: Segmentation, numbers: Sequence[int]) -> list[Dataset]:
    """The frames of a part, each with the number that its segment has in the whole; a single segment's stood with what all frames share."""
    from pydicom.dataset import Dataset

    shared = part.SharedFunctionalGroupsSequence[0].pop("SegmentIdentificationSequence", None)
    frames = list(part.PerFrameFunctionalGroupsSequence)
    for frame in frames:
        local = 1 if shared is not None else int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        identified = Dataset()
        identified.ReferencedSegmentNumber = numbers[local - 1]
        frame.SegmentIdentificationSequence = [identified]
    return frames


def _rank_planes(frames: Sequence[Dataset], orientation: Sequence[float]) -> None:
    """Dimension indices: the segment's number, and the plane's rank among all planes that are there."""
    cosines = np.array(orientation, float)
    positions = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
    _, ranks = np.unique(np.round(positions @ np.cross(cosines[:3], cosines[3:]), 6), return_inverse=True)
    for frame, rank in zip(frames, ranks.tolist(), strict=True):
        frame.FrameContentSequence[0].DimensionIndexValues = [int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber), rank + 1]


class _Bits:
    """Frames of bits one after the other without gaps, as DICOM packs them: the first pixel is the lowest bit."""

    def __init__(self) -> None:
        self._bytes, self._count = np.empty(0, np.uint8), 0

    def add(self, packed: bytes, count: int) -> None:
        """Append the first `count` bits."""
        new, offset = np.frombuffer(packed, np.uint8, (count + 7) // 8).copy(), self._count % 8
        if count % 8:
            new[-1] &= (1 << count % 8) - 1
        if offset:
            self._bytes[-1] |= new[0] << offset
            new = (new >> (8 - offset)) | np.append(new[1:] << offset, np.uint8(0))
        self._count += count
        self._bytes = np.concatenate([self._bytes, new])[: (self._count + 7) // 8]

    def padded(self) -> bytes:
        return self._bytes.tobytes() + b"\0" * (len(self._bytes) % 2)


# ---- what it refers to ------------------------------------------------------------------------------------------------


def _refer(seg: Segmentation, grid: Grid, source: SourceSeries) -> None:
    """Put the source's images where the planes stand in for them, and nothing where there is none."""
    planes = {_stand_in(k): plane for k, plane in enumerate(grid.planes)}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        plane = planes.get(str(reference.ReferencedSOPInstanceUID))  # frames in one plane share one: it may be named already
        if plane and plane.image:
            _name(reference, plane.image, frame=True)
            reference.SpatialLocationsPreserved = "YES" if grid.is_of(plane) else "NO"
        elif plane:
            frame.DerivationImageSequence = []
    seg.SourceImageSequence = [_name(_empty(), image) for image in source.files]
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [_name(_empty(), image) for image in source.files]


def _name(reference: Dataset, image: Slice, *, frame: bool = False) -> Dataset:
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.sop_class, image.uid
    if frame and image.frames > 1:
        reference.ReferencedFrameNumber = image.frame + 1
    return reference


def _empty() -> Dataset:
    from pydicom.dataset import Dataset

    return Dataset()


def _settle(seg: Segmentation, source: SourceSeries, kind: str, model: str) -> None:
    """UIDs that follow from the content, and no date but those of the source."""
    digest = hashlib.sha256(seg.PixelData)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        digest.update(f"{frame.PlanePositionSequence[0].ImagePositionPatient} {frame.FrameContentSequence[0].DimensionIndexValues}".encode())
    digest.update(repr([item.SegmentLabel for item in seg.SegmentSequence]).encode())
    seg.SOPInstanceUID = uid_of("instance", source.uid, kind, model, __version__, digest.hexdigest())
    seg.file_meta.MediaStorageSOPInstanceUID = seg.SOPInstanceUID
    seg.SeriesInstanceUID = uid_of("series", seg.SOPInstanceUID)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid_of("dimensions", seg.SOPInstanceUID)
    for item in seg.ContributingEquipmentSequence:
        item.pop("ContributionDateTime", None)
    del seg.InstanceCreationDate, seg.InstanceCreationTime
