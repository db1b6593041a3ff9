"""Own: weights that the user has trained or imported, and the manifest that lists them.

    <own>/weights_manifest.json
    <own>/models/<asset>.safetensors

<own> is CLSEG_HOME, else the user's data folder.  `cache.manifest()` merges the list
into the builtin one, so that what is added can be asked for at once.  What an added
asset requires (its encoder, its supporters) is copied along under a name with the
first digits of its sha256: an update of the package that brings another encoder
leaves own decoders with the one they were trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clseg.environment import environment
from clseg.errors import OutputError, WeightsError
from clseg.manifest import FILE_NAME, Asset, Manifest, Model

LOCK_S = 60


def add(
    model: Model, files: Mapping[Asset, Path], needed: Mapping[Asset, Path], *, home: Path | None = None
) -> Manifest:
    """Copy weight files into the user's folder and list `files` under `model`; returns the user's manifest.

    `needed` are the assets that those in `files` require, with their files; what
    `model.assets` names is listed with them.  `file` and `sources` are set here.  Files
    are there before the manifest names them, so a crash leaves at worst a file that
    nobody lists.  Raises OutputError when the folder cannot be written, WeightsError
    when a name is listed already with other contents.
    """
    with added(model, files, needed, home=home) as manifest:
        return manifest


@contextmanager
def added(
    model: Model, files: Mapping[Asset, Path], needed: Mapping[Asset, Path], *, home: Path | None = None
) -> Iterator[Manifest]:
    """`add` on trial: whatever ends the block with an error takes the listing back.

    The manifest has its former bytes again, unless another process has listed
    something meanwhile: that stays.
    """
    home = home or environment().own
    path = home / FILE_NAME
    with _alone(home):
        before = path.read_bytes() if path.is_file() else None
        names = {asset.name: _kept_name(asset) for asset in needed}
        wanted = {_renamed(asset, names): file for asset, file in {**needed, **files}.items()}
        old = Manifest.read(path) if before is not None else Manifest((), ())
        _refuse_other_contents(old, wanted, path)
        placed = [_place(asset, file, home) for asset, file in wanted.items()]
        listed = (*(names.get(name, name) for name in model.assets), *(asset.name for asset in files))
        manifest = _joined(old, replace(model, assets=tuple(dict.fromkeys(listed))), placed)
        manifest.write(path)
        written = path.read_bytes()
    try:
        yield manifest
    except BaseException:
        with _alone(home):
            if path.read_bytes() == written:
                _restore(path, before)
            else:
                _without(Manifest.read(path), old, model.name, {asset.name for asset in files}).write(path)
        raise


def remove(model: str, *, home: Path | None = None) -> tuple[Path, ...]:
    """Take a model out of the user's manifest and delete the files that no other entry names; returns these files.

    What other models list, or require, stays.  Raises UnknownName when the user's manifest does not list the model.
    """
    home = home or environment().own
    path = home / FILE_NAME
    with _alone(home):
        old = Manifest.read(path) if path.is_file() else Manifest((), ())
        old.model(model)
        new = _without_model(old, model)
        new.write(path)
        kept = {asset.file for asset in new.assets}
        places = (home / asset.file for asset in old.assets if asset.file not in kept)
        gone = tuple(file for file in places if file.is_file())  # where an entry names a file elsewhere there is none
        for file in gone:
            file.unlink(missing_ok=True)
    return gone


def _without_model(old: Manifest, model: str) -> Manifest:
    """The list without the model and without the assets that only it has a use for."""
    others = tuple(one for one in old.models if one.name != model)
    mine = {asset.name for asset in old.closed([model]).assets}
    used = {asset.name for asset in old.closed(one.name for one in others).assets}
    return Manifest(others, tuple(asset for asset in old.assets if asset.name in used or asset.name not in mine))


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the lock of the user's manifest; a folder that cannot be written is an OutputError."""
    from filelock import FileLock

    from clseg.weights.sources import refuse_installation

    refuse_installation(home / FILE_NAME)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f".{FILE_NAME}.lock", timeout=LOCK_S):
            yield
    except OSError as error:
        told = f"Own weights cannot be kept in {home}: {error.strerror or error}."
        raise OutputError(told, tip="Set CLSEG_HOME to a folder that you may write to.") from error


def _refuse_other_contents(old: Manifest, wanted: Mapping[Asset, Path], path: Path) -> None:
    known = {asset.name: asset.sha256 for asset in old.assets}
    for asset in wanted:
        if known.get(asset.name, asset.sha256) != asset.sha256:
            told = f"The weights '{asset.name}' are listed in {path} already, with other contents."
            raise WeightsError(told, tip="Give the new ones another name, or take the old entry out.")


def _kept_name(asset: Asset) -> str:
    """The asset's name with its content's digits, unless it has them already."""
    digits = asset.sha256[:8]
    return asset.name if asset.name.endswith(f".{digits}") else f"{asset.name}.{digits}"


def _renamed(asset: Asset, names: Mapping[str, str]) -> Asset:
    requires = tuple(names.get(name, name) for name in asset.requires)
    return replace(asset, name=names.get(asset.name, asset.name), requires=requires)


def _place(asset: Asset, file: Path, home: Path) -> Asset:
    """The file copied to its place, whole or not at all, and the asset that says so."""
    from clseg.io.files import writing
    from clseg.weights.cache import fault_of

    digits = "" if asset.name.endswith(asset.sha256[:8]) else f".{asset.sha256[:8]}"
    name = f"models/{asset.name}{digits}{file.suffix}"
    target = home / name
    if fault_of(target, asset):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, writing(target) as copy:
            shutil.copyfileobj(source, copy)
    return replace(asset, file=name, sources=(name,), folder=home)


def _joined(old: Manifest, model: Model, placed: list[Asset]) -> Manifest:
    """The old list with these assets, and with `model` or what it adds to the model of that name."""
    assets = {asset.name: asset for asset in (*old.assets, *placed)}
    models = {one.name: one for one in old.models}
    before = models[model.name].assets if model.name in models else ()
    models[model.name] = replace(model, assets=tuple(dict.fromkeys((*before, *model.assets))))
    return Manifest(tuple(models.values()), tuple(assets.values()))


def _restore(path: Path, before: bytes | None) -> None:
    from clseg.io.files import writing

    if before is None:
        path.unlink()
        return
    with writing(path) as file:
        file.write(before)


def _without(now: Manifest, old: Manifest, model: str, files: set[str]) -> Manifest:
    """The present list without those of `files` that the old one had not, and without `model` if it was new and is empty."""
    gone = files - {asset.name for asset in old.assets} - {name for asset in now.assets for name in asset.requires}
    models = [replace(one, assets=tuple(name for name in one.assets if name not in gone)) if one.name == model else one for one in now.models]
    known = {one.name for one in old.models}
    kept = tuple(asset for asset in now.assets if asset.name not in gone)
    painting = {asset.name for asset in kept if asset.kind == "decoder"}
    return Manifest(tuple(one for one in models if one.name != model or one.name in known or painting & set(one.assets)), kept)
