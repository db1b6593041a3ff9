"""Publish: a learned decoder as one file and one manifest entry, with its card, and the proof that nothing else changed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clseg.environment import environment
from clseg.io.files import sha256_of, write_json
from clseg.manifest import Asset, Model
from clseg.network.checkpoint import Checkpoint, save
from clseg.network.cost import cost
from clseg.network.decoder import Decoder
from clseg.recipe import Recipe
from clseg.recipe.commands import Common
from clseg.training.base import Base
from clseg.training.card import origin
from clseg.training.cases import find_cases
from clseg.training.entries import EXPERIMENTAL, experimental_of
from clseg.training.proof import Proof, Witness, compare, demand, probe_scan, witness
from clseg.training.ranges import DecoderRange
from clseg.training.score import DiceByLabel
from clseg.training.ticket import nonzero, tau
from clseg.training.validation import means
from clseg.weights.own import added


@dataclass(frozen=True)
class Result:
    """A finished decoder: its file, what it offers, the assets it requires and replaces, its card, and what it paints as an experiment."""

    asset: str
    file: Path
    labels: tuple[str, ...]
    requires: tuple[str, ...]
    replaces: tuple[str, ...]
    card: dict[str, Any]
    experimental: tuple[str, ...] = ()


def write_decoder(
    decoder: Decoder, file: Path, base: Base, card: dict[str, Any], where: DecoderRange
) -> None:
    """One plain file in half precision: the average and the ticket are in the weights, zeros are stored sparsely."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half() for name, tensor in decoder.state_dict().items()}
    save(file, where.within(Checkpoint("decoder", decoder.spec, tensors, base.key, card=card)))


def card_of(
    recipe: Common, plan: Recipe, base: Base, decoder: Decoder, dense: Decoder, scores: DiceByLabel
) -> dict[str, Any]:
    """What a user must know about a decoder before trusting it: data, licence, Dice, pruning rate, size.

    The cases of its Dice are `held_out_cases`; where the recipe has it judged on what it learned from, `training_cases_scored`.
    """
    scored = sorted({case for cases in scores.values() for case in cases})
    now, before = (cost(one.spec, base.spec, base.spec.grid.patch) for one in (decoder, dense))
    return {
        **origin(recipe, recipe.dataset),
        "encoder": base.key,
        "cases": sorted({case.name for case in find_cases(plan)}),
        "held_out_cases": [] if recipe.judged_on_training else scored,
        "training_cases_scored": scored if recipe.judged_on_training else [],
        "dice_on_the_models_grid": {name: round(mean, 4) for name, mean in means(scores).items()},
        "pruning_rate": round(tau(nonzero(dense), nonzero(decoder)), 4),
        "parameters": now.parameters,
        "parameters_dense": before.parameters,
        "flops_per_window": now.flops,
        "flops_per_window_dense": before.flops,
    }


def renewed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The card of a decoder that was made of another: what the new card leaves open stays, and the data of both count."""
    card = {**old, **{key: value for key, value in new.items() if value not in ("", [], {})}}
    for key in ("datasets", "cases"):
        card[key] = [*old.get(key, ()), *(one for one in new[key] if one not in old.get(key, ()))]
    if new.get("dice_on_the_models_grid"):  # of these cases, and of no others
        card |= {key: new[key] for key in ("held_out_cases", "training_cases_scored")}
    for key in ("parameters_dense", "flops_per_window_dense"):
        card[key] = old.get(key, new[key])
    card["pruning_rate"] = round(1 - (1 - old.get("pruning_rate", 0.0)) * (1 - new["pruning_rate"]), 4)
    return card


def witnessed(base: Base, recipe: Any, run: Path, *, without: tuple[str, ...] = ()) -> Witness:
    """The model that is to grow, before learning; structures `without` are left out.

    It is segmented whenever a run starts or goes on (threads and versions may differ
    from last time), but no more once the run has listed its results.
    """
    path = run / "before.npz"
    if not (base.mine and path.is_file()):
        into = getattr(recipe, "into", "")
        model = into if base.holds(into) else base.model
        structures = tuple(name for name in base.listing.labels_of(model) if name not in without)
        assets = [asset.name for asset in base.listing.listed(model)]
        witness(model, structures, probe_scan(recipe.probe, recipe.folder), assets).save(path)
    return Witness.read(path)


def publish(
    base: Base, model: str, recipe: Any, results: Mapping[str, Result], before: Witness, run: Path
) -> Proof:
    """List the results in the user's manifest and prove that earlier ones are the same; otherwise take them back.

    Experimental structures are listed in `<model>_experimental`, with the same files.
    Writes `proof.json` and a card per decoder into `weights/` and beside the user's weights.
    """
    known = {one.name: one for one in base.listing.models}
    whole = known.get(model) or Model(model, recipe.description, recipe.licence or "not stated")
    offers = [(whole, _entries(results)), (experimental_of(whole), _experiments(results))]
    needed = [a for a in base.closure(base.listing.asset(n) for r in results.values() for n in r.requires if n not in _names(results))]
    helpers = (base.encoder.name, *(a.name for a in base.listing.listed(base.model) if a.kind == "bodypart"))
    if any(assets and target.name not in known for target, assets in offers):
        needed += [base.listing.asset(name) for name in helpers]
    files = base.files(needed)

    with ExitStack() as listed:
        for target, assets in offers:
            if assets:
                begun = replace(known.get(target.name, target), assets=() if target.name in known else helpers)
                listed.enter_context(added(begun, assets, {asset: files[asset.name] for asset in needed}))
        after = witness(before.model, before.masks, probe_scan(recipe.probe, recipe.folder), before.weights)
        proof = compare(before, after)
        demand(proof)
        for result in results.values():
            for folder in (result.file.parent, environment().own / "models"):
                write_json(folder / f"{result.asset}.card.json", {**result.card, "proof": proof.to_dict()})
        write_json(run / "proof.json", proof.to_dict())
    return proof


def _names(results: Mapping[str, Result]) -> set[str]:
    return {result.asset for result in results.values()}


def _entries(results: Mapping[str, Result]) -> dict[Asset, Path]:
    return {_asset(one, one.asset, one.labels): one.file for one in results.values() if one.labels}


def _experiments(results: Mapping[str, Result]) -> dict[Asset, Path]:
    return {_asset(one, f"{one.asset}{EXPERIMENTAL}", one.experimental): one.file for one in results.values() if one.experimental}


def _asset(result: Result, name: str, labels: tuple[str, ...]) -> Asset:
    return Asset(
        name=name,
        kind="decoder",
        file=result.file.name,
        bytes=result.file.stat().st_size,
        sha256=sha256_of(result.file),
        licence=result.card["licence"] or "not stated",
        requires=result.requires,
        labels=labels,
        replaces=result.replaces,
    )
