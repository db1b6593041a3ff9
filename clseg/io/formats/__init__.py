"""Formats: what results can be written as, what their files are called, and what they need; the writers are in `writers`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clseg.errors import UnknownName

Source = Any
"""The DICOM series that a result refers to (a `SourceSeries`), or None."""


@dataclass(frozen=True)
class Format:
    """`ending` of its files; `masks`: it can also hold one structure a file; `dicom`: it refers to the DICOM series that was segmented; `highdicom`: that package writes it."""

    ending: str
    masks: bool = False
    dicom: bool = False
    highdicom: bool = False


FORMATS: Mapping[str, Format] = {
    "nifti": Format(".nii.gz", masks=True),
    "nrrd": Format(".nrrd", masks=True),
    "seg.nrrd": Format(".seg.nrrd"),
    "dicom_seg": Format(".seg.dcm", dicom=True, highdicom=True),
    "dicom_labelmap": Format(".labelmap.dcm", dicom=True, highdicom=True),
    "dicom_rtstruct": Format(".rtstruct.dcm", dicom=True),
}
MESHES: Mapping[str, str] = {"stl": ".stl", "obj": ".obj", "ply": ".ply"}
LABEL_TABLES: Mapping[str, str] = {"itksnap": ".itksnap.txt", "slicer": ".ctbl"}
FILE_NAMES: Mapping[str, str] = {".nii.gz": "nifti", ".nii": "nifti", ".seg.nrrd": "seg.nrrd", ".nrrd": "nrrd"}
"""Ending of a file that an output may be called, the longer first → its format."""
CONFIDENCE = "confidence.nii.gz"
"""How sure the network was: a volume that lies beside masks and is none"""


def is_confidence(path: Path) -> bool:
    """Whether a file is called like a map of confidence, by itself or after the name of a result: x.confidence.nii.gz, sub-1_confidence.nii.gz."""
    return path.name == CONFIDENCE or path.name.endswith((f".{CONFIDENCE}", f"_{CONFIDENCE}"))


def chosen(words: Iterable[str] | str | None, among: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """The names in `words` (each may be several with commas between them), in the order of `among`, each once.

    Raises UnknownName, with the nearest ones, for a word that is none of them; `what` says what they are names of.
    """
    given = [words] if isinstance(words, str) else words or ()
    names = [name.strip().lower() for word in given for name in word.split(",") if name.strip()]
    for name in names:
        if name not in among:
            raise UnknownName(what, name, _nearest(name, list(among)), tip=f"Known are {', '.join(among)}.")
    return tuple(name for name in among if name in names)


def _nearest(name: str, among: Sequence[str]) -> tuple[str, ...]:
    from difflib import get_close_matches

    return tuple(get_close_matches(name, among, 2))
