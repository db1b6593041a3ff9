"""Facts about where a training begins: random weights, or those of an earlier run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clseg.errors import RecipeError
from clseg.network.checkpoint import fingerprint, load
from clseg.recipe import Recipe
from clseg.training.average import Average
from clseg.training.begin import begin
from clseg.training.export import export
from clseg.training.network import encoder_spec
from tests.small_dataset import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


@pytest.fixture
def earlier(recipe: Recipe, tmp_path: Path) -> Path:
    """weights/ of a run of seed 1."""
    export(recipe, Average(begin(replace(recipe, seed=1)), 0.9), tmp_path / "weights", done=6)
    return tmp_path / "weights"


def test_weights_of_an_earlier_run_are_taken(recipe: Recipe, earlier: Path) -> None:
    """Encoder and decoders are those of the files, rounded to half precision as they are there, whatever the seed."""
    network = begin(replace(recipe, start=str(earlier), seed=2))
    stored = load(earlier / "encoder.safetensors").tensors
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in network.encoder.state_dict().items())
    assert not network.frozen
    for name, decoder in network.decoders.items():
        stored = load(earlier / f"{name}.safetensors").tensors
        assert all(torch.equal(tensor, stored[key].float()) for key, tensor in decoder.state_dict().items())


def test_a_decoder_that_was_not_there_begins_anew(recipe: Recipe, earlier: Path) -> None:
    """A decoder without a file in `start` has the random weights that its seed gives it."""
    first = recipe.decoder[0].name
    (earlier / f"{first}.safetensors").unlink()
    mine, fresh = begin(replace(recipe, start=str(earlier), seed=2)), begin(replace(recipe, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(mine.decoders[first].parameters(), fresh.decoders[first].parameters(), strict=True))


def test_a_frozen_encoder_is_exported_bit_by_bit(recipe: Recipe, earlier: Path, tmp_path: Path) -> None:
    """It does not learn, its file keeps its fingerprint and card, and decoders trained on count the steps of both runs."""
    later = replace(recipe, start=str(earlier), frozen=True)
    network = begin(later)
    assert not any(name.startswith("encoder.") for name in network.state_dict())
    export(later, Average(network, 0.9), tmp_path / "later", done=5)
    before, after = (load(folder / "encoder.safetensors") for folder in (earlier, tmp_path / "later"))
    spec = encoder_spec(recipe)
    assert fingerprint(before.tensors, spec) == fingerprint(after.tensors, spec)
    assert after.card == before.card
    decoder = load(tmp_path / "later" / f"{recipe.decoder[0].name}.safetensors")
    assert decoder.encoder == fingerprint(before.tensors, spec)
    assert decoder.card["iterations"] == 11


def test_what_cannot_be_begun_with_is_told(recipe: Recipe, earlier: Path, tmp_path: Path) -> None:
    """No encoder in `start`, another shape, and a frozen encoder out of nowhere are refused in one sentence."""
    with pytest.raises(RecipeError, match="There is no encoder.safetensors in .*, which the recipe starts from"):
        begin(replace(recipe, start=str(tmp_path / "nowhere")))
    other = replace(recipe, encoder=replace(recipe.encoder, widths=tuple(2 * width for width in recipe.encoder.widths)))
    with pytest.raises(RecipeError, match="another shape than the recipe gives its part 'encoder'"):
        begin(replace(other, start=str(earlier)))
    with pytest.raises(RecipeError, match="frozen leaves the encoder as it is in `start`, which is empty"):
        replace(recipe, frozen=True)
