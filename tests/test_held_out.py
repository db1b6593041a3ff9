"""A split that no case has is told from the lists of cases alone, before anything is read or trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clseg.errors import RecipeError
from clseg.recipe import LearnRecipe, PruneRecipe, UpdateRecipe
from clseg.training.bodypart import train_bodypart
from clseg.training.cases.held_out import check_held_out
from clseg.training.inspect import inspect_cases
from tests.small_dataset import BODY, LADDER, OLD, learn_recipe, prune_recipe, tiny_recipe, update_recipe

THERE = "the splits there are: train (2 cases), val (1 case)."
NO_LADDER = "[ladder]\nstructured = []\nunstructured = []\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With cases a and b in `train`, c in `val`."""
    tiny_recipe(tmp_path)
    return tmp_path


def judged_on(split: str, recipe: LearnRecipe | UpdateRecipe | PruneRecipe):
    return replace(recipe, validation=replace(recipe.validation, split=split))


def said(recipe: LearnRecipe | UpdateRecipe | PruneRecipe) -> str:
    """The sentence of the refusal."""
    with pytest.raises(RecipeError) as caught:
        check_held_out(recipe)
    return caught.value.message


def test_a_split_without_a_case_is_refused_with_those_there_are(folder: Path) -> None:
    """`vall` of each of the three commands: what was given, and which splits have how many cases; splits that have some pass."""
    for recipe in (learn_recipe(folder, BODY, LADDER), update_recipe(folder), prune_recipe(folder)):
        assert said(judged_on("vall", recipe)) == f"No case is in [validation] split 'vall'; {THERE}"
        check_held_out(judged_on("train", recipe))
        check_held_out(judged_on("val", recipe))


def test_an_update_is_judged_on_old_cases(folder: Path) -> None:
    """[[old]] has case b alone, in `train`: `val`, which a new case has, is refused, `train` is not."""
    recipe = update_recipe(folder, OLD)
    assert said(judged_on("val", recipe)) == "No case of [[old]] is in [validation] split 'val'; the splits there are: train (1 case)."
    check_held_out(judged_on("train", recipe))


def test_nobody_needs_to_be_held_out_where_nothing_is_judged(folder: Path) -> None:
    """Without a ladder the usual `val` may be empty, with one it may not."""
    (folder / "dataset" / "index.csv").write_text("case,split\na,train\nb,train\nc,train\n")
    check_held_out(judged_on("val", learn_recipe(folder, BODY, NO_LADDER)))
    check_held_out(judged_on("val", update_recipe(folder)))
    for recipe in (learn_recipe(folder, BODY, LADDER), prune_recipe(folder)):
        assert said(judged_on("val", recipe)).endswith("train (3 cases).")
    assert "'vall'" in said(judged_on("vall", learn_recipe(folder, BODY, NO_LADDER)))


def test_cases_without_a_ct_or_a_split_do_not_count(folder: Path) -> None:
    """c has lost its CT and b is in no split: `val` has no case, `train` one."""
    (folder / "dataset" / "c" / "ct.nii.gz").unlink()
    (folder / "dataset" / "index.csv").write_text("case,split\na,train\nb,\nc,val\n")
    assert said(judged_on("val", learn_recipe(folder, BODY, LADDER))).endswith("the splits there are: train (1 case).")


def test_the_list_of_faults_has_it(folder: Path) -> None:
    """`clseg cases --kind learn` tells it with all other errors; a training from the start judges nothing."""
    errors = [one.sentence for one in inspect_cases(judged_on("vall", learn_recipe(folder, BODY, LADDER))).errors]
    assert errors == [f"No case is in [validation] split 'vall'; {THERE}"]
    assert not inspect_cases(judged_on("vall", tiny_recipe(folder))).errors


def test_a_regressor_is_told_before_it_is_trained(folder: Path) -> None:
    """Its recipe calls the split `validation_split`."""
    from clseg.recipe import BodypartRecipe

    recipe = BodypartRecipe(name="parts", dataset=tiny_recipe(folder).dataset, validation_split="vall", folder=folder)
    with pytest.raises(RecipeError, match="No case is in validation_split 'vall'; the splits there are: train"):
        train_bodypart(recipe, folder / "run")
    assert not (folder / "run").exists()
