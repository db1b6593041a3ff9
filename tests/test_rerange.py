"""Ranges are learnt anew for weights that exist: only metadata changes, and the manifest follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clseg.errors import TrainingError
from clseg.io.files import sha256_of
from clseg.network.checkpoint import fingerprint, load
from clseg.recipe import DecoderRecipe, Recipe
from clseg.training import rerange as module
from clseg.training.ranges import DecoderRange
from clseg.training.rerange import rerange
from tests.conftest import write_tiny_model
from tests.small_dataset import tiny_recipe

FOUND = {"tiny-neck": DecoderRange((0.3, 0.9), {"larynx": (0.7, 0.9), "esophagus": (0.3, None)}), "tiny-lungs": DecoderRange((0.3, 0.8), {"lung_left": (0.3, 0.8)})}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two decoders, a manifest, and a scorer that says FOUND."""
    write_tiny_model(tmp_path, {"neck": ("larynx", "esophagus"), "lungs": ("lung_left",)})
    (tmp_path / "tiny" / "bodypart.safetensors").touch()
    monkeypatch.setattr(module, "load_bodypart", lambda path: path)
    monkeypatch.setattr(module, "learned_ranges", lambda recipe, scorer: {decoder.name: FOUND[decoder.name] for decoder in recipe.decoder})
    return tmp_path


def recipe(folder: Path) -> Recipe:
    labels = {"tiny-neck": ("larynx", "esophagus"), "tiny-lungs": ("lung_left",), "tiny-legs": ("femur_left",)}
    decoders = tuple(DecoderRecipe(name, mine, widths=(8,), kernels=(3,), convs=(1,)) for name, mine in labels.items())
    return replace(tiny_recipe(folder), decoder=decoders)


def tensors_of(file: Path) -> bytes:
    """What follows the header: the bytes of all tensors."""
    data = file.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_only_the_ranges_change(weights: Path) -> None:
    """Tensors keep their bytes and decoders their fingerprints; labels that are no narrower than their decoder are not listed."""
    neck, lungs = (weights / "tiny" / f"tiny-{name}.safetensors" for name in ("neck", "lungs"))
    before = {file: (tensors_of(file), fingerprint(load(file).tensors, load(file).spec)) for file in (neck, lungs)}
    assert set(rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")) == {"tiny-neck", "tiny-lungs"}
    assert {file: (tensors_of(file), fingerprint(load(file).tensors, load(file).spec)) for file in (neck, lungs)} == before
    assert (load(neck).slices, load(neck).label_slices) == ((0.3, 0.9), {"larynx": (0.7, 0.9), "esophagus": (0.3, None)})
    assert (load(lungs).slices, load(lungs).label_slices) == ((0.3, 0.8), {})


def test_the_manifest_follows(weights: Path) -> None:
    """Every asset has the size and the sha256 of its file, the encoder's, which did not change, too."""
    rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")
    listed = json.loads((weights / "weights_manifest.json").read_text())["assets"]
    files = {name: weights / asset["file"] for name, asset in listed.items()}
    assert {name: (a["bytes"], a["sha256"]) for name, a in listed.items()} == {name: (f.stat().st_size, sha256_of(f)) for name, f in files.items()}


def test_without_a_scorer_nothing_is_written(weights: Path) -> None:
    """The folder's regressor is missing: one sentence, and the weights are as they were."""
    (weights / "tiny" / "bodypart.safetensors").unlink()
    before = (weights / "tiny" / "tiny-neck.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="holds no body-part regressor"):
        rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")
    assert (weights / "tiny" / "tiny-neck.safetensors").read_bytes() == before
