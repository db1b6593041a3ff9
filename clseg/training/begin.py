"""Begin: the network that `clseg train` starts from, with random weights or those of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clseg.errors import RecipeError
from clseg.network.checkpoint import Checkpoint, TensorDict, load, read_header
from clseg.network.spec import DecoderSpec, EncoderSpec
from clseg.recipe import Recipe
from clseg.training.examples import open_labels
from clseg.training.network import Trainee, decoder_spec, encoder_spec, fresh


def begin(recipe: Recipe) -> Trainee:
    """The encoder and all decoders of a recipe: those that `start` holds as they are there, others with seeded weights.

    With `frozen` the encoder is no part of what learns.  Raises RecipeError where `start`
    has no encoder, or a part of another shape than the recipe's.
    """
    network = fresh(recipe)
    if not recipe.start:
        return network
    network.encoder.load_state_dict(_full(started(recipe, "encoder", encoder_spec(recipe)).tensors))
    for decoder in recipe.decoder:
        if file_of(recipe, decoder.name).is_file():
            network.decoders[decoder.name].load_state_dict(_full(started(recipe, decoder.name, decoder_spec(decoder)).tensors))
    if not recipe.frozen:
        return network
    return Trainee(network.encoder, network.decoders, frozen=True, open_labels=open_labels(recipe))


def started(recipe: Recipe, part: str, spec: EncoderSpec | DecoderSpec) -> Checkpoint:
    """The part called `part` in the folder `start` of the recipe, which must have this spec."""
    file = file_of(recipe, part)
    if not file.is_file():
        raise RecipeError(f"There is no {file.name} in {file.parent}, which the recipe starts from.", tip="`start` is the folder weights/ of a run.")
    found = load(file)
    if found.spec != spec:
        raise RecipeError(f"{file} has another shape than the recipe gives its part '{part}'.", tip="Give it the same widths, kernels, convs, labels and grid.")
    return found


def file_of(recipe: Recipe, part: str) -> Path:
    return recipe.folder / recipe.start / f"{part}.safetensors"


def card_before(recipe: Recipe, part: str) -> dict[str, Any]:
    """The card of a part as this training found it; empty where it begins with random weights."""
    file = file_of(recipe, part)
    return read_header(file)["card"] if recipe.start and file.is_file() else {}


def _full(tensors: TensorDict) -> TensorDict:
    return {name: tensor.float() for name, tensor in tensors.items()}
