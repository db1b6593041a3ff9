"""Rerange: body-part ranges learnt anew for weights that exist; their tensors stay as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from clseg.errors import TrainingError
from clseg.io.files import sha256_of, write_together
from clseg.manifest import Asset, Manifest
from clseg.network.bodypart import load_bodypart
from clseg.network.checkpoint import load, stored
from clseg.recipe import Recipe
from clseg.training.ranges import DecoderRange, learned_ranges
from clseg.weights.cache import local_sources


def rerange(recipe: Recipe, folder: Path, manifest: Path) -> dict[str, DecoderRange]:
    """Write the ranges that the recipe's cases show into `<decoder>.safetensors` of `folder`; returns them by decoder.

    The slices are scored by `bodypart.safetensors` of the folder.  Decoders of the
    recipe without a file there are left out.  Sizes and sha256 in the manifest at
    `manifest` follow; it is the last to be put in its place, and nothing is before all can be.  Should
    the machine go down between the two, the same call mends it.  Raises TrainingError when there is no
    decoder or no scorer, OutputError when something cannot be written; then all is as it was.
    """
    files = {decoder.name: folder / f"{decoder.name}.safetensors" for decoder in recipe.decoder}
    files = {name: file for name, file in files.items() if file.is_file()}
    scorer = folder / "bodypart.safetensors"
    if not files or not scorer.is_file():
        raise TrainingError(f"{folder} holds no {'body-part regressor' if files else 'decoder of this recipe'}.", tip="Give the folder that `clseg export` wrote.")
    mine = replace(recipe, decoder=tuple(decoder for decoder in recipe.decoder if decoder.name in files))
    found = learned_ranges(mine, load_bodypart(scorer))
    contents = {file: stored(found[name].within(load(file))) for name, file in files.items()}
    listing = _following(Manifest.read(manifest), contents)
    write_together({**contents, manifest: listing.to_text().encode()})
    return found


def _following(listing: Manifest, contents: Mapping[Path, bytes]) -> Manifest:
    """The manifest with size and sha256 of files that will hold these contents."""
    before = {sha256_of(file): content for file, content in contents.items()}
    places = {file.resolve(): content for file, content in contents.items()}

    def following(asset: Asset) -> Asset:
        here = [places[path.resolve()] for _, path in local_sources(asset) if path.resolve() in places]
        content = here[0] if here else before.get(asset.sha256)
        return asset if content is None else replace(asset, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    return Manifest(listing.models, tuple(map(following, listing.assets)))
