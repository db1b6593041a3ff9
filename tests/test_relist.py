"""Facts about exporting a decoder that was trained on or pruned: it takes the earlier one's place, and nothing else moves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clseg.errors import TrainingError, WeightsError
from clseg.io.files import sha256_of, write_json
from clseg.manifest import Asset, Manifest
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


def a_run(run: Path, package: Path, began_with: Asset, new: bytes = b"new weights") -> Path:
    name = Path(began_with.file).stem.removeprefix("tiny-")
    (run / "weights").mkdir(parents=True)
    (run / "weights" / f"{Path(began_with.file).stem}.safetensors").write_bytes(new)
    write_json(run / "recipe.json", {"recipe": {"decoder": name}, "weights": {began_with.name: began_with.sha256, "tiny-encoder": listed(package, "tiny-encoder").sha256}})
    write_json(run / "proof.json", {})
    return run


def test_the_new_file_takes_the_place_of_the_old(package: Path, finished: Path) -> None:
    """Bytes, sha256 and source are the new file's in every entry of the old one; names, labels and all other entries stay."""
    manifest = package / "weights_manifest.json"
    before = Manifest.read(manifest)
    files = relist(finished, package / "tiny", manifest, sources=SOURCES)
    after = Manifest.read(manifest)
    (file,) = files.values()
    assert file.read_bytes() == b"new weights"
    for name, labels in (("tiny-lungs", ("lung_left",)), ("tiny-lungs_experimental", ("lung_right",))):
        new = after.asset(name)
        assert (new.bytes, new.sha256, new.labels, new.sources) == (11, sha256_of(file), labels, (f"{SOURCES}{file.name}",))
    same = [asset for asset in before.assets if "lungs" not in asset.name]
    assert same == [asset for asset in after.assets if "lungs" not in asset.name]
    assert len(same) == 2
    assert after.models == before.models


def test_runs_that_build_on_each_other_are_exported_in_their_order(package: Path, finished: Path, tmp_path: Path) -> None:
    """The second began with the first's file, which the manifest lists only when the first is exported; the same run twice is refused likewise."""
    manifest = package / "weights_manifest.json"
    then = replace(listed(package, "tiny-lungs"), name="tiny-lungs.2", sha256=sha256_of(finished / "weights" / "tiny-lungs.safetensors"))
    second = a_run(tmp_path / "second", package, then, b"newer")
    text = manifest.read_bytes()
    with pytest.raises(WeightsError, match="does not list the file of 'tiny-lungs' that this run began with"):
        relist(second, package / "tiny", manifest, sources=SOURCES)
    assert manifest.read_bytes() == text
    relist(finished, package / "tiny", manifest, sources=SOURCES)
    with pytest.raises(WeightsError, match="began with"):
        relist(finished, package / "tiny", manifest, sources=SOURCES)
    relist(second, package / "tiny", manifest, sources=SOURCES)
    assert listed(package, "tiny-lungs").bytes == len(b"newer")


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
    assert (done.returncode, done.stdout) == (0, f"tiny-lungs\t{package / 'tiny' / 'tiny-lungs.safetensors'}\n")
    assert listed(package, "tiny-lungs").sources == ("tiny/tiny-lungs.safetensors",)
    refused = clseg("export", finished)
    assert refused.returncode == 2
    assert "in which manifest are they to be listed?" in refused.stderr
