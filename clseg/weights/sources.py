"""Sources: where weights and their list may come from, as far as the user has a say in it.

    mirror       `<mirror>/<file>` takes the place of the web addresses in the manifest
    manifest     another list in place of the builtin one and of the user's own: a file, or an address
    allow_http   http:// to other machines too: bytes of weights are checked, those of a manifest cannot be

A manifest from an address is read afresh every time; a copy is kept in `<home>/manifests` for when there is no network.
Its relative sources are meant relative to its address, and sources on this machine are none of its business: they are
dropped, those in the package aside.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from clseg.addresses import is_relative, source_problem
from clseg.errors import OfflineError, OutputError, UsageError, WeightsError
from clseg.manifest import FILE_NAME, Asset, Manifest
from clseg.weights.download import read_url, shown

MANIFEST_BYTES = 16 << 20  # far more than any list needs


@dataclass(frozen=True)
class Sources:
    """What the user has said about where weights come from; nothing said by default, see above."""

    mirror: str | None = None
    manifest: str | Path | Manifest | None = None
    allow_http: bool = False


def read_listing(place: str | Path | Manifest, *, home: Path, offline: bool = False, allow_http: bool = False) -> Manifest:
    """The manifest at `place`, a file or an address.

    Raises UsageError when there is no such file, WeightsError when it is no manifest or cannot be fetched, OfflineError
    when it would have to be and no copy was kept.
    """
    if isinstance(place, Manifest):
        return place
    if "://" in str(place):
        return _from_address(str(place), _copy_of(str(place), home), offline, allow_http)
    return read_file(Path(place))


def read_file(path: Path) -> Manifest:
    """The manifest in a file of the user's; UsageError when there is none."""
    if not path.is_file():
        raise UsageError(f"There is no manifest '{path}'.", tip="Give a file, or an address that begins with https://.")
    return Manifest.read(path)


def _copy_of(url: str, home: Path) -> Path:
    return home / "manifests" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{FILE_NAME}"


def _from_address(url: str, copy: Path, offline: bool, allow_http: bool) -> Manifest:
    if offline:
        if not copy.is_file():
            told = f"Downloading is switched off, and of the manifest {shown(url)} no copy is on this machine."
            raise OfflineError(told, tip=f"Bring it as {copy}, or give --manifest a file.")
        return _as_from(url, Manifest.read(copy))
    text = read_url(url, limit_bytes=MANIFEST_BYTES, allow_http=allow_http)
    listing = _as_from(url, Manifest.parse(text, shown(url)))
    _keep(text, copy)
    return listing


def _keep(text: bytes, copy: Path) -> None:
    """A copy for when there is no network; a cache that cannot be written goes without."""
    from clseg.io.files import writing

    with suppress(OSError, OutputError, WeightsError):
        refuse_installation(copy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with writing(copy) as file:
            file.write(text)


def _as_from(url: str, listing: Manifest) -> Manifest:
    """The list with sources as they are meant at its address."""
    return Manifest(listing.models, tuple(replace(asset, sources=_meant(asset, url), folder=None) for asset in listing.assets))


def _meant(asset: Asset, url: str) -> tuple[str, ...]:
    plain = urlsplit(url)._replace(query="", fragment="").geturl()
    full = (urljoin(plain, quote(one)) if is_relative(one) else one for one in asset.sources)
    return tuple(dict.fromkeys(one for one in full if not one.startswith("file:") and not source_problem(one)))


def refuse_installation(path: Path) -> None:
    """WeightsError for a place inside the installed packages: the next update would throw away what lies there."""
    import sysconfig

    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    installed.add(Path(__file__).resolve().parents[1])
    if installed & {path.resolve(), *path.resolve().parents}:
        told = f"Weights are not kept in {path.parent}, which is inside the installed packages."
        raise WeightsError(told, tip="Set CLSEG_HOME to a folder of your own.")
