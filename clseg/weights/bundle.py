"""Bundle: weights in one zip file, to be carried to a machine without a network.

    bundle.zip
        weights_manifest.json       the assets of one model, with sources relative to this file
        assets/<file of the asset>  not compressed: weights do not shrink, and no file can unfold to more than it is

`add` trusts nothing: every member is named by the manifest, stored plainly, of the listed size and sha256, and all that
is known before the first file gets its place.  What the builtin manifest lists goes to the cache, as if it had been
downloaded; other models, and what they add to a builtin one, become the user's own (see `own`).  An unpacked bundle works with `--manifest`, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from clseg.environment import environment
from clseg.errors import InputError, OutputError, UsageError, WeightsError
from clseg.manifest import FILE_NAME, Asset, Manifest, Model
from clseg.weights import cache, own
from clseg.weights.sources import MANIFEST_BYTES

FOLDER = "assets"
_PIECE = 1 << 20
_TEMPORARY = ".adding-"
_ABANDONED_S = 86_400.0
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same weights give the same bytes


@dataclass(frozen=True)
class Added:
    """What a bundle brought: assets new in the cache, assets that are the user's own now, and the models' names."""

    cached: tuple[Asset, ...]
    own: tuple[Asset, ...]
    models: tuple[str, ...]


def pack(listing: Manifest, model: str, assets: Iterable[Asset], files: Mapping[str, Path], to: Path) -> Manifest:
    """Write `assets` of `model`, a closed set, with their verified `files` (by asset name) into the zip file `to`.

    The file appears whole or not at all; returns the manifest inside.  OutputError when it cannot be written.
    """
    from clseg.io.files import check_writable, writing

    part = listing.part(model, assets)
    inside = Manifest(part.models, tuple(replace(asset, sources=(_member(asset),), folder=None) for asset in part.assets))
    check_writable(to.parent, sum(asset.bytes for asset in inside.assets))
    to.parent.mkdir(parents=True, exist_ok=True)
    with writing(to) as stream, zipfile.ZipFile(stream, "w") as archive:
        text = json.dumps(inside.to_dict(), indent=2, ensure_ascii=False) + "\n"
        archive.writestr(zipfile.ZipInfo(FILE_NAME, _LONG_AGO), text.encode())
        for asset in {_member(asset): asset for asset in inside.assets}.values():
            _write(archive, asset, files[asset.name])
    return inside


def add(bundle: Path, *, home: Path | None = None, mine: Path | None = None) -> Added:
    """Verify everything in the zip file `bundle` and put it in its place; the models in it can be used from then on.

    `home` is the cache's, `mine` the user's own folder.  Raises UsageError when there is no such file, InputError when
    it is no bundle, WeightsError when its contents are not what it says or stand against what is listed already.
    """
    settings = environment()
    home, mine = home or settings.home, mine or settings.own
    with _opened(bundle) as archive:
        brought = _manifest_of(archive, bundle)
        members = _members(archive, brought, bundle)
        builtin = Manifest.builtin()
        cache.manifest(home=mine).merged(brought)  # names that stand for other contents here are refused now
        additions = [part for part in (_strange(model, brought, builtin) for model in brought.models) if part]
        with _unpacked(archive, brought, members, mine, bundle) as files:
            for part in additions:
                listed = [asset for asset in part.new if asset.name in part.model.assets]
                needed = [asset for asset in (*part.new, *part.known) if asset not in listed]
                own.add(part.model, {a: files[a.name] for a in listed}, {a: files[a.name] for a in needed}, home=mine)
            theirs = {asset.name for part in additions for asset in (*part.new, *part.known)}
            rest = tuple(asset for asset in brought.assets if _is_wanted(asset, theirs, builtin, home))
            for asset in rest:
                _into_cache(asset, files[asset.name], home)
    return Added(rest, tuple(a for a in brought.assets if a.name in theirs), tuple(m.name for m in brought.models))


def _member(asset: Asset) -> str:
    return f"{FOLDER}/{asset.file}"


def _write(archive: zipfile.ZipFile, asset: Asset, file: Path) -> None:
    """One file into the archive; WeightsError when it is no longer what was verified."""
    info = zipfile.ZipInfo(_member(asset), _LONG_AGO)
    info.file_size = asset.bytes  # so that zipfile knows when it needs its format for large files
    info.external_attr = 0o644 << 16
    with file.open("rb") as source, archive.open(info, "w") as target:
        got = _copied(source, target, asset.bytes)
    if got != asset.sha256:
        raise WeightsError(f"{file} has changed while it was packed: expected sha256 {asset.sha256}, got {got}.")


def _copied(source: IO[bytes], target: IO[bytes] | None, limit: int) -> str:
    """Copy at most `limit` bytes and one; the sha256 of what was there."""
    digest, left = hashlib.sha256(), limit + 1
    while left and (piece := source.read(min(_PIECE, left))):
        digest.update(piece)
        left -= len(piece)
        if target is not None:
            target.write(piece)
    return digest.hexdigest()


@contextmanager
def _opened(bundle: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever `zipfile` has to say against it is an InputError."""
    if bundle.is_dir():
        raise UsageError(f"{bundle} is a folder, expected the file that `clseg weights pack` wrote.", tip="An unpacked or published folder is used with --manifest FOLDER/weights_manifest.json.")
    if not bundle.is_file():
        raise UsageError(f"There is no bundle '{bundle}'.", tip="`clseg weights pack` makes one.")
    with _zip_errors(bundle):
        archive = zipfile.ZipFile(bundle)
    with archive:
        yield archive


@contextmanager
def _zip_errors(bundle: Path) -> Iterator[None]:
    """Around what is read from the archive, and nothing else."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{bundle} is not a usable zip file: {error}.", tip=_TIP) from error
    except RuntimeError as error:  # zipfile's word for encrypted members
        raise InputError(f"{bundle} cannot be read: {error}.", tip=_TIP) from error


def _manifest_of(archive: zipfile.ZipFile, bundle: Path) -> Manifest:
    try:
        info = archive.getinfo(FILE_NAME)
    except KeyError as error:
        raise InputError(f"{bundle} has no {FILE_NAME}: it is no bundle of weights.", tip=_TIP) from error
    _refuse_odd(info, bundle)
    if info.file_size > MANIFEST_BYTES:
        raise InputError(f"The manifest in {bundle} has {info.file_size} bytes, expected at most {MANIFEST_BYTES}.", tip=_TIP)
    with _zip_errors(bundle), archive.open(info) as stream:
        content = stream.read(MANIFEST_BYTES)
    return Manifest.parse(content, f"in {bundle}")


def _members(archive: zipfile.ZipFile, listing: Manifest, bundle: Path) -> dict[str, zipfile.ZipInfo]:
    """The member of every asset, by asset name; InputError for every member that is odd, unknown or not there."""
    infos = archive.infolist()
    found = {info.filename: info for info in infos}
    expected = {_member(asset): asset for asset in listing.assets}
    for info in infos:
        _refuse_odd(info, bundle)
        if info.filename != FILE_NAME and info.filename not in expected:
            raise InputError(f"{bundle} holds '{info.filename}', which its manifest does not name.", tip=_TIP)
    if len(found) != len(infos):
        raise InputError(f"{bundle} holds two members of one name.", tip=_TIP)
    if sum(info.file_size for info in infos) > bundle.stat().st_size:
        raise InputError(f"The members of {bundle} overlap: they claim more bytes than the file has.", tip=_TIP)
    for name, asset in expected.items():
        if name not in found:
            raise InputError(f"{bundle} lacks '{name}', which its manifest names.", tip=_TIP)
        if found[name].file_size != asset.bytes:
            told = f"'{name}' in {bundle} has {found[name].file_size} bytes, its manifest says {asset.bytes}."
            raise WeightsError(told, tip=_TIP_BROKEN)
    return {asset.name: found[_member(asset)] for asset in listing.assets}


def _refuse_odd(info: zipfile.ZipInfo, bundle: Path) -> None:
    """InputError for links, folders, devices, encrypted and compressed members."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.is_dir():
        raise InputError(f"'{info.filename}' in {bundle} is not a plain file.", tip=_TIP)
    if info.flag_bits & 0x1 or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise InputError(f"'{info.filename}' in {bundle} is compressed or encrypted; a bundle stores files plainly.", tip=_TIP)


@contextmanager
def _unpacked(
    archive: zipfile.ZipFile, listing: Manifest, members: Mapping[str, zipfile.ZipInfo], folder: Path, bundle: Path
) -> Iterator[dict[str, Path]]:
    """Every asset's file, verified, in a temporary folder below `folder` under a name of ours."""
    from clseg.weights.sources import refuse_installation

    refuse_installation(folder / FILE_NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _need_space(folder, 2 * sum(asset.bytes for asset in listing.assets))
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as place:
            yield {
                asset.name: _unpack(archive, members[asset.name], asset, Path(place) / f"{number}{Path(asset.file).suffix}", bundle)
                for number, asset in enumerate(listing.assets)
            }
    except OSError as error:
        told = f"The bundle {bundle} cannot be unpacked in {folder}: {error.strerror or error}."
        raise OutputError(told, tip="Set CLSEG_HOME to a folder with room that you may write to.") from error


def _sweep(folder: Path) -> None:
    """Temporary folders of processes that were killed long ago."""
    for old in folder.glob(f"{_TEMPORARY}*"):
        if time.time() - old.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(old, ignore_errors=True)


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, asset: Asset, to: Path, bundle: Path) -> Path:
    with _zip_errors(bundle), archive.open(info) as source, to.open("wb") as target:
        got = _copied(source, target, asset.bytes)
    if got != asset.sha256:
        told = f"'{info.filename}' in {bundle} is damaged: expected sha256 {asset.sha256}, got {got}; nothing was added."
        raise WeightsError(told, tip=_TIP_BROKEN)
    return to


def _need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        told = f"The disk of {folder} has {free} bytes free, unpacking needs {needed} for a moment."
        raise OutputError(told, tip="Make room, or set CLSEG_HOME to a folder on a larger disk.")


@dataclass(frozen=True)
class _Part:
    """What becomes the user's own of a model: `new` assets, and those that they stand on although the package knows them."""

    model: Model
    new: tuple[Asset, ...]
    known: tuple[Asset, ...]


def _strange(model: Model, brought: Manifest, builtin: Manifest) -> _Part | None:
    """What the package does not know of a model; of one with a builtin name its additions alone, None without any."""
    names = {asset.name for asset in builtin.assets}
    if model.name in {one.name for one in builtin.models}:
        model = replace(model, assets=tuple(name for name in model.assets if name not in names))
    if not model.assets:
        return None
    needed = Manifest((model,), brought.assets).closed([model.name]).assets
    new, known = ([asset for asset in needed if (asset.name in names) is old] for old in (False, True))
    return _Part(model, tuple(new), tuple(known))


def _is_wanted(asset: Asset, theirs: set[str], builtin: Manifest, home: Path) -> bool:
    """Whether an asset belongs into the cache: the package lists it, or nobody does, and it is not on this machine yet."""
    known = {one.name: one for one in builtin.assets}
    if asset.name in known:
        return cache.locate(known[asset.name], home=home) is None
    return asset.name not in theirs


def _into_cache(asset: Asset, file: Path, home: Path) -> None:
    """The file at the asset's place in the cache, as if it had been downloaded."""
    to = cache.cached_path(asset, home)
    with cache.alone(to, to="be put into it"):
        if cache.fault_of(to, asset):
            part = to.with_name(f"{to.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
            try:
                shutil.copyfile(file, part)
                os.replace(part, to)
            finally:
                part.unlink(missing_ok=True)


_TIP = "Expected is a file that `clseg weights pack` has written."
_TIP_BROKEN = "The file was damaged on its way or changed by somebody; copy it again, or pack it anew."
