"""Facts about the user's own weights: what is added works at once, stays, and never harms what was there."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from clseg.errors import OutputError, TrainingError, UnknownName, WeightsError
from clseg.manifest import FILE_NAME, Asset, Manifest, Model
from clseg.network.checkpoint import Checkpoint, fingerprint, save
from clseg.pipeline import segment
from clseg.volume import Volume
from clseg.weights import own
from clseg.weights.cache import manifest
from tests.conftest import tiny_checkpoints, write_tiny_model
from tests.small_dataset import scan

ROOT = Path(__file__).parents[1]
MODEL = Model("tiny", "grown", "MIT")
Package = Callable[[int], Manifest]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """`package(seed)`: from now on the builtin manifest holds the model "tiny" with the random weights of this seed."""

    def install(seed: int) -> Manifest:
        folder = tmp_path / f"package{seed}"
        write_tiny_model(folder, {"trunk": ("body",)}, seed=seed)
        builtin = Manifest.read(folder / FILE_NAME)
        monkeypatch.setattr(Manifest, "builtin", classmethod(lambda cls: builtin))
        return builtin

    return install


def fake(name: str, content: bytes, folder: Path, **facts: object) -> dict[Asset, Path]:
    """Any bytes as an asset: `add` looks at names and hashes alone."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    file.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    plain = {"kind": "decoder", "labels": (f"{name}_organ",), "requires": ("tiny-encoder",), "licence": "MIT", **facts}
    return {Asset(name=name, file=file.name, bytes=len(content), sha256=digest, **plain): file}  # type: ignore[arg-type]


def needed(builtin: Manifest, *names: str) -> dict[Asset, Path]:
    wanted = [builtin.asset(name) for name in names or ("tiny-encoder",)]
    return {asset: asset.folder / asset.sources[0] for asset in wanted if asset.folder}


def learned(folder: Path, seed: int) -> dict[Asset, Path]:
    """A real decoder of the spleen on the encoder of this seed."""
    encoder, decoders = tiny_checkpoints({"mine": ("spleen",)}, seed=seed)
    part = decoders["mine"]
    folder.mkdir(exist_ok=True)
    save(folder / "mine.safetensors", Checkpoint("decoder", part.spec, part.tensors, fingerprint(encoder.tensors, encoder.spec)))
    content = (folder / "mine.safetensors").read_bytes()
    return fake("tiny-mine", content, folder, labels=("spleen",))


def snapshot(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file() and not p.name.endswith(".lock")}


def part_of(ct: Volume) -> Volume:
    return Volume(np.asfortranarray(ct.array[8:32, 4:24, 12:36]), ct.affine)


def test_what_is_added_can_be_asked_for(package: Package, own_home: Path, tmp_path: Path) -> None:
    """After `add` the model paints the new structure beside the old ones, and the package's own list is as it was."""
    builtin = package(0)
    added = own.add(MODEL, learned(tmp_path / "run", 0), needed(builtin))
    assert added == Manifest.read(own_home / FILE_NAME)
    assert set(manifest().labels_of("tiny")) == {"body", "spleen"}
    assert set(builtin.labels_of("tiny")) == {"body"}
    result = segment(part_of(scan("a")[0]), ("spleen", "body"), model="tiny", device="cpu", offline=True)
    assert set(result.names) == {"body", "spleen"}


def test_the_users_manifest_is_complete_in_itself(package: Package, own_home: Path, tmp_path: Path) -> None:
    """It lists the encoder, too, under a name with its digits; all files lie under models/, byte for byte."""
    builtin = package(0)
    own.add(MODEL, learned(tmp_path / "run", 0), needed(builtin))
    alone = Manifest.read(own_home / FILE_NAME)
    digits = builtin.asset("tiny-encoder").sha256[:8]
    assert [asset.name for asset in alone.assets] == [f"tiny-encoder.{digits}", "tiny-mine"]
    assert alone.asset("tiny-mine").requires == (f"tiny-encoder.{digits}",)
    assert alone.model("tiny").assets == ("tiny-mine",)
    for asset in alone.assets:
        assert asset.sources == (asset.file,)
        assert hashlib.sha256((own_home / asset.file).read_bytes()).hexdigest() == asset.sha256
    assert {Path(asset.file).parent.name for asset in alone.assets} == {"models"}


def test_adding_twice_is_adding_once(package: Package, own_home: Path, tmp_path: Path) -> None:
    """A run that is published again changes no byte."""
    builtin, mine = package(0), learned(tmp_path / "run", 0)
    own.add(MODEL, mine, needed(builtin))
    before = snapshot(own_home)
    own.add(MODEL, mine, needed(builtin))
    assert snapshot(own_home) == before


def test_an_own_decoder_keeps_the_encoder_it_was_trained_on(package: Package, tmp_path: Path) -> None:
    """A new version of the package with another encoder: the own structure comes out as before, voxel for voxel, and the package's work, too."""
    builtin, ct = package(0), part_of(scan("a")[0])
    own.add(MODEL, learned(tmp_path / "run", 0), needed(builtin))
    before = segment(ct, "spleen", model="tiny", device="cpu", offline=True)
    newer = package(1)
    assert newer.asset("tiny-encoder").sha256 != builtin.asset("tiny-encoder").sha256
    after = segment(ct, "spleen", model="tiny", device="cpu", offline=True)
    assert np.array_equal(after.mask("spleen"), before.mask("spleen"))
    assert after.facts["model"]["weights"] == before.facts["model"]["weights"]
    assert builtin.asset("tiny-encoder").sha256 in after.facts["model"]["weights"].values()
    body = segment(ct, "body", model="tiny", device="cpu", offline=True)
    assert newer.asset("tiny-encoder").sha256 in body.facts["model"]["weights"].values()


def test_a_new_encoder_does_not_take_the_model_away(package: Package, tmp_path: Path) -> None:
    """After such an update all structures of the model can still be asked for in one call."""
    builtin, ct = package(0), part_of(scan("a")[0])
    own.add(MODEL, learned(tmp_path / "run", 0), needed(builtin))
    package(1)
    assert set(segment(ct, model="tiny", device="cpu", offline=True).names) == {"body", "spleen"}


def test_supporters_come_along(package: Package, own_home: Path, tmp_path: Path) -> None:
    """What is required besides the encoder is kept under a name with digits, which the new entry names."""
    builtin = package(0)
    own.add(MODEL, fake("tiny-x", b"x", tmp_path, requires=("tiny-encoder", "tiny-trunk")), needed(builtin, "tiny-encoder", "tiny-trunk"))
    names = [f"{name}.{builtin.asset(name).sha256[:8]}" for name in ("tiny-encoder", "tiny-trunk")]
    mine = Manifest.read(own_home / FILE_NAME)
    assert mine.asset("tiny-x").requires == tuple(names)
    assert mine.asset(names[1]).requires == (names[0],)
    assert "body" not in mine.labels_of("tiny")


def test_what_has_digits_gets_no_more(package: Package, own_home: Path, tmp_path: Path) -> None:
    """A decoder that builds on own weights names them as they are called already."""
    builtin = package(0)
    own.add(MODEL, fake("tiny-x", b"x", tmp_path), needed(builtin))
    kept = Manifest.read(own_home / FILE_NAME).assets[0]
    own.add(MODEL, fake("tiny-y", b"y", tmp_path, requires=(kept.name,)), {kept: own_home / kept.file})
    assert [a.name for a in Manifest.read(own_home / FILE_NAME).assets] == [kept.name, "tiny-x", "tiny-y"]


def test_a_name_never_changes_its_contents(package: Package, own_home: Path, tmp_path: Path) -> None:
    """Other weights under a listed name are refused in one sentence before anything is written."""
    builtin = package(0)
    own.add(MODEL, fake("tiny-x", b"x", tmp_path), needed(builtin))
    before = snapshot(own_home)
    with pytest.raises(WeightsError, match="'tiny-x' are listed .* with other contents"):
        own.add(MODEL, fake("tiny-x", b"other", tmp_path), needed(builtin))
    assert snapshot(own_home) == before


def test_a_damaged_copy_is_replaced(package: Package, own_home: Path, tmp_path: Path) -> None:
    """A kept file of the right size with a wrong byte is written anew."""
    builtin, mine = package(0), fake("tiny-x", b"good", tmp_path)
    own.add(MODEL, mine, needed(builtin))
    kept = own_home / Manifest.read(own_home / FILE_NAME).asset("tiny-x").file
    kept.write_bytes(b"bads")
    own.add(MODEL, mine, needed(builtin))
    assert kept.read_bytes() == b"good"


@pytest.mark.parametrize("error", [TrainingError("no"), KeyboardInterrupt(), MemoryError(), RuntimeError("torch"), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("there", ["nothing", "a list", "a list in other spelling"])
def test_an_addition_on_trial_is_taken_back(package: Package, own_home: Path, tmp_path: Path, error: BaseException, there: str) -> None:
    """Whatever ends the trial, the manifest has its former bytes, or is gone if there was none; the error comes out."""
    builtin = package(0)
    path = own_home / FILE_NAME
    if there != "nothing":
        own.add(MODEL, fake("tiny-x", b"x", tmp_path), needed(builtin))
    if there.endswith("spelling"):
        path.write_text(json.dumps(json.loads(path.read_text())))
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(type(error)), own.added(MODEL, fake("tiny-y", b"y", tmp_path), needed(builtin)):
        assert "tiny-y_organ" in manifest().labels_of("tiny")
        raise error
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("first", [True, False])
def test_what_others_list_during_a_trial_stays(package: Package, own_home: Path, tmp_path: Path, first: bool) -> None:
    """Another decoder that was listed during the trial is there after it failed; the failed one is not."""
    builtin = package(0)
    if not first:
        own.add(MODEL, fake("tiny-x", b"x", tmp_path), needed(builtin))
    before = {asset.name for asset in manifest().listed("tiny")}
    with pytest.raises(TrainingError), own.added(MODEL, fake("tiny-y", b"y", tmp_path), needed(builtin)):
        own.add(MODEL, fake("tiny-z", b"z", tmp_path), needed(builtin))
        raise TrainingError("no")
    assert {asset.name for asset in manifest().listed("tiny")} == before | {"tiny-z"}
    assert "tiny-y" not in {asset.name for asset in Manifest.read(own_home / FILE_NAME).assets}


def test_a_new_model_that_failed_its_trial_is_gone(package: Package, own_home: Path, tmp_path: Path) -> None:
    """Even when another process has listed something elsewhere meanwhile."""
    builtin = package(0)
    new = Model("other", "d", "MIT", ("tiny-encoder",))
    with pytest.raises(TrainingError), own.added(new, fake("other-y", b"y", tmp_path), needed(builtin)):
        own.add(MODEL, fake("tiny-z", b"z", tmp_path), needed(builtin))
        raise TrainingError("no")
    assert [model.name for model in Manifest.read(own_home / FILE_NAME).models] == ["tiny"]


MANY = """
import sys
from pathlib import Path
from clseg.weights import own
from tests.test_own import MODEL, fake
encoder = fake("tiny-encoder", b"encoder", Path(sys.argv[2]), kind="encoder", labels=(), requires=())
for number in range(8):
    own.add(MODEL, fake(f"tiny-{sys.argv[1]}{number}", f"{sys.argv[1]}{number}".encode(), Path(sys.argv[2])), encoder)
"""


def test_two_processes_at_once_lose_nothing(own_home: Path, tmp_path: Path) -> None:
    """Eight additions each, at the same time: sixteen decoders are listed, with their files."""
    both = [subprocess.Popen([sys.executable, "-c", MANY, name, str(tmp_path / name)], cwd=ROOT) for name in "ab"]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    listed = Manifest.read(own_home / FILE_NAME)
    assert set(listed.model("tiny").assets) == {f"tiny-{name}{number}" for name in "ab" for number in range(8)}
    assert all((own_home / asset.file).stat().st_size == asset.bytes for asset in listed.assets)


def test_a_home_that_cannot_be_written_is_one_sentence(package: Package, tmp_path: Path) -> None:
    """No folder can be made below a file: the sentence says where, the tip what to do."""
    builtin = package(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Own weights cannot be kept in .*file/home: Not a directory") as caught:
        own.add(MODEL, fake("tiny-x", b"x", tmp_path), needed(builtin), home=tmp_path / "file" / "home")
    assert "CLSEG_HOME" in str(caught.value.tip)


@pytest.mark.parametrize("where", ["weights", "manifest"])
def test_a_full_disk_changes_nothing(package: Package, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Whether the weights or the manifest do not fit: one sentence, the list as it was, no half file."""
    builtin = package(0)
    own.add(MODEL, fake("tiny-x", b"x", tmp_path), needed(builtin))
    before = snapshot(own_home)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full) if where == "weights" else patch.setattr("clseg.manifest.os.replace", full)
        with pytest.raises(OutputError, match=r"full|No space left"):
            own.add(MODEL, fake("tiny-y", b"x", tmp_path), needed(builtin))
    assert snapshot(own_home) == before


def test_a_lock_that_is_never_freed_is_one_sentence(package: Package, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After waiting, the addition is refused and nothing is listed."""
    builtin = package(0)
    monkeypatch.setattr(own, "LOCK_S", 0.05)
    with FileLock(own_home / f".{FILE_NAME}.lock"), pytest.raises(OutputError, match="lock"):
        own.add(MODEL, fake("tiny-x", b"x", tmp_path), needed(builtin))
    assert not (own_home / FILE_NAME).exists()


def test_a_model_is_removed_with_what_only_it_needs(package: Package, own_home: Path, tmp_path: Path) -> None:
    """Its decoder goes, list entry and file; the encoder that another model of one's own needs stays until that goes, too."""
    builtin = package(0)
    own.add(replace(MODEL, name="one"), fake("one-dec", b"1", tmp_path), needed(builtin))
    own.add(replace(MODEL, name="two"), fake("two-dec", b"2", tmp_path), needed(builtin))
    [encoder] = (own_home / "models").glob("tiny-encoder*")
    assert [path.name[:8] for path in own.remove("one")] == ["one-dec."]
    assert encoder.is_file()
    assert [model.name for model in Manifest.read(own_home / FILE_NAME).models] == ["two"]
    assert len(own.remove("two")) == 2
    assert list((own_home / "models").iterdir()) == []
    with pytest.raises(UnknownName, match="Unknown model 'two'"):
        own.remove("two")
    with pytest.raises(UnknownName, match="Unknown model 'tiny'"):
        own.remove("tiny")  # the package's
    assert manifest() == builtin
