"""What must hold in a catalogue: ids and names are unique, what structures refer to is there, and nothing contains itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from clseg.errors import UsageError
from clseg.words import OPPOSITE, side_of

if TYPE_CHECKING:
    from clseg.catalogue import Anatomy


def check(anatomies: tuple[Anatomy, ...]) -> None:
    """UsageError for the first thing that does not hold."""
    by_name = {anatomy.name: anatomy for anatomy in anatomies}
    if len({anatomy.id for anatomy in anatomies}) < len(anatomies):
        raise UsageError(f"Ids of structures must be unique, given twice: {_twice(a.id for a in anatomies)}.")
    if len(by_name) < len(anatomies):
        raise UsageError(f"Names of structures must be unique, given twice: {_twice(a.name for a in anatomies)}.")
    for anatomy in anatomies:
        _check_name(anatomy)
        _check_references(anatomy, by_name)
    for anatomy in anatomies:
        _check_ancestry(anatomy, by_name)


def lineage(anatomy: Anatomy, by_name: Mapping[str, Anatomy]) -> Iterator[str]:
    """What a structure is part of, from near to far; without end where something contains itself."""
    parent = anatomy.parent
    while parent is not None:
        yield parent
        parent = by_name[parent].parent


def _check_name(anatomy: Anatomy) -> None:
    if not re.fullmatch(r"[^\s,;/\\.\x00-\x1f]([^,;/\\\x00-\x1f]*[^\s,;/\\\x00-\x1f])?", anatomy.name):
        raise UsageError(
            f"A structure cannot be called {anatomy.name!r}; expected a name without commas, semicolons, "
            "slashes, a leading dot or spaces at the ends."
        )
    if anatomy.side != side_of(anatomy.name):
        raise UsageError(f"The side of '{anatomy.name}' must agree with its name, given: '{anatomy.side}'.")


def _check_references(anatomy: Anatomy, by_name: Mapping[str, Anatomy]) -> None:
    references = [("parent", anatomy.parent), ("partner", anatomy.partner), *(("host", host) for host in anatomy.hosts)]
    for role, name in references:
        if name is not None and name not in by_name:
            raise UsageError(f"The {role} of '{anatomy.name}' must be a structure, given: '{name}'.")
    if anatomy.partner is None:
        return
    partner = by_name[anatomy.partner]
    if partner.partner != anatomy.name or OPPOSITE.get(anatomy.side) != partner.side:
        raise UsageError(f"'{anatomy.name}' and '{partner.name}' must be partners of each other, on opposite sides.")


def _check_ancestry(anatomy: Anatomy, by_name: Mapping[str, Anatomy]) -> None:
    seen = {anatomy.name}
    for parent in lineage(anatomy, by_name):
        if parent in seen:
            raise UsageError(f"A structure cannot contain itself: '{parent}' does, through its parents.")
        seen.add(parent)


def _twice(values: Iterable[object]) -> str:
    seen: set[object] = set()
    return ", ".join(dict.fromkeys(str(value) for value in values if value in seen or seen.add(value)))
