"""Kind: which command a recipe is for, as far as its keys tell."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clseg.recipe.reader import required, tables
from clseg.recipe.template import KINDS


def likeliest_kind(path: Path) -> str:
    """The one of KINDS that the keys of a recipe fit best, the first of several; RecipeError when it cannot be read at all."""
    given = tables(path)
    return min(KINDS, key=lambda kind: strangeness(KINDS[kind], given))


def strangeness(kind: Any, given: Mapping[str, Any]) -> int:
    """How many keys this kind of recipe does not know, lacks, or wants as a list where they are none and the other way round."""
    known = {field.name: field for field in dataclasses.fields(kind) if not field.metadata.get("hidden")}
    hints = typing.get_type_hints(kind)
    unknown = set(given) - set(known)
    lost = [name for name, field in known.items() if required(field) and name not in given]
    other = [name for name in set(given) & set(known) if isinstance(given[name], list) != (typing.get_origin(hints[name]) is tuple)]
    return len(unknown) + len(lost) + len(other)
