"""TOML → recipe, with every key and type checked, and back to plain types."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from clseg.errors import RecipeError
from clseg.recipe.commands import Common, Recipe

Kind = TypeVar("Kind", bound=Common)


def read_recipe(path: Path, kind: type[Kind] = Recipe) -> Kind:  # type: ignore[assignment]
    """Read a TOML recipe of this kind; relative paths in it are relative to its folder.

    Raises RecipeError with the key, what it holds and what was expected.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe at {path}.", tip="`clseg recipe new` prints one for every kind of training.") from error
    except IsADirectoryError as error:
        raise RecipeError(f"{path} is a folder, expected a recipe: a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"Cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}.") from error
    return from_dict(data, Path(path).resolve().parent, kind)


def from_dict(data: dict[str, Any], folder: Path, kind: type[Kind] = Recipe) -> Kind:  # type: ignore[assignment]
    """A recipe from plain types; relative paths in it are relative to `folder`. Inverse of `to_dict`."""
    return build(kind, data, "recipe", folder=folder)


def to_dict(recipe: Any) -> dict[str, Any]:
    """The recipe as plain JSON types, without the folder it was read from."""
    data = dataclasses.asdict(recipe)
    data.pop("folder", None)
    return json.loads(json.dumps(data))


def build(kind: Any, data: Any, where: str, **extra: Any) -> Any:
    """A dataclass of type `kind` out of a TOML table; every key and type is checked."""
    if not isinstance(data, dict):
        raise RecipeError(f"'{where}' must be a table, given {data!r}.")
    known = {f.name: f for f in dataclasses.fields(kind) if not f.metadata.get("hidden")}
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(known))
    if unknown:
        near = get_close_matches(unknown[0], known, 1, 0.7)
        tip = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(known)}."
        raise RecipeError(f"Unknown key '{unknown[0]}' in [{where}].", tip=tip)
    needed = [name for name, f in known.items() if _required(f) and name not in data]
    if needed:
        raise RecipeError(f"[{where}] lacks '{needed[0]}'.", tip="`clseg recipe new` prints a recipe with all its keys, for every kind of training.")
    return kind(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in data.items()}, **extra)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict:
        return _dict(arguments[1], value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        tables = [one for one in arguments if typing.get_origin(one) is dict]
        return _value(tables[0] if tables and isinstance(value, dict) else arguments[0], value, where)
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"'{where}' must be {hint.__name__}, given {value!r}.")
    return float(value) if hint is float else value


def _dict(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or (hint is str and not all(isinstance(v, str) for v in value.values())):
        raise RecipeError(f"'{where}' must be a table{' of strings' if hint is str else ''}, given {value!r}.")
    return {k: _value(hint, v, f"{where}.{k}") for k, v in value.items()}


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"'{where}' must be a list, given {value!r}.")
    if arguments[-1] is Ellipsis:
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(arguments):
        raise RecipeError(f"'{where}' must have {len(arguments)} entries, given {value!r}.")
    return tuple(_value(a, v, where) for a, v in zip(arguments, value, strict=True))
