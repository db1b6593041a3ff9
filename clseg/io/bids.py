"""BIDS: what a case is called in a BIDS dataset, and the files that make a folder of results a dataset of derivatives.

The specification: https://bids-specification.readthedocs.io/en/stable/derivatives/imaging.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import clseg
from clseg.catalogue import Anatomy
from clseg.errors import UsageError
from clseg.io.files import write_csv, write_json, writing

VERSION = "1.10.0"
DESCRIPTION_FILE, IGNORE_FILE = "dataset_description.json", ".bidsignore"
DESC = "clseg"

_PROGRAM = "clseg"
_ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd", ".dcm", ".zip")
_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9]+)")
_OURS_TO_SAY = ("desc", "seg", "space", "res")  # of a derivative, not of the scan
_NOT_BIDS = ("*_run.json", "*_statistics.json", "*_statistics.csv", "*_radiomics.csv", "*_confidence.nii.gz", "*_preview.png", "*_meshes/")


@dataclass(frozen=True)
class CaseName:
    """The entities of a scan, subject first: `(("sub", "01"), ("ses", "2"), ("run", "1"))`."""

    entities: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str) -> CaseName:
        """From the name of a file or folder: its entities where it is called as BIDS wants it, else one subject of its letters and digits.

        Raises UsageError for a name without any.
        """
        stem = _stem(name)
        parts = stem.split("_")
        entities = [tuple(part.split("-", 1)) for part in parts if _ENTITY.fullmatch(part)]
        rest = [part for part in parts if not _ENTITY.fullmatch(part)]
        if entities and entities[0][0] == "sub" and len(rest) <= 1 and rest == parts[len(parts) - len(rest) :]:
            return cls(tuple((key, value) for key, value in entities if key not in _OURS_TO_SAY))
        label = re.sub(r"[^A-Za-z0-9]", "", stem)
        if not label:
            raise UsageError(f"No subject of a BIDS dataset can be called after '{name}', which has no letters and digits.", tip="Name it with --subject.")
        return cls((("sub", label),))

    @property
    def folder(self) -> Path:
        """`sub-01/ses-2/anat`, below the dataset."""
        return Path(*(f"{key}-{value}" for key, value in self.entities if key in ("sub", "ses")), "anat")

    @property
    def stem(self) -> str:
        """`sub-01_ses-2_run-1_desc-clseg`, to which a suffix is added."""
        return "_".join(f"{key}-{value}" for key, value in (*self.entities, ("desc", DESC)))


def check_dataset(folder: Path) -> None:
    """UsageError when the folder is a BIDS dataset that is not one of clseg's: derivatives go into one of their own."""
    file = folder / DESCRIPTION_FILE
    if file.exists() and not _is_ours(file):
        raise UsageError(f"'{folder}' is a BIDS dataset of its own.", tip=f"Derivatives have their own folder, such as {folder / 'derivatives' / _PROGRAM}.")


def write_dataset(folder: Path) -> list[Path]:
    """Write what makes the folder a dataset of derivatives: its description, and which files are beyond BIDS."""
    check_dataset(folder)
    description, ignore = folder / DESCRIPTION_FILE, folder / IGNORE_FILE
    program = {"Name": _PROGRAM, "Version": clseg.__version__, "Description": "Whole-body CT segmentation"}
    write_json(description, {"Name": f"{_PROGRAM} segmentations", "BIDSVersion": VERSION, "DatasetType": "derivative", "GeneratedBy": [program]})
    if not ignore.exists():  # whose lines may be the user's
        with writing(ignore, "w") as stream:
            stream.write("\n".join(_NOT_BIDS) + "\n")
    return [description, ignore]


def write_sidecars(label_map: Path, anatomies: Sequence[Anatomy]) -> list[Path]:
    """Beside `…_dseg.nii.gz` write `…_dseg.tsv`, what its numbers mean, and `…_dseg.json`, how it came about."""
    table, sidecar = (label_map.with_name(f"{_stem(label_map.name)}{ending}") for ending in (".tsv", ".json"))
    write_csv(table, ["index", "name", "color"], _rows(anatomies), delimiter="\t")
    write_json(sidecar, {"Manual": False, "SpatialReference": "orig", "Description": "Labels on the grid of the scan; where structures overlap the part hides the whole."})
    return [table, sidecar]


def _rows(anatomies: Iterable[Anatomy]) -> list[list[object]]:
    return [[a.id, a.name, "#{:02x}{:02x}{:02x}".format(*a.colour)] for a in anatomies]


def _stem(name: str) -> str:
    """The name without the ending of a format; dots elsewhere are part of it."""
    ending = next((e for e in _ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _is_ours(file: Path) -> bool:
    try:
        programs = json.loads(file.read_text(encoding="utf-8"))["GeneratedBy"]
        return any(program["Name"] == _PROGRAM for program in programs)
    except (OSError, ValueError, KeyError, TypeError):
        return False
