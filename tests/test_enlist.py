"""Facts about exporting what was learned: decoders join their model in any manifest that lists the encoder they stand on, experimental structures apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clseg.errors import TrainingError, WeightsError
from clseg.io.files import sha256_of
from clseg.manifest import Manifest
from clseg.pipeline import segment
from clseg.training.enlist import enlist, is_of_learned
from clseg.training.learn import learn
from clseg.weights.cache import manifest
from clseg.weights.sources import Sources
from tests.small_dataset import BODY, SOLID
from tests.test_cli_train import clseg
from tests.test_learn import quick, run

pytestmark = pytest.mark.usefixtures("without_plots")

SOURCES = "package:weights/"


@pytest.fixture
def package(workplace: Path, own_home: Path) -> Path:
    """The manifest of the model "tiny" as somebody hands it on, without what is learned here since."""
    copy = own_home / "package.json"
    Manifest.read(own_home / "weights_manifest.json").write(copy)
    return copy


@pytest.fixture
def finished(package: Path, workplace: Path) -> Path:
    """A run that has learned a decoder of two structures, one experimental, supported by one of the model and one of its own."""
    solid = SOLID.replace('["lungs"]', '["lungs", "body"]\nexperimental = ["skeleton"]')
    learn(quick(workplace, solid + BODY), run(workplace))
    return run(workplace)


def test_decoders_join_their_model(package: Path, finished: Path) -> None:
    """Entries name file, sha256, source, encoder and supporters as this manifest calls them; what it listed stays."""
    before = Manifest.read(package)
    files = enlist(finished, package.parent / "tiny", package, sources=SOURCES)
    after = Manifest.read(package)
    assert {name: file.read_bytes() for name, file in files.items()} == {name: (finished / "weights" / f"{name}.safetensors").read_bytes() for name in ("body", "solid")}
    solid, experiment = after.asset("tiny-solid"), after.asset("tiny-solid_experimental")
    assert (solid.labels, experiment.labels) == (("liver",), ("skeleton",))
    assert solid.requires == experiment.requires == ("tiny-encoder", "tiny-lungs", "tiny-body")
    assert solid.sha256 == experiment.sha256 == sha256_of(files["solid"])
    assert (solid.file, solid.sources) == ("tiny/solid.safetensors", (f"{SOURCES}solid.safetensors",))
    assert [asset for asset in after.assets if asset in before.assets] == list(before.assets)
    assert set(after.labels_of("tiny")) == {*before.labels_of("tiny"), "body", "liver"}
    assert set(after.labels_of("tiny_experimental")) == {"skeleton"}
    assert "tiny-encoder" in after.model("tiny_experimental").assets


def test_a_model_may_be_called_experimental(workplace: Path, own_home: Path) -> None:
    """Its name decides nothing: what was learned into it is listed in it."""
    learn(quick(workplace, BODY, into="mine_experimental"), run(workplace, "first"))
    listed = own_home / "handed_on.json"
    Manifest.read(own_home / "weights_manifest.json").write(listed)
    learn(quick(workplace, SOLID.replace('["lungs"]', "[]"), into="mine_experimental"), run(workplace, "second"))
    enlist(run(workplace, "second"), own_home / "there", listed, sources="there/")
    assert set(Manifest.read(listed).labels_of("mine_experimental")) == {"body", "liver", "skeleton"}


def test_a_supporter_may_be_another_models(workplace: Path, own_home: Path) -> None:
    """Decoders learned into a model of their own, one supported by the model with the encoder: a list that has both takes them."""
    learn(quick(workplace, BODY, into="mine"), run(workplace, "first"))
    listed = own_home / "handed_on.json"
    Manifest.read(own_home / "weights_manifest.json").write(listed)
    learn(quick(workplace, SOLID, into="mine"), run(workplace, "second"))
    enlist(run(workplace, "second"), own_home / "there", listed, sources="there/")
    lungs, after = manifest().asset("tiny-lungs"), Manifest.read(listed)
    assert lungs.sha256 in {after.asset(name).sha256 for name in after.asset("mine-solid").requires}
    found = segment(workplace / "probe.nii.gz", "liver", model="mine", device="cpu", offline=True, sources=Sources(manifest=str(listed)))
    assert set(found.names) == {"liver"}


def test_what_others_were_trained_on_is_not_replaced(package: Path, finished: Path, workplace: Path) -> None:
    """Another decoder of the same name would leave behind one that is supported by the first: refused, and nothing is written."""
    (package.parent / "weights_manifest.json").write_bytes(package.read_bytes())  # as if nothing had been learned here
    enlist(finished, package.parent / "tiny", package, sources=SOURCES)
    learn(quick(workplace, BODY, seed=8), run(workplace, "again"))
    text, weights = package.read_bytes(), (package.parent / "tiny" / "body.safetensors").read_bytes()
    with pytest.raises(WeightsError, match="lists 'tiny-solid', which was trained on 'tiny-body' as it is there"):
        enlist(run(workplace, "again"), package.parent / "tiny", package, sources=SOURCES)
    assert (package.read_bytes(), (package.parent / "tiny" / "body.safetensors").read_bytes()) == (text, weights)


def test_a_second_time_changes_nothing(package: Path, finished: Path) -> None:
    """The same run again: the same list, byte for byte."""
    enlist(finished, package.parent / "tiny", package, sources=SOURCES)
    once = package.read_bytes()
    enlist(finished, package.parent / "tiny", package, sources=SOURCES)
    assert package.read_bytes() == once


def test_it_segments(package: Path, finished: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the manifest says is enough to segment with, elsewhere."""
    enlist(finished, package.parent / "tiny", package, sources="tiny/")
    package.replace(package.with_name("weights_manifest.json"))
    assert manifest().asset("tiny-body").folder == package.parent
    found = segment(workplace / "probe.nii.gz", ("liver", "body"), model="tiny", device="cpu", offline=True)
    assert set(found.names) == {"liver", "body"}


@pytest.mark.parametrize("what", ["tiny-encoder", "tiny-lungs"])
def test_other_weights_than_those_it_stands_on_are_refused(package: Path, finished: Path, what: str) -> None:
    """Another encoder or supporter under the same name: nothing is copied or listed."""
    listing = json.loads(package.read_text())
    listing["assets"][what]["sha256"] = "0" * 64
    package.write_text(json.dumps(listing))
    with pytest.raises(WeightsError, match=f"does not list '{what}' in 'tiny' with the contents"):
        enlist(finished, package.parent / "there", package, sources=SOURCES)
    assert json.loads(package.read_text()) == listing
    assert not (package.parent / "there").exists()


@pytest.mark.parametrize("lost", ["proof.json", "weights/body.safetensors"])
def test_an_unfinished_run_is_refused(package: Path, finished: Path, lost: str) -> None:
    (finished / lost).unlink()
    with pytest.raises(TrainingError, match="decoders that are not finished"):
        enlist(finished, package.parent / "tiny", package, sources=SOURCES)


def test_the_command(package: Path, finished: Path) -> None:
    """`clseg export RUN` says what came where; without a manifest exit code 2."""
    assert is_of_learned(finished)
    done = clseg("export", finished, "--into", package.parent / "tiny", "--manifest", package)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{name}\t{package.parent / 'tiny' / name}.safetensors\n" for name in ("solid", "body"))
    assert Manifest.read(package).asset("tiny-body").sources == ("tiny/body.safetensors",)
    refused = clseg("export", finished)
    assert refused.returncode == 2
    assert "in which manifest are they to be listed?" in refused.stderr
