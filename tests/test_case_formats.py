"""Facts about the formats of datasets: nnU-Net, TotalSegmentator, a table of paths, and what their names mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import InputError, RecipeError
from clseg.io.nifti import write_mask
from clseg.recipe import DatasetRecipe, Recipe, from_dict
from clseg.training.cases import Case, find_cases, named, read_grid, read_masks, read_unknown
from clseg.training.cases.split import by_name
from clseg.training.inspect import inspect_cases
from clseg.volume import Volume
from tests.small_dataset import write_nifti

SHAPE = (6, 5, 4)
BOXES = {"liver": (slice(4, 6), slice(0, 2), slice(0, 2)), "spleen": (slice(0, 2), slice(3, 5), slice(2, 4))}  # liver on the right


def grid() -> Volume:
    return Volume(np.zeros(SHAPE, np.int16), np.diag([5.0, 5.0, 5.0, 1.0]))


def ct() -> np.ndarray:
    array = np.full(SHAPE, -1000, np.int16)
    array[1:5, 1:4, 1:3] = 40
    return array


def label_map(**ids: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    for name, value in ids.items():
        array[BOXES[name]] = value
    return array


def mask(name: str) -> np.ndarray:
    array = np.zeros(SHAPE, bool)
    array[BOXES[name]] = True
    return array


def recipe(folder: Path, *datasets: dict[str, Any], labels: tuple[str, ...] = ("liver", "spleen")) -> Recipe:
    return from_dict({"name": "t", "decoder": [{"name": "d", "labels": list(labels)}], "dataset": list(datasets)}, folder)


def masks_of(case: Case, *wanted: str) -> dict[str, np.ndarray]:
    return read_masks(case, set(wanted or ("liver", "spleen")), read_grid(case))


def names_of(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


# ---- nnU-Net


def nnunet(folder: Path, cases: tuple[str, ...] = ("a", "b", "c"), **facts: Any) -> dict[str, Any]:
    """Write Dataset001_Tiny with these training cases and the test case `z`; a None among `facts` removes the key."""
    root = folder / "raw" / "Dataset001_Tiny"
    for part, names in (("Tr", cases), ("Ts", ("z",))):
        for kind in ("images", "labels"):
            (root / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        for name in names:
            write_nifti(root / f"images{part}" / f"{name}_0000.nii.gz", ct(), grid())
            write_nifti(root / f"labels{part}" / f"{name}.nii.gz", label_map(liver=1, spleen=2), grid())
    plain = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Liver": 1, "spleen": 2}, "numTraining": 3, "file_ending": ".nii.gz"}
    kept = {key: value for key, value in {**plain, **facts}.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(kept))
    return {"name": "nn", "format": "nnunet", "path": "raw/Dataset001_Tiny"}


def test_nnunet_cases_and_masks(tmp_path: Path) -> None:
    """Image and label are found by name, `Liver` is the liver, and labelled test cases are the split `test`."""
    plan = recipe(tmp_path, {**nnunet(tmp_path), "val_share": 0.0})
    cases = find_cases(plan)
    assert names_of(cases) == ["a", "b", "c"]
    assert names_of(find_cases(plan, "test")) == ["z"]
    masks = masks_of(cases[0])
    assert set(masks) == {"liver", "spleen"}
    assert all(np.array_equal(masks[name], mask(name)) for name in masks)
    assert named(cases[0]) == {"liver": ("Liver",), "spleen": ("spleen",)}
    assert cases[0].missing() == ()
    assert {file.name for file in cases[0].files()} == {"a_0000.nii.gz", "a.nii.gz"}


@pytest.mark.parametrize("place", ["raw/Dataset001_Tiny", "nnUNet_preprocessed/Dataset001_Tiny"])
def test_nnunet_folds(tmp_path: Path, place: str) -> None:
    """splits_final.json, in the dataset or in nnUNet_preprocessed, says what is train and val; a case of no fold is left out."""
    plain = nnunet(tmp_path, ("a", "b", "c", "d"))
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    (tmp_path / place / "splits_final.json").write_text(json.dumps(splits))
    for fold, (train, val) in enumerate([(["a", "b"], ["c"]), (["c"], ["a", "b"])]):
        plan = recipe(tmp_path, {**plain, "fold": fold})
        assert (names_of(find_cases(plan)), names_of(find_cases(plan, "val"))) == (train, val)
    with pytest.raises(RecipeError, match=r"Dataset 'nn' asks for fold 2, .* has 2 folds"):
        find_cases(recipe(tmp_path, {**plain, "fold": 2}))


def folds(folder: Path, *found: object) -> None:
    (folder / "raw" / "Dataset001_Tiny" / "splits_final.json").write_text(json.dumps(found))


def test_nnunet_cases_of_a_fold_that_are_not_there(tmp_path: Path) -> None:
    """They are told in one sentence, as cases of an index are, and left out; what is there is learned from."""
    data = nnunet(tmp_path)
    folds(tmp_path, {"train": ["a", "b", "gone"], "val": ["c", "lost"]})
    plan = recipe(tmp_path, data)
    assert (names_of(find_cases(plan)), names_of(find_cases(plan, "val"))) == (["a", "b"], ["c"])
    told = [one.sentence for one in inspect_cases(plan).warnings]
    assert "Listed, but without any file, and so left out: 2 cases (gone, lost)." in told
    assert not [sentence for sentence in told if "without a CT" in sentence]


def test_nnunet_folds_of_other_names(tmp_path: Path) -> None:
    """A list of file names in place of names: the cases are in no split, and the names are told as not there."""
    data = nnunet(tmp_path)
    folds(tmp_path, {"train": ["a.nii.gz", "b.nii.gz"], "val": ["c.nii.gz"]})
    told = [one.sentence for one in inspect_cases(recipe(tmp_path, data)).warnings]
    assert "Listed, but without any file, and so left out: 3 cases (a.nii.gz, b.nii.gz, c.nii.gz)." in told
    assert "3 cases (a, b, c) are in no split and are left out." in told


@pytest.mark.parametrize("fold", [{"train": ["a"]}, {"train": "abc", "val": []}, {"train": [["a"]], "val": []}, ["a"], {"train": None, "val": []}])
def test_nnunet_folds_that_are_none_are_refused(tmp_path: Path, fold: object) -> None:
    """Words, nested lists and missing parts in splits_final.json are one sentence."""
    data = nnunet(tmp_path)
    folds(tmp_path, fold)
    with pytest.raises(RecipeError, match=r"splits_final\.json must be a list of folds, each with the names of its cases in train and val"):
        find_cases(recipe(tmp_path, data))


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "liver": 1}}, r"are regions \('whole' is \[1, 2\]\), expected one id per structure"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, r"overlap: 'liver' and 'spleen' both have the id 1"),
        ({"labels": {"background": 0, "liver": "1"}}, r"a whole number, given 'liver': '1'"),
        ({"labels": {"liver": 0}}, "the id 0, which is the background's"),
        ({"channel_names": {"0": "T1"}}, r"has the channels \{'0': 'T1'\}, expected one CT"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "expected one CT"),
        ({"channel_names": None, "modality": {"0": "CT"}}, "expected the format of nnU-Net v2"),
        ({"file_ending": ".png"}, "file_ending '.png', expected one of .nii.gz"),
    ],
)
def test_nnunet_datasets_that_are_refused(tmp_path: Path, facts: dict[str, Any], sentence: str) -> None:
    """What cannot be read as one CT with one id per voxel is refused in a sentence with the dataset's name."""
    with pytest.raises(RecipeError, match=sentence) as caught:
        find_cases(recipe(tmp_path, nnunet(tmp_path, **facts)))
    assert "'nn'" in caught.value.message


def test_nnunet_ignore_is_unknown_and_no_structure(tmp_path: Path) -> None:
    """Voxels of the label `ignore` are those of read_unknown; nobody mistakes them for a structure or for background."""
    plan = recipe(tmp_path, {**nnunet(tmp_path, labels={"background": 0, "liver": 1, "ignore": 2}), "val_share": 0.0})
    case = find_cases(plan)[0]
    assert set(masks_of(case, "liver", "ignore")) == {"liver"}
    assert np.array_equal(read_unknown(case, read_grid(case)), mask("spleen"))


def test_without_an_ignore_label_nothing_is_unknown(tmp_path: Path) -> None:
    """The usual dataset has no such voxels."""
    case = find_cases(recipe(tmp_path, {**nnunet(tmp_path), "val_share": 0.0}))[0]
    assert read_unknown(case, read_grid(case)) is None


def test_nnunet_files_listed_in_dataset_json(tmp_path: Path) -> None:
    """`dataset` in dataset.json says where images and labels lie, relative to the dataset."""
    elsewhere = {"x": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/b.nii.gz"}}
    plan = recipe(tmp_path, {**nnunet(tmp_path, dataset=elsewhere), "val_share": 0.0})
    (case,) = find_cases(plan)
    assert (case.name, case.ct.name, case.maps[0].path.name) == ("x", "a_0000.nii.gz", "b.nii.gz")


def test_a_label_without_its_image_is_refused(tmp_path: Path) -> None:
    """The sentence names the case, the dataset and the file."""
    plan = recipe(tmp_path, {**nnunet(tmp_path), "val_share": 0.0})
    (tmp_path / "raw/Dataset001_Tiny/imagesTr/b_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case 'b' of dataset 'nn' lacks .*b_0000\.nii\.gz"):
        find_cases(plan)


@pytest.mark.parametrize("path", ["raw/Dataset002_Other", "raw"])
def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path, path: str) -> None:
    """A wrong folder, and one without dataset.json, are named in full."""
    with pytest.raises(RecipeError, match=f"'nn'.*{tmp_path / path}"):
        find_cases(recipe(tmp_path, {**nnunet(tmp_path), "path": path}))


# ---- splits by name


@given(st.sets(st.text(min_size=1, max_size=8), max_size=40), st.floats(0, 0.99))
def test_a_case_keeps_its_side_when_others_come(names: set[str], share: float) -> None:
    """The side depends on the name and the share alone, and a larger share only takes more into val."""
    held = {name for name in names if by_name(name, share) == "val"}
    assert held <= {name for name in names if by_name(name, min(0.99, share + 0.1)) == "val"}
    assert all(by_name(name, 0.0) == "train" for name in names)


def test_the_share_of_val_is_as_asked_for() -> None:
    """Of 2000 names about a fifth are held out (binomial: 400 ± 18)."""
    assert 320 < sum(by_name(f"case_{n}", 0.2) == "val" for n in range(2000)) < 480


# ---- TotalSegmentator


def subject(folder: Path, name: str, *, masks: tuple[str, ...] = ("liver", "spleen"), empty: tuple[str, ...] = (), scan: bool = True) -> Path:
    place = folder / "ts" / name
    (place / "segmentations").mkdir(parents=True)
    if scan:
        write_nifti(place / "ct.nii.gz", ct(), grid())
    for one in masks:
        write_nifti(place / "segmentations" / f"{one}.nii.gz", mask(one), grid())
    for one in empty:
        write_nifti(place / "segmentations" / f"{one}.nii.gz", np.zeros(SHAPE, np.uint8), grid())
    return place


TS = {"name": "ts", "format": "totalsegmentator", "path": "ts"}


def test_totalsegmentator_subjects(tmp_path: Path) -> None:
    """Every mask file annotates, an empty one says absent, and meta.csv (with semicolons) gives the splits."""
    subject(tmp_path, "s0001")
    subject(tmp_path, "s0002", masks=("liver",), empty=("spleen",))
    subject(tmp_path, "s0003")
    (tmp_path / "ts" / "meta.csv").write_text("image_id;age;split\ns0001;50;train\ns0002;60;val\n")
    plan = recipe(tmp_path, TS)
    assert names_of(find_cases(plan)) == ["s0001"]
    (held,) = find_cases(plan, "val")
    masks = masks_of(held)
    assert np.array_equal(masks["liver"], mask("liver"))
    assert masks["spleen"].sum() == 0
    assert find_cases(plan, "test") == []  # s0003 is in no split


def test_totalsegmentator_without_meta_is_split_by_name(tmp_path: Path) -> None:
    """Without meta.csv val_share decides."""
    for n in range(6):
        subject(tmp_path, f"s{n:04}", masks=())
    plan = recipe(tmp_path, {**TS, "val_share": 0.5})
    sides = {split: names_of(find_cases(plan, split)) for split in ("train", "val")}
    assert sides == {split: [f"s{n:04}" for n in range(6) if by_name(f"s{n:04}", 0.5) == split] for split in sides}
    assert all(sides.values())


def test_totalsegmentator_label_map_with_embedded_names(tmp_path: Path) -> None:
    """A subject with one label map that knows its names, as clseg writes it, needs no masks."""
    place = tmp_path / "ts" / "s0001"
    place.mkdir(parents=True)
    write_nifti(place / "ct.nii.gz", ct(), grid())
    colour = (1, 2, 3)
    write_mask(place / "segmentation.nii.gz", label_map(liver=3, spleen=9), grid(), labels={3: ("liver", colour), 9: ("spleen", colour)})
    (case,) = find_cases(recipe(tmp_path, {**TS, "val_share": 0.0}))
    masks = masks_of(case)
    assert all(np.array_equal(masks[name], mask(name)) for name in BOXES)


def test_a_folder_without_subjects_is_refused(tmp_path: Path) -> None:
    """The sentence says what a subject is."""
    (tmp_path / "ts" / "notes").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"Dataset 'ts' has no subject in .*segmentations"):
        find_cases(recipe(tmp_path, TS))


def test_label_maps_without_a_ct_are_for_synthesis(tmp_path: Path) -> None:
    """Only a synthetic dataset keeps a case without a CT; its grid is that of the label map."""
    place = tmp_path / "ts" / "s0001"
    place.mkdir(parents=True)
    write_nifti(place / "labels.nii.gz", label_map(liver=1, spleen=2), grid())
    (place / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 2}))
    with pytest.raises(RecipeError, match="'ts' has no case with a CT"):
        find_cases(recipe(tmp_path, {**TS, "val_share": 0.0}))
    (case,) = find_cases(recipe(tmp_path, {**TS, "val_share": 0.0, "synthetic": True}))
    assert case.ct is None
    assert np.array_equal(read_grid(case).array, label_map(liver=1, spleen=2))
    assert np.array_equal(masks_of(case)["spleen"], mask("spleen"))


def test_the_real_label_maps(shared: Path) -> None:
    """Both label maps without a CT are found and hold a liver on the right of the spleen."""
    plan = recipe(shared / "data", {**TS, "path": "totalsegmentator_dataset", "synthetic": True, "val_share": 0.0})
    cases = find_cases(plan)
    assert names_of(cases) == ["s0327", "s0328"]
    place = read_grid(cases[0])
    assert place.orientation == "RAS"
    masks = read_masks(cases[0], {"liver", "spleen"}, place)
    assert np.argwhere(masks["liver"])[:, 0].mean() > np.argwhere(masks["spleen"])[:, 0].mean()


# ---- table


def table(folder: Path, text: str) -> dict[str, Any]:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "cases.csv").write_text(text)
    return {"name": "table", "format": "csv", "index": "data/cases.csv", "val_share": 0.0}


def test_table_with_every_kind_of_label(tmp_path: Path) -> None:
    """A label map with inline names, one with a JSON file, mask files called like structures, and a folder of masks say the same."""
    data = tmp_path / "data"
    (data / "masks").mkdir(parents=True)
    write_nifti(data / "ct.nii.gz", ct(), grid())
    write_nifti(data / "seg.nii.gz", label_map(liver=4, spleen=7), grid())
    (data / "names.json").write_text(json.dumps({"background": 0, "Liver": 4, "spleen": 7}))
    for name in BOXES:
        write_nifti(data / f"{name}.nii.gz", mask(name), grid())
        write_nifti(data / "masks" / f"{name}.nii.gz", mask(name), grid())
    rows = [
        "ct,label,names,split,case",
        "ct.nii.gz,seg.nii.gz,liver=4;spleen=7,train,inline",
        f"{data / 'ct.nii.gz'},{data / 'seg.nii.gz'},names.json,train,json",
        "ct.nii.gz,liver.nii.gz;spleen.nii.gz,,train,files",
        "ct.nii.gz,masks,,train,folder",
        "ct.nii.gz,masks,,val,held",
    ]
    plan = recipe(tmp_path, table(tmp_path, "\n".join(rows) + "\n"))
    cases = find_cases(plan)
    assert names_of(cases) == ["inline", "json", "files", "folder"]
    assert names_of(find_cases(plan, "val")) == ["held"]
    for case in cases:
        masks = masks_of(case)
        assert set(masks) == set(BOXES), case.name
        assert all(np.array_equal(masks[name], mask(name)) for name in masks), case.name


def test_table_of_two_columns(tmp_path: Path) -> None:
    """Without further columns cases are called like their CT and split by that name."""
    data = table(tmp_path, "ct,label\nscan_7.nii.gz,liver.nii.gz\n")
    write_nifti(tmp_path / "data" / "scan_7.nii.gz", ct(), grid())
    write_nifti(tmp_path / "data" / "liver.nii.gz", mask("liver"), grid())
    (case,) = find_cases(recipe(tmp_path, data))
    assert (case.name, case.split) == ("scan_7", "train")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("scan,label\nct.nii.gz,seg.nii.gz\n", "needs the columns 'ct' and 'label', it has scan, label"),
        ("ct;label\nct.nii.gz;seg.nii.gz\n", "it has ct;label"),
        ("", "it has none"),
        ("ct,label\n,seg.nii.gz\n", "line 2, names no CT"),
        ("ct,label\nct.nii.gz,\n", "line 2, names no label"),
        ("ct,label,names\nct.nii.gz,seg.nii.gz,liver=1;spleen=1\n", "overlap: 'liver' and 'spleen' both have the id 1"),
        ("ct,label,names\nct.nii.gz,seg.nii.gz,liver=one\n", "like liver=1;spleen=2"),
        ("ct,label,names\nct.nii.gz,seg.nii.gz,liver=1;liver=2\n", "each structure once"),
        ("ct,label,names,case\nct.nii.gz,seg.nii.gz,liver=1,a\nct.nii.gz,seg.nii.gz,liver=1,a\n", "lists the case 'a' twice"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """A table that does not say what is needed is refused with its line or columns."""
    with pytest.raises(RecipeError, match=sentence):
        find_cases(recipe(tmp_path, table(tmp_path, text)))


def test_a_table_with_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The first missing file is named with its case."""
    with pytest.raises(InputError, match=r"case 'ct' of dataset 'table' lacks .*ct\.nii\.gz"):
        find_cases(recipe(tmp_path, table(tmp_path, "ct,label,names\nct.nii.gz,seg.nii.gz,liver=1\n")))


# ---- names and meaning


def mapped_case(folder: Path, names: dict[str, int], array: np.ndarray, **knobs: Any) -> Case:
    """One case of a table whose label map holds `array`, named by `names`."""
    data = table(folder, "ct,label,names\nct.nii.gz,seg.nii.gz,names.json\n")
    write_nifti(folder / "data" / "ct.nii.gz", ct(), grid())
    write_nifti(folder / "data" / "seg.nii.gz", array, grid())
    (folder / "data" / "names.json").write_text(json.dumps(names))
    return find_cases(recipe(folder, {**data, **knobs}))[0]


@pytest.mark.parametrize("complete", [False, True])
def test_complete_labels_say_that_a_structure_is_absent(tmp_path: Path, complete: bool) -> None:
    """A name without a voxel is unknown in partial labels, and an empty mask where labels are complete."""
    case = mapped_case(tmp_path, {"liver": 1, "spleen": 2}, label_map(liver=1), complete=complete)
    masks = masks_of(case)
    assert set(masks) == ({"liver", "spleen"} if complete else {"liver"})
    assert not masks.get("spleen", np.zeros(1)).any()


def test_renamed_parts_are_joined(tmp_path: Path) -> None:
    """Several names of one structure are its union, but where one of them has no voxel the whole is unknown."""
    rename = {"segment_1": "liver", "segment_2": "liver"}
    names = {"segment_1": 1, "segment_2": 2}
    whole = mapped_case(tmp_path, names, label_map(liver=1, spleen=2), rename=rename)
    assert np.array_equal(masks_of(whole)["liver"], mask("liver") | mask("spleen"))
    assert masks_of(mapped_case(tmp_path, names, label_map(liver=1), rename=rename)) == {}
    filled = masks_of(mapped_case(tmp_path, names, label_map(liver=1), rename=rename, complete=True))
    assert np.array_equal(filled["liver"], mask("liver"))


def test_what_is_renamed_goes_before_synonyms(tmp_path: Path) -> None:
    """A dataset that calls the spleen `liver` can say so."""
    case = mapped_case(tmp_path, {"liver": 1}, label_map(spleen=1), rename={"liver": "spleen"})
    assert np.array_equal(masks_of(case)["spleen"], mask("spleen"))
    assert "liver" not in masks_of(case)


def test_a_name_that_is_wanted_is_taken_literally(tmp_path: Path) -> None:
    """A decoder of one's own may be called what the catalogue calls a synonym."""
    case = mapped_case(tmp_path, {"Liver": 1}, label_map(liver=1))
    assert set(masks_of(case, "Liver")) == {"Liver"}
    assert set(masks_of(case, "liver")) == {"liver"}


def test_a_name_of_several_structures_is_none_of_them(tmp_path: Path) -> None:
    """`kidney` may be the left, the right or both: nothing is guessed."""
    case = mapped_case(tmp_path, {"kidney": 1}, label_map(liver=1))
    assert masks_of(case, "kidney_left", "kidney_right") == {}
    assert named(case) == {"kidney": ("kidney",)}


def test_two_names_of_one_structure_are_refused(tmp_path: Path) -> None:
    """Nobody knows whether `Liver` is a part of `liver` or another drawing of it, unless the recipe joins them."""
    names = {"liver": 1, "Liver": 2}
    with pytest.raises(InputError, match="call two things liver: 'liver' and 'Liver'"):
        masks_of(mapped_case(tmp_path, names, label_map(liver=1, spleen=2)))
    joined = mapped_case(tmp_path, names, label_map(liver=1, spleen=2), rename={"Liver": "liver"})
    assert np.array_equal(masks_of(joined)["liver"], mask("liver") | mask("spleen"))


@pytest.mark.parametrize("names", [{"liver": 1, "spleen": 1}, {"liver": -1}, {"liver": 1.5}, {"liver": True}, [1, 2]])
def test_ids_that_make_no_sense_are_refused(tmp_path: Path, names: Any) -> None:
    """One whole number per structure; the file is named."""
    with pytest.raises(InputError, match=r"seg\.nii\.gz"):
        masks_of(mapped_case(tmp_path, names, label_map(liver=1)))


def test_a_table_of_id_and_name_is_turned_round(tmp_path: Path) -> None:
    """JSON may hold {id: name} as well."""
    case = mapped_case(tmp_path, {"1": "liver", "2": "spleen"}, label_map(liver=1, spleen=2))  # type: ignore[dict-item]
    assert np.array_equal(masks_of(case)["spleen"], mask("spleen"))


# ---- recipes


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"format": "nifti", "index": "i.csv"}, "folders, csv, nnunet, totalsegmentator, results, given 'nifti'"),
        ({"format": "nnunet", "index": "i.csv"}, "lacks 'path': its format 'nnunet' needs it"),
        ({"format": "csv"}, "lacks 'index'"),
        ({"index": "i.csv", "path": "x"}, "'path' is given"),
        ({"format": "csv", "index": "i.csv", "masks": {"liver": "l.nii.gz"}}, "which belong to the format 'folders'"),
        ({"index": "i.csv", "val_share": 1.0}, "val_share from 0 to below 1"),
        ({"index": "i.csv", "fold": -1}, "a fold of 0 or more"),
    ],
)
def test_datasets_that_contradict_themselves_are_refused(tmp_path: Path, knobs: dict[str, Any], sentence: str) -> None:
    """Each format is found by its own key, and the sentence says which."""
    with pytest.raises(RecipeError, match=sentence):
        recipe(tmp_path, {"name": "d", **knobs})


def test_facts_change_with_what_decides_the_masks(tmp_path: Path) -> None:
    """The facts that a cache goes by tell other names, renaming and completeness apart, and are JSON."""
    case = mapped_case(tmp_path, {"liver": 1}, label_map(liver=1))
    others = [
        replace(case, dataset=replace(case.dataset, complete=True)),
        replace(case, dataset=replace(case.dataset, rename={"liver": "spleen"})),
        replace(case, maps=(replace(case.maps[0], names={"liver": 2}),)),
    ]
    texts = [json.dumps(one.facts()) for one in (case, *others)]
    assert len(set(texts)) == 4
    assert all(isinstance(one.dataset, DatasetRecipe) for one in others)


# ---- clseg's own results ----------------------------------------------------------------------------------------------

OWN = {"name": "own", "format": "results", "path": "results", "val_share": 0.0}


def result(folder: Path, name: str = "a", review: dict[str, str] | None = None, **run: Any) -> Path:
    """A scan beside `results/`, and in it a result with both masks and statistics."""
    write_nifti(folder / f"{name}.nii.gz", ct(), grid())
    place = folder / "results" / name
    place.mkdir(parents=True)
    for one in BOXES:
        write_nifti(place / f"{one}.nii.gz", mask(one), grid())
    (place / "run.json").write_text(json.dumps({"input": {"path": str(folder / f"{name}.nii.gz")}, **run}))
    if review is not None:
        told = {one: {"review": word, "status": "complete"} for one, word in review.items()}
        (place / "statistics.json").write_text(json.dumps({**told, "families": {"organs": {"volume_ml": 3.0}}}))
    return place


def test_own_results_teach_what_needs_no_review(tmp_path: Path) -> None:
    """The scan is the one that run.json names; a mask that should be looked at is unknown, never background."""
    result(tmp_path, "a", {"liver": "no", "spleen": "yes"})
    result(tmp_path, "b", {"liver": "no", "spleen": "no", "aorta": "no"})  # no mask of an aorta: unknown
    first, second = find_cases(recipe(tmp_path, OWN))
    assert (first.name, first.ct) == ("a", tmp_path / "a.nii.gz")
    assert set(masks_of(first)) == {"liver"}
    masks = masks_of(second, "liver", "spleen", "aorta")
    assert set(masks) == set(BOXES)
    assert all(np.array_equal(masks[name], mask(name)) for name in BOXES)


def test_own_results_without_statistics_are_refused(tmp_path: Path) -> None:
    """Nothing says which masks are good."""
    result(tmp_path)
    with pytest.raises(InputError, match=r"no statistics.json, so nothing says which masks need a review") as caught:
        find_cases(recipe(tmp_path, OWN))
    assert "--stats" in str(caught.value.tip)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    """There, empty, or not there at all: one sentence and the command that fills it."""
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"Dataset 'own' has no results in .*results"):
            find_cases(recipe(tmp_path, OWN))
        (tmp_path / "results").mkdir(exist_ok=True)


def test_results_that_only_teach_need_not_be_there_to_judge(tmp_path: Path) -> None:
    """With val_share 0 nothing of them is held out: the split `val` of such a recipe is found without them; with a share it is not."""
    assert find_cases(recipe(tmp_path, OWN), "val") == []
    with pytest.raises(RecipeError, match="has no results"):
        find_cases(recipe(tmp_path, {**OWN, "val_share": 0.2}), "val")


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read as JSON"), ("[1]", "holds a list"), ("{}", "does not say which file"), ('{"input": {"path": null}}', "does not say which file")],
)
def test_a_spoilt_result_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """A run.json that is none, and one of an array that had no file."""
    (result(tmp_path, "a", {"liver": "no"}) / "run.json").write_text(text)
    with pytest.raises(InputError, match=told):
        find_cases(recipe(tmp_path, OWN))


def test_a_scan_that_has_gone_is_missed(tmp_path: Path) -> None:
    """The result alone teaches nothing."""
    result(tmp_path, "a", {"liver": "no"})
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case 'a' of dataset 'own' lacks .*a\.nii\.gz"):
        find_cases(recipe(tmp_path, OWN))
