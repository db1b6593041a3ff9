"""Writers: format → the function that writes it; a new format is a row here and one in `clseg.io.formats`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from clseg.catalogue import Anatomy
from clseg.errors import UsageError
from clseg.io.formats import FORMATS, Source
from clseg.io.formats.nifti import write_nifti_map, write_nifti_mask
from clseg.io.formats.nrrd import write_nrrd_map, write_nrrd_mask
from clseg.io.formats.seg_nrrd import write_seg_nrrd
from clseg.io.segments import Segments


def check_source(types: Iterable[str], source: Source) -> None:
    """UsageError when one of the formats refers to a DICOM series and there is none."""
    for type in types:
        if FORMATS[type].dicom and source is None:
            raise UsageError(f"The output type {type} needs a DICOM series as input, for it refers to its images.", tip=f"Give the DICOM series, or another type: {', '.join(_free())}.")


def write_whole(type: str, path: Path, segments: Segments, source: Source = None) -> bool:
    """Write all structures into one file of this format; False where it has none for a result without structures.

    Raises UsageError when it needs a DICOM series and `source` is none, OutputError when the file cannot be written.
    """
    check_source([type], source)
    return _WHOLE[type](path, segments, source) is not False


def write_one(type: str, path: Path, segments: Segments, anatomy: Anatomy) -> None:
    """Write the mask of one structure that was found; errors as above."""
    _MASKS[type](path, segments, anatomy)


def _free() -> list[str]:
    return [type for type, format in FORMATS.items() if not format.dicom]


def _dicom_seg(path: Path, segments: Segments, source: Source) -> bool:
    from clseg.io.dicom.seg import write_seg

    return write_seg(path, segments, source, model=segments.model)


def _dicom_labelmap(path: Path, segments: Segments, source: Source) -> bool:
    from clseg.io.dicom.seg import write_seg

    return write_seg(path, segments, source, kind="labelmap", model=segments.model)


def _dicom_rtstruct(path: Path, segments: Segments, source: Source) -> bool:
    from clseg.io.dicom.rtstruct import write_rtstruct

    return write_rtstruct(path, segments, source, model=segments.model)


_WHOLE: Mapping[str, Callable[[Path, Segments, Source], bool | None]] = {
    "nifti": lambda path, segments, _: write_nifti_map(path, segments),
    "nrrd": lambda path, segments, _: write_nrrd_map(path, segments),
    "seg.nrrd": lambda path, segments, _: write_seg_nrrd(path, segments),
    "dicom_seg": _dicom_seg,
    "dicom_labelmap": _dicom_labelmap,
    "dicom_rtstruct": _dicom_rtstruct,
}
_MASKS: Mapping[str, Callable[[Path, Segments, Anatomy], None]] = {"nifti": write_nifti_mask, "nrrd": write_nrrd_mask}
