"""Enlist: decoders that `clseg learn` has made join their model in another manifest than their user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from clseg import recipe as recipes
from clseg.errors import TrainingError, WeightsError
from clseg.manifest import Asset, Manifest, Model
from clseg.network.checkpoint import load
from clseg.recipe import LearnRecipe
from clseg.training.entries import EXPERIMENTAL, entry_of, experimental_of, in_order, refuse_to_unbind
from clseg.training.noted import noted
from clseg.training.relist import copied


def is_of_learned(run: Path) -> bool:
    """Whether the run in this folder is one of `clseg learn`, by the recipe it has noted."""
    recipe = noted(run).get("recipe", {})
    return "ladder" in recipe and isinstance(recipe.get("decoder"), list)


def enlist(run: Path, folder: Path, manifest: Path, *, sources: str) -> dict[str, Path]:
    """Copy the decoders of a finished run into `folder` and list them in their model, experimental structures apart.

    Decoders of the same names are replaced, all other entries stay.  `sources` is what
    stands before a file's name in its source.  Returns the files by the decoders' names.
    Raises TrainingError when the run has not finished, WeightsError when the manifest does
    not list the model with the encoder, and anywhere the supporters, that the decoders were
    trained on, or lists others that were trained on what would be replaced.
    """
    facts = noted(run)
    recipe = recipes.from_dict(facts["recipe"], Path(facts["folder"]), LearnRecipe)
    made = {decoder.name: run / "weights" / f"{decoder.name}.safetensors" for decoder in recipe.decoder}
    if not all(file.is_file() for file in made.values()) or not (run / "proof.json").is_file():
        raise TrainingError(f"The run in {run} has decoders that are not finished.", tip="Go on with the same command and --resume.")
    listing, model = Manifest.read(manifest), recipe.into or recipe.model
    known = _known(listing, model, facts["weights"], manifest) | {f"{model}-{name}": f"{model}-{name}" for name in made}
    encoder = next(asset.name for asset in listing.listed(model) if asset.kind == "encoder")
    offered, tried = [], []
    for decoder in recipe.decoder:
        file = made[decoder.name]
        requires = (encoder, *(known[one.name] for one in load(file).spec.supporters))  # type: ignore[union-attr]
        entry = partial(entry_of, model, recipe.licence, sources, decoder.name, file, requires=requires)
        offered += [entry(decoder.listed)] if decoder.listed else []
        tried += [entry(decoder.experimental, ending=EXPERIMENTAL)] if decoder.experimental else []
    refuse_to_unbind(listing.assets, [*offered, *tried], manifest)
    files = {name: copied(file, folder / file.name) for name, file in made.items()}
    whole = listing.model(model)
    _joined(_joined(listing, whole, offered), _begun(listing, whole), tried).write(manifest)
    return files


def _known(listing: Manifest, model: str, began_with: Mapping[str, str], manifest: Path) -> dict[str, str]:
    """What the run began with (name → sha256) by its name: how the manifest calls the same file.

    The encoder is the model's own; supporters may be another model's.
    """
    others = {asset.sha256: asset.name for asset in listing.assets if asset.kind == "decoder"}
    mine = others | {asset.sha256: asset.name for asset in reversed(listing.listed(model))}
    if lost := [name for name, digest in began_with.items() if digest not in mine]:
        raise WeightsError(
            f"{manifest} does not list '{lost[0]}' in '{model}' with the contents that these decoders were trained on.",
            tip="Learn them again on the model that the manifest lists.",
        )
    return {name: mine[digest] for name, digest in began_with.items()}


def _begun(listing: Manifest, whole: Model) -> Model:
    """The model of experimental structures as the manifest lists it, or with what all decoders of `whole` share."""
    new = experimental_of(whole)
    shared = tuple(name for name in whole.assets if listing.asset(name).kind != "decoder")
    return next((model for model in listing.models if model.name == new.name), replace(new, assets=shared))


def _joined(listing: Manifest, model: Model, entries: Sequence[Asset]) -> Manifest:
    """The list with these entries in this model, each in the place of one of its name; the list itself where there are none."""
    if not entries:
        return listing
    assets = {asset.name: asset for asset in (*listing.assets, *entries)}
    names = dict.fromkeys((*model.assets, *(asset.name for asset in entries)))
    models = {one.name: one for one in listing.models} | {model.name: in_order(model, [assets[name] for name in names])}
    return Manifest(tuple(models.values()), tuple(assets.values()))
