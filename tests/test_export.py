"""Facts about export: a run becomes weights that inference loads, and inference needs no training code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clseg import recipe as recipes
from clseg.errors import TrainingError, WeightsError
from clseg.io.files import sha256_of, write_json
from clseg.manifest import Manifest, Model
from clseg.network.checkpoint import fingerprint, load
from clseg.network.model import load_model
from clseg.pipeline import segment
from clseg.recipe import Recipe
from clseg.training.average import Average
from clseg.training.export import export, export_and_list, export_run, list_in_manifest
from clseg.training.loop import Learner, make_optimiser
from clseg.training.network import fresh, start_weights
from clseg.training.state import save_state
from tests.small_dataset import scan, tiny_recipe

ROOT = Path(__file__).parents[1]
PARTS = ["encoder", "lungs", "solid", "body"]
LABELS = {"lung_left", "lung_right", "liver", "skeleton", "body"}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


def averaged(recipe: Recipe, seed: int = 0) -> Average:
    network = fresh(recipe)
    start_weights(network, seed)
    return Average(network, 0.9)


def half_way_run(recipe: Recipe, run: Path, done: int = 2) -> Path:
    """The folder of a run that was stopped after `done` iterations; weights and average differ."""
    run.mkdir()
    network, average = fresh(recipe), averaged(recipe, seed=1)
    start_weights(network, 2)
    save_state(run / "state.safetensors", Learner(network, make_optimiser(network, recipe.optim), average), "train", done)
    write_json(run / "recipe.json", {"recipe": recipes.to_dict(recipe), "folder": str(recipe.folder)})
    return run


@pytest.fixture
def home(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLSEG_HOME whose own manifest lists the exported model `tiny`, which finds body nearly everywhere."""
    home, average = tmp_path / "home", averaged(recipe)
    head = average.tensors["decoders.body.heads.0.weight"]
    head[0], head[1] = -1, 1
    files = export(recipe, average, home / "tiny", done=6)
    list_in_manifest(home / "weights_manifest.json", recipe, files, sources="tiny/")
    monkeypatch.setenv("CLSEG_HOME", str(home))
    return home


def test_files_describe_themselves(recipe: Recipe, tmp_path: Path) -> None:
    """One file per part in half precision; decoders carry labels and their encoder's fingerprint, cards the training data."""
    average = averaged(recipe)
    files = export(recipe, average, tmp_path / "w", done=6)
    assert list(files) == PARTS
    encoder, *decoders = (load(path) for path in files.values())
    assert [d.spec.labels for d in decoders] == [d.labels for d in recipe.decoder]
    assert {d.encoder for d in decoders} == {fingerprint(encoder.tensors, encoder.spec)}
    assert encoder.spec.grid.spacing == (12.0, 12.0, 12.0)
    assert encoder.spec.intensity.mean == recipe.intensity.mean_hu
    assert {t.dtype for c in (encoder, *decoders) for t in c.tensors.values()} == {torch.float16}
    assert torch.equal(decoders[0].tensors["heads.0.weight"], average.tensors["decoders.lungs.heads.0.weight"].half())
    assert sum(len(c.tensors) for c in (encoder, *decoders)) == len(average.tensors)
    for card in (encoder.card, *(d.card for d in decoders)):
        assert (card["name"], card["licence"], card["iterations"], card["seed"]) == ("tiny", "CC0-1.0", 6, 7)
        assert card["cases"] == ["a", "b"]
        assert [d["kind"] for d in card["datasets"]] == ["painted", ""]


def test_files_are_safetensors(recipe: Recipe, tmp_path: Path) -> None:
    """Every file opens as safetensors: a length, a JSON header and plain numbers, no pickle."""
    for path in export(recipe, averaged(recipe), tmp_path / "w", done=6).values():
        with safe_open(str(path), framework="numpy") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {np.dtype(np.float16)}  # noqa: SIM118
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        assert len(data) == 8 + size + max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")


def test_the_same_average_gives_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    """Exporting twice writes the same files, and the second replaces the first."""
    first = {p: f.read_bytes() for p, f in export(recipe, averaged(recipe), tmp_path / "w", done=6).items()}
    assert {p: f.read_bytes() for p, f in export(recipe, averaged(recipe), tmp_path / "w", done=6).items()} == first
    export(recipe, averaged(recipe, seed=1), tmp_path / "w", done=6)
    assert sorted(p.stem for p in (tmp_path / "w").iterdir()) == sorted(PARTS)
    assert (tmp_path / "w" / "encoder.safetensors").read_bytes() != first["encoder"]


def test_an_exported_model_answers_as_the_trained_one(recipe: Recipe, tmp_path: Path) -> None:
    """Logits of the loaded files are those of the network with the average in it, but for rounding to half precision."""
    average = averaged(recipe)
    files = export(recipe, average, tmp_path / "w", done=6)
    model = load_model(files["encoder"], {name: files[name] for name in PARTS[1:]})
    trained = fresh(recipe)
    trained.load_state_dict({name: tensor.half().float() for name, tensor in average.tensors.items()})
    window = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in PARTS[1:]:
            assert torch.equal(model.decoders[name](model.encoder(window)), trained.decoders[name](trained.encoder(window)))


def test_a_half_way_run_can_be_exported(recipe: Recipe, tmp_path: Path) -> None:
    """export_run takes the average of the last state, notes its iterations, and leaves the run alone."""
    run = half_way_run(recipe, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    found, files = export_run(run, tmp_path / "w")
    assert found == recipe
    encoder = load(files["encoder"])
    assert encoder.card["iterations"] == 2
    name = "levels.0.0.conv.weight"
    assert torch.equal(encoder.tensors[name], averaged(recipe, seed=1).tensors[f"encoder.{name}"].half())
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


@pytest.mark.parametrize("lost", ["recipe.json", "state.safetensors"])
def test_a_folder_without_a_saved_run_is_refused(recipe: Recipe, tmp_path: Path, lost: str) -> None:
    """A run needs its recipe and a state; the sentence says where nothing was found."""
    run = half_way_run(recipe, tmp_path / "run")
    (run / lost).unlink()
    with pytest.raises(TrainingError, match="no saved run in"):
        export_run(run, tmp_path / "w")


def test_the_manifest_lists_what_was_exported(recipe: Recipe, tmp_path: Path) -> None:
    """Kind, size, sha256, licence, source, labels and the encoder that each decoder requires."""
    files = export(recipe, averaged(recipe), tmp_path / "w", done=6)
    written = list_in_manifest(tmp_path / "m.json", recipe, files, sources="w/")
    manifest = Manifest.read(tmp_path / "m.json")
    assert manifest == written
    assert manifest.model("tiny").assets == ("tiny-encoder", "tiny-lungs", "tiny-solid", "tiny-body")
    for part, file in files.items():
        asset = manifest.asset(f"tiny-{part}")
        assert (asset.bytes, asset.sha256) == (file.stat().st_size, sha256_of(file))
        assert (asset.kind, asset.requires) == (("encoder", ()) if part == "encoder" else ("decoder", ("tiny-encoder",)))
        assert (asset.licence, asset.file) == ("CC0-1.0", f"tiny/{part}.safetensors")
        assert asset.sources == (f"w/{part}.safetensors",)
    assert manifest.asset("tiny-lungs").labels == ("lung_left", "lung_right")
    assert set(manifest.labels_of("tiny")) == LABELS


def test_a_second_export_takes_the_place_of_the_first(recipe: Recipe, tmp_path: Path) -> None:
    """New hashes replace old ones, a decoder that is gone leaves the manifest, and other models stay."""
    path = tmp_path / "m.json"
    other = replace(recipe, name="other")
    list_in_manifest(path, other, export(other, averaged(other), tmp_path / "o", done=1), sources="o/")
    first = list_in_manifest(path, recipe, export(recipe, averaged(recipe), tmp_path / "w", done=6), sources="w/")

    fewer = replace(recipe, decoder=recipe.decoder[:2])
    second = list_in_manifest(path, fewer, export(fewer, averaged(fewer, 1), tmp_path / "w", done=6), sources="w/")
    assert second.model("tiny").assets == ("tiny-encoder", "tiny-lungs", "tiny-solid")
    assert [a.name for a in second.assets if a.name.startswith("tiny-body")] == []
    assert second.asset("tiny-encoder").sha256 != first.asset("tiny-encoder").sha256
    assert second.asset("tiny-encoder").sha256 == sha256_of(tmp_path / "w" / "encoder.safetensors")
    assert second.model("other") == first.model("other")
    assert all(second.asset(name) == first.asset(name) for name in second.model("other").assets)


def test_the_exported_model_segments(home: Path) -> None:
    """With CLSEG_HOME pointing at it, `model="tiny"` runs the whole chain: every label asked for, on the scan's own grid."""
    ct, _ = scan("c")
    result = segment(ct, model="tiny", device="cpu", offline=True)
    assert set(result.names) == LABELS
    assert result.labels.shape == ct.shape
    assert np.array_equal(result.labels.affine, ct.affine)
    assert result.facts["model"]["weights"]["tiny-encoder"] == sha256_of(home / "tiny" / "encoder.safetensors")
    assert result.mask("body").mean() > 0.5
    part = segment(ct, "lungs", model="tiny", device="cpu", offline=True)
    assert set(part.names) == {"lung_left", "lung_right"}
    assert "tiny-body" not in part.facts["model"]["weights"]


WITHOUT_TRAINING = """
import sys
from importlib.abc import MetaPathFinder

class Deleted(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] == ["clseg", "training"]:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Deleted())
try:
    import clseg.training
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the blocker does not work")
from clseg.phantom import small_phantom
from clseg.pipeline import segment
result = segment(small_phantom(seed=2)[0], model="tiny", device="cpu", offline=True, threads=1)
print(*sorted(result.names))
"""


def test_inference_works_without_the_training_code(home: Path) -> None:
    """In a process where `clseg.training` cannot be imported, the pipeline is imported and segments."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRAINING], capture_output=True, text=True, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == LABELS


def test_an_experimental_decoder_is_not_part_of_the_model(recipe: Recipe, tmp_path: Path) -> None:
    """It is listed beside it, with the encoder, under a name that says what it is."""
    average = averaged(recipe)
    first, *others = recipe.decoder
    recipe = replace(recipe, decoder=(replace(first, experimental=first.labels), *others))
    manifest = list_in_manifest(tmp_path / "m.json", recipe, export(recipe, average, tmp_path / "w", done=1), sources="w/")
    assert not set(first.labels) & set(manifest.labels_of("tiny"))
    assert set(manifest.labels_of("tiny_experimental")) == set(first.labels)
    assert [a.kind for a in manifest.assets_for("tiny_experimental", first.labels)] == ["encoder", "decoder"]


def test_structures_of_one_decoder_are_offered_apart(recipe: Recipe, tmp_path: Path) -> None:
    """Of one file the model lists one structure, `_experimental` another; an unlisted one is nobody's, and the file is the same."""
    lungs, solid, body = recipe.decoder
    recipe = replace(recipe, decoder=(replace(lungs, experimental=("lung_right",)), replace(solid, unlisted=("liver",)), body))
    files = export(recipe, averaged(recipe), tmp_path / "w", done=1)
    manifest = list_in_manifest(tmp_path / "m.json", recipe, files, sources="w/")
    assert set(manifest.labels_of("tiny")) == {"lung_left", "skeleton", "body"}
    assert manifest.labels_of("tiny_experimental") == {"lung_right": ("tiny-lungs_experimental",)}
    assert manifest.model("tiny").assets == ("tiny-encoder", "tiny-lungs", "tiny-solid", "tiny-body")
    assert manifest.asset("tiny-lungs").sha256 == manifest.asset("tiny-lungs_experimental").sha256 == sha256_of(files["lungs"])
    assert load(files["solid"]).spec.labels == solid.labels


def test_a_refused_export_leaves_the_files_as_they_are(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    """The manifest goes on listing what lies in the folder: had the weights been replaced before it was asked, none would be usable."""
    listed = home / "weights_manifest.json"
    supported = replace(Manifest.read(listed).asset("tiny-solid"), name="other-gland", file="other/gland.safetensors", labels=("gland",))
    before = Manifest.read(listed)
    Manifest((*before.models, Model("other", "d", "MIT", ("tiny-encoder", "other-gland"))), (*before.assets, supported)).write(listed)
    text, weights = listed.read_bytes(), {file: file.read_bytes() for file in (home / "tiny").iterdir()}
    run = half_way_run(recipe, tmp_path / "run")
    with pytest.raises(WeightsError, match="lists 'other-gland', which was trained on 'tiny-encoder' as it is there"):
        export_and_list(run, home / "tiny", listed, sources="tiny/")
    assert (listed.read_bytes(), {file: file.read_bytes() for file in (home / "tiny").iterdir()}) == (text, weights)
    assert set(export_and_list(run, home / "tiny", tmp_path / "new.json", sources="tiny/")) == set(PARTS)
    assert Manifest.read(tmp_path / "new.json").asset("tiny-body").sha256 == sha256_of(home / "tiny" / "body.safetensors")


def test_an_export_never_drops_what_was_learned_since(recipe: Recipe, home: Path, tmp_path: Path) -> None:
    """A decoder that `clseg learn` has added to the model is not in the recipe: the export is refused, and the list stays as it was."""
    listed = home / "weights_manifest.json"
    before = Manifest.read(listed)
    learned = replace(before.asset("tiny-lungs"), name="tiny-gland", file="models/tiny-gland.0123.safetensors", labels=("gland",))
    before.with_asset("tiny", learned).write(listed)
    text = listed.read_bytes()
    with pytest.raises(WeightsError, match=r"learned since \(tiny-gland\), which this export would drop"):
        list_in_manifest(listed, recipe, export(recipe, averaged(recipe, 1), tmp_path / "w", done=6), sources="tiny/")
    assert listed.read_bytes() == text
