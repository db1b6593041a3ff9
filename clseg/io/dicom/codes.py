"""Codes: what DICOM results say about a structure: SNOMED CT codes, sides, the UIDs and names of a segment.

The codes are data: `anatomies.csv` for the structures, `terms.csv` for other concepts, `dicom_categories.csv` for what
kinds of things they are.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from clseg.catalogue import Anatomy, Catalogue
from clseg.io.terminology import SCHEME, open_to_side, words

OWN_SCHEME, OWN_SCHEME_NAME = "99CLSEG", "Ids of the clseg catalogue of structures"
_LONGEST = 64  # characters of a DICOM text

Code = tuple[str, str, str]
"""value, scheme, meaning"""


@dataclass(frozen=True)
class Category:
    """What kind of thing a structure is, and what radiotherapy calls it (RT ROI Interpreted Type)."""

    code: Code
    rt_type: str


def category_of(anatomy: Anatomy) -> Category:
    """That of the structure's first group that has one of its own in the table."""
    table = _categories()
    return next((table[group] for group in anatomy.groups if group in table), table[""])


def code_of(anatomy: Anatomy) -> Code:
    """The SNOMED CT code without side; the catalogue's id in a private scheme for structures that have none."""
    if anatomy.snomed:
        return anatomy.snomed[0], SCHEME, anatomy.snomed[1][:_LONGEST]
    return str(anatomy.id), OWN_SCHEME, label_of(anatomy)


def side_of(anatomy: Anatomy) -> Code | None:
    """The side, where the code does not say it: the left ventricle of the heart has a code of its own."""
    return _concept(anatomy.side) if anatomy.side and open_to_side(anatomy) else None


def regions_of(anatomy: Anatomy) -> tuple[Code, ...]:
    """For a lesion the organs that it grows in."""
    catalogue = Catalogue.builtin()
    hosts = [catalogue[name] for name in anatomy.hosts if name in catalogue]
    return tuple(dict.fromkeys(code_of(host) for host in hosts if host.snomed))


def label_of(anatomy: Anatomy) -> str:
    """The structure's name, as long as DICOM allows."""
    return anatomy.name[:_LONGEST]


def _concept(word: str) -> Code:
    code = words()[word]
    return code.value, SCHEME, code.meaning


@cache
def _categories() -> dict[str, Category]:
    """Group → Category; that of all others under the empty name."""
    with files("clseg.data").joinpath("dicom_categories.csv").open(encoding="utf-8", newline="") as table:
        return {row["group"]: Category(_concept(row["category"]), row["rt_type"]) for row in csv.DictReader(table)}
