"""Terminology: what a structure is in the words of SNOMED CT, as DICOM and 3D Slicer want to know it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from clseg.catalogue import Anatomy, Catalogue

SCHEME = "SCT"
LESIONS = "gtv"  # the group of the catalogue whose structures are lesions even where no organ is named that they grow in


@dataclass(frozen=True)
class Code:
    """One concept of SNOMED CT: its number and what it means."""

    value: str
    meaning: str


@dataclass(frozen=True)
class Terms:
    """What a structure is: `kind` (category), `type`, `side` of it; of a lesion also the `region` that it grows in and its side."""

    kind: Code
    type: Code
    side: Code | None = None
    region: Code | None = None
    region_side: Code | None = None


def terms_of(anatomy: Anatomy) -> Terms:
    """The terms of a structure.

    Those of the catalogue; a lesion is an altered structure in a region, where its hosts agree on one.  The side is said
    where the concept itself leaves it open, that is, where the structure on the other side is the same concept.  What has
    no concept is a tissue, which is what 3D Slicer calls a segment of which it knows nothing.
    """
    word = words()
    side = word[anatomy.side] if anatomy.side and open_to_side(anatomy) else None
    if anatomy.hosts or LESIONS in anatomy.groups:
        region = _region(anatomy)
        return Terms(word["altered_structure"], _type(anatomy), None if region else side, region, side if region else None)
    kind = "anatomical_structure" if _named(anatomy) else "tissue"
    return Terms(word[kind], _type(anatomy), side)


@cache
def words() -> dict[str, Code]:
    """The concepts that no row of the catalogue holds, by the word that clseg has for them."""
    with files("clseg.data").joinpath("terms.csv").open(encoding="utf-8", newline="") as table:
        return {row["word"]: Code(row["code"], row["meaning"]) for row in csv.DictReader(table)}


def open_to_side(anatomy: Anatomy) -> bool:
    """Whether the concept leaves the side of the structure open: not so for `Left atrium`, which says its side itself, so that the right one is another concept."""
    if anatomy.snomed is None or anatomy.partner is None:
        return anatomy.snomed is None
    return Catalogue.builtin()[anatomy.partner].snomed == anatomy.snomed


def _named(anatomy: Anatomy) -> Code | None:
    """The concept of a structure, or that of a group of it."""
    if anatomy.snomed:
        return Code(*anatomy.snomed)
    return next((words()[group] for group in anatomy.groups if group in words()), None)


def _type(anatomy: Anatomy) -> Code:
    return _named(anatomy) or words()["tissue"]


def _region(lesion: Anatomy) -> Code | None:
    """The organ that a lesion grows in, when all its hosts are the same concept."""
    concepts = {Catalogue.builtin()[host].snomed for host in lesion.hosts if host in Catalogue.builtin()}
    return Code(*concept) if len(concepts) == 1 and (concept := concepts.pop()) else None
