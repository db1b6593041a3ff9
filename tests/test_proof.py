"""Facts about the proof that nothing was forgotten: it sees every changed voxel and every changed file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from clseg.errors import TrainingError, UnknownName, WeightsError
from clseg.manifest import FILE_NAME, Manifest
from clseg.pipeline import segment
from clseg.training.proof import Proof, Witness, compare, demand, probe_scan, witness
from clseg.volume import Volume
from tests.conftest import write_tiny_model
from tests.small_dataset import scan, write_nifti

MASKS = arrays.arrays(bool, (3, 4, 5))


@pytest.fixture(scope="module")
def probe() -> Volume:
    ct = scan("a")[0]
    return Volume(np.asfortranarray(ct.array[8:32, 4:24, 12:36]), ct.affine)


def seen(**masks: np.ndarray) -> Witness:
    return Witness("m", {"w": "1"}, {name: np.packbits(mask) for name, mask in masks.items()})


@given(MASKS, MASKS)
def test_every_changed_voxel_is_counted(before: np.ndarray, after: np.ndarray) -> None:
    """The count is the number of voxels that differ, whatever the masks."""
    proof = compare(seen(a=before, b=before), seen(a=after, b=before))
    assert proof.changed == {"a": int((before != after).sum()), "b": 0}
    assert proof.holds == bool((before == after).all())
    assert proof.sentence == f"{(before != after).sum()} voxels changed in 2 structures"


@given(MASKS)
def test_a_structure_that_is_gone_has_changed(mask: np.ndarray) -> None:
    """In every voxel that it had."""
    assert compare(seen(a=mask), seen()).changed == {"a": int(mask.sum())}


def test_what_is_new_is_no_change() -> None:
    """Structures and weights that were not there before do not count."""
    ones = np.ones((2, 2, 2), bool)
    proof = compare(Witness("m", {"w": "1"}, {}), Witness("m", {"w": "1", "x": "2"}, {"a": np.packbits(ones)}))
    assert proof == Proof({"w": ("1", "1")}, {})
    assert proof.holds


def test_other_weights_break_the_proof() -> None:
    """A hash that differs, or is gone, is told by name, though no voxel changed."""
    proof = compare(Witness("m", {"same": "1", "other": "1", "gone": "1"}, {}), Witness("m", {"same": "1", "other": "2"}, {}))
    assert proof.weights == {"same": ("1", "1"), "other": ("1", "2"), "gone": ("1", None)}
    with pytest.raises(TrainingError, match="weights changed: other, gone") as caught:
        demand(proof)
    assert "0 voxels changed" in caught.value.message


def test_one_voxel_breaks_the_proof() -> None:
    """And a proof that holds demands nothing."""
    demand(Proof({"w": ("1", "1")}, {"a": 0}))
    with pytest.raises(TrainingError, match="1 voxels changed in 2 structures; weights changed: none"):
        demand(Proof({"w": ("1", "1")}, {"a": 0, "b": 1}))


def test_the_proof_as_json() -> None:
    """Statement, hashes before and after, and voxels per structure."""
    told = json.loads(json.dumps(Proof({"w": ("1", None)}, {"a": 3, "b": 0}).to_dict()))
    assert told == {
        "statement": "3 voxels changed in 2 structures",
        "weights": {"w": {"before": "1", "after": None}},
        "voxels_changed": {"a": 3, "b": 0},
    }


def test_a_witness_survives_the_disk(tmp_path: Path) -> None:
    """Written and read it is the same, without pickle; an unfinished one never has its name."""
    first = seen(lung_left=scan("a")[1]["lung_left"], body=scan("a")[1]["body"])
    first.save(tmp_path / "before.npz")
    again = Witness.read(tmp_path / "before.npz")
    assert (again.model, again.weights, list(again.masks)) == (first.model, first.weights, list(first.masks))
    assert compare(first, again).holds
    assert [p.name for p in tmp_path.iterdir()] == ["before.npz"]


def test_witnessing_is_segmenting(tiny_model: Callable[..., Path], probe: Volume) -> None:
    """Masks are what `segment` gives a user, hashes those of the manifest; structures not asked for are left out."""
    home = tiny_model()
    now = witness("tiny", ["body", "liver"], probe, ["tiny-encoder", "tiny-trunk"])
    users = segment(probe, ("body", "liver"), model="tiny", device="cpu", offline=True)
    assert set(now.masks) == {"body", "liver"}
    assert all(np.array_equal(np.unpackbits(now.masks[n])[: probe.array.size].reshape(probe.shape), users.mask(n)) for n in now.masks)
    listing = Manifest.read(home / FILE_NAME)
    assert now.weights == {name: listing.asset(name).sha256 for name in ("tiny-encoder", "tiny-trunk")}
    assert compare(now, witness("tiny", now.masks, probe, now.weights)).holds
    assert witness("tiny", (), probe, ["tiny-encoder"]).masks == {}


def test_another_decoder_is_seen(tiny_model: Callable[..., Path], own_home: Path, probe: Volume) -> None:
    """Other weights under the same names: the proof is broken by hash, and by voxel where the answer differs."""
    tiny_model()
    before = witness("tiny", ["body", "liver"], probe, ["tiny-trunk"])
    write_tiny_model(own_home, {"trunk": ("body",), "abdomen": ("liver", "spleen")}, seed=1)
    proof = compare(before, witness("tiny", before.masks, probe, before.weights))
    assert {name for name, (was, now) in proof.weights.items() if was != now} == {"tiny-encoder", "tiny-trunk"}
    assert sum(proof.changed.values()) > 0


def test_a_changed_file_is_refused(tiny_model: Callable[..., Path], probe: Volume) -> None:
    """A file that is not what the manifest says is never segmented with."""
    home = tiny_model()
    file = home / "tiny" / "tiny-trunk.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match="sha256"):
        witness("tiny", ["body"], probe, ["tiny-trunk"])


def test_an_asset_that_is_gone_is_named(tiny_model: Callable[..., Path], probe: Volume) -> None:
    """What was listed before and is listed no more cannot be proved anything about."""
    tiny_model()
    with pytest.raises(UnknownName, match="tiny-gone"):
        witness("tiny", [], probe, ["tiny-gone"])


def test_the_probe_is_a_scan_or_a_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path relative to the recipe's folder; without one the synthetic torso."""
    monkeypatch.setattr("clseg.phantom.phantom", lambda: scan("b"))
    write_nifti(tmp_path / "ct.nii.gz", scan("a")[0].array, scan("a")[0])
    assert np.array_equal(probe_scan("ct.nii.gz", tmp_path).array, scan("a")[0].array)
    assert probe_scan("", tmp_path) is scan("b")[0]


def test_a_damaged_witness_is_told(tmp_path: Path) -> None:
    """before.npz cut short: nobody knows what the model was, which is a sentence."""
    file = tmp_path / "before.npz"
    Witness("tiny", {"tiny-lungs": "12"}, {"liver": np.packbits(np.ones(64, bool))}).save(file)
    assert Witness.read(file).weights == {"tiny-lungs": "12"}
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(TrainingError, match=r"before\.npz is damaged"):
        Witness.read(file)
