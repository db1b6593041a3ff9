"""`clseg weights import nnunet` and `totalsegmentator` as a user runs them, and what can be done with what they make."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from clseg.cli.app import app
from clseg.errors import TrainingError, WeightsError
from clseg.io.files import read, sha256_of
from clseg.pipeline import segment
from clseg.recipe import read_recipe
from clseg.recipe.commands import LearnRecipe
from clseg.training.base import Base
from clseg.training.learn import learn
from clseg.training.update import open_decoder
from clseg.volume import Volume
from clseg.weights.cache import manifest
from clseg.weights.importers.install import install
from clseg.weights.importers.nnunet import find_trainings, read_training
from tests.small_dataset import BODY, learn_recipe
from tests.small_nnunet import dataset, plans, write_model


def call(*words: object, code: int = 0) -> str:
    """What `clseg WORDS` says, on stdout and stderr together."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="clseg")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """A scan of noise with a border of zeros, 5 × 6 × 7 mm, stored as LAS."""
    array = np.random.default_rng(1).integers(-950, 950, (15, 14, 13)).astype(np.int16)
    array[:2] = 0
    nib.save(nib.Nifti1Image(array, np.diag([-5.0, 6.0, 7.0, 1.0])), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


# ---- nnunet -----------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_model_that_segments(tmp_path: Path, ct: Path) -> None:
    """Two structures in one label map on the scan's own grid; run.json names the weights."""
    write_model(tmp_path / "m")
    told = call("weights", "import", "nnunet", tmp_path / "m", "--name", "mine", "--licence", "CC0-1.0")
    assert "mine-organs decoder 2 structures" in told
    assert "--model mine" in told
    call("-i", ct, "-o", tmp_path / "out.nii.gz", "--model", "mine", "--device", "cpu")
    found = read(tmp_path / "out.nii.gz")
    assert found.same_grid(read(ct), tolerance_mm=0)
    assert not found.array[:2].any()  # beyond the box of what is not 0
    names = json.loads((tmp_path / "out.labels.json").read_text())
    assert set(names) == {"liver", "spleen"}
    assert set(np.unique(found.array)) <= {0, *names.values()}
    run = json.loads((tmp_path / "out.run.json").read_text())
    assert set(run["model"]["weights"]) == {"mine-encoder", "mine-organs"}
    assert manifest().model("mine").licence == "CC0-1.0"


def test_nearest_labels_are_those_of_the_networks_voxels(tmp_path: Path, ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--restore nearest` holds for imported networks, too: their label maps go back, not their scores."""
    from clseg.inference.planned import run as planned

    write_model(tmp_path / "m")
    call("weights", "import", "nnunet", tmp_path / "m", "--name", "mine")
    exports: list[str] = []
    real = planned.Export
    monkeypatch.setattr(planned, "Export", lambda view, plan: exports.append(plan.export) or real(view, plan))
    for way in ("smooth", "nearest"):
        call("-i", ct, "-o", tmp_path / f"{way}.nii.gz", "--model", "mine", "--device", "cpu", "--restore", way)
    assert exports == ["linear", "nearest"]
    assert json.loads((tmp_path / "nearest.run.json").read_text())["restore"] == "nearest"


def test_a_zip_gives_the_same_files(tmp_path: Path) -> None:
    """Names in the zip begin with the dataset's folder, as nnU-Net exports them."""
    home = write_model(tmp_path / "Dataset007_Mini")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for file in sorted(path for path in home.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(tmp_path))
    call("weights", "import", "nnunet", home, "--name", "folder")
    call("weights", "import", "nnunet", tmp_path / "m.zip", "--name", "zip")
    assert manifest().asset("folder-organs").sha256 == manifest().asset("zip-organs").sha256


def test_folds_are_one_model_with_one_answer(tmp_path: Path, ct: Path) -> None:
    """Both folds are listed for every structure; averaged they say something else than fold 0 alone."""
    write_model(tmp_path / "m", folds=("fold_0", "fold_1"))
    call("weights", "import", "nnunet", tmp_path / "m", "--name", "both")
    call("weights", "import", "nnunet", tmp_path / "m", "--name", "one", "--folds", "0")
    assert manifest().labels_of("both")["liver"] == ("both-organs-fold_0", "both-organs-fold_1")
    maps = {name: segment(ct, model=name, device="cpu").labels.array for name in ("both", "one")}
    assert (maps["both"] != maps["one"]).any()


def test_what_cannot_be_imported_ends_with_a_sentence(tmp_path: Path) -> None:
    """Exit code 1 for the model, 2 for the call; nothing is listed."""
    before = manifest()
    write_model(tmp_path / "regions", facts=dataset(labels={"background": 0, "whole": [1, 2]}))
    assert "region-based training" in call("weights", "import", "nnunet", tmp_path / "regions", "--name", "x", code=1)
    assert "nothing at" in call("weights", "import", "nnunet", tmp_path / "lost", "--name", "x", code=2)
    write_model(tmp_path / "m")
    assert "a model 'starter' already" in call("weights", "import", "nnunet", tmp_path / "m", "--name", "starter", code=2)
    assert "no fold_4" in call("weights", "import", "nnunet", tmp_path / "m", "--name", "x", "--folds", "4", code=2)
    assert manifest() == before


def test_several_models_must_be_chosen_from(tmp_path: Path) -> None:
    """Two configurations of one training; then two trainings."""
    both = plans()
    both["configurations"]["3d_lowres"] = both["configurations"]["3d_fullres"]
    for configuration in ("3d_fullres", "3d_lowres"):
        write_model(tmp_path / "m", configuration=configuration, plan=both)
    assert "3d_fullres, 3d_lowres" in call("weights", "import", "nnunet", tmp_path / "m", "--name", "x", code=2)
    call("weights", "import", "nnunet", tmp_path / "m", "--name", "x", "--configuration", "3d_lowres")
    write_model(tmp_path / "m" / "other")
    assert "There are 3 models" in call("weights", "import", "nnunet", tmp_path / "m", "--name", "y", code=2)


@pytest.mark.parametrize("name", ["plain", "resenc"])
@pytest.mark.parametrize("style", ["new", "old"])
def test_the_fixtures_through_the_command_line(shared: Path, tmp_path: Path, name: str, style: str) -> None:
    """At least 99.9 % of the voxels as nnunetv2 in float32, 99.8 % as nnunetv2 itself; the older style of plans gives the same."""
    root = shared / "fixtures" / f"nnunetv2_{name}"
    (home,) = root.glob("nnUNetTrainer__*")
    copied = tmp_path / home.name
    copied.mkdir()
    for file in ("fold_0", "dataset.json"):
        (copied / file).symlink_to(home / file)
    (copied / "plans.json").symlink_to(home / "plans.json" if style == "new" else root / "variants" / "plans_old_style.json")
    call("weights", "import", "nnunet", copied, "--name", "mini")
    numbers = json.loads((home / "dataset.json").read_text())["labels"]
    for case in ("ct_a", "ct_b"):
        result = segment(root / "reference" / f"{case}_0000.nii.gz", model="mini", device="cpu", offline=True)
        labels = sum(numbers[structure] * result.mask(structure).astype(int) for structure in result.names)
        for reference, share in (("fp32", 0.999), ("native", 0.998)):
            expected = read(root / "reference" / f"{case}_seg_{reference}.nii.gz")
            assert result.labels.same_grid(expected)
            assert (labels == expected.array).mean() >= share


# ---- totalsegmentator -------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Two parts, and both together at twice the spacing."""
    for number, labels, spacing in ((291, ("spleen", "liver"), 6.0), (292, ("vertebrae_L1", "heart"), 6.0), (297, ("heart", "liver"), 12.0)):
        facts = dataset(labels={name: index for index, name in enumerate(("background", *labels))})
        write_model(tmp_path / "results" / f"Dataset{number}_TotalSegmentator", facts=facts, plan=plans(spacing=[spacing] * 3), seed=number)
    return tmp_path / "results"


def test_parts_become_one_model_with_its_names(parts: Path, tmp_path: Path, ct: Path) -> None:
    """Four structures of two trainings; the coarse one is a model of its own; a ROI loads only what it needs."""
    told = call("weights", "import", "totalsegmentator", parts, "--name", "total")
    assert "--model total " in told
    assert "--model total-297" in told
    listing = manifest()
    assert set(listing.labels_of("total")) == {"spleen", "liver", "vertebrae_L1", "heart"}
    assert set(listing.labels_of("total-297")) == {"heart", "liver"}
    assert [asset.name for asset in listing.assets_for("total", ["spleen"])] == ["total-encoder-291", "total-291"]
    result = segment(ct, model="total", device="cpu")
    present = {anatomy.name for anatomy in result.present}
    assert present & {"spleen", "liver"}
    assert present & {"vertebrae_L1", "heart"}
    one = segment(ct, "spleen", model="total", device="cpu")
    assert set(one.names) == {"spleen"}


def test_it_does_not_matter_how_a_scan_is_stored(parts: Path, ct: Path, tmp_path: Path) -> None:
    """RAS and SPL copies of a scan get the same masks: the plans turn scans to RAS."""
    from clseg.spatial.orient import to_orientation

    call("weights", "import", "totalsegmentator", parts, "--name", "total")
    scan = read(ct)
    first, second = (segment(Volume(one.array.copy(), one.affine), model="total", device="cpu") for one in (scan, to_orientation(scan, "SPL")))
    turned = to_orientation(second.labels, scan.orientation)
    assert np.array_equal(first.labels.array, turned.array)


def test_zips_of_parts_can_be_given_together(parts: Path, tmp_path: Path) -> None:
    """As they are published: one zip per dataset."""
    zips = []
    for number in ("291", "292"):
        zips.append(tmp_path / f"{number}.zip")
        with zipfile.ZipFile(zips[-1], "w") as archive:
            for file in (path for path in sorted(parts.rglob("*")) if path.is_file() and number in str(path.relative_to(parts))):
                archive.write(file, file.relative_to(parts))
    call("weights", "import", "totalsegmentator", *zips, "--name", "total")
    assert set(manifest().labels_of("total")) == {"spleen", "liver", "vertebrae_L1", "heart"}


def test_some_datasets_can_be_chosen(parts: Path) -> None:
    """297 alone is then the model."""
    call("weights", "import", "totalsegmentator", parts, "--name", "fast", "--datasets", "297")
    assert set(manifest().labels_of("fast")) == {"heart", "liver"}
    assert "no dataset 300" in call("weights", "import", "totalsegmentator", parts, "--name", "x", "--datasets", "300", code=2)


# ---- learning on it ---------------------------------------------------------------------------------------------------


def imported(folder: Path, reader: str = "SimpleITKIO", **settings: object) -> None:
    """A model "mini" at 12 mm, whose decoder knows liver and spleen."""
    plan = {**plans("residual", spacing=[12.0, 12.0, 12.0], **settings), "image_reader_writer": reader}
    (training,) = find_trainings(write_model(folder / "m", "residual", plan=plan))
    install("mini", read_training(training), description="imported", licence="CC0-1.0")


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_new_structures_are_learned_on_an_imported_encoder(workplace: Path, tmp_path: Path, own_home: Path, reader: str) -> None:
    """`body` joins liver and spleen: weights and masks of what was imported are the same bytes, and one call gives all three."""
    imported(tmp_path, reader)
    probe = workplace / "probe.nii.gz"
    before = segment(probe, model="mini", device="cpu", offline=True)
    files = {path.name: sha256_of(path) for path in (own_home / "models").glob("mini-*.safetensors")}
    recipe = learn_recipe(workplace, BODY, "[ladder]\nstructured = []\nunstructured = []\n", model="mini")
    recipe = replace(recipe, optim=replace(recipe.optim, iterations=2))
    learned = learn(recipe, workplace / "runs" / "run")
    assert learned.proof is not None
    assert learned.proof.changed == {"liver": 0, "spleen": 0}
    after = segment(probe, model="mini", device="cpu", offline=True)
    assert set(after.names) == {"liver", "spleen", "body"}
    for name in ("liver", "spleen"):
        assert np.array_equal(after.mask(name), before.mask(name))
    assert {name: sha256_of(own_home / "models" / name) for name in files} == files
    alone = segment(probe, "body", model="mini", device="cpu", offline=True)
    assert np.array_equal(alone.mask("body"), after.mask("body"))


def test_on_other_intensities_nothing_is_learned(tmp_path: Path) -> None:
    """An encoder that wants every scan's own mean is refused before anything is read; it still segments."""
    imported(tmp_path, normalization_schemes=["ZScoreNormalization"])
    with pytest.raises(WeightsError, match="by the scheme 'zscore', learning knows 'ct'"):
        Base.open("mini")


def test_an_imported_decoder_is_not_trained_on(tmp_path: Path) -> None:
    """Update and prune would run it in another way than its own program does."""
    imported(tmp_path)
    base = Base.open("mini")
    with pytest.raises(TrainingError, match="'mini-organs' was imported"):
        open_decoder(base.decoder("organs"), base)


def test_of_several_encoders_one_must_be_imported_alone(tmp_path: Path) -> None:
    """An ensemble has one per fold; the tip says what to do."""
    (training,) = find_trainings(write_model(tmp_path / "m", folds=("fold_0", "fold_1")))
    install("both", read_training(training), description="")
    with pytest.raises(WeightsError, match="'both' lists 2") as caught:
        Base.open("both")
    assert "--folds 0" in str(caught.value.tip)


def test_recipes_name_an_imported_model_as_any_other(workplace: Path, tmp_path: Path) -> None:
    """`model = "mini"` is all that a recipe says."""
    imported(tmp_path)
    from tests.small_dataset import GROW, written

    recipe = read_recipe(written(workplace, GROW, 'model = "mini"', BODY), LearnRecipe)
    assert Base.open(recipe.model).structures == ("liver", "spleen")
