"""Export: the average's weights as files that inference loads, one per part, and their manifest entries."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import clseg
from clseg.network.checkpoint import Checkpoint, fingerprint, save
from clseg.recipe import Recipe
from clseg.training.average import Average
from clseg.training.network import decoder_spec, encoder_spec


def export(recipe: Recipe, average: Average, folder: Path, *, cases: Sequence[str]) -> dict[str, Path]:
    """Write `encoder.safetensors` and `<decoder>.safetensors` in half precision; returns them by part name.

    Decoders are bound to the encoder by its fingerprint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = encoder_spec(recipe)
    tensors = _part(average, "encoder.")
    key = fingerprint(tensors, spec)
    card = _card(recipe, cases)
    files = {"encoder": folder / "encoder.safetensors"}
    save(files["encoder"], Checkpoint("encoder", spec, tensors, card=card))
    for decoder in recipe.decoder:
        part = _part(average, f"decoders.{decoder.name}.")
        files[decoder.name] = folder / f"{decoder.name}.safetensors"
        save(files[decoder.name], Checkpoint("decoder", decoder_spec(decoder), part, encoder=key, card=card))
    return files


def _part(average: Average, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v.half() for k, v in average.tensors.items() if k.startswith(prefix)}


def _card(recipe: Recipe, cases: Sequence[str]) -> dict[str, Any]:
    """What a user must know about these weights before trusting them."""
    return {
        "name": recipe.name,
        "description": recipe.description,
        "licence": recipe.licence,
        "trained_with": f"clseg {clseg.__version__}",
        "date": datetime.date.today().isoformat(),
        "iterations": recipe.optim.iterations,
        "seed": recipe.seed,
        "datasets": [{"name": d.name, "kind": d.kind, "licence": d.licence} for d in recipe.dataset],
        "cases": list(cases),
    }
