"""Sides: is left on the left? A mirrored label map is the commonest fault of a dataset.

In RAS+ x grows to the patient's right, so the left one of a pair has the smaller x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clseg.catalogue import Anatomy, Catalogue

USUAL = {"liver": "right", "gallbladder": "right", "spleen": "left", "stomach": "left"}  # unpaired organs of the usual situs
MARGIN_MM = 10.0  # how far across the middle a lone structure must lie to be worth a word


@dataclass(frozen=True)
class Place:
    """Where a structure is: its voxels, and the x of its centroid in mm (RAS+: grows to the patient's right)."""

    voxels: int
    x_mm: float


def swapped(places: Mapping[str, Place]) -> str:
    """A sentence when the left one of some pair lies further right than the right one; empty when all is well."""
    pairs = list(_pairs(places))
    wrong = [(left, right, places[left].x_mm - places[right].x_mm) for left, right in pairs if places[left].x_mm > places[right].x_mm]
    if not wrong:
        return ""
    left, right, gap_mm = max(wrong, key=lambda pair: pair[2])
    if len(wrong) == len(pairs):
        why = "the labels are mirrored, or left and right are interchanged in their names"
    else:
        why = f"the names of {len(wrong)} of {len(pairs)} pairs seem to be interchanged"
    return f"{left} lies {gap_mm:.0f} mm to the right of {right}: {why}."


def unusual(places: Mapping[str, Place], middle_mm: float) -> list[str]:
    """A sentence per lone structure that lies across the middle of the body: mirrored, or a rare situs inversus."""
    paired = {name for pair in _pairs(places) for name in pair}
    sides = {a.name: a.side or USUAL.get(a.name, "") for a in _known(places) if a.name not in paired}
    sentences = []
    for name, side in sides.items():
        to_the_right = places[name].x_mm - middle_mm
        across = -to_the_right if side == "right" else to_the_right if side == "left" else 0.0
        if across > MARGIN_MM:
            other = "left" if side == "right" else "right"
            sentences.append(f"{name} lies {across:.0f} mm to the {other} of the body's middle, expected on the {side}: make sure that the labels are not mirrored.")
    return sentences


def _pairs(places: Mapping[str, Place]) -> Iterator[tuple[str, str]]:
    """(left, right) of every pair of which both are there, in the order of the catalogue."""
    for anatomy in _known(places):
        if anatomy.side == "left" and anatomy.partner in places:
            yield anatomy.name, anatomy.partner  # type: ignore[misc]


def _known(places: Mapping[str, Place]) -> list[Anatomy]:
    catalogue = Catalogue.builtin().with_structures(sorted(places))
    return [anatomy for anatomy in catalogue if anatomy.name in places]
