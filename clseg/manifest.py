"""Manifest: the list of models and of the weight files (assets) they are made of.

`weights_manifest.json` at the top of the repository is the single list; a user's own list lies in CLSEG_HOME
and is `merged` into it.  The file is JSON:

    {"format": 1,
     "models": {"starter": {"description": "…", "licence": "MIT", "assets": ["starter-encoder", "starter-lungs"]}},
     "assets": {
        "starter-encoder": {
           "kind": "encoder", "file": "starter/encoder.safetensors", "bytes": 1200000, "sha256": "…64 hex digits…",
           "licence": "MIT", "sources": ["package:data/starter/encoder.safetensors"]},
        "starter-lungs": {
           "kind": "decoder", "file": "starter/lungs.safetensors", "bytes": 90000, "sha256": "…", "licence": "MIT",
           "sources": ["https://example.org/lungs.safetensors"], "requires": ["starter-encoder"],
           "labels": ["lung_left", "lung_right"]}}}

    kind      encoder | decoder (paints `labels`; background is not listed) | bodypart (which slices can hold what)
    file      the asset's name below a mirror or a bundle: relative, with `/`, never leaving that folder
    sources   where it may come from, any number of
                  package:data/x.safetensors    shipped inside the package
                  weights/x.safetensors         beside the manifest file itself
                  file:///srv/x.safetensors     elsewhere on this machine or a mounted share
                  https://host/x.safetensors    downloaded; http:// from 127.0.0.0/8, localhost and [::1], from
                                                elsewhere only when whoever fetches allows it
    requires  assets that must be loaded too: the encoder it was trained on, supporting decoders
    replaces  older assets whose place this one takes in every model that lists both

What must hold, or a WeightsError says which sentence is broken: no unknown or repeated keys; `requires` leads to listed
assets and never in a circle; every decoder reaches an encoder, through `requires` or because its model lists exactly
one; one `file` name means one sha256.  A manifest is complete in itself: a user's own repeats the entry of an encoder
that it uses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clseg.addresses import is_relative, source_problem
from clseg.errors import OutputError, UnknownName, WeightsError
from clseg.manifest_check import KINDS, asset_problem, manifest_problems, model_problem, of_kind

FILE_NAME = "weights_manifest.json"
FORMAT = 1

_FACTS = ("kind", "file", "bytes", "sha256", "licence")  # the keys every asset has
_LISTS = ("sources", "requires", "labels", "replaces")  # the keys an asset may have


@dataclass(frozen=True)
class Asset:
    """One weight file: what it is, what its bytes must be, where it may come from; checked when made.

    `folder` is where the manifest was read from: sources without a scheme are relative to it.
    """

    name: str
    kind: str
    file: str
    bytes: int
    sha256: str
    licence: str
    sources: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    folder: Path | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        problem = asset_problem(self) or next(filter(None, map(source_problem, self.sources)), None)
        if problem:
            raise WeightsError(f"Asset '{self.name}': {problem}.")

    @classmethod
    def from_dict(cls, name: str, entry: Any, folder: Path | None = None) -> Asset:
        """The asset that the JSON object `entry` describes."""
        entry = _object(f"Asset '{name}'", entry, _FACTS, _LISTS)
        lists = {key: _texts(f"Asset '{name}'", key, entry[key]) for key in _LISTS if key in entry}
        return cls(**{**entry, **lists, "name": name, "folder": folder})

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this asset; its name is the key under which it is listed."""
        lists = {key: list(getattr(self, key)) for key in _LISTS if key != "replaces" or self.replaces}
        return {key: getattr(self, key) for key in _FACTS} | lists


@dataclass(frozen=True)
class Model:
    """A set of assets with a name that a user can ask for (`--model starter`)."""

    name: str
    description: str
    licence: str
    assets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problem = model_problem(self)
        if problem:
            raise WeightsError(f"Model '{self.name}': {problem}.")

    @classmethod
    def from_dict(cls, name: str, entry: Any) -> Model:
        """The model that the JSON object `entry` describes."""
        entry = _object(f"Model '{name}'", entry, ("description", "licence", "assets"))
        return cls(**{**entry, "assets": _texts(f"Model '{name}'", "assets", entry["assets"]), "name": name})

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this model; its name is the key under which it is listed."""
        return {"description": self.description, "licence": self.licence, "assets": list(self.assets)}


@dataclass(frozen=True)
class Manifest:
    """All models and assets, checked as a whole when made; see the module's text for the rules."""

    models: tuple[Model, ...]
    assets: tuple[Asset, ...]

    def __post_init__(self) -> None:
        for problem in manifest_problems(self):
            raise WeightsError(f"{problem}.")

    @classmethod
    def builtin(cls) -> Manifest:
        """The manifest of this `clseg`: inside an installed package, at the top of an editable checkout."""
        inside = Path(str(files("clseg").joinpath(FILE_NAME)))
        return cls.read(inside if inside.is_file() else Path(__file__).parents[1] / FILE_NAME)

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """The manifest in the JSON file `path`; WeightsError names the file and what is wrong with it."""
        path = Path(path)
        try:
            text = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"The manifest {path} cannot be read: {error.strerror}.") from error
        return cls.parse(text, str(path), path.absolute().parent)

    @classmethod
    def parse(cls, text: bytes, name: str, folder: Path | None = None) -> Manifest:
        """The manifest in JSON text (UTF-8) that came from `name`, which errors tell."""
        try:
            data = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
            return cls.from_dict(data, folder)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"The manifest {name} is not JSON text: {error}.") from error
        except WeightsError as error:
            raise WeightsError(f"The manifest {name} is not usable: {error.message}", tip=error.tip) from error

    @classmethod
    def from_dict(cls, data: Any, folder: Path | None = None) -> Manifest:
        """The manifest in a JSON object; sources without a scheme are relative to `folder`."""
        if isinstance(data, Mapping) and data.get("format", FORMAT) != FORMAT:
            told = f"Its format is {data['format']!r}, this clseg reads format {FORMAT}."
            raise WeightsError(told, tip="Update clseg.")
        data = _object("The manifest", data, ("format", "models", "assets"))
        models, assets = (_object_of_objects(key, data[key]) for key in ("models", "assets"))
        return cls(
            models=tuple(Model.from_dict(name, entry) for name, entry in models.items()),
            assets=tuple(Asset.from_dict(name, entry, folder) for name, entry in assets.items()),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `from_dict` reads."""
        models = {model.name: model.to_dict() for model in self.models}
        return {"format": FORMAT, "models": models, "assets": {asset.name: asset.to_dict() for asset in self.assets}}

    def to_text(self) -> str:
        """The text of the JSON file."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Write the JSON file whole or not at all; OutputError when the place does not allow it."""
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            unfinished.write_text(self.to_text(), encoding="utf-8")
            os.replace(unfinished, path)
        except OSError as error:
            raise OutputError(f"The manifest cannot be written to {path}: {error.strerror}.") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def model(self, name: str) -> Model:
        """The model called `name`; UnknownName offers the nearest."""
        return _named("model", name, self._models)

    def asset(self, name: str) -> Asset:
        """The asset called `name`; UnknownName offers the nearest."""
        return _named("asset", name, self._assets)

    def listed(self, model: str) -> list[Asset]:
        """The assets of a model in their order, without those that another of its assets replaces."""
        assets = [self.asset(name) for name in self.model(model).assets]
        replaced = {name for asset in assets for name in asset.replaces}
        return [asset for asset in assets if asset.name not in replaced]

    def labels_of(self, model: str) -> dict[str, tuple[str, ...]]:
        """Every label of a model with the names of the decoders that hold it, in the manifest's order."""
        holders: dict[str, tuple[str, ...]] = {}
        for asset in self.listed(model):
            for label in asset.labels:
                holders[label] = (*holders.get(label, ()), asset.name)
        return holders

    def assets_for(self, model: str, structures: Iterable[str]) -> tuple[Asset, ...]:
        """What must be loaded to segment `structures`: encoders, then body-part regressors, then decoders.

        Only decoders that hold a wanted structure are chosen, with everything they require, each once; a model's
        body-part regressors come along.  Structures the model does not hold are passed over (see `labels_of`), so the
        result is empty when it holds none.  The order does not depend on the order of `structures`.
        """
        if isinstance(structures, str):
            raise TypeError(f"structures is a collection of names, given the single text '{structures}'.")
        wanted = set(structures)
        listed = self.listed(model)
        decoders = [asset for asset in listed if wanted.intersection(asset.labels)]
        if not decoders:
            return ()
        chosen = self.with_required([*decoders, *self._implied_encoders(listed, decoders), *of_kind("bodypart", listed)])
        return tuple(sorted(chosen, key=lambda asset: (KINDS.index(asset.kind), self._order[asset.name])))

    def anywhere(self) -> Manifest:
        """The same list with the sources relative to its folder written out, so that it means the same in any folder."""
        return Manifest(self.models, tuple(replace(asset, sources=_anywhere(asset)) for asset in self.assets))

    def part(self, model: str, assets: Iterable[Asset]) -> Manifest:
        """A list of these assets alone, with `model` as far as it is made of them; they must be closed (see `assets_for`)."""
        assets = tuple(assets)
        kept = {asset.name for asset in assets}
        whole = self.model(model)
        return Manifest((replace(whole, assets=tuple(name for name in whole.assets if name in kept)),), assets)

    def closed(self, models: Iterable[str]) -> Manifest:
        """A list of these models alone, with everything that their assets require, in this list's order."""
        chosen = tuple(self.model(name) for name in models)
        assets = self.with_required(self.asset(name) for model in chosen for name in model.assets)
        return Manifest(chosen, tuple(sorted(assets, key=self.assets.index)))

    def merged(self, other: Manifest) -> Manifest:
        """Both lists as one, e.g. the builtin and the user's own.

        A model in both gets the assets of both and keeps this manifest's words; an asset in both keeps this manifest's
        entry and gains the other's sources.  WeightsError when one asset name stands for two different files.
        """
        for asset in other.assets:
            _check_same_file(self._assets.get(asset.name, asset), asset)
        models = [_joined_models(model, other._models.get(model.name)) for model in self.models]
        assets = [_joined_assets(asset, other._assets.get(asset.name)) for asset in self.assets]
        models += [model for model in other.models if model.name not in self._models]
        assets += [asset for asset in other.assets if asset.name not in self._assets]
        return Manifest(tuple(models), tuple(assets))

    def with_asset(self, model: str, asset: Asset) -> Manifest:
        """This manifest with `asset` listed in `model`, in place of an older asset of that name."""
        changed = replace(self.model(model), assets=_once((*self.model(model).assets, asset.name)))
        models = tuple(changed if one.name == model else one for one in self.models)
        return Manifest(models, tuple({**self._assets, asset.name: asset}.values()))

    @cached_property
    def _models(self) -> dict[str, Model]:
        return {model.name: model for model in self.models}

    @cached_property
    def _assets(self) -> dict[str, Asset]:
        return {asset.name: asset for asset in self.assets}

    @cached_property
    def _order(self) -> dict[str, int]:
        """Place of every asset such that what it requires comes before it."""
        required = TopologicalSorter({asset.name: asset.requires for asset in self.assets})
        return {name: place for place, name in enumerate(required.static_order())}

    def with_required(self, assets: Iterable[Asset]) -> list[Asset]:
        """These assets and all they require, directly or through others, each once."""
        found: dict[str, Asset] = {}
        open_ends = list(assets)
        while open_ends:
            asset = open_ends.pop()
            if asset.name not in found:
                found[asset.name] = asset
                open_ends += [self._assets[name] for name in asset.requires]
        return list(found.values())

    def _implied_encoders(self, listed: list[Asset], decoders: list[Asset]) -> list[Asset]:
        """The encoders of the model that some decoder uses without naming them."""
        return of_kind("encoder", listed) if any(not of_kind("encoder", self.with_required([one])) for one in decoders) else []


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        tip = f"Known: {', '.join(known)}." if known else None
        raise UnknownName(kind, name, tuple(get_close_matches(name, known, n=3)), tip=tip)
    return known[name]


def _joined_models(ours: Model, theirs: Model | None) -> Model:
    return replace(ours, assets=_once(ours.assets + theirs.assets)) if theirs else ours


def _joined_assets(ours: Asset, theirs: Asset | None) -> Asset:
    return replace(ours, sources=_once(ours.sources + _anywhere(theirs))) if theirs else ours


def _anywhere(asset: Asset) -> tuple[str, ...]:
    """The sources of an asset, those relative to its manifest written out in full."""
    folder = asset.folder.as_uri() if asset.folder else None
    return tuple(f"{folder}/{quote(one)}" if folder and is_relative(one) else one for one in asset.sources)


def _check_same_file(ours: Asset, theirs: Asset) -> None:
    if ours.sha256 != theirs.sha256:
        raise WeightsError(
            f"Asset '{ours.name}' is listed with two contents, sha256 {ours.sha256} and {theirs.sha256}.",
            tip="Give the asset in your own manifest another name, or take its entry out.",
        )


def _object(what: str, value: Any, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """`value` when it is an object with all needed and no unknown keys."""
    if not isinstance(value, Mapping):
        raise WeightsError(f"{what} must be a JSON object, given {type(value).__name__}.")
    unknown = [key for key in value if key not in needed + optional]
    missing = [key for key in needed if key not in value]
    if unknown:
        raise WeightsError(f"{what} has the unknown key '{unknown[0]}', expected {', '.join(needed + optional)}.")
    if missing:
        raise WeightsError(f"{what} has no '{missing[0]}'.")
    return dict(value)


def _object_of_objects(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WeightsError(f"'{key}' must be a JSON object of names and entries, given {type(value).__name__}.")
    return value


def _texts(what: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise WeightsError(f"{what}: '{key}' must be a list of texts, given {value!r}.")
    return tuple(value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one key given twice would otherwise silently lose the first."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is given twice")
    return dict(pairs)
