"""Stock: which weight files are on this machine, whose they are, whether they are whole, and how to be rid of them.

    package   inside clseg; belongs to the installation
    own       the user's own: trained, imported or added from a bundle; cannot be downloaded again
    cache     downloaded; comes back when it is needed
    folder    elsewhere on this machine or a mounted share, where a manifest says
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clseg.environment import environment
from clseg.errors import WeightsError
from clseg.manifest import Asset
from clseg.weights import cache
from clseg.weights.download import digest_of

_CACHED = re.compile(r"([0-9a-f]{16})-.*(?<!\.part)(?<!\.lock)")


@dataclass(frozen=True)
class Holding:
    """An asset and where its file lies: `path` is the file of the right size, not hashed, `place` one of the words above.

    Both are None when it is not on this machine.
    """

    asset: Asset
    path: Path | None
    place: str | None


@dataclass(frozen=True)
class Damage:
    """A file that is not what it should be, what is wrong with it, as the end of a sentence, and whose it is (`place`, a word above)."""

    path: Path
    fault: str
    place: str


def holdings(assets: Iterable[Asset], *, home: Path | None = None) -> list[Holding]:
    """Where each asset is, in their order; only looks at names and sizes."""
    home = home or environment().home
    return [_holding(asset, home) for asset in assets]


def verify(assets: Iterable[Asset], *, home: Path | None = None) -> tuple[list[Path], list[Damage]]:
    """Hash every file that is here: those of the assets, and whatever else lies in the cache; the good and the bad ones.

    A file that should be there, is not, and cannot be fetched is damage, too: of the package, of the
    user's own, or in the folder that is the only place its manifest names.
    """
    home = home or environment().home
    faults: dict[Path, str | None] = {}
    words: dict[Path, str] = {}
    for asset in assets:
        words |= {path: place for path, place in _places(asset, home)}
        faults |= {path: cache.fault_of(path, asset) for path in _expected(asset, home)}
    for path in _cached_files(home):
        if path not in faults:
            faults[path] = _fault_by_name(path)
    good = [path for path, fault in faults.items() if fault is None]
    return good, [Damage(path, fault, words.get(path, "cache")) for path, fault in faults.items() if fault]


def remove(assets: Iterable[Asset], *, home: Path | None = None) -> list[Path]:
    """Delete the downloaded files of these assets, unfinished ones included; returns what was deleted."""
    home = home or environment().home
    return [path for asset in assets for path in _remove(cache.cached_path(asset, home))]


def remove_all(*, home: Path | None = None) -> list[Path]:
    """Delete every downloaded file and every kept manifest; the user's own weights stay."""
    home = home or environment().home
    names = {home / "weights" / re.sub(r"(\.\d+-[0-9a-f]{8})?\.part$", "", path.name) for path in _files(home / "weights") if path.suffix != ".lock"}
    gone = [path for name in sorted(names) for path in _remove(name)]
    gone += list(_files(home / "manifests"))
    shutil.rmtree(home / "manifests", ignore_errors=True)
    return gone


def _holding(asset: Asset, home: Path) -> Holding:
    for path, place in _places(asset, home):
        if path.is_file() and path.stat().st_size == asset.bytes:
            return Holding(asset, path, place)
    return Holding(asset, None, None)


def _places(asset: Asset, home: Path) -> list[tuple[Path, str]]:
    """Every place on this machine where the asset may be, in the order in which they are looked at."""
    local = [(path, _place_of(source, path)) for source, path in cache.local_sources(asset)]
    return [*local, (cache.cached_path(asset, home), "cache")]


def _place_of(source: str, path: Path) -> str:
    if source.startswith("package:"):
        return "package"
    return "own" if cache.is_own(path) else "folder"


def _expected(asset: Asset, home: Path) -> list[Path]:
    """The files of an asset that are here, and those that should be and cannot be fetched: of the package, one's own, or the only one in a folder."""
    places = _places(asset, home)
    found = [path for path, place in places if place in ("package", "own") or path.exists()]
    first, kind = places[0]
    return [first] if kind == "folder" and not found and not cache.fetchable(asset) else found


def _cached_files(home: Path) -> list[Path]:
    return [path for path in _files(home / "weights") if _CACHED.fullmatch(path.name)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _fault_by_name(path: Path) -> str | None:
    """What is wrong with a cached file that no manifest lists: its name begins with the digits of its sha256."""
    try:
        got = digest_of(path).hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    digits = path.name[:16]
    return None if got.startswith(digits) else f"has sha256 {got}, expected one that begins with {digits}"


def _remove(cached: Path) -> list[Path]:
    """A cached file and its unfinished part files gone, with its lock held."""
    parts = re.compile(re.escape(cached.name) + r"(\.\d+-[0-9a-f]{8})?\.part")
    gone = [path for path in _files(cached.parent) if path == cached or parts.fullmatch(path.name)]
    if gone:
        with cache.alone(cached, to="be deleted from it"):
            for path in gone:
                _unlink(path)
    return gone


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be deleted: {error.strerror}.") from error
