"""Facts about validation: held-out cases are scored through the whole chain, and only where they are annotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg.catalogue import Catalogue
from clseg.errors import UsageError
from clseg.io.files import read
from clseg.recipe import Recipe
from clseg.segmentation import Segmentation
from clseg.spatial.orient import to_orientation
from clseg.training import validate as validation
from clseg.training.validate import validate
from clseg.volume import Volume
from tests.small_dataset import SCANS, scan, tiny_recipe

Masks = dict[str, np.ndarray]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Masks], Masks]], list[dict]]:
    """Puts a segmenter that knows the truth, and may spoil it, in the place of the network; returns its calls."""

    def install(spoil: Callable[[Masks], Masks]) -> list[dict]:
        calls: list[dict] = []

        def segment(image: Path, **options: object) -> Segmentation:
            calls.append({"case": image.parent.name, **options})
            masks = spoil(dict(scan(image.parent.name)[1]))
            wanted = tuple(a for a in Catalogue.builtin().anatomies if a.name in masks)
            layers = tuple(np.where(masks[a.name], a.id, 0).astype(np.uint16) for a in wanted)
            return Segmentation(read(image), layers, wanted)

        monkeypatch.setattr(validation, "segment", segment)
        return calls

    return install


def test_a_perfect_answer_scores_one(recipe: Recipe, answer: Callable) -> None:
    """Every annotated structure of every training case has Dice 1 and no distance; unannotated ones are not scored."""
    answer(lambda masks: masks)
    results = validate(recipe, split="train")
    assert {case: set(scores) for case, scores in results.items()} == {
        "a": {"lung_left", "lung_right", "liver"},
        "b": {"lung_left", "lung_right", "skeleton", "body"},
    }
    assert all((s.dice, s.hd95_mm) == (1, 0) for scores in results.values() for s in scores.values())


def test_nothing_to_score_is_told(recipe: Recipe, answer: Callable) -> None:
    """A model that segments nothing of what the cases annotate: an empty table would look like an answer."""
    answer(lambda masks: {"trachea": masks["body"]})
    with pytest.raises(UsageError, match="No case of the split 'train' annotates a structure that recipe 'tiny' names and model 'starter' segments"):
        validate(recipe, split="train")


def test_dice_by_hand(recipe: Recipe, answer: Callable) -> None:
    """Half of the body missed: 2·|P| / (|P| + |R|) with P the half that was found."""

    def lower_half(masks: Masks) -> Masks:
        masks["body"] = masks["body"].copy()
        masks["body"][:, :, 24:] = False
        return masks

    answer(lower_half)
    found, whole = scan("c")[1]["body"][:, :, :24].sum(), scan("c")[1]["body"].sum()
    scores = validate(recipe)
    assert list(scores) == ["c"]
    assert scores["c"]["body"].dice == pytest.approx(2 * found / (found + whole))
    assert set(scores["c"]) == {"body"}


def test_a_structure_that_the_model_does_not_hold_is_not_scored(recipe: Recipe, answer: Callable) -> None:
    """A model without the liver has no score for it; a case with nothing to score is left out."""
    answer(lambda masks: {"liver": masks["liver"]})
    assert {case: set(scores) for case, scores in validate(recipe, split="train").items()} == {"a": {"liver"}}


def test_structures_that_cannot_be_in_view_are_scored_when_asked_for(recipe: Recipe, answer: Callable) -> None:
    """Their reference is empty: a liver of the answer is painted there falsely; what the case annotates stays as it is."""
    absent = tuple(replace(dataset, absent=("liver", "body")) for dataset in recipe.dataset)
    answer(lambda masks: {**masks, "liver": masks["body"]})
    found = validate(replace(recipe, dataset=absent), absent=True)["c"]
    assert (found["liver"].dice, found["liver"].reference_ml) == (0, 0)
    assert found["liver"].predicted_ml > 0
    assert found["body"].dice == 1


def test_what_no_decoder_of_the_recipe_paints_may_be_absent_too(recipe: Recipe, answer: Callable) -> None:
    """The model holds a heart that the recipe has no decoder for; where the dataset says that there is none, all its voxels are wrong."""
    answer(lambda masks: {**masks, "heart": masks["body"]})
    absent = tuple(replace(dataset, absent=("heart",)) for dataset in recipe.dataset)
    found = validate(replace(recipe, dataset=absent), absent=True)["c"]["heart"]
    assert (found.reference_ml, found.predicted_ml > 0) == (0, True)
    assert "heart" not in validate(replace(recipe, dataset=absent))["c"]


def test_a_split_without_cases_is_a_usage_error(recipe: Recipe, answer: Callable) -> None:
    """`vall` is answered with the splits there are, not with an empty table."""
    answer(lambda masks: masks)
    with pytest.raises(UsageError, match=r"no case .* split 'vall' .* there are: train, val\."):
        validate(recipe, split="vall")


def test_the_model_runs_as_a_user_runs_it(recipe: Recipe, answer: Callable) -> None:
    """Each case of the split goes once through `segment`, with model and device as given, without the network."""
    calls = answer(lambda masks: masks)
    validate(replace(recipe, split="val"), split="train", model="tiny", device="cpu")
    assert calls == [{"case": name, "model": "tiny", "device": "cpu", "offline": True} for name in SCANS[:2]]


@pytest.mark.parametrize("code", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize(("end", "dice"), [(None, 0.5), ("inferior", 0.8), ("superior", 4 / 7), ("both", 1.0)])
def test_beyond_open_ends_nothing_is_known(code: str, end: str | None, dice: float) -> None:
    """A tube of 12 slices whose contours cover 4: what is predicted 2 above them and 6 below counts only at ends that are not open."""
    scan = Volume(np.zeros((4, 4, 14), np.int16), np.diag([1.0, 1.0, 3.0, 1.0]))
    predicted, reference = np.zeros(scan.shape, bool), np.zeros(scan.shape, bool)
    predicted[1:3, 1:3, 1:13] = True
    reference[1:3, 1:3, 7:11] = True
    turned = [to_orientation(scan.like(mask), code) for mask in (predicted, reference)]
    scores = validation._compared(turned[0].array, turned[1].array, to_orientation(scan, code), end)
    assert scores.dice == pytest.approx(dice)
