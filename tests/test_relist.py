"""Facts about exporting a decoder that was trained on or pruned: it takes the earlier one's place, and nothing else moves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clseg.errors import TrainingError, WeightsError
from clseg.io.files import sha256_of, write_json
from clseg.manifest import Asset, Manifest
from clseg.network.checkpoint import load, save
from clseg.training.relist import is_of_one_decoder, relist
from tests.conftest import write_tiny_model
from tests.test_cli_train import clseg

SOURCES = "package:weights/"


@pytest.fixture
def package(own_home: Path) -> Path:
    """A folder with a manifest and the files of the model "tiny"; "lungs" is listed a second time, for one label of it."""
    home = write_tiny_model(own_home, {"lungs": ("lung_left", "lung_right"), "abdomen": ("liver", "spleen")})
    listing = Manifest.read(home / "weights_manifest.json")
    whole = listing.asset("tiny-lungs")
    halves = (replace(whole, labels=("lung_left",)), replace(whole, name="tiny-lungs_experimental", labels=("lung_right",)))
    Manifest(listing.models, (*halves, *(asset for asset in listing.assets if asset != whole))).write(home / "weights_manifest.json")
    return home


@pytest.fixture
def finished(package: Path, tmp_path: Path) -> Path:
    """What `clseg update` leaves when it has finished: the recipe, what it began with, a new file and the proof."""
    return a_run(tmp_path / "run", package, listed(package, "tiny-lungs"))


def listed(package: Path, name: str) -> Asset:
    return Manifest.read(package / "weights_manifest.json").asset(name)


def a_run(run: Path, package: Path, began_with: Asset, name: str = "lungs", recipe: dict | None = None) -> Path:
    """A finished run whose decoder is the one it began with, but for the card."""
    made = run / "weights" / f"{name}.safetensors"
    made.parent.mkdir(parents=True)
    card = {"pruned_from": "0" * 64, "update_of": began_with.sha256} if recipe is None else {"pruned_from": began_with.sha256, "update_of": "0" * 64}
    save(made, replace(load(package / "tiny" / "tiny-lungs.safetensors"), card=card))
    write_json(run / "recipe.json", {"recipe": recipe or {"decoder": name}, "weights": {began_with.name: began_with.sha256}})
    write_json(run / "proof.json", {})
    return run


def made_by(run: Path) -> bytes:
    (file,) = (run / "weights").glob("*.safetensors")
    return file.read_bytes()


def test_the_new_file_takes_the_place_of_the_old(package: Path, finished: Path) -> None:
    """Bytes, sha256 and source are the new file's in every entry of the old one; names, labels and all other entries stay."""
    manifest = package / "weights_manifest.json"
    before = Manifest.read(manifest)
    files = relist(finished, package / "tiny", manifest, sources=SOURCES)
    after = Manifest.read(manifest)
    (file,) = files.values()
    assert file == package / "tiny" / "tiny-lungs.safetensors"
    assert file.read_bytes() == made_by(finished)
    for name, labels in (("tiny-lungs", ("lung_left",)), ("tiny-lungs_experimental", ("lung_right",))):
        new = after.asset(name)
        assert (new.bytes, new.sha256, new.labels, new.sources) == (file.stat().st_size, sha256_of(file), labels, (f"{SOURCES}{file.name}",))
    same = [asset for asset in before.assets if "lungs" not in asset.name]
    assert same == [asset for asset in after.assets if "lungs" not in asset.name]
    assert len(same) == 2
    assert after.models == before.models


def test_the_experimental_part_of_a_decoder_is_exported_too(package: Path, tmp_path: Path) -> None:
    """A run of `lungs_experimental` began with the file of `lungs`: the new one takes that file's name and all of its entries."""
    run = a_run(tmp_path / "run", package, listed(package, "tiny-lungs_experimental"), "lungs_experimental")
    files = relist(run, package / "tiny", package / "weights_manifest.json", sources=SOURCES)
    assert files == {"lungs_experimental": package / "tiny" / "tiny-lungs.safetensors"}
    assert listed(package, "tiny-lungs").sha256 == listed(package, "tiny-lungs_experimental").sha256 == sha256_of(files["lungs_experimental"])


def test_a_pruned_decoder_takes_the_place_of_what_it_was_pruned_from(package: Path, tmp_path: Path) -> None:
    """Its card may also name what that was an update of, which does not count."""
    run = a_run(tmp_path / "run", package, listed(package, "tiny-lungs"), recipe={"ladder": {}})
    files = relist(run, package / "tiny", package / "weights_manifest.json", sources=SOURCES)
    assert listed(package, "tiny-lungs").sha256 == sha256_of(files["lungs"])


def test_what_others_were_trained_on_is_not_replaced(package: Path, finished: Path) -> None:
    """A decoder that is supported by the earlier file would not run with the new one: refused, and nothing is written."""
    manifest = package / "weights_manifest.json"
    listing = Manifest.read(manifest)
    supported = replace(listing.asset("tiny-abdomen"), requires=("tiny-encoder", "tiny-lungs"))
    Manifest(listing.models, tuple(supported if asset.name == supported.name else asset for asset in listing.assets)).write(manifest)
    text, weights = manifest.read_bytes(), (package / "tiny" / "tiny-lungs.safetensors").read_bytes()
    with pytest.raises(WeightsError, match="lists 'tiny-abdomen', which was trained on 'tiny-lungs' as it is there"):
        relist(finished, package / "tiny", manifest, sources=SOURCES)
    assert (manifest.read_bytes(), (package / "tiny" / "tiny-lungs.safetensors").read_bytes()) == (text, weights)


def test_runs_that_build_on_each_other_are_exported_in_their_order(package: Path, finished: Path, tmp_path: Path) -> None:
    """The second began with the first's file, which the manifest lists only when the first is exported; the same run twice is refused likewise."""
    manifest = package / "weights_manifest.json"
    then = replace(listed(package, "tiny-lungs"), name="tiny-lungs.2", sha256=sha256_of(finished / "weights" / "lungs.safetensors"))
    second = a_run(tmp_path / "second", package, then)
    text = manifest.read_bytes()
    with pytest.raises(WeightsError, match="does not list the file of 'lungs' that this run began with"):
        relist(second, package / "tiny", manifest, sources=SOURCES)
    assert manifest.read_bytes() == text
    relist(finished, package / "tiny", manifest, sources=SOURCES)
    with pytest.raises(WeightsError, match="began with"):
        relist(finished, package / "tiny", manifest, sources=SOURCES)
    relist(second, package / "tiny", manifest, sources=SOURCES)
    assert (package / "tiny" / "tiny-lungs.safetensors").read_bytes() == made_by(second)
    assert listed(package, "tiny-lungs").sha256 == sha256_of(second / "weights" / "lungs.safetensors")


@pytest.mark.parametrize("lost", ["proof.json", "weights"])
def test_an_unfinished_run_is_refused(package: Path, finished: Path, lost: str) -> None:
    """Before the proof nobody knows whether the decoder may be used; nothing is written."""
    place = finished / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    text = (package / "weights_manifest.json").read_bytes()
    with pytest.raises(TrainingError, match="has no finished decoder"):
        relist(finished, package / "tiny", package / "weights_manifest.json", sources=SOURCES)
    assert (package / "weights_manifest.json").read_bytes() == text


@pytest.mark.parametrize(
    ("recipe", "one"), [({"decoder": "lungs"}, True), ({"ladder": {}}, True), ({"decoder": [{"name": "lungs"}]}, False)], ids=["update", "prune", "train"]
)
def test_runs_tell_what_they_made(tmp_path: Path, recipe: dict, one: bool) -> None:
    """The recipe of `update` names one decoder, that of `prune` none (the command does), that of `train` holds tables of them."""
    write_json(tmp_path / "recipe.json", {"recipe": recipe})
    assert is_of_one_decoder(tmp_path) is one


def test_a_folder_without_a_run_is_of_no_decoder(tmp_path: Path) -> None:
    """So that `clseg export` says what it says of any folder that holds no run."""
    assert not is_of_one_decoder(tmp_path)


def test_the_command(package: Path, finished: Path) -> None:
    """`clseg export RUN --manifest` says what came where; without a manifest exit code 2, for it would be nowhere's decoder."""
    done = clseg("export", finished, "--into", package / "tiny", "--manifest", package / "weights_manifest.json")
    assert (done.returncode, done.stdout) == (0, f"lungs\t{package / 'tiny' / 'tiny-lungs.safetensors'}\n")
    assert listed(package, "tiny-lungs").sources == ("tiny/tiny-lungs.safetensors",)
    refused = clseg("export", finished)
    assert refused.returncode == 2
    assert "in which manifest are they to be listed?" in refused.stderr
