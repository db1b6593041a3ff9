"""Export: a run's average as files that inference loads, one per part, and their entries in a manifest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from clseg import recipe as recipes
from clseg.errors import TrainingError, WeightsError
from clseg.io.files import writing
from clseg.manifest import Asset, Manifest, Model
from clseg.network.bodypart import load_bodypart
from clseg.network.checkpoint import Checkpoint, fingerprint, save
from clseg.recipe import Recipe
from clseg.training.average import Average
from clseg.training.begin import begin, card_before, started
from clseg.training.card import origin
from clseg.training.cases import find_cases
from clseg.training.entries import EXPERIMENTAL, entry_of, experimental_of, in_order, refuse_to_unbind
from clseg.training.network import decoder_spec, encoder_spec
from clseg.training.noted import noted
from clseg.training.ranges import DecoderRange, learned_ranges
from clseg.training.relist import copied
from clseg.training.run import STATE
from clseg.training.state import read_average

BODYPART = "bodypart"


def export_run(run: Path, folder: Path) -> tuple[Recipe, dict[str, Path]]:
    """Export the last saved state of a run, finished or not; returns its recipe and the files by part name."""
    stored, state = noted(run), run / STATE
    if not (stored and state.is_file()):
        raise TrainingError(f"There is no saved run in {run}.", tip="A run saves its state every checkpoint_every iterations.")
    recipe = recipes.from_dict(stored["recipe"], Path(stored["folder"]))
    average = Average(begin(recipe), recipe.optim.average)
    average.tensors, done = read_average(state)
    return recipe, export(recipe, average, folder, done=done)


def export_and_list(run: Path, folder: Path, manifest: Path, *, sources: str) -> dict[str, Path]:
    """Export a run and list its files; where the manifest cannot take them, those in `folder`, which it may list, stay as they are."""
    with TemporaryDirectory(prefix="clseg-") as place:
        recipe, drafts = export_run(run, Path(place))
        listed = listed_in(manifest, recipe, drafts, sources=sources)  # refuses before anything is replaced
        files = {part: copied(draft, folder / draft.name) for part, draft in drafts.items()}
    listed.write(manifest)
    return files


def list_in_manifest(path: Path, recipe: Recipe, files: dict[str, Path], *, sources: str) -> Manifest:
    """Enter exported files into the manifest at `path`, as `listed_in` says."""
    manifest = listed_in(path, recipe, files, sources=sources)
    manifest.write(path)
    return manifest


def listed_in(path: Path, recipe: Recipe, files: dict[str, Path], *, sources: str) -> Manifest:
    """What the manifest at `path` is to say of exported files: they are the model called like the recipe, replacing what it listed.

    Experimental structures are listed, with the encoder, under `<recipe name>_experimental`
    instead, unlisted ones nowhere.  `sources` is what stands before a file's name in its
    source, e.g. `package:data/starter/`.  Raises WeightsError when decoders would be dropped
    that were learned since, or when decoders of other models were trained on what is replaced.
    """
    offered = {decoder.name: decoder.listed for decoder in recipe.decoder}
    tried = {decoder.name: decoder.experimental for decoder in recipe.decoder if decoder.experimental}
    entry = partial(entry_of, recipe.name, recipe.licence, sources)
    requires = (f"{recipe.name}-encoder",)
    shared = [entry(part, file) for part, file in files.items() if part not in offered]
    good = [entry(part, files[part], labels, requires) for part, labels in offered.items() if labels]
    poor = [entry(part, files[part], labels, requires, EXPERIMENTAL) for part, labels in tried.items()]
    assets = [*shared, *good, *poor]
    models = [in_order(Model(recipe.name, recipe.description, recipe.licence), [*shared, *good])]
    if poor:
        models.append(in_order(experimental_of(models[0]), [*shared, *poor]))

    old = Manifest.read(path) if path.is_file() else Manifest((), ())
    mine = {recipe.name, f"{recipe.name}{EXPERIMENTAL}"}
    others = [model for model in old.models if model.name not in mine]
    kept = {a for model in others for a in model.assets}
    dropped = {a for model in old.models if model.name in mine for a in model.assets} - kept
    dropped |= {a.name for a in assets}
    leaving = dropped - {a.name for a in assets}
    _refuse_to_forget(recipe, [a for a in old.assets if a.name in leaving], path, kept=_same_encoder(old, assets))
    refuse_to_unbind([a for a in old.assets if a.name not in leaving], assets, path)
    return Manifest((*others, *models), (*(a for a in old.assets if a.name not in dropped), *assets))


def _same_encoder(old: Manifest, assets: Iterable[Asset]) -> bool:
    """Whether the encoder among `assets` is listed already, so that decoders learned on it since go on fitting."""
    known = {asset.sha256 for asset in old.assets}
    return any(asset.kind == "encoder" and asset.sha256 in known for asset in assets)


def _refuse_to_forget(recipe: Recipe, leaving: Iterable[Asset], path: Path, *, kept: bool) -> None:
    """WeightsError when decoders would leave the model that were learned since: those in their user's folder, and all where the encoder is kept."""
    learned = [asset.name for asset in leaving if asset.kind == "decoder" and (kept or not asset.file.startswith(f"{recipe.name}/"))]
    if learned:
        raise WeightsError(
            f"{path} lists decoders of '{recipe.name}' that were learned since ({', '.join(learned)}), which this export would drop.",
            tip="Export into another manifest, or take them out first: clseg weights remove.",
        )


def export(recipe: Recipe, average: Average, folder: Path, *, done: int) -> dict[str, Path]:
    """Write `encoder.safetensors` and `<decoder>.safetensors` in half precision; returns them by part name.

    Where the recipe names a body-part regressor, decoders get the ranges of their training cases and it is
    copied along as the part `bodypart`.  Decoders are bound to the encoder by its fingerprint; `done` iterations are
    noted in the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = encoder_spec(recipe)
    mine = _card(recipe, done)
    if recipe.frozen:
        encoder = started(recipe, "encoder", spec)
    else:
        encoder = Checkpoint("encoder", spec, _part(average, "encoder."), card=_with_earlier(mine, card_before(recipe, "encoder")))
    key = fingerprint(encoder.tensors, spec)
    scorer = recipe.folder / recipe.bodypart if recipe.bodypart else None
    ranges = learned_ranges(recipe, load_bodypart(scorer)) if scorer else {}
    files = {"encoder": folder / "encoder.safetensors"}
    save(files["encoder"], encoder)
    for decoder in recipe.decoder:
        part = _part(average, f"decoders.{decoder.name}.")
        files[decoder.name] = folder / f"{decoder.name}.safetensors"
        where, about = ranges.get(decoder.name, DecoderRange()), _with_earlier(mine, card_before(recipe, decoder.name)) | {"pathological": decoder.pathological}
        save(files[decoder.name], where.within(Checkpoint("decoder", decoder_spec(decoder), part, key, card=about)))
    if scorer:
        files[BODYPART] = folder / "bodypart.safetensors"
        if scorer.resolve() != files[BODYPART].resolve():
            with writing(files[BODYPART]) as copy:
                copy.write(scorer.read_bytes())
    return files


def _part(average: Average, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v.half() for k, v in average.tensors.items() if k.startswith(prefix)}


def _card(recipe: Recipe, done: int) -> dict[str, Any]:
    """What a user must know about these weights before trusting them."""
    return {
        **origin(recipe, recipe.dataset),
        "iterations": done,
        "cases": sorted(case.name for case in find_cases(recipe)),
    }


def _with_earlier(card: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The card of a part that was trained on: iterations and cases are those of all runs together."""
    cases = sorted({*card["cases"], *before.get("cases", ())})
    return {**card, "iterations": before.get("iterations", 0) + card["iterations"], "cases": cases}
