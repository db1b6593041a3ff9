"""RTSTRUCT: structures as one RT Structure Set: closed contours in the planes of the scan.

Written with pydicom and scikit-image: the libraries that write structure sets from masks (rt-utils, pydicomrt,
DicomRTTool) all bring OpenCV, whose contours run through the centres of pixels and so lose half a pixel all around.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clseg import __version__
from clseg.catalogue import Anatomy
from clseg.errors import UsageError
from clseg.io.dicom.codes import Code, category_of, code_of, label_of, side_of
from clseg.io.dicom.headers import Slice
from clseg.io.dicom.seg import SERIES_AFTER
from clseg.io.dicom.source import Grid, Plane, SourceSeries, uid_of, unheeded
from clseg.io.files import AnyPath, writing
from clseg.io.segments import Segments
from clseg.spatial.outline import Outline, outlines

if TYPE_CHECKING:
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset

_RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # retired, and still what structure sets call a study
_CONTOUR_DATA = 0x30060050
_DIGITS = 4  # after the point of a millimetre


@dataclass(frozen=True)
class _Roi:
    number: int
    anatomy: Anatomy
    contours: list[Dataset]


def write_rtstruct(file: AnyPath, segments: Segments, source: SourceSeries | None, *, model: str = "") -> bool:
    """Write all structures that are present into one file; False, and no file, where there is none.

    Contours run half-way between the centres of pixels inside and outside, so that filling them gives the mask back;
    a hole is joined to its outer contour by a channel without width ("keyhole").  They lie in the planes of the scan, and
    every one refers to the source's image in its plane; planes between images, of gaps that were filled, have no image.
    The same input gives the same bytes.

    Raises UsageError without a `source`, OutputError where the file cannot be written, InputError for a scan that
    DICOM cannot place.
    """
    check_rtstruct(source)
    if not segments.present:
        return False
    grid = source.grid_of(segments.scan)
    rois = [_Roi(number, a, _contours(segments, a, grid)) for number, a in enumerate(segments.present, 1)]
    with unheeded(), writing(file) as stream:
        data = _structure_set(rois, source, model)
        data.save_as(stream, enforce_file_format=True)
    return True


def check_rtstruct(source: SourceSeries | None) -> None:
    """Raises UsageError without a source, which can be known before a scan is segmented."""
    if source is None:
        raise UsageError("An RT structure set refers to the DICOM series of its scan, but this scan is none.", tip="Give the DICOM series, or choose another type of results.")


# ---- contours ---------------------------------------------------------------------------------------------------------


def _contours(segments: Segments, anatomy: Anatomy, grid: Grid) -> list[Dataset]:
    """All contours of a structure, plane by plane."""
    found: list[Dataset] = []
    for plane, outline in _outlines(segments, anatomy, grid):
        found.append(_contour(_in_patient(outline, plane, grid), plane.image, len(found) + 1))
    return found


def _outlines(segments: Segments, anatomy: Anatomy, grid: Grid) -> Iterator[tuple[Plane, Outline]]:
    mask, (i, j, first) = segments.cut(anatomy)
    for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        for outline in outlines(mask[:, :, k]):
            yield grid.planes[k + first.start], outline + np.array([i.start, j.start])


def _in_patient(outline: Outline, plane: Plane, grid: Grid) -> np.ndarray:
    """Points (n, 3) in LPS mm of points (n, 2) in voxels along i and j."""
    steps = np.stack([grid.row * grid.pixel_mm[0], grid.column * grid.pixel_mm[1]])
    return plane.position + outline @ steps


def _contour(points: np.ndarray, image: Slice | None, number: int) -> Dataset:
    item = _dataset(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(points), ContourNumber=number)
    item[_CONTOUR_DATA] = _decimals(points)
    if image is not None:
        item.ContourImageSequence = [_reference(image, frame=True)]
    return item


def _decimals(points: np.ndarray) -> RawDataElement:
    """Contour Data as it is written: pydicom makes an object of every number, and there are millions."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    text = "\\".join([f"{number:.{_DIGITS}f}" for number in (points.round(_DIGITS) + 0.0).ravel().tolist()]).encode()
    text += b" " * (len(text) % 2)
    return RawDataElement(Tag(_CONTOUR_DATA), "DS", len(text), text, 0, True, True)


# ---- the structure set ------------------------------------------------------------------------------------------------


def _structure_set(rois: Sequence[_Roi], source: SourceSeries, model: str) -> Dataset:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian

    data = _dataset(
        SOPClassUID=_RT_STRUCTURE_SET,
        SpecificCharacterSet=source.charset([model, *(roi.anatomy.name for roi in rois)]),
        **_equipment(source, model),
    )
    data.update({element.tag: element for element in source.facts if element.keyword not in ("SeriesInstanceUID", "Modality", "LossyImageCompression")})
    data.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    data.StructureSetROISequence = [_structure(roi, source) for roi in rois]
    data.ROIContourSequence = [_dataset(ROIDisplayColor=list(roi.anatomy.colour), ContourSequence=roi.contours, ReferencedROINumber=roi.number) for roi in rois]
    data.RTROIObservationsSequence = [_observation(roi) for roi in rois]
    data.SOPInstanceUID = uid_of("instance", source.uid, "rtstruct", model, __version__, _digest(rois))
    data.SeriesInstanceUID = uid_of("series", data.SOPInstanceUID)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit VR ends at 65,534 bytes, about 2,000 points of a contour
    return data


def _equipment(source: SourceSeries, model: str) -> dict[str, object]:
    """Who wrote it, and when: the dates are those of the source."""
    return {
        "Modality": "RTSTRUCT",
        "Manufacturer": "clseg",
        "ManufacturerModelName": "clseg",
        "SoftwareVersions": __version__,
        "SeriesDescription": "Structure set by clseg",
        "SeriesNumber": min((source.images[0].number or 0) + 2 * SERIES_AFTER, 2**31 - 1),
        "SeriesDate": source.date,
        "SeriesTime": source.time,
        "InstanceNumber": 1,
        "OperatorsName": "",
        "StructureSetLabel": "clseg",
        "StructureSetDescription": f"Structures found by clseg{f', model {model}' if model else ''}"[:1024],
        "StructureSetDate": source.date,
        "StructureSetTime": source.time,
        "ApprovalStatus": "UNAPPROVED",
    }


def _frame_of_reference(source: SourceSeries) -> Dataset:
    """Frame of reference → study → series → images."""
    series = _dataset(SeriesInstanceUID=source.uid, ContourImageSequence=[_reference(image) for image in source.files])
    study = _dataset(ReferencedSOPClassUID=_STUDY_MANAGEMENT, ReferencedSOPInstanceUID=source.facts.StudyInstanceUID, RTReferencedSeriesSequence=[series])
    return _dataset(FrameOfReferenceUID=source.frame_of_reference, RTReferencedStudySequence=[study])


def _structure(roi: _Roi, source: SourceSeries) -> Dataset:
    return _dataset(
        ROINumber=roi.number,
        ReferencedFrameOfReferenceUID=source.frame_of_reference,
        ROIName=label_of(roi.anatomy),
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=f"clseg {__version__}",
    )


def _observation(roi: _Roi) -> Dataset:
    category, identified = category_of(roi.anatomy), _concept(code_of(roi.anatomy))
    if side := side_of(roi.anatomy):
        identified.SegmentedPropertyTypeModifierCodeSequence = [_concept(side)]
    return _dataset(
        ObservationNumber=roi.number,
        ReferencedROINumber=roi.number,
        RTROIIdentificationCodeSequence=[identified],
        SegmentedPropertyCategoryCodeSequence=[_concept(category.code)],
        RTROIInterpretedType=category.rt_type,
        ROIInterpreter="",
    )


def _concept(code: Code) -> Dataset:
    value, scheme, meaning = code
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _reference(image: Slice, *, frame: bool = False) -> Dataset:
    item = _dataset(ReferencedSOPClassUID=image.sop_class, ReferencedSOPInstanceUID=image.uid)
    if frame and image.frames > 1:
        item.ReferencedFrameNumber = image.frame + 1
    return item


def _dataset(**values: object) -> Dataset:
    from pydicom.dataset import Dataset

    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    return data


def _digest(rois: Sequence[_Roi]) -> str:
    digest = hashlib.sha256()
    for roi in rois:
        digest.update(f"{roi.number} {roi.anatomy.name}".encode())
        for contour in roi.contours:
            digest.update(contour.get_item(_CONTOUR_DATA).value)
    return digest.hexdigest()
