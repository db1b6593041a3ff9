"""Facts about the inspection of cases: every fault is found, named with its case, and a sound dataset has none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clseg.errors import RecipeError, TrainingError
from clseg.io.files import read
from clseg.recipe import Recipe, from_dict, read_recipe
from clseg.training.inspect import Finding, Findings, believe, inspect_cases
from clseg.training.learn import learn
from clseg.training.pretrain import pretrain
from clseg.training.reprune import reprune
from clseg.training.run import Reports
from clseg.training.sides import Place, swapped, unusual
from clseg.training.update import update
from tests.small_dataset import (
    BODY,
    LABEL_IDS,
    TOML,
    learn_recipe,
    prune_recipe,
    scan,
    tiny_recipe,
    update_recipe,
    without_results,
    write_nifti,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


@pytest.fixture
def a(recipe: Recipe) -> Path:
    """The folder of the case with a label map."""
    return recipe.folder / "dataset" / "a"


def with_dataset(recipe: Recipe, which: int, **changes: object) -> Recipe:
    datasets = list(recipe.dataset)
    datasets[which] = replace(datasets[which], **changes)
    return replace(recipe, dataset=tuple(datasets))


def errors(findings: Findings) -> list[tuple[str, str]]:
    return [(one.case, one.sentence) for one in findings.errors]


def only_error(recipe: Recipe) -> tuple[str, str]:
    """(case, sentence) of the one error there is."""
    (one,) = errors(inspect_cases(recipe))
    return one


def mirror(path: Path) -> None:
    """Store the voxels the other way round along x, with the header unchanged."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[::-1].copy(), image.affine), path)


def labels(a: Path) -> np.ndarray:
    return read(a / "labels.nii.gz").array.copy()


# ---- a sound dataset


def test_a_sound_dataset_has_no_errors(recipe: Recipe) -> None:
    """Only what partial labels leave open is mentioned; structures are counted by dataset and split."""
    findings = inspect_cases(recipe)
    assert findings.errors == ()
    findings.refuse_errors()
    assert [one.sentence.split(",")[0] for one in findings.warnings] == ["Named without a voxel"]
    assert "skeleton (1 cases)" in findings.warnings[0].sentence
    assert findings.cases == {("mapped", "train"): 1, ("masked", "train"): 1, ("masked", "val"): 1}
    assert findings.structures["body"] == {("masked", "train"): 1, ("masked", "val"): 1}
    assert findings.structures["liver"] == {("mapped", "train"): 1}
    assert findings.structures["lung_left"] == {("mapped", "train"): 1, ("masked", "train"): 1}
    assert findings.mapped == ()
    assert findings.learned == ("lung_left", "lung_right", "liver", "skeleton", "body")


def test_what_was_mapped_is_reported(recipe: Recipe, a: Path) -> None:
    """Synonyms of the catalogue and renamed parts are listed by dataset."""
    (a / "labels.json").write_text(json.dumps({"Lung_L": 3, "lung right": 7, "part": 9}))
    findings = inspect_cases(with_dataset(recipe, 0, rename={"part": "liver"}))
    assert findings.errors == ()
    assert set(findings.mapped) == {("mapped", "Lung_L", "lung_left"), ("mapped", "lung right", "lung_right"), ("mapped", "part", "liver")}
    assert findings.structures["liver"] == {("mapped", "train"): 1}


@pytest.mark.slow
def test_the_starter_has_no_errors_and_is_inspected_in_a_minute(shared: Path) -> None:
    """All cases of the starter pass but its own earlier results, which are made first."""
    from time import monotonic

    started = monotonic()
    findings = inspect_cases(without_results(read_recipe(Path(__file__).parents[1] / "recipes" / "starter.toml")))
    assert findings.errors == ()
    assert sum(findings.cases.values()) == 152
    assert monotonic() - started < 60


# ---- faults, one by one


def test_mirrored_labels(recipe: Recipe, a: Path) -> None:
    """A label map mirrored along x has its left lung on the right: nobody trains on it unless the recipe trusts its sides."""
    mirror(a / "labels.nii.gz")
    case, sentence = only_error(recipe)
    assert case == "a"
    assert "lung_left lies" in sentence
    assert "to the right of lung_right: the labels are mirrored" in sentence
    with pytest.raises(TrainingError, match="Case 'a' of dataset 'mapped': lung_left lies") as caught:
        inspect_cases(recipe).refuse_errors()
    assert "clseg cases RECIPE --kind learn" in str(caught.value.tip)  # without --kind such a recipe is not understood
    trusted = inspect_cases(with_dataset(recipe, 0, trust_sides=True))
    assert trusted.errors == ()
    assert any(one.case == "a" and "lung_left lies" in one.sentence for one in trusted.warnings)


def test_mirrored_mask_files(recipe: Recipe) -> None:
    """Masks in files of their own are looked at as well."""
    mirror(recipe.folder / "dataset" / "b" / "lungs.nii.gz")
    assert only_error(recipe)[0] == "b"


def test_mirrored_labels_in_other_axes(recipe: Recipe, a: Path) -> None:
    """It is the patient's left that counts: the same labels stored right to left are sound."""
    ct = scan("a")[0]
    affine = ct.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (ct.affine @ [ct.shape[0] - 1, 0, 0, 1])[:3]
    write_nifti(a / "labels.nii.gz", labels(a)[::-1].copy(), replace(ct, affine=affine))
    assert inspect_cases(recipe).errors == ()


def test_labels_on_another_grid(recipe: Recipe, a: Path) -> None:
    """A label map moved by a voxel is found, with both places in the sentence."""
    ct = scan("a")[0]
    affine = ct.affine.copy()
    affine[0, 3] += 6
    write_nifti(a / "labels.nii.gz", labels(a), replace(ct, affine=affine))
    sentences = [sentence for case, sentence in errors(inspect_cases(recipe)) if case == "a"]
    assert len(sentences) == 1
    assert "do not lie on the grid of their CT" in sentences[0]
    assert "40 × 32 × 48 voxels of 6 × 6 × 6 mm" in sentences[0]


def test_ids_that_nobody_names(recipe: Recipe, a: Path) -> None:
    """Voxels of an id without a name are an error: the numbering may be shifted."""
    array = labels(a)
    array[0, 0, 0] = 4
    write_nifti(a / "labels.nii.gz", array, scan("a")[0])
    assert only_error(recipe) == ("a", "labels.nii.gz holds the id 4, which nobody names; named are 3, 7, 9, 11.")


def test_two_names_of_one_id(recipe: Recipe, a: Path) -> None:
    """Overlapping ids are an error of the case."""
    (a / "labels.json").write_text(json.dumps({**LABEL_IDS, "spleen": 9}))
    found = errors(inspect_cases(recipe))
    assert found[0][0] == "a"
    assert "'liver' and 'spleen' both have the id 9" in found[0][1]


def test_a_missing_file(tmp_path: Path) -> None:
    """A file that a table names and nobody has is an error of its case; the others are inspected."""
    ct, masks = scan("a")
    for name in ("ct", "other"):
        write_nifti(tmp_path / f"{name}.nii.gz", ct.array + (name == "other"), ct)
    write_nifti(tmp_path / "liver.nii.gz", masks["liver"], ct)
    (tmp_path / "i.csv").write_text("ct,label,split\nct.nii.gz,liver.nii.gz,train\nother.nii.gz,lost/liver.nii.gz,train\n")
    data = {"name": "t", "format": "csv", "index": "i.csv"}
    plan = from_dict({"name": "t", "decoder": [{"name": "d", "labels": ["liver"]}], "dataset": [data]}, tmp_path)
    assert only_error(plan) == ("other", f"{tmp_path / 'lost' / 'liver.nii.gz'} is missing.")
    assert inspect_cases(plan).structures == {"liver": {("t", "train"): 1}}


def test_values_that_are_not_hu(recipe: Recipe, a: Path) -> None:
    """A CT with 1024 added is refused by the same check as at inference."""
    ct = scan("a")[0]
    write_nifti(a / "ct.nii.gz", ct.array + 1024, ct)
    case, sentence = errors(inspect_cases(recipe))[0]
    assert case == "a"
    assert "1024 added" in sentence


def test_a_label_map_of_fractions(recipe: Recipe, a: Path) -> None:
    """Labels that were resampled as a picture have values between the ids."""
    nib.save(nib.Nifti1Image(labels(a).astype(np.float32) / 2, scan("a")[0].affine), a / "labels.nii.gz")
    assert any("values that are no ids" in sentence for case, sentence in errors(inspect_cases(recipe)) if case == "a")


def test_a_damaged_file(recipe: Recipe, a: Path) -> None:
    """A truncated CT is one error of one case; the other cases are inspected all the same."""
    path = a / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    findings = inspect_cases(recipe)
    assert findings.errors[0].case == "a"
    assert findings.structures["skeleton"] == {("masked", "train"): 1}


def test_names_that_nobody_knows(recipe: Recipe, a: Path) -> None:
    """An unknown name is mentioned once, with what may have been meant; an ambiguous one with its meanings."""
    (a / "labels.json").write_text(json.dumps({"lung_left": 3, "lung_right": 7, "livre": 9, "kidney": 12}))
    sentences = [one.sentence for one in inspect_cases(recipe).warnings if one.dataset == "mapped"]
    assert any(s.startswith("'livre' (1 cases) is known neither") and "nearest: liver" in s for s in sentences)
    assert any(s.startswith("'kidney' (1 cases) may be kidney_left or kidney_right") for s in sentences)


def test_a_structure_that_nobody_annotates(recipe: Recipe, a: Path) -> None:
    """A label of a decoder without a single case to learn from is an error; cases of `val` do not count."""
    (a / "labels.json").write_text(json.dumps({"lung_left": 3, "lung_right": 7, "livre": 9}))
    case, sentence = only_error(recipe)
    assert case == ""
    assert sentence == "No case of the split 'train' annotates liver of decoder 'solid'; nearest: livre."
    index = recipe.folder / "dataset" / "index.csv"
    index.write_text("case,split\na,train\nb,val\nc,train\n")
    assert "annotates skeleton of decoder 'solid'" in " ".join(sentence for _, sentence in errors(inspect_cases(recipe)))


def test_a_value_that_a_mask_file_does_not_hold(recipe: Recipe) -> None:
    """`lungs.nii.gz:4` teaches that there is no left lung: that is told, apart from names of label maps, of which nothing is learned."""
    masks = {**recipe.dataset[1].masks, "lung_left": "lungs.nii.gz:4"}
    told = [(one.dataset, one.sentence) for one in inspect_cases(with_dataset(recipe, 1, masks=masks)).warnings]
    assert ("masked", "Named without a voxel, so absent: lung_left (1 cases).") in told
    assert ("mapped", "Named without a voxel, so unknown: skeleton (1 cases).") in told


def test_a_training_is_told_warnings_and_stopped_by_errors(recipe: Recipe, a: Path) -> None:
    """One line each, with the dataset; an error is raised before anything is told."""
    told: list[str] = []
    believe(recipe, told.append)
    assert told == ["warning: Dataset 'mapped': Named without a voxel, so unknown: skeleton (1 cases)."]
    mirror(a / "labels.nii.gz")
    with pytest.raises(TrainingError, match="Case 'a' of dataset 'mapped': lung_left lies"):
        believe(recipe, told.append)
    assert len(told) == 1


TRAININGS = {
    "train": lambda at, **to: pretrain(astray(tiny_recipe(at)), at / "runs" / "run", **to),
    "learn": lambda at, **to: learn(astray(learn_recipe(at, BODY)), at / "runs" / "run", **to),
    "update": lambda at, **to: update(astray(update_recipe(at)), at / "runs" / "run", **to),
    "prune": lambda at, **to: reprune("tiny", "lungs", astray(prune_recipe(at)), at / "runs" / "run", **to),
}


def astray(recipe: Recipe) -> Recipe:
    """The recipe with masks of a value that their file does not hold."""
    return with_dataset(recipe, 1, masks={**recipe.dataset[1].masks, "body": "lungs.nii.gz:4", "lung_left": "lungs.nii.gz:4"})


@pytest.mark.parametrize("command", TRAININGS)
def test_every_training_tells_warnings_when_it_begins_and_not_when_it_goes_on(workplace: Path, command: str) -> None:
    """A value that no voxel has is told by train, learn, update and prune, once, before a case is prepared."""
    told: list[str] = []
    (workplace / "recipe.toml").write_text(TOML)
    stopped = Reports(note=told.append, stop=lambda: True, case=lambda *_: told.append("case"))
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            TRAININGS[command](workplace, resume=resume, reports=stopped)
    lost = [line for line in told if line.startswith("warning: Dataset 'masked': Named without a voxel, so absent: ")]
    assert len(lost) == 1
    assert ("body" if command in ("train", "learn") else "lung_left") in lost[0]
    assert told.index(lost[0]) < told.index("case")


def test_of_many_warnings_ten_are_told() -> None:
    """Those about whole datasets first; the last line says how many more there are, and who lists them."""
    cases = [Finding("warning", "d", f"c{number}", "Odd.") for number in range(12)]
    told: list[str] = []
    Findings((*cases, Finding("warning", "d", "", "All odd.")), (), {}, {}).tell_warnings(told.append)
    assert told[:2] == ["warning: Dataset 'd': All odd.", "warning: Case 'c0' of dataset 'd': Odd."]
    assert told[10:] == ["warning: 3 more; `clseg cases RECIPE --kind learn` (or train, update, prune) lists all."]


def test_a_name_in_rename_that_no_case_uses(recipe: Recipe) -> None:
    """A typo on the left of rename does not go unseen."""
    findings = inspect_cases(with_dataset(recipe, 0, rename={"lung_lfet": "lung_left"}))
    assert any("rename has 'lung_lfet', which no case names; nearest: lung_left" in one.sentence for one in findings.warnings)


@pytest.mark.parametrize("again", ["the same file", "a copy"])
def test_a_scan_in_train_and_val(recipe: Recipe, again: str) -> None:
    """The same CT on both sides of the split is an error, whether it is one file or two of the same bytes."""
    root = recipe.folder / "dataset"
    if again == "a copy":
        shutil.copy(root / "a" / "ct.nii.gz", root / "c" / "ct.nii.gz")
    else:
        (root / "c" / "ct.nii.gz").unlink()
        (root / "c" / "ct.nii.gz").symlink_to(root / "a" / "ct.nii.gz")
    shutil.copy(root / "a" / "labels.nii.gz", root / "c" / "body.nii.gz")
    assert only_error(recipe) == ("c", "The same scan is in the split 'val' here and in 'train' as 'a' of dataset 'mapped'.")


@pytest.mark.parametrize("stored", ["uncompressed", "as float32", "with axes turned", "of another place"])
def test_a_scan_that_was_stored_anew_is_the_same_scan(recipe: Recipe, stored: str) -> None:
    """Other compression, another type, other axes or another header, and so other bytes: the voxels say the same."""
    root, ct = recipe.folder / "dataset", scan("a")[0]
    affine = ct.affine.copy()
    array = ct.array
    if stored == "as float32":
        array = array.astype(np.float32)
    elif stored == "with axes turned":
        array, affine = array[::-1].copy(), affine @ np.diag([-1.0, 1, 1, 1])
        affine[:3, 3] = (ct.affine @ [ct.shape[0] - 1, 0, 0, 1])[:3]
    elif stored == "of another place":
        affine[2, 3] += 100
    file = root / "c" / ("ct.nii" if stored == "uncompressed" else "ct.nii.gz")
    nib.save(nib.Nifti1Image(array, affine), file)
    file.rename(root / "c" / "ct.nii.gz")
    masks = np.zeros(ct.shape, np.uint8)
    nib.save(nib.Nifti1Image(masks, affine), root / "c" / "body.nii.gz")
    assert (root / "c" / "ct.nii.gz").read_bytes() != (root / "a" / "ct.nii.gz").read_bytes()
    assert only_error(recipe) == ("c", "The same scan is in the split 'val' here and in 'train' as 'a' of dataset 'mapped'.")


def test_label_maps_without_a_ct_are_told_apart_by_every_voxel(recipe: Recipe, a: Path) -> None:
    """Two patients' label maps that differ in one voxel are two; the same ids in another type are one."""
    root, like = recipe.folder / "dataset", scan("a")[0]
    for folder in (a, root / "b"):
        (folder / "ct.nii.gz").unlink()
    (root / "index.csv").write_text("case,split\na,train\nb,val\n")
    shutil.copy(a / "labels.json", root / "b" / "labels.json")
    plan = replace(recipe, dataset=(replace(recipe.dataset[0], synthetic=True, cases=("*",)),), decoder=recipe.decoder[:1])
    other = labels(a)
    other[1, 1, 1] = LABEL_IDS["liver"]
    write_nifti(root / "b" / "labels.nii.gz", other, like)
    assert inspect_cases(plan).errors == ()
    write_nifti(root / "b" / "labels.nii.gz", labels(a).astype(np.int16), like)
    assert only_error(plan)[1].startswith("The same scan is in the split 'val' here and in 'train' as 'a'")


def test_a_scan_in_two_datasets_of_one_split(recipe: Recipe) -> None:
    """Two datasets may label one scan; it is mentioned, once per pair of datasets."""
    wide = with_dataset(recipe, 1, cases=("*",))
    findings = inspect_cases(wide)
    assert findings.errors == ()
    assert [one.sentence for one in findings.warnings if "same scans" in one.sentence] == [
        "1 case (a) show the same scans as cases of dataset 'mapped'; their labels are learned apart."
    ]


def test_cases_without_a_ct_are_mentioned(recipe: Recipe) -> None:
    """What an index lists and nobody has is left out with a word."""
    (recipe.folder / "dataset" / "c" / "ct.nii.gz").unlink()
    findings = inspect_cases(recipe)
    assert findings.errors == ()
    assert any(one.sentence == "1 case (c) without a CT are left out." for one in findings.warnings)


def test_a_dataset_that_is_not_there(recipe: Recipe) -> None:
    """Nothing can be inspected then: the recipe is refused."""
    with pytest.raises(RecipeError, match="Dataset 'mapped' has no index at"):
        inspect_cases(with_dataset(recipe, 0, index="elsewhere.csv"))


# ---- sides


def test_one_pair_of_several_that_is_interchanged() -> None:
    """When other pairs are sound the names of the one are in doubt, not the whole map."""
    places = {"lung_left": Place(9, -80), "lung_right": Place(9, 80), "kidney_left": Place(9, 50), "kidney_right": Place(9, -50)}
    assert swapped(places) == "kidney_left lies 100 mm to the right of kidney_right: the names of 1 of 2 pairs seem to be interchanged."


def test_sides_of_structures_that_the_catalogue_does_not_know() -> None:
    """`left` and `right` in the names of one's own structures are understood."""
    assert "mirrored" in swapped({"my_muscle_left": Place(5, 30), "my_muscle_right": Place(5, -30)})
    assert swapped({"my_muscle_left": Place(5, -30), "my_muscle_right": Place(5, 30)}) == ""


@pytest.mark.parametrize(("name", "x", "warned"), [("liver", 60, False), ("liver", -60, True), ("spleen", -60, False), ("spleen", 60, True), ("kidney_left", 60, True), ("aorta", 60, False)])
def test_lone_structures_across_the_middle(name: str, x: float, warned: bool) -> None:
    """Without a partner the body's middle tells: liver on the right, spleen on the left, other unpaired organs anywhere."""
    sentences = unusual({name: Place(100, x)}, 0.0)
    assert len(sentences) == warned


def test_both_of_a_pair_are_not_lone() -> None:
    """A pair is judged by itself: a crop of the right side has both kidneys right of its middle."""
    assert unusual({"kidney_left": Place(9, 20), "kidney_right": Place(9, 90)}, 0.0) == []


def test_mirrored_liver_of_a_real_scan(shared: Path, tmp_path: Path) -> None:
    """The real abdomen is sound; with its labels mirrored the kidneys and both halves of every pair are noticed."""
    source = shared / "data" / "totalsegmentator_tests" / "example_ct"
    (tmp_path / "case").mkdir()
    for name in ("ct.nii.gz", "labels.nii.gz", "labels.json"):
        shutil.copyfile(source / name, tmp_path / "case" / name)
    (tmp_path / "index.csv").write_text("case,split\ncase,train\n")
    data = {"name": "real", "index": "index.csv"}
    plan = from_dict({"name": "t", "decoder": [{"name": "d", "labels": ["liver"]}], "dataset": [data]}, tmp_path)
    sound = inspect_cases(plan)
    assert (sound.errors, [one for one in sound.warnings if one.case]) == ((), [])
    mirror(tmp_path / "case" / "labels.nii.gz")
    assert "the labels are mirrored" in only_error(plan)[1]
