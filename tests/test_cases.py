"""Facts about cases: which scans belong to a dataset and which structures are annotated there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import InputError, RecipeError
from clseg.io.files import read
from clseg.recipe import Recipe
from clseg.recipe.parts import DatasetRecipe
from clseg.spatial.orient import to_orientation
from clseg.training.cases import Case, find_cases, read_masks
from clseg.training.cases.case import LabelMap
from tests.small_dataset import scan, tiny_recipe, write_nifti

ALL = {"body", "skeleton", "liver", "lung_left", "lung_right", "spleen"}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


def names(cases: list[Case]) -> list[tuple[str, str]]:
    return [(case.dataset.name, case.name) for case in cases]


def masks_of(case: Case, wanted: set[str] = ALL) -> dict[str, np.ndarray]:
    return read_masks(case, wanted, read(case.ct))


def test_cases_of_the_recipes_split(recipe: Recipe) -> None:
    """Cases come in the order of datasets and index, those of another split only when asked for."""
    assert names(find_cases(recipe)) == [("mapped", "a"), ("masked", "b")]
    assert names(find_cases(recipe, "val")) == [("masked", "c")]
    assert names(find_cases(recipe, "test")) == []


def test_patterns_choose_cases(recipe: Recipe) -> None:
    """`cases` are glob patterns over the index; the same scan may serve two datasets."""
    wide = replace(recipe, dataset=(replace(recipe.dataset[0], cases=("[ab]",)), replace(recipe.dataset[1], cases=("*",))))
    assert names(find_cases(wide)) == [("mapped", "a"), ("mapped", "b"), ("masked", "a"), ("masked", "b")]


def test_a_case_without_a_ct_is_passed_over(recipe: Recipe) -> None:
    """A case whose CT is not on this machine is no case; a dataset without any is refused by name."""
    (recipe.folder / "dataset" / "a" / "ct.nii.gz").unlink()
    with pytest.raises(RecipeError, match="Dataset 'mapped' has no case with a CT"):
        find_cases(recipe)


def test_an_index_that_is_not_there_is_named(recipe: Recipe) -> None:
    """The full path of a missing index is in the sentence; so are the columns that an index lacks."""
    index = recipe.folder / "dataset" / "index.csv"
    index.write_text("name,split\na,train\n")
    with pytest.raises(RecipeError, match="columns 'case' and 'split', it has name, split"):
        find_cases(recipe)
    index.unlink()
    with pytest.raises(RecipeError, match=str(index)):
        find_cases(recipe)


def test_a_label_map_annotates_what_it_has_voxels_of(recipe: Recipe) -> None:
    """Lungs and liver are read by their ids; the skeleton, named without a voxel, and the body, unnamed, are unknown."""
    masks = masks_of(find_cases(recipe)[0])
    truth = scan("a")[1]
    assert set(masks) == {"lung_left", "lung_right", "liver"}
    assert all(np.array_equal(masks[name], truth[name]) for name in masks)


def test_mask_files_annotate_what_they_are_listed_for(recipe: Recipe) -> None:
    """`file` means every voxel above 0, `file:2` the voxels of value 2."""
    masks = masks_of(find_cases(recipe)[1])
    truth = scan("b")[1]
    assert set(masks) == {"body", "skeleton", "lung_left", "lung_right"}
    assert all(mask.dtype == bool and np.array_equal(mask, truth[name]) for name, mask in masks.items())


def test_a_mask_file_that_is_not_there_annotates_nothing(recipe: Recipe) -> None:
    """The scan `c` has only a mask of the body."""
    assert set(masks_of(find_cases(recipe, "val")[0])) == {"body"}


def test_an_empty_mask_file_says_that_the_structure_is_absent(recipe: Recipe) -> None:
    """Unlike a name in a label map, an empty file is an annotation: somebody looked and found nothing."""
    ct = scan("b")[0]
    write_nifti(recipe.folder / "dataset" / "b" / "skeleton.nii.gz", np.zeros(ct.shape, np.uint8), ct)
    assert masks_of(find_cases(recipe)[1])["skeleton"].sum() == 0


def test_only_what_is_wanted_is_read(recipe: Recipe) -> None:
    """Structures that no decoder learns are left on the disk."""
    assert set(masks_of(find_cases(recipe)[0], {"liver", "spleen"})) == {"liver"}


def test_labels_on_another_grid_are_refused(recipe: Recipe) -> None:
    """A mask that was moved by a voxel does not belong to its CT."""
    ct, masks = scan("b")
    affine = ct.affine.copy()
    affine[0, 3] += 6
    write_nifti(recipe.folder / "dataset" / "b" / "body.nii.gz", masks["body"], replace(ct, affine=affine))
    with pytest.raises(InputError, match=r"body\.nii\.gz do not lie on the grid"):
        masks_of(find_cases(recipe)[1])


@pytest.mark.parametrize("content", [None, "{", b"\xff"])
def test_a_label_map_without_names_is_refused(recipe: Recipe, content: str | bytes | None) -> None:
    """A label map needs a readable JSON of names beside it; the sentence says where."""
    path = recipe.folder / "dataset" / "a" / "labels.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"labels\.json"):
        masks_of(find_cases(recipe)[0])


def test_a_mask_file_takes_the_place_of_the_label_map(recipe: Recipe) -> None:
    """When both annotate a structure the mask file counts."""
    folder = recipe.folder / "dataset" / "b"
    ct, masks = scan("b")
    write_nifti(folder / "labels.nii.gz", masks["liver"].astype(np.uint8), ct)
    (folder / "labels.json").write_text(json.dumps({"skeleton": 1}))
    assert np.array_equal(masks_of(find_cases(recipe)[1])["skeleton"], masks["skeleton"])


def test_labels_stored_in_another_axis_order_are_turned(recipe: Recipe) -> None:
    """A mask that was saved as LPS annotates the same voxels of its RAS scan."""
    ct, masks = scan("b")
    turned = to_orientation(ct.like(masks["body"].astype(np.uint8)), "LPS")
    write_nifti(recipe.folder / "dataset" / "b" / "body.nii.gz", np.ascontiguousarray(turned.array), turned)
    assert np.array_equal(masks_of(find_cases(recipe)[1])["body"], masks["body"])


def test_names_beside_a_label_map_belong_to_the_case(tmp_path: Path) -> None:
    """Ids that are corrected in a sidecar make another case: what was prepared with the wrong ones is not used again."""
    dataset = DatasetRecipe(name="mine", format="csv")
    case = Case("a", "train", dataset, tmp_path, None, (LabelMap(tmp_path / "seg.nii.gz"),))
    (tmp_path / "seg.nii.gz").write_bytes(b"")
    before = case.facts()
    (tmp_path / "seg.labels.json").write_text('{"liver": 1}')
    named = case.facts()
    os.utime(tmp_path / "seg.labels.json", ns=(1, 1))
    assert len({json.dumps(facts) for facts in (before, named, case.facts())}) == 3
    assert tmp_path / "seg.labels.json" in case.files()


def test_cases_of_one_name_are_told_apart(recipe: Recipe, tmp_path: Path) -> None:
    """Scans of two datasets that happen to be called alike get the dataset's name before theirs; the same scan in both keeps its own."""
    shutil.copytree(tmp_path / "dataset", tmp_path / "second")
    first = recipe.dataset[0]
    twins = replace(recipe, dataset=(first, replace(first, name="again"), replace(first, name="other", index="second/index.csv")))
    names = [case.name for case in find_cases(twins)]
    assert {f"{first.name}.a", "again.a", "other.a"} <= set(names)
    same = replace(recipe, dataset=(first, replace(first, name="again")))
    assert {case.name for case in find_cases(same)} == {case.name for case in find_cases(replace(recipe, dataset=(first,)))}
