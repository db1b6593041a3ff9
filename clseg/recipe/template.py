"""A commented recipe with every knob, its default and its unit: `clseg recipe new`."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
from typing import Any

from clseg.recipe.bodypart import BodypartRecipe
from clseg.recipe.commands import LearnRecipe, PruneRecipe, Recipe, UpdateRecipe

KINDS: dict[str, Any] = {"train": Recipe, "learn": LearnRecipe, "update": UpdateRecipe, "prune": PruneRecipe, "bodypart": BodypartRecipe}


def template(kind: str) -> str:
    """TOML text that `read_recipe` accepts: needed keys with examples, all others commented out with their defaults."""
    recipe = KINDS[kind]
    lines = [_sentence(recipe), ""]
    tables = []
    hints = typing.get_type_hints(recipe)
    for field in dataclasses.fields(recipe):
        if field.metadata.get("hidden"):
            continue
        part, repeated = _section(hints[field.name])
        if part is None:
            lines += _knob(field)
        else:
            tables.append(_table(field, part, repeated))
    return "\n".join([*lines, "", *tables])


def _section(hint: Any) -> tuple[Any, bool]:
    """The dataclass that a field holds, if any, and whether it may be given several times."""
    if dataclasses.is_dataclass(hint):
        return hint, False
    arguments = typing.get_args(hint)
    if arguments and dataclasses.is_dataclass(arguments[0]) and type(None) in arguments:
        return arguments[0], False
    if typing.get_origin(hint) is tuple and arguments and dataclasses.is_dataclass(arguments[0]):
        return arguments[0], True
    return None, False


def _table(field: dataclasses.Field, part: Any, repeated: bool) -> str:
    needed = repeated and field.default is dataclasses.MISSING
    header = f"[[{field.name}]]" if repeated else f"[{field.name}]"
    lines = [_sentence(part), header if needed or not repeated else f"# {header}"]
    for one in dataclasses.fields(part):
        lines += _knob(one, commented=repeated and not needed)
    return "\n".join([*lines, ""])


def _knob(field: dataclasses.Field, commented: bool = False) -> list[str]:
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    needed = default is dataclasses.MISSING or field.metadata.get("example") is not None
    value = field.metadata.get("example") if needed else default
    line = f"{'' if needed and not commented else '# '}{field.name} = {_toml(value)}"
    about = field.metadata.get("about", "")
    if len(line) + len(about) + 4 <= 120:
        return [f"{line}  # {about}" if about else line]
    return [*textwrap.wrap(about, 118, initial_indent="# ", subsequent_indent="# "), line]


def _sentence(kind: Any) -> str:
    text = " ".join((kind.__doc__ or "").split())
    return "\n".join(textwrap.wrap(text, 118, initial_indent="# ", subsequent_indent="# "))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)
