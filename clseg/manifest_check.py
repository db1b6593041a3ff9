"""What must hold in a manifest, its models and its assets: each check gives the sentence that is broken."""

from __future__ import annotations

import re
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from clseg.addresses import path_problem

if TYPE_CHECKING:
    from clseg.manifest import Asset, Manifest, Model

KINDS = ("encoder", "bodypart", "decoder")  # in the order they are loaded

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def asset_problem(asset: Asset) -> str | None:
    """What is wrong with an asset by itself; None when nothing is."""
    if not _NAME.fullmatch(asset.name):
        return "a name has letters, digits, '.', '_' and '-' only"
    if asset.kind not in KINDS:
        return f"the kind is {asset.kind!r}, expected {', '.join(KINDS)}"
    if not isinstance(asset.bytes, int) or isinstance(asset.bytes, bool) or asset.bytes <= 0:
        return f"bytes is {asset.bytes!r}, expected a whole number above 0"
    if not isinstance(asset.sha256, str) or not _SHA256.fullmatch(asset.sha256):
        return f"sha256 is {asset.sha256!r}, expected 64 hexadecimal digits in lower case"
    if not isinstance(asset.licence, str) or not asset.licence:
        return "it must name its licence"
    if asset.kind == "decoder" and not asset.labels:
        return "a decoder lists its labels"
    if asset.kind != "decoder" and asset.labels:
        return f"labels belong to decoders, this is of kind {asset.kind}"
    if not isinstance(asset.file, str):
        return f"file is {asset.file!r}, expected text"
    return _repeat_problem("label", asset.labels) or path_problem("the file", asset.file)


def model_problem(model: Model) -> str | None:
    """What is wrong with a model by itself; None when nothing is."""
    if not _NAME.fullmatch(model.name):
        return "a name has letters, digits, '.', '_' and '-' only"
    if not isinstance(model.description, str) or not isinstance(model.licence, str) or not model.licence:
        return "description and licence must be text, the licence not empty"
    return _repeat_problem("asset", model.assets)


def manifest_problems(manifest: Manifest) -> Iterable[str]:
    """What is wrong with the list as a whole; later checks rely on earlier ones."""
    known = {asset.name: asset for asset in manifest.assets}
    yield from _repeats("model", [model.name for model in manifest.models])
    yield from _repeats("asset", [asset.name for asset in manifest.assets])
    for asset in manifest.assets:
        lost = [name for name in asset.requires if name not in known]
        yield from (f"Asset '{asset.name}' requires '{name}', which is not listed" for name in lost)
    yield from _circles(manifest)
    yield from _shared_file_names(manifest.assets)
    for model in manifest.models:
        lost = [name for name in model.assets if name not in known]
        yield from (f"Model '{model.name}' lists '{name}', which is not an asset" for name in lost)
        yield from _decoders_without_encoder(manifest, model)


def _repeats(what: str, names: list[str]) -> Iterable[str]:
    problem = _repeat_problem(what, names)
    if problem:
        yield f"In the manifest, {problem}"


def _repeat_problem(what: str, names: Iterable[str]) -> str | None:
    """Why these names cannot be a set of names."""
    seen: set[str] = set()
    for name in names:
        if name in seen or not name:
            return f"the {what} '{name}' is listed twice" if name else f"a {what} has no name"
        seen.add(name)
    return None


def _circles(manifest: Manifest) -> Iterable[str]:
    try:
        TopologicalSorter({asset.name: asset.requires for asset in manifest.assets}).prepare()
    except CycleError as error:
        yield f"Assets require each other in a circle: {' ← '.join(error.args[1])}"


def _shared_file_names(assets: Iterable[Asset]) -> Iterable[str]:
    owners: dict[str, Asset] = {}
    for asset in assets:
        owner = owners.setdefault(asset.file, asset)
        if owner.sha256 != asset.sha256:
            yield f"Assets '{owner.name}' and '{asset.name}' have different contents but one file name, '{asset.file}'"


def _decoders_without_encoder(manifest: Manifest, model: Model) -> Iterable[str]:
    listed = [manifest.asset(name) for name in model.assets]
    encoders = of_kind("encoder", listed)
    for decoder in of_kind("decoder", listed):
        if len(encoders) != 1 and not of_kind("encoder", manifest.with_required([decoder])):
            yield f"Model '{model.name}' has {len(encoders)} encoders and its decoder '{decoder.name}' requires none"


def of_kind(kind: str, assets: Iterable[Asset]) -> list[Asset]:
    """Those of one of the KINDS."""
    return [asset for asset in assets if asset.kind == kind]
