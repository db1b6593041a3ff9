"""Ranges are learnt anew for weights that exist: only metadata changes, and the manifest follows."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from clseg.errors import OutputError, TrainingError
from clseg.io import files
from clseg.io.files import sha256_of
from clseg.network.checkpoint import fingerprint, load
from clseg.recipe import DecoderRecipe, Recipe
from clseg.training import rerange as module
from clseg.training.ranges import DecoderRange
from clseg.training.rerange import rerange
from tests.conftest import write_tiny_model
from tests.small_dataset import tiny_recipe

FOUND = {"tiny-neck": DecoderRange((0.3, 0.9), {"larynx": (0.7, 0.9), "esophagus": (0.3, None)}), "tiny-lungs": DecoderRange((0.3, 0.8), {"lung_left": (0.3, 0.8)}, (-90.0, 5.0))}


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
    assert (load(neck).sideways, load(lungs).sideways) == (None, (-90.0, 5.0))


def test_the_manifest_follows(weights: Path) -> None:
    """Every asset has the size and the sha256 of its file, the encoder's, which did not change, too."""
    before = listed_in(weights)
    rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")
    assert listed_in(weights) == on_the_disk(weights) != before


def listed_in(weights: Path) -> dict[str, tuple[int, str]]:
    """Asset → size and sha256 that the manifest says."""
    assets = json.loads((weights / "weights_manifest.json").read_text())["assets"]
    return {name: (asset["bytes"], asset["sha256"]) for name, asset in assets.items()}


def on_the_disk(weights: Path) -> dict[str, tuple[int, str]]:
    """The same of the files that it names."""
    assets = json.loads((weights / "weights_manifest.json").read_text())["assets"]
    files = {name: weights / asset["file"] for name, asset in assets.items()}
    return {name: (file.stat().st_size, sha256_of(file)) for name, file in files.items()}


def left_in(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["tiny-neck.safetensors", "tiny-lungs.safetensors", "weights_manifest.json"])
def test_when_one_file_cannot_be_written_all_are_as_they_were(weights: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full when the first, the second or the manifest has been written: OutputError names it, not a byte is another."""
    mine, to_disk = recipe(weights), files._to_disk
    before = left_in(weights)

    def full(stream: IO[bytes]) -> None:
        if name in stream.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        to_disk(stream)

    monkeypatch.setattr(files, "_to_disk", full)
    with pytest.raises(OutputError, match=rf"{name}' cannot be written: the disk is full"):
        rerange(mine, weights / "tiny", weights / "weights_manifest.json")
    assert left_in(weights) == before


@pytest.mark.parametrize("killed_before", [0, 1, 2])
def test_the_manifest_comes_last_and_a_killed_run_is_mended(weights: Path, monkeypatch: pytest.MonkeyPatch, killed_before: int) -> None:
    """The process ends before the first, second or third file gets its name: the manifest is the old one; the same call again gives what one call gives."""
    old, moved, move = (weights / "weights_manifest.json").read_bytes(), [], os.replace

    def killed(part: Path, final: Path) -> None:
        if len(moved) == killed_before:
            raise KeyboardInterrupt
        moved.append(final.name)
        move(part, final)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "replace", killed)
        rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")
    assert moved == ["tiny-neck.safetensors", "tiny-lungs.safetensors"][:killed_before]
    assert (weights / "weights_manifest.json").read_bytes() == old
    rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")
    assert listed_in(weights) == on_the_disk(weights)
    assert load(weights / "tiny" / "tiny-lungs.safetensors").slices == (0.3, 0.8)


def test_a_manifest_that_names_web_addresses_follows_too(weights: Path) -> None:
    """Where no source is a file of this machine, the sha256 that a file had tells which asset it is."""
    listed = json.loads((weights / "weights_manifest.json").read_text())
    for asset in listed["assets"].values():
        asset["sources"] = [f"https://example.org/{asset['file']}"]
    (weights / "weights_manifest.json").write_text(json.dumps(listed))
    before = listed_in(weights)
    rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")
    assert listed_in(weights) == on_the_disk(weights) != before


def test_without_a_scorer_nothing_is_written(weights: Path) -> None:
    """The folder's regressor is missing: one sentence, and the weights are as they were."""
    (weights / "tiny" / "bodypart.safetensors").unlink()
    before = (weights / "tiny" / "tiny-neck.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="holds no body-part regressor"):
        rerange(recipe(weights), weights / "tiny", weights / "weights_manifest.json")
    assert (weights / "tiny" / "tiny-neck.safetensors").read_bytes() == before
