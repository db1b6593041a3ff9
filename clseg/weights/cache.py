"""Cache: assets of the manifest → verified files on this machine, downloaded when they are not.

What is here already is used where it lies, in the order in which the manifest names it (package:, relative, file://),
then comes the cache `<home>/weights/<16 digits of the sha256>-<file name>`; only then is an asset downloaded into it.
Every file is checked against the manifest's size and sha256 before its path is given out; the check is remembered as
long as the process lives and the file is not touched.

Up to four assets are downloaded at once, after a look whether the disk has room for all of them; as many are checked at
once where they are large.

    <home>    CLSEG_HOME, else the user's cache folder
    mirror    with CLSEG_WEIGHTS_URL, assets come from `<mirror>/<file>`, not from the manifest's web addresses;
              see `sources` for what else may be said about where weights come from
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from stat import S_ISREG
from threading import Event, Lock
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from clseg.addresses import source_problem, url_problem
from clseg.environment import environment
from clseg.errors import OfflineError, UsageError, WeightsError
from clseg.manifest import FILE_NAME, Asset, Manifest
from clseg.progress import SILENT, Advance, Progress
from clseg.weights.download import arrived, digest_of, download, shown
from clseg.weights.sources import Sources, read_listing, refuse_installation
from clseg.weights.together import Stopped, together

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_S = 3600.0  # how long to wait for another process that downloads the same asset
PATIENCE_S = 3.0  # after which the user is told that there is one
THREADS = 4  # assets downloaded or checked at once
LARGE = 50_000_000  # bytes of assets together from which on they are checked at once: hashing them takes a noticeable while
NOTHING_SAID = Sources()

_ABSENT = "is not there"


def manifest(*, home: Path | None = None, sources: Sources = NOTHING_SAID, offline: bool = False) -> Manifest:
    """Every model this machine knows: the builtin manifest and the user's own `weights_manifest.json` (see `own`).

    When `sources` names another manifest it is that one alone, see `sources.read_listing`.
    """
    settings = environment()
    if sources.manifest is not None:
        offline = offline or settings.offline
        return read_listing(sources.manifest, home=home or settings.home, offline=offline, allow_http=sources.allow_http)
    own = (home or settings.own) / FILE_NAME
    return Manifest.builtin().merged(Manifest.read(own)) if own.is_file() else Manifest.builtin()


def fetch(
    assets: Iterable[Asset],
    *,
    home: Path | None = None,
    sources: Sources = NOTHING_SAID,
    offline: bool = False,
    report: Progress = SILENT,
) -> dict[str, Path]:
    """The verified file of every asset, by asset name; missing ones are downloaded.

    `offline` (or CLSEG_OFFLINE) opens no socket; `report` has a stage of bytes when something is downloaded.
    Raises OfflineError naming every file to bring and its place, WeightsError when a file is
    damaged or no source delivers it; nothing is downloaded when some asset cannot be had at all.
    """
    settings = environment()
    home = home or settings.home
    searches = _search_all({asset: _sources(asset, sources, settings.mirror) for asset in assets}, home)
    missing = [one for one in searches if one.path is None]
    _refuse_hopeless(missing, offline=offline or settings.offline)
    brought = _bring_all(missing, sources.allow_http, report) if missing else {}
    return {one.asset.name: one.path or brought[one.asset.name] for one in searches}


def locate(asset: Asset, *, home: Path | None = None) -> Path | None:
    """The verified file of the asset when it is on this machine, else None; opens no socket."""
    settings = environment()
    return _search(asset, home or settings.home, _sources(asset, NOTHING_SAID, settings.mirror)).path


def cached_path(asset: Asset, home: Path) -> Path:
    """Where the asset lies in the cache once downloaded or brought."""
    return home / "weights" / f"{asset.sha256[:16]}-{asset.file.rpartition('/')[2]}"


def local_sources(asset: Asset) -> list[tuple[str, Path]]:
    """The sources that need no network, each with the path that it means."""
    return [(one, _local_path(one, asset.folder)) for one in asset.sources if not is_remote(one)]


def fetchable(asset: Asset) -> bool:
    """Whether there is an address, its own or a mirror's, from which the asset can be downloaded."""
    return any(map(is_remote, _sources(asset, NOTHING_SAID, environment().mirror)))


def is_own(path: Path) -> bool:
    """Whether a file lies in the folder of the user's own weights."""
    return environment().own in path.parents


def is_remote(source: str) -> bool:
    """True for a source that must be fetched over the network."""
    return source.startswith(("https://", "http://"))


def fault_of(path: Path, asset: Asset) -> str | None:
    """What is wrong with the file at `path`, as the end of a sentence; None when it is the asset, byte for byte."""
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            return "is not a file"
        if stat.st_size != asset.bytes:
            return f"has {stat.st_size} bytes, expected {asset.bytes} bytes with sha256 {asset.sha256}"
        got = _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    except (FileNotFoundError, NotADirectoryError):
        return _ABSENT
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if got == asset.sha256 else f"has sha256 {got}, expected {asset.sha256}"


@dataclass(frozen=True)
class _Search:
    """Where an asset was found on this machine, or what stood in the way, and where else it may come from."""

    asset: Asset
    path: Path | None
    faults: tuple[str, ...]
    remote: tuple[str, ...]
    cached: Path


def _sources(asset: Asset, said: Sources, usual_mirror: str | None) -> tuple[str, ...]:
    """The asset's sources; a mirror takes the place of the web addresses."""
    mirror = said.mirror or usual_mirror
    if mirror is None:
        return asset.sources
    mirrored = f"{mirror.rstrip('/')}/{quote(asset.file)}"
    problem = url_problem(mirrored, allow_http=said.allow_http) if is_remote(mirrored) else source_problem(mirrored)
    if mirrored.startswith("package:") or "://" not in mirrored or problem:
        expected = "expected https://… or file:///… (http:// for this machine alone, or with --allow-http)"
        raise UsageError(f"The mirror of {'--mirror' if said.mirror else 'CLSEG_WEIGHTS_URL'} is '{shown(mirror)}', {expected}.")
    return (*(one for one in asset.sources if not is_remote(one)), mirrored)


def _search_all(wanted: Mapping[Asset, tuple[str, ...]], home: Path) -> list[_Search]:
    """Look for assets with their sources, in their order; large ones in threads, which hash beside each other."""
    if sum(asset.bytes for asset in wanted) <= LARGE:
        return [_search(asset, home, sources) for asset, sources in wanted.items()]
    return together(lambda one, _: _search(one[0], home, one[1]), list(wanted.items()), threads=THREADS)


def _search(asset: Asset, home: Path, sources: tuple[str, ...]) -> _Search:
    """Look on this machine: the local sources in their order, then the cache."""
    remote = tuple(one for one in sources if is_remote(one))
    cached = cached_path(asset, home)
    faults = []
    for place in (*(_local_path(one, asset.folder) for one in sources if not is_remote(one)), cached):
        fault = fault_of(place, asset)
        if fault is None:
            return _Search(asset, place, (), remote, cached)
        if place != cached or fault != _ABSENT:
            faults.append(f"{place} {fault}")
    return _Search(asset, None, tuple(faults), remote, cached)


def _local_path(source: str, folder: Path | None) -> Path:
    """The file that a source without network means; `folder` is the manifest's, else the working folder."""
    if source.startswith("package:"):
        return Path(str(files("clseg").joinpath(source.removeprefix("package:"))))
    if source.startswith("file://"):
        path = unquote(urlsplit(source).path)
        return Path(path[1:] if re.match(r"/[A-Za-z]:/", path) else path)  # /C:/x is C:/x on Windows
    return (folder or Path()) / source


def _refuse_hopeless(missing: list[_Search], *, offline: bool) -> None:
    """Errors that need no network to be known, before the first byte is downloaded."""
    for one in missing:
        if not one.remote:
            raise _unavailable(one, one.faults)
    if offline and missing:
        errands = "; ".join(map(_errand, missing))
        raise OfflineError(
            f"Downloading is switched off and {len(missing)} weight file(s) are not on this machine: {errands}.",
            tip="Bring the files to the places named, or all of them in one bundle (`clseg weights pack` where there is a network, "
            "`clseg weights add` here), or allow downloading (without --offline and CLSEG_OFFLINE).",
        )


def _errand(one: _Search) -> str:
    """Which file to bring from where, and where to put it."""
    found = f" (found, but not usable: {'; '.join(one.faults)})" if one.faults else ""
    origin = " or ".join(map(shown, one.remote))
    return f"{one.asset.file} ({_identity(one.asset)}) from {origin} belongs at {one.cached}{found}"


def _bring_all(missing: list[_Search], allow_http: bool, report: Progress) -> dict[str, Path]:
    """Download what is missing, several at once, the largest first."""
    missing = sorted(missing, key=lambda one: -one.asset.bytes)
    _refuse_small_disk(missing)
    what = f"Fetching {len(missing)} weight file{'s' * (len(missing) > 1)}"
    with report.stage(what, sum(map(_lacking, missing)), "bytes") as advance:
        counter = _Counter(advance)
        paths = together(lambda one, stop: _bring(one, allow_http, report, counter.of(one, stop)), missing, threads=THREADS)
    return {one.asset.name: path for one, path in zip(missing, paths, strict=True)}


def _refuse_small_disk(missing: list[_Search]) -> None:
    """WeightsError when all that is missing does not fit; what waits to be resumed takes its room already."""
    lacking = sum({one.cached: _lacking(one) for one in missing}.values())
    folder = missing[0].cached.parent
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    if free < lacking:
        told = f"The disk of {folder} has {free} bytes free, the {len(missing)} weight files to fetch need {lacking}."
        raise WeightsError(told, tip="Make room, or set CLSEG_HOME to a folder on a larger disk.")


def _lacking(one: _Search) -> int:
    """How many bytes must still come, as far as the transfer can be resumed."""
    return max(0, one.asset.bytes - arrived(one.cached))


class _Counter:
    """Bytes of several downloads, told as one sum."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self._lock = Lock()

    def of(self, one: _Search, stop: Event) -> Callable[[int, int], None]:
        """The progress of one download: (bytes so far, bytes in all); it raises Stopped when the others have failed."""
        told = one.asset.bytes - _lacking(one)

        def progress(done: int, _: int) -> None:
            nonlocal told
            if stop.is_set():
                raise Stopped
            with self._lock:
                self.advance(done - told)
                told = done

        return progress


def _bring(one: _Search, allow_http: bool, report: Progress, progress: Callable[[int, int], None]) -> Path:
    """Download into the cache, one process at a time; the path of the verified file."""
    failures = list(one.faults)
    with alone(one.cached, report=report):
        fault = fault_of(one.cached, one.asset)
        if fault is None:
            progress(one.asset.bytes, one.asset.bytes)
            return one.cached  # another process has brought it meanwhile
        if fault != _ABSENT:
            one.cached.unlink()
            failures.append(f"{one.cached} was deleted")
            report.warn(f"{one.cached} {fault}; it was deleted and is fetched again. {_WHY_DAMAGED}")
        for url in one.remote:
            try:
                _download(url, one, allow_http, progress)
                return one.cached
            except WeightsError as error:
                failures.append(f"{error.message.rstrip('.')}{f' ({error.tip})' if error.tip else ''}")
    raise _unavailable(one, failures)


def _download(url: str, one: _Search, allow_http: bool, progress: Callable[[int, int], None]) -> None:
    expected = {"expected_bytes": one.asset.bytes, "expected_sha256": one.asset.sha256}
    download(url, one.cached, allow_http=allow_http, progress=progress, **expected)


@contextmanager
def alone(path: Path, *, to: str = "be fetched into it", report: Progress = SILENT) -> Iterator[None]:
    """Hold the lock of a cached file; it is freed when the process ends, however it ends.

    `to` says what must be done with the file, for the WeightsError when the cache cannot be written; `report` hears
    when another process must be waited for.
    """
    from filelock import FileLock, Timeout

    refuse_installation(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _patiently(FileLock(f"{path}.lock"), path, report):
            yield
    except Timeout as error:
        told = f"Another process has held {path}.lock for {LOCK_S / 60:.0f} minutes."
        raise WeightsError(told, tip="End it and try again.") from error
    except OSError as error:
        told = f"The cache of weights {path.parent} cannot be written, and {path.name} must {to}: {error.strerror or error}."
        raise WeightsError(told, tip="Set CLSEG_HOME to a folder that you may write to.") from error


def _patiently(lock: FileLock, path: Path, report: Progress) -> AbstractContextManager[object]:
    """The lock, acquired; who has to wait for longer than a moment is told."""
    from filelock import Timeout

    try:
        return lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        report.warn(f"Another process is busy with {path.name}; waiting for it.")
        return lock.acquire(timeout=LOCK_S)


def _unavailable(one: _Search, failures: Iterable[str]) -> WeightsError:
    """The error after the last source, with what happened at each."""
    told = "; ".join(failures) or "the manifest names no source"
    tip = f"Bring the file ({_identity(one.asset)}) as {one.cached}."
    if any(source.startswith("package:") for source in one.asset.sources):
        tip = f"{_TIP_PACKAGE} {tip}"
    elif not one.remote and not any(is_own(path) for _, path in local_sources(one.asset)):
        tip = f"No address is known for it, so it cannot be fetched: see whether its folder is there (a share?) and put a whole copy back. {tip}"
    elif not one.remote:
        tip = f"It is of your own weights and cannot be fetched: import or add its model again (`clseg weights remove --model NAME --own` first). {tip}"
    which = f"'{one.asset.name}' ({one.asset.file})"
    return WeightsError(f"No usable file of the weights {which}, nothing was loaded: {told}.", tip=tip)


def _identity(asset: Asset) -> str:
    return f"{asset.bytes} bytes, sha256 {asset.sha256}"


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> str:
    """The file's sha256; all but `path` are there so that a touched file is hashed again."""
    return digest_of(path).hexdigest()


_WHY_DAMAGED = "A full disk, a failing disk, a virus scanner or a copy that broke off may be the reason."
_TIP_PACKAGE = (
    "A file of the package that is missing or damaged comes back by installing clseg again; a broken installation, "
    "a full disk, a virus scanner or a checkout without its large files may be the reason."
)
