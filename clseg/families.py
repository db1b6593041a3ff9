"""Families: structures that are also wanted as one: both kidneys, all ribs, a lung from its lobes.

What they are is data: `clseg/data/families.csv`, one row each.  The rule `pair`
is a structure and its partner, `parts` the catalogue's parts of a whole that they
fill, `called` all structures that `clseg --roi` understands by a word.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from clseg.catalogue import Anatomy, Catalogue

CUSTOM_PAIR = "{}_both"  # what a pair is called that is not in the catalogue


@dataclass(frozen=True)
class Family:
    """`members` were asked for and make the family up; `missing` would, but were not asked for."""

    name: str
    members: tuple[str, ...]
    missing: tuple[str, ...] = ()


def families(wanted: Collection[str], catalogue: Catalogue | None = None) -> tuple[Family, ...]:
    """The families of which at least two members were asked for, in the order of `families.csv`, pairs of custom structures last.

    A member that was not asked for is stood for by its parts, where these fill it
    (`lungs` from lobes).  A family that was itself asked for as a structure is none
    (`lung_left`).  `catalogue` must hold all names of `wanted`; by default it is
    the built-in one.
    """
    catalogue = catalogue or Catalogue.builtin()
    known = {**_builtin(), **_custom_pairs(wanted, catalogue)}
    found = [_family(name, known[name], wanted) for name in known if name not in wanted]
    return tuple(family for family in found if len(family.members) > 1)


def _family(name: str, members: tuple[str, ...], wanted: Collection[str]) -> Family:
    asked = [each for member in members for each in _asked(member, wanted)]
    return Family(name, tuple(each for each in asked if each in wanted), tuple(each for each in asked if each not in wanted))


def _asked(member: str, wanted: Collection[str]) -> tuple[str, ...]:
    """The member itself, or the parts that fill it where one of them was asked for instead."""
    parts = _filling().get(member, ())
    return (member,) if member in wanted or not any(part in wanted for part in parts) else parts


@cache
def _builtin() -> Mapping[str, tuple[str, ...]]:
    """Family → its members, by `families.csv`."""
    catalogue = Catalogue.builtin()
    return {row["family"]: _members(row["rule"], row["of"], catalogue) for row in _rows()}


@cache
def _filling() -> Mapping[str, tuple[str, ...]]:
    """Whole → the parts that fill it."""
    return {row["of"]: Catalogue.builtin().children(row["of"]) for row in _rows() if row["rule"] == "parts"}


def _rows() -> Iterator[dict[str, str]]:
    with files("clseg.data").joinpath("families.csv").open(encoding="utf-8", newline="") as table:
        yield from csv.DictReader(table)


def _members(rule: str, of: str, catalogue: Catalogue) -> tuple[str, ...]:
    if rule == "pair":
        return _pair(catalogue[of])
    if rule == "parts":
        return catalogue.children(of)
    if rule == "called":
        return tuple(anatomy.name for anatomy in catalogue.select([of]))
    raise ValueError(f"A family is a pair, parts or called, not '{rule}'.")


def _pair(anatomy: Anatomy) -> tuple[str, str]:
    if anatomy.partner is None:
        raise ValueError(f"'{anatomy.name}' has no partner.")
    return anatomy.name, anatomy.partner


def _custom_pairs(wanted: Collection[str], catalogue: Catalogue) -> dict[str, tuple[str, str]]:
    """Pairs among structures that are not built in, called like them without their side."""
    lefts = [a for a in catalogue if a.name in wanted and a.name not in Catalogue.builtin() and a.side == "left" and a.partner]
    return {CUSTOM_PAIR.format(catalogue.without_side(a.name)): _pair(a) for a in lefts}
