"""Facts about TotalSegmentator's weights: parts are one model in RAS, coarse copies models of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from clseg.errors import UsageError, WeightsError
from clseg.weights.importers.nnunet import find_trainings
from clseg.weights.importers.totalsegmentator import chosen, models_of, number_of, read_trainings
from tests.small_nnunet import dataset, plans, write_model


def part(root: Path, number: int, labels: str, spacing: float, **options) -> Path:
    """A training `Dataset<number>_…` of these structures."""
    facts = dataset(labels={name: index for index, name in enumerate(["background", *labels.split()])})
    return write_model(root / f"Dataset{number}_TotalSegmentator_part", facts=facts, plan=plans(spacing=[spacing] * 3), seed=number, **options)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Two parts at 1.5 mm, all of it at 3 mm, and the body at 6 mm."""
    part(tmp_path, 291, "spleen liver", 1.5)
    part(tmp_path, 292, "vertebrae_L1", 1.5)
    part(tmp_path, 297, "vertebrae_L1 liver spleen", 3.0)
    part(tmp_path, 299, "body", 6.0)
    return tmp_path


def test_parts_are_one_model_with_their_own_encoders(task: Path) -> None:
    """291 and 292, and 299 that adds the body; every part keeps its encoder and names; plans turn to RAS and resample first, in three dimensions."""
    parts = read_trainings(models_of(chosen(find_trainings(task)))[""])
    assert [one.name for one in parts] == ["encoder-291", "291", "encoder-292", "292", "encoder-299", "299"]
    assert [one.checkpoint.spec.labels for one in parts[1::2]] == [("spleen", "liver"), ("vertebrae_L1",), ("body",)]  # type: ignore[union-attr]
    plans_of = {one.checkpoint.spec.plan for one in parts[1::2]}  # type: ignore[union-attr]
    assert {(plan.orientation, plan.normalise_first, plan.image.separate, plan.answer.separate) for plan in plans_of} == {("RAS", False, "never", "never")}
    assert {one.checkpoint.spec.grid.orientation for one in parts[::2]} == {"SAR"}  # type: ignore[union-attr]


def test_a_coarse_copy_is_a_model_of_its_own(task: Path) -> None:
    """297 holds at 3 mm what 291 and 292 hold at 1.5 mm."""
    models = models_of(chosen(find_trainings(task)))
    assert {name: [number_of(one) for one in trainings] for name, trainings in models.items()} == {"": ["291", "292", "299"], "297": ["297"]}


def test_alone_the_coarse_one_is_the_model(task: Path) -> None:
    """Asked for by number."""
    models = models_of(chosen(find_trainings(task), "297"))
    assert {name: [number_of(one) for one in trainings] for name, trainings in models.items()} == {"": ["297"]}


def test_datasets_can_be_chosen(task: Path) -> None:
    """In the order asked for; one that is not there is told with those that are."""
    assert [number_of(one) for one in chosen(find_trainings(task), "292, Dataset291")] == ["292", "291"]
    with pytest.raises(UsageError, match="no dataset 300, there are 291, 292, 297, 299"):
        chosen(find_trainings(task), "300")


def test_two_trainings_of_one_dataset_must_be_chosen_from(task: Path) -> None:
    """3d_lowres beside 3d_fullres."""
    both = plans()
    both["configurations"]["3d_lowres"] = both["configurations"]["3d_fullres"]
    write_model(task / "Dataset291_TotalSegmentator_part", configuration="3d_lowres", plan=both)
    with pytest.raises(UsageError, match="291 is there twice"):
        chosen(find_trainings(task))
    assert len(chosen(find_trainings(task, configuration="3d_lowres"))) == 1


def test_a_folder_of_another_name_is_refused(tmp_path: Path) -> None:
    """Its structures would have no number."""
    write_model(tmp_path / "mine")
    with pytest.raises(WeightsError, match="no folder Dataset291"):
        chosen(find_trainings(tmp_path))
