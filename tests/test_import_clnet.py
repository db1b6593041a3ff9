"""`clseg weights import clnet` as a user runs it, and whole scans against the authors' own program."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clseg import pipeline
from clseg.cli.app import app
from clseg.inference import infer
from clseg.inference.bodypart import score_scan
from clseg.inference.engine import Engine
from clseg.inference.parts import load_parts
from clseg.inference.planned.predict import predict
from clseg.inference.planned.prepare import prepare
from clseg.inference.planned.run import answers_of, segment_planned
from clseg.io.files import read
from clseg.network.checkpoint import load
from clseg.network.model import assemble
from clseg.phantom import small_phantom
from clseg.progress import SILENT
from clseg.training.learn import learn
from clseg.weights.cache import fetch, manifest
from clseg.weights.importers.clnet import Imported, read_clnet
from tests.small_dataset import BODY, learn_recipe
from tests.small_release import Release

HALF = 0.5  # distance of windows in the references


def call(*words: object, code: int = 0) -> str:
    """What `clseg WORDS` says, on stdout and stderr together."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="clseg")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return Release().write(tmp_path / "release")


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """A tissue-like block of noise in air, 20 × 22 × 12 voxels of 3 × 3 × 5 mm, stored in LAS."""
    array = np.full((20, 22, 12), -1000, np.int16)
    array[2:18, 3:20, :] = np.random.default_rng(0).integers(-150, 250, (16, 17, 12))
    nib.save(nib.Nifti1Image(array, np.diag([-3.0, 3.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


# ---- the command ------------------------------------------------------------------------------------------------------


def test_a_release_becomes_a_model_that_segments(release: Path, ct: Path, tmp_path: Path) -> None:
    """Encoder and four heads under the authors' names, with the licence told; every structure is in one label map on the scan's grid."""
    told = call("weights", "import", "clnet", release, "--name", "theirs", "--licence", "not stated by the authors")
    for name in ("theirs-encoder encoder", "theirs-Trunk decoder 2 structures", "theirs-Lens decoder 1 structure ", "--model theirs"):
        assert name in told
    listing = manifest()
    assert listing.model("theirs").licence == "not stated by the authors"
    assert list(listing.labels_of("theirs")) == ["Organ_A", "liver", "Bone_R", "eye_left", "eye_right", "Lens"]
    call("-i", ct, "-o", tmp_path / "out.nii.gz", "--model", "theirs", "--device", "cpu", "--offline")
    found = read(tmp_path / "out.nii.gz")
    assert found.same_grid(read(ct), tolerance_mm=0)
    assert found.array.any()
    assert set(json.loads((tmp_path / "out.labels.json").read_text())) == set(listing.labels_of("theirs"))


def test_asking_for_a_supported_head_brings_its_supporter(release: Path) -> None:
    """The lens needs the eyes: both are loaded, only the lens answers."""
    call("weights", "import", "clnet", release, "-n", "theirs", "-q")
    assets = manifest().assets_for("theirs", ["Lens"])
    assert [one.name for one in assets] == ["theirs-encoder", "theirs-Eyes", "theirs-Lens"]
    (model,) = load_parts(assets, fetch(assets), {"theirs-Lens"}).planned
    assert (list(model.slices), model.supporters) == (["theirs-Lens"], {"theirs-Lens": ("theirs-Eyes",)})


def test_a_supporter_that_was_not_asked_for_does_not_answer(release: Path) -> None:
    """With `--head Lens` the eyes are there to support it and cannot be asked for."""
    call("weights", "import", "clnet", release, "-n", "theirs", "--head", "Lens")
    listing = manifest()
    assert list(listing.labels_of("theirs")) == ["Lens"]
    assert [one.kind for one in listing.assets_for("theirs", ["Lens"])] == ["encoder", "decoder", "decoder"]


def test_a_zip_and_the_configuration_alone_will_do(release: Path, tmp_path: Path) -> None:
    """Both give the same weights, by hash, as the folder."""
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        for file in release.rglob("*"):
            archive.write(file, file.relative_to(release.parent))
    for name, path in (("a", release), ("b", tmp_path / "release.zip"), ("c", release / "all_pred_cleaned.json")):
        call("weights", "import", "clnet", path, "-n", name, "-q")
    listing = manifest()
    hashes = [[listing.asset(f"{name}-{part}").sha256 for part in ("encoder", "Trunk", "Lens")] for name in "abc"]
    assert hashes[0] == hashes[1] == hashes[2]


def test_the_card_says_where_weights_come_from(release: Path) -> None:
    """Program, file and its hash, task, head, licence; nothing of this machine's folders."""
    call("weights", "import", "clnet", release, "-n", "theirs", "--without", "Lens", "--activation", "jan")
    asset = manifest().asset("theirs-Ribs")
    card = load(fetch([asset])[asset.name]).card
    assert card["program"].startswith("CL-Net")
    assert card["source"] == "Task101_A/all/model_final_checkpoint.model"
    assert (card["task"], card["head"], card["activation"], card["licence"]) == ("MiniA", "Ribs", "jan", "unknown")
    assert len(card["source_sha256"]) == 64
    assert str(release) not in json.dumps(card)


def test_a_call_that_is_wrong_is_told_so(release: Path, tmp_path: Path) -> None:
    """A taken name, an unknown head and a path where nothing is are 2, a damaged file is 1; nothing is listed then."""
    assert "a model 'starter' already" in call("weights", "import", "clnet", release, "-n", "starter", code=2)
    assert "Trunk, Ribs, Eyes, Lens" in call("weights", "import", "clnet", release, "-n", "x", "--head", "Rips", code=2)
    assert "one of may, jan" in call("weights", "import", "clnet", release, "-n", "x", "--activation", "june", code=2)
    assert "There is nothing at" in call("weights", "import", "clnet", tmp_path / "no", "-n", "x", code=2)
    next(release.rglob("fold_0/*.model")).write_bytes(b"PK")
    assert "damaged" in call("weights", "import", "clnet", release, "-n", "x", code=1)
    assert [one.name for one in manifest().models if one.name == "x"] == []


# ---- where heads look -------------------------------------------------------------------------------------------------


def test_heads_out_of_range_are_reported_and_do_not_run(release: Path, ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores around 35: the trunk (18 to 52) is looked for, eyes and lens (above 88) are out of range."""
    call("weights", "import", "clnet", release, "-n", "theirs", "-q")
    monkeypatch.setattr(infer, "slice_scores", lambda scan, parts, report: np.linspace(30, 40, scan.shape[2]))
    result = pipeline.segment(ct, model="theirs", device="cpu")
    assert result.out_of_range == {"eye_left", "eye_right", "Lens"}
    assert not any(result.mask(name).any() for name in result.out_of_range)


def test_scores_come_from_the_regressor_that_was_imported_along(release: Path) -> None:
    """Those of starter, from the feet up, 88 % of the way to the top of the head being their 100; without it there are none."""
    call("weights", "import", "clnet", release, "-n", "bare", "-q")
    call("weights", "import", "clnet", release, "-n", "theirs", "--bodypart", "starter", "-q")
    scan, _ = small_phantom()
    assets = manifest().assets_for("theirs", ["liver"])
    parts = load_parts(assets, fetch(assets), {"theirs-Trunk"})
    assert np.allclose(infer.slice_scores(scan, parts, SILENT), score_scan(scan, parts.scorer).values / 0.88 * 100)
    assert infer.slice_scores(scan, replace(parts, scorer=None), SILENT) is None
    bare = manifest().assets_for("bare", ["liver"])
    assert load_parts(bare, fetch(bare), {"bare-Trunk"}).scorer is None


# ---- learning on it ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_plots")
def test_new_structures_are_learned_on_their_encoder(workplace: Path, tmp_path: Path) -> None:
    """`body` joins heads of theirs, one of them supported: not a voxel of those changes, and one call gives all."""
    theirs = Release()
    for key in theirs.plans:
        theirs.plans[key]["plans_per_stage"]["0"]["current_spacing"] = [12.0, 12.0, 12.0]
    call("weights", "import", "clnet", theirs.write(tmp_path / "coarse"), "-n", "mini", "-q", "--without", "Trunk", "--head", "Ribs", "--head", "Lens")
    probe = workplace / "probe.nii.gz"
    before = pipeline.segment(probe, model="mini", device="cpu", offline=True)
    recipe = learn_recipe(workplace, BODY, "[ladder]\nstructured = []\nunstructured = []\n", model="mini")
    learned = learn(replace(recipe, optim=replace(recipe.optim, iterations=2)), workplace / "runs" / "run")
    assert learned.proof is not None
    assert learned.proof.changed == {"Bone_R": 0, "Lens": 0}
    after = pipeline.segment(probe, model="mini", device="cpu", offline=True)
    assert set(after.names) == {"Bone_R", "Lens", "body"}
    for name in ("Bone_R", "Lens"):
        assert np.array_equal(after.mask(name), before.mask(name))


# ---- whole scans against the authors' program -------------------------------------------------------------------------


def with_plans(imported: Imported, heads: tuple[str, ...], **changes: object) -> Engine:
    """An engine with these heads, their plans changed."""
    parts = {name: imported.decoders[name] for name in heads}
    parts = {name: replace(part, spec=replace(part.spec, plan=replace(part.spec.plan, **changes))) for name, part in parts.items()}
    return Engine(assemble(imported.encoder, parts.items()), "cpu", notify=pytest.fail)


def agreement(engine: Engine, folder: Path, run: str, scores: list[float] | None) -> dict[str, float]:
    """Of every head that ran the share of voxels that have the label of the authors' program."""
    scan = read(folder / "case_0000.nii.gz")
    shares = {}
    for answer, label_map in segment_planned(scan, answers_of([engine], scan, scores), step=HALF):
        labels = np.zeros(scan.shape, np.uint8)
        labels[label_map.box] = label_map.labels
        shares[answer.name] = float((labels == read(folder / f"{run}_{answer.name}_seg.nii.gz").array).mean())
    return shares


RUNS = [pytest.param("full", ("Trunk", "Ribs", "Stomach", "Eyes"), marks=pytest.mark.slow), ("bpr", ("Trunk", "Ribs", "Stomach"))]


@pytest.mark.parametrize(("run", "heads"), RUNS)
def test_whole_scans_are_segmented_as_by_the_authors_program(shared: Path, run: str, heads: tuple[str, ...]) -> None:
    """With their export, labels picked, at least 99.99 % of the voxels; `bpr` with the body's box and given scores, `full` without."""
    root = shared / "fixtures" / "official_clnet"
    folder = root / "reference" / "volume"
    scores = json.loads((folder / "case_bpr_cleaned.json").read_text())["cleaned slice scores"] if run == "bpr" else None
    crop = "body" if run == "bpr" else "none"
    engine = with_plans(read_clnet(root), ("Trunk", "Ribs", "Stomach", "Eyes"), export="nearest", crop=crop)
    shares = agreement(engine, folder, run, scores)
    assert tuple(shares) == heads  # in `bpr` the eyes are out of range
    assert min(shares.values()) >= 0.9999


@pytest.mark.parametrize(("run", "heads"), RUNS)
def test_probabilities_are_those_of_the_authors_program(shared: Path, run: str, heads: tuple[str, ...]) -> None:
    """On the network's grid, averaged over windows: within 2e-5 everywhere."""
    root = shared / "fixtures" / "official_clnet"
    folder = root / "reference" / "volume"
    scan = read(folder / "case_0000.nii.gz")
    scores = json.loads((folder / "case_bpr_cleaned.json").read_text())["cleaned slice scores"] if run == "bpr" else None
    engine = with_plans(read_clnet(root), heads, crop="body" if run == "bpr" else "none")
    for answer in answers_of([engine], scan, scores):
        rows = predict(prepare(scan, answer.view), answer.view.plan, {"": answer.sources}, step=HALF)
        mine = torch.cat([one.scores[""] for one in rows], dim=1)[:, ::4, ::4, ::4]
        theirs = torch.from_numpy(np.load(folder / f"{run}_{answer.name}_prob_s4.npz")["prob"])
        torch.testing.assert_close(mine, theirs.float(), atol=2e-5, rtol=0)


@pytest.mark.slow
def test_heads_with_one_plan_share_the_passes_of_the_encoder(shared: Path) -> None:
    """Three heads over the whole scan: 24 windows, not the 72 of the authors' program."""
    root = shared / "fixtures" / "official_clnet"
    engine = with_plans(read_clnet(root), ("Trunk", "Ribs", "Stomach"), crop="none")
    passes = []
    engine.model.encoder.register_forward_hook(lambda *_: passes.append(1))
    scan = read(root / "reference" / "volume" / "case_0000.nii.gz")
    found = dict((answer.name, label_map) for answer, label_map in segment_planned(scan, answers_of([engine], scan), step=HALF))
    assert (len(found), len(passes)) == (3, 24)
