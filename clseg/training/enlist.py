"""Enlist: decoders that `clseg learn` has made join their model in another manifest than their user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from clseg import recipe as recipes
from clseg.errors import TrainingError, WeightsError
from clseg.manifest import Asset, Manifest
from clseg.network.checkpoint import load
from clseg.recipe import LearnRecipe
from clseg.training.entries import EXPERIMENTAL, entry_of, experimental_of, in_order
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
    not list the model with the encoder, and the supporters, that the decoders were trained on.
    """
    facts = noted(run)
    recipe = recipes.from_dict(facts["recipe"], Path(facts["folder"]), LearnRecipe)
    made = {decoder.name: run / "weights" / f"{decoder.name}.safetensors" for decoder in recipe.decoder}
    if not all(file.is_file() for file in made.values()) or not (run / "proof.json").is_file():
        raise TrainingError(f"The run in {run} has decoders that are not finished.", tip="Go on with the same command and --resume.")
    listing, model = Manifest.read(manifest), recipe.into or recipe.model
    known = _known(listing, model, facts["weights"], manifest)
    entries = []
    for decoder in recipe.decoder:
        file = made[decoder.name]
        requires = _requires(file, known, [f"{model}-{name}" for name in made])
        for labels, ending in ((decoder.listed, ""), (decoder.experimental, EXPERIMENTAL)):
            entries += [entry_of(model, recipe.licence, sources, decoder.name, file, labels, requires, ending)] if labels else []
    files = {name: copied(file, folder) for name, file in made.items()}
    _joined(listing, model, entries).write(manifest)
    return files


def _known(listing: Manifest, model: str, began_with: Mapping[str, str], manifest: Path) -> dict[str, str]:
    """What the run began with (name → sha256) by its name: how the manifest calls the same file, the model's encoder first."""
    mine = {asset.sha256: asset for asset in reversed(listing.listed(model))}
    encoders = [asset.sha256 for asset in mine.values() if asset.kind == "encoder"]
    if lost := [name for name, digest in began_with.items() if digest not in mine]:
        raise WeightsError(
            f"{manifest} does not list '{lost[0]}' in '{model}' with the contents that these decoders were trained on.",
            tip="Learn them again on the model that the manifest lists.",
        )
    names = {name: mine[digest].name for name, digest in began_with.items()}
    return dict(sorted(names.items(), key=lambda pair: began_with[pair[0]] not in encoders))


def _requires(file: Path, known: Mapping[str, str], siblings: Iterable[str]) -> tuple[str, ...]:
    """The encoder, and the supporters that the decoder's file names: of the model, or learned with it."""
    mine = {name: name for name in siblings}
    encoder = next(iter(known.values()))
    return (encoder, *(known.get(one.name) or mine[one.name] for one in load(file).spec.supporters))  # type: ignore[union-attr]


def _joined(listing: Manifest, name: str, entries: Iterable[Asset]) -> Manifest:
    """The list with these entries in the model of this name, or in that of its experimental structures."""
    assets = {asset.name: asset for asset in listing.assets} | {asset.name: asset for asset in entries}
    models = {model.name: model for model in listing.models}
    shared = [one for one in models[name].assets if assets[one].kind != "decoder"]
    for target in (models[name], experimental_of(models[name])):
        new = [asset.name for asset in entries if asset.name.endswith(EXPERIMENTAL) == target.name.endswith(EXPERIMENTAL)]
        before = models[target.name].assets if target.name in models else shared
        if new:
            whole = models.get(target.name, target)
            models[target.name] = in_order(whole, [assets[one] for one in dict.fromkeys((*before, *new))])
    return Manifest(tuple(models.values()), tuple(assets.values()))
