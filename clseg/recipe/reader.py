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

    With `extends = "other.toml"` it says only what is different from another recipe in the
    same folder: tables are joined key by key, everything else, lists and [[tables]] too,
    takes the other's place.  Raises RecipeError with the key, what it holds and what was expected.
    """
    return from_dict(tables(path), Path(path).resolve().parent, kind)


def tables(path: Path) -> dict[str, Any]:
    """The keys of a recipe as they are written, joined with those of the recipes that it extends; RecipeError as `read_recipe`."""
    return _with_what_it_extends(Path(path), ())


def _with_what_it_extends(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The tables of a recipe, joined with those of the recipe that it extends; `above` are those that extend this one."""
    data = _tables(path)
    other = data.pop("extends", None)
    if other is None:
        return data
    if not isinstance(other, str) or not other or Path(other).name != other:
        raise RecipeError(f"extends in {path} must be the name of a recipe in the same folder, given {other!r}.")
    if path.with_name(other) in (*above, path):
        raise RecipeError(f"{path} extends itself: {' → '.join(one.name for one in (*above, path))} → {other}.")
    return _joined(_with_what_it_extends(path.with_name(other), (*above, path)), data)


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    tables = {key: _joined(below[key], value) for key, value in above.items() if isinstance(value, dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **tables}


def _tables(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe at {path}.", tip="`clseg recipe new` prints one for every kind of training.") from error
    except IsADirectoryError as error:
        raise RecipeError(f"{path} is a folder, expected a recipe: a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"Cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}.") from error


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
    needed = [name for name, f in known.items() if required(f) and name not in data]
    if needed:
        raise RecipeError(f"[{where}] lacks '{needed[0]}'.", tip="`clseg recipe new` prints a recipe with all its keys, for every kind of training.")
    return kind(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in data.items()}, **extra)


def required(field: dataclasses.Field) -> bool:
    """Whether a recipe must have this key."""
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
