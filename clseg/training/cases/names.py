"""Names: what a dataset calls a structure, what the catalogue calls it, and the ids of a label map."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

from clseg.catalogue import Catalogue
from clseg.errors import InputError
from clseg.io.labels import read_label_names
from clseg.training.cases.case import LabelMap

BACKGROUND = 0
IGNORED = "ignore"  # nnU-Net's name for voxels about which nothing is known


def structure(name: str, rename: Mapping[str, str], wanted: Collection[str] = ()) -> str:
    """The structure that a dataset's own name stands for; the name itself where nobody knows better.

    What the recipe renames goes first, then names that are wanted exactly so, then
    the catalogue's names and synonyms.
    """
    if name in rename:
        return rename[name]
    if name in wanted:
        return name
    meant = meanings(name)
    return meant[0] if len(meant) == 1 else name


def joined(names: Iterable[str], rename: Mapping[str, str], wanted: Collection[str] = (), *, where: str) -> dict[str, tuple[str, ...]]:
    """Structure → the dataset's own names that make it up, in their order.

    Several names are joined where the recipe says so; InputError where it does not
    and two names mean the same structure.  `where` begins the sentence.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(structure(name, rename, wanted), []).append(name)
    for meant, own in parts.items():
        plain = [name for name in own if name not in rename]
        if len(plain) > 1:
            raise InputError(
                f"{where} call two things {meant}: '{plain[0]}' and '{plain[1]}'.",
                tip=f"Say which is which with rename, or join them: rename = {{ {plain[0]} = \"{meant}\", {plain[1]} = \"{meant}\" }}",
            )
    return {meant: tuple(own) for meant, own in parts.items()}


@cache
def meanings(name: str) -> tuple[str, ...]:
    """The catalogue's structures that a name may mean: none, one, or several (`kidney`)."""
    return Catalogue.builtin().meanings(name)


def ids(label_map: LabelMap) -> dict[str, int]:
    """The dataset's own name → id, without the background.

    Raises InputError when there are no names, two names share an id, or an id is not a whole number above 0.
    """
    table = label_map.names
    if isinstance(table, Path):
        table = _from_json(table, label_map.path)
    elif table is None:
        table = _embedded(label_map.path)
    return checked(table, f"The names of the label map {label_map.path}")


def checked(table: object, where: str) -> dict[str, int]:
    """A table of name → id, without the background; `where` begins the sentence of the InputError."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where} must be an object of name and id, given {table!r}.")
    by_id: dict[int, str] = {}
    for name, id in table.items():
        if isinstance(id, bool) or not isinstance(id, int) or id < 0:
            raise InputError(f"{where} must map every name to a whole number, given '{name}': {id!r}.")
        if id in by_id:
            raise InputError(f"{where} overlap: '{by_id[id]}' and '{name}' both have the id {id}, expected an id of its own for each.")
        if id == BACKGROUND and meanings(name):
            raise InputError(f"{where} give '{name}' the id 0, which is the background's.")
        by_id[id] = name
    return {name: id for id, name in by_id.items() if id != BACKGROUND}


def _embedded(path: Path) -> dict[str, int]:
    by_id = read_label_names(path)
    if not by_id:
        raise InputError(f"Nothing says what the ids of the label map {path} mean.", tip="Put a .labels.json (name: id) beside it.")
    return _turned(by_id, path)


def _turned(by_id: Mapping[int, str], path: Path) -> dict[str, int]:
    """id → name as name → id; InputError when that would lose one."""
    table: dict[str, int] = {}
    for id, name in by_id.items():
        if name in table:
            raise InputError(f"The names of the label map {path} overlap: the ids {table[name]} and {id} are both '{name}', expected a name of its own for each.")
        table[name] = id
    return table


def _from_json(path: Path, label_map: Path) -> object:
    """Name → id; a file of id → name is turned round."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(table, dict) and table and all(isinstance(name, str) for name in table.values()):
            return _turned({int(id): name for id, name in table.items()}, label_map)
        return table
    except (OSError, ValueError) as error:
        raise InputError(f"The label map beside {path} needs its names there, as a JSON object of name and id: {error}.") from error
