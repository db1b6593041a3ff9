"""Publish: models as a folder that any static web server can serve.

    DIR/weights_manifest.json         sources: relative to this file, and below the address it will have
    DIR/assets/<file of the asset>    with `flat`: DIR/<asset>.safetensors, for places without folders (GitHub releases)

`clseg --manifest ADDRESS/weights_manifest.json` then uses the models; with `--mirror ADDRESS/assets` (flat: ADDRESS) the
folder serves as a mirror for whoever has a manifest already.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from clseg.addresses import url_problem
from clseg.errors import OutputError, UsageError
from clseg.manifest import FILE_NAME, Asset, Manifest

FOLDER = "assets"


def publish(
    listing: Manifest, models: Iterable[str], files: Mapping[str, Path], to: Path, *, base_url: str, flat: bool = False, allow_http: bool = False
) -> Manifest:
    """Write the models with their verified `files` (by asset name) into the folder `to`; returns the manifest there.

    Every file appears whole, the manifest last.  Raises UsageError for an address that nobody would fetch from,
    OutputError when the folder cannot be written.
    """
    problem = url_problem(base_url, allow_http=allow_http)
    if problem or "?" in base_url or "#" in base_url:
        raise UsageError(f"Nothing can be published at '{base_url}': {problem or 'an address with ? or # has nothing below it'}.")
    published = _list(listing, models, base_url.rstrip("/"), flat)
    for asset in published.assets:
        _copy(files[asset.name], to / asset.sources[0], asset)
    published.write(to / FILE_NAME)
    return published


def _list(listing: Manifest, models: Iterable[str], base_url: str, flat: bool) -> Manifest:
    part = listing.closed(models)
    return Manifest(part.models, tuple(_published(asset, base_url, flat) for asset in part.assets))


def _published(asset: Asset, base_url: str, flat: bool) -> Asset:
    file = f"{asset.name}{PurePosixPath(asset.file).suffix}" if flat else asset.file
    place = file if flat else f"{FOLDER}/{file}"
    return replace(asset, file=file, sources=(place, f"{base_url}/{quote(place)}"), folder=None)


def _copy(file: Path, to: Path, asset: Asset) -> None:
    from clseg.io.files import writing
    from clseg.weights.cache import fault_of

    if fault_of(to, asset) is None:
        return
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, writing(to) as target:
            shutil.copyfileobj(source, target)
    except OSError as error:
        raise OutputError(f"{to} cannot be written: {error.strerror or error}.") from error
