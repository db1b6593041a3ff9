"""Entries: how a manifest lists the parts of a model, those structures apart on which nobody should rely."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from clseg.errors import WeightsError
from clseg.io.files import sha256_of
from clseg.manifest import Asset, Model

EXPERIMENTAL = "_experimental"  # ends the names of such models and of their decoders' entries
ORDER = {"encoder": 0, "decoder": 1}


def entry_of(
    model: str, licence: str, sources: str, part: str, file: Path, labels: tuple[str, ...] = (), requires: tuple[str, ...] = (), ending: str = ""
) -> Asset:
    """The entry of one file: a decoder's when it speaks of `labels`; others of the same file, named with another `ending`, may speak of others.

    `sources` is what stands before the file's name in its source.
    """
    return Asset(
        name=f"{model}-{part}{ending}",
        kind="decoder" if labels else part,
        file=f"{model}/{file.name}",
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        licence=licence,
        sources=(f"{sources}{file.name}",),
        requires=requires,
        labels=labels,
    )


def experimental_of(model: Model) -> Model:
    """The model, yet empty, of what `model` has learned and does not offer."""
    text = f"Structures that '{model.name}' has learned, but not well enough to rely on: for those who want to look."
    return Model(f"{model.name}{EXPERIMENTAL}", text, model.licence)


def refuse_to_unbind(listed: Sequence[Asset], entries: Iterable[Asset], manifest: Path) -> None:
    """WeightsError when `entries` name other files than before, and decoders that are listed, too, were trained on the earlier ones."""
    new = {entry.name: entry.sha256 for entry in entries}
    changed = {asset.name for asset in listed if asset.sha256 != new.get(asset.name, asset.sha256)}
    bound = [(asset.name, name) for asset in listed if asset.name not in new for name in asset.requires if name in changed]
    if bound:
        raise WeightsError(
            f"{manifest} lists '{bound[0][0]}', which was trained on '{bound[0][1]}' as it is there: it would not run with another file.",
            tip="Export into another manifest, or hand on your own list, which keeps both: clseg weights publish.",
        )


def in_order(model: Model, assets: Iterable[Asset]) -> Model:
    """The model with these assets: the encoder first, then decoders, then what else there is."""
    return replace(model, assets=tuple(asset.name for asset in sorted(assets, key=lambda asset: ORDER.get(asset.kind, 2))))
