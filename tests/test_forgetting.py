"""The promise: whatever a model learns, in whatever order, what it knew comes out bit for bit as before; otherwise nothing is listed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import TrainingError
from clseg.manifest import FILE_NAME
from clseg.pipeline import segment
from clseg.recipe import LearnRecipe, read_recipe
from clseg.training import publish
from clseg.training.learn import Learned, learn
from clseg.training.proof import Witness
from clseg.volume import Volume
from clseg.weights.cache import manifest
from tests.small_dataset import BODY, learn_recipe, write_nifti

pytestmark = pytest.mark.usefixtures("without_plots")

ORGANS = ("liver", "heart", "body")
QUICK = (("liver", "heart", "body"), ("body", "heart", "liver"))  # the other orders take their time
TINY_LADDER = "[ladder]\nstructured = [0.5]\nunstructured = [0.5]\nmultiple = [2]\niterations = 1\nrecovery = 1\nallowed_loss = 1.0\n"


class PowerCut(Exception):
    """An error that nobody foresaw."""


def recipe_for(workplace: Path, organ: str) -> LearnRecipe:
    """One decoder for one organ; the liver's is supported by the lungs that the model has from the start, the heart is a lung by another name."""
    decoder = BODY.replace('"body"', f'"{organ}"') + ('supporters = ["lungs"]\n' if organ == "liver" else "")
    recipe = learn_recipe(workplace, decoder, TINY_LADDER, "[support]\niterations = 1", name=organ)
    mapped, masked = recipe.dataset
    masked = replace(masked, masks={**masked.masks, "heart": "lungs.nii.gz:1"})
    return replace(recipe, optim=replace(recipe.optim, iterations=4), dataset=(mapped, masked))


def seen(workplace: Path, model: str = "tiny") -> dict[str, bytes]:
    """The mask of every structure of the model on the probe, all asked for in one call, as bytes."""
    result = segment(workplace / "probe.nii.gz", sorted(manifest().labels_of(model)), model=model, device="cpu", offline=True)
    return {name: result.mask(name).tobytes() for name in result.names}


def alone(workplace: Path, names: list[str]) -> dict[str, bytes]:
    """The masks of these structures when they are what is asked for."""
    result = segment(workplace / "probe.nii.gz", names, model="tiny", device="cpu", offline=True)
    return {name: result.mask(name).tobytes() for name in names}


def files(home: Path) -> dict[str, str]:
    """sha256 of every weights file of the user."""
    return {str(p.relative_to(home)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(home.rglob("*.safetensors"))}


FIRST: dict[str, bytes] = {}  # the weights of every organ, as they were first learned


@pytest.mark.parametrize("order", [pytest.param(o, marks=() if o in QUICK else pytest.mark.slow, id="-".join(o)) for o in permutations(ORGANS)])
def test_nothing_is_forgotten_in_any_order(workplace: Path, own_home: Path, order: tuple[str, ...]) -> None:
    """After each of three runs the masks of all earlier structures and the bytes of all earlier files are the same, proof and card say so.

    And a decoder does not depend on what was learned before it, as long as that is none of its supporters.
    """
    known = ["lung_left", "lung_right"]
    for organ in order:
        masks, weights = alone(workplace, known), files(own_home)
        learned = learn(recipe_for(workplace, organ), workplace / "runs" / organ)
        assert alone(workplace, known) == masks
        assert {name: files(own_home)[name] for name in weights} == weights
        assert learned.proof is not None
        assert learned.proof.changed == dict.fromkeys(known, 0)
        assert learned.proof.sentence == f"0 voxels changed in {len(known)} structures"
        assert all(before == after for before, after in learned.proof.weights.values())
        stored = json.loads((workplace / "runs" / organ / "proof.json").read_text())
        card = json.loads((own_home / "models" / f"tiny-{organ}.card.json").read_text())
        assert stored == card["proof"] == learned.proof.to_dict()
        known.append(organ)
        assert FIRST.setdefault(organ, learned.files[organ].read_bytes()) == learned.files[organ].read_bytes()
    assert set(seen(workplace)) == set(known)


def test_every_earlier_decoder_is_in_the_proof(workplace: Path) -> None:
    """The second proof names the encoder, what was there, what the first run added, and what those require."""
    learn(recipe_for(workplace, "liver"), workplace / "runs" / "one")
    learned = learn(recipe_for(workplace, "body"), workplace / "runs" / "two")
    assert learned.proof is not None
    assert {"tiny-encoder", "tiny-lungs", "tiny-liver"} <= set(learned.proof.weights)
    assert learned.proof.weights["tiny-liver"][0] == manifest().asset("tiny-liver").sha256


# ---- a faulty publication is taken back -------------------------------------------------------------------------------


def wrong_masks(patch: pytest.MonkeyPatch) -> type[BaseException]:
    """One voxel of one earlier structure comes out otherwise after listing."""
    inner, calls = publish.witness, []

    def spoiled(*args: object) -> Witness:
        made = inner(*args)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            changed = made.masks["lung_left"].copy()
            changed[7] ^= 1
            return replace(made, masks={**made.masks, "lung_left": changed})
        return made

    patch.setattr(publish, "witness", spoiled)
    return TrainingError


def wrong_weights(patch: pytest.MonkeyPatch) -> type[BaseException]:
    """An earlier file has another hash after listing."""
    inner, calls = publish.witness, []

    def spoiled(*args: object) -> Witness:
        made = inner(*args)  # type: ignore[arg-type]
        calls.append(1)
        return replace(made, weights={**made.weights, "tiny-lungs": "0" * 64}) if len(calls) == 2 else made

    patch.setattr(publish, "witness", spoiled)
    return TrainingError


def crash(error: type[BaseException]) -> Callable[[pytest.MonkeyPatch], type[BaseException]]:
    """Something breaks while the model is looked at again."""

    def moment(patch: pytest.MonkeyPatch) -> type[BaseException]:
        def broken(*_: object) -> None:
            raise error

        patch.setattr(publish, "compare", broken)
        return error

    return moment


def no_cards(patch: pytest.MonkeyPatch) -> type[BaseException]:
    """The disk is full when the card is written."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(publish, "write_json", full)
    return OSError


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["first addition", "second addition"])
@pytest.mark.parametrize(
    "fault",
    [wrong_masks, wrong_weights, crash(PowerCut), crash(KeyboardInterrupt), crash(MemoryError), no_cards],
    ids=["masks", "weights", "unforeseen", "Ctrl-C", "memory", "disk"],
)
def test_a_faulty_publication_is_taken_back(
    workplace: Path, own_home: Path, fault: Callable[[pytest.MonkeyPatch], type[BaseException]], first: bool
) -> None:
    """The user's manifest is byte for byte what it was, the model as it was; resumed without the fault, the same run is listed."""
    if not first:
        learn(recipe_for(workplace, "liver"), workplace / "runs" / "liver")
    before, masks = (own_home / FILE_NAME).read_bytes(), seen(workplace)
    with pytest.MonkeyPatch.context() as patch:
        error = fault(patch)
        with pytest.raises(error):
            learn(recipe_for(workplace, "body"), workplace / "runs" / "body")
    assert (own_home / FILE_NAME).read_bytes() == before
    assert seen(workplace) == masks
    assert not (workplace / "runs" / "body" / "proof.json").exists()
    learned = learn(recipe_for(workplace, "body"), workplace / "runs" / "body", resume=True)
    assert learned.proof is not None
    assert learned.proof.holds
    assert "body" in manifest().labels_of("tiny")


def test_the_sentence_about_a_faulty_publication(workplace: Path) -> None:
    """It says how many voxels of how many structures, and that nothing was listed."""
    with pytest.MonkeyPatch.context() as patch:
        wrong_masks(patch)
        with pytest.raises(TrainingError, match="1 voxels changed in 2 structures; weights changed: none.*were not listed"):
            learn(recipe_for(workplace, "body"), workplace / "runs" / "body")


# ---- real scans, the starter model ------------------------------------------------------------------------------------

REAL = """
name = "{name}"
seed = 5
threads = 1
device = "cpu"
model = "starter"
probe = "probe.nii.gz"

[[dataset]]
name = "real"
index = "{data}/index.csv"
cases = ["{case}"]

[[decoder]]
name = "{name}"
labels = {labels}
widths = [8, 8, 8, 8]
kernels = [3, 3, 3, 1]
convs = [1, 1, 1, 1]
supporters = {supporters}

[optim]
iterations = {steps}
batch = 1
warmup = 1
precision = "float32"
foreground = 1.0

[support]
iterations = 2

[validation]
split = "{split}"

[ladder]
structured = []
unstructured = []
"""

RUNS = {
    "vertebra": ("totalsegmentator_tests/example_ct", '["vertebrae_T12"]', "[]", "val"),
    "artery": ("totalsegmentator_tests/aorta_report_crop", '["pulmonary_artery"]', '["skeleton"]', "val"),
    "sarcoma": ("soft_tissue_sarcoma/STS_012", '["gtv_sarcoma"]', "[]", "val"),
}


@pytest.mark.slow
@pytest.mark.parametrize("order", [("vertebra", "artery", "sarcoma"), ("sarcoma", "vertebra", "artery")], ids="-".join)
def test_the_starter_model_forgets_nothing_on_real_scans(shared: Path, own_home: Path, tmp_path: Path, order: tuple[str, ...]) -> None:
    """Three runs on three real datasets: after each, what the starter model and the runs before it find in a real CT is the same, bit for bit."""
    probe(shared, tmp_path)
    known = ["lung_left", "lung_right", "body", "skeleton", "trachea", "spinal_cord"]
    for name in order:
        case, labels, supporters, split = RUNS[name]
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(REAL.format(name=name, case=case, labels=labels, supporters=supporters, split=split, data=shared / "data", steps=4))
        before, weights = real(tmp_path, known), files(own_home)
        learned: Learned = learn(read_recipe(recipe, LearnRecipe), tmp_path / "runs" / name)
        assert real(tmp_path, known) == before
        assert {file: digest for file, digest in files(own_home).items() if file in weights} == weights
        assert learned.proof is not None
        assert learned.proof.holds
        assert set(known) <= set(learned.proof.changed)
        known += json.loads(labels)
    assert any(any(mask) for mask in real(tmp_path, known).values())


def probe(shared: Path, folder: Path) -> None:
    """A crop of a real chest and belly, 40 mm of it."""
    from clseg.io.files import read

    ct = read(shared / "data" / "totalsegmentator_tests" / "aorta_report_crop" / "ct.nii.gz")
    corner = [max(0, n // 2 - 32) for n in ct.shape]
    part = tuple(slice(a, a + 64) for a in corner)
    affine = ct.affine.copy()
    affine[:3, 3] += ct.affine[:3, :3] @ corner
    write_nifti(folder / "probe.nii.gz", np.asfortranarray(ct.array[part]), Volume(np.asfortranarray(ct.array[part]), affine))


def real(folder: Path, names: list[str]) -> dict[str, bytes]:
    result = segment(folder / "probe.nii.gz", names, model="starter", device="cpu", offline=True)
    return {name: result.mask(name).tobytes() for name in names}
