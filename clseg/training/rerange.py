"""Rerange: body-part ranges learnt anew for weights that exist; their tensors stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clseg.errors import TrainingError
from clseg.io.files import sha256_of
from clseg.manifest import Manifest
from clseg.network.bodypart import load_bodypart
from clseg.network.checkpoint import load, save
from clseg.recipe import Recipe
from clseg.training.ranges import DecoderRange, learned_ranges


def rerange(recipe: Recipe, folder: Path, manifest: Path) -> dict[str, DecoderRange]:
    """Write the ranges that the recipe's cases show into `<decoder>.safetensors` of `folder`; returns them by decoder.

    The slices are scored by `bodypart.safetensors` of the folder.  Decoders of the
    recipe without a file there are left out.  Sizes and sha256 in the manifest at
    `manifest` follow.  Raises TrainingError when there is no decoder or no scorer.
    """
    files = {decoder.name: folder / f"{decoder.name}.safetensors" for decoder in recipe.decoder}
    files = {name: file for name, file in files.items() if file.is_file()}
    scorer = folder / "bodypart.safetensors"
    if not files or not scorer.is_file():
        raise TrainingError(f"{folder} holds no {'body-part regressor' if files else 'decoder of this recipe'}.", tip="Give the folder that `clseg export` wrote.")
    mine = replace(recipe, decoder=tuple(decoder for decoder in recipe.decoder if decoder.name in files))
    found = learned_ranges(mine, load_bodypart(scorer))
    old = {name: sha256_of(file) for name, file in files.items()}
    for name, file in files.items():
        save(file, replace(load(file), slices=found[name].whole, label_slices=found[name].apart))
    _follow(manifest, {old[name]: file for name, file in files.items()})
    return found


def _follow(path: Path, changed: dict[str, Path]) -> None:
    """Size and sha256 of the files that had another sha256 before."""
    listing = Manifest.read(path)
    assets = tuple(
        replace(asset, bytes=changed[asset.sha256].stat().st_size, sha256=sha256_of(changed[asset.sha256])) if asset.sha256 in changed else asset
        for asset in listing.assets
    )
    Manifest(listing.models, assets).write(path)
