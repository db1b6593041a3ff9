"""Facts about one stretch of training: it draws patches of its own, from cases that teach its decoders, and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clseg.errors import TrainingError
from clseg.recipe import Recipe
from clseg.training.examples import Example
from clseg.training.loop import Learner, Step, learner
from clseg.training.network import fresh
from clseg.training.pretrain import load_examples
from clseg.training.run import STATE, Reports
from clseg.training.stage import patches_for, run_stage
from clseg.training.state import read_average
from tests.small_dataset import tiny_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Six iterations, saved every three; `lungs` in both cases, `solid` in both, `body` in b alone."""
    return tiny_recipe(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def examples(recipe: Recipe) -> list[Example]:
    return load_examples(recipe, recipe.folder / "cache", Reports())


@pytest.fixture
def pupil(recipe: Recipe) -> Callable[[], Learner]:
    plan = replace(recipe, decoder=recipe.decoder[:1])
    return lambda: learner(fresh(plan), recipe.optim)


class PowerCut(Exception):
    """Ends a run without any chance to save."""


def cut_at(iteration: int, error: type[BaseException]) -> Reports:
    def hear(step: Step) -> None:
        if step.iteration == iteration:
            raise error

    return Reports(step=hear)


def test_a_stage_draws_from_cases_that_teach_its_decoders(recipe: Recipe, examples: list[Example]) -> None:
    """Of the cases a and b only b shows the body; other decoders' targets are not in its patches."""
    patches = patches_for(examples, recipe, "dense", ["body"])
    assert list(patches.by_dataset) == ["masked"]
    for number in range(5):
        for patch in patches.batch(number):
            assert set(patch.targets) == set(patch.annotated) == {"body"}
    assert list(patches_for(examples, recipe, "dense", ["lungs", "body"]).by_dataset) == ["mapped", "masked"]


def test_cases_stay_as_they_are(recipe: Recipe, examples: list[Example]) -> None:
    """Another stage finds all decoders in the same examples."""
    before = [set(example.targets) for example in examples]
    patches_for(examples, recipe, "dense", ["body"])
    assert [set(example.targets) for example in examples] == before


def test_a_decoder_that_nobody_teaches_is_refused(recipe: Recipe, examples: list[Example]) -> None:
    """One sentence that names the decoder; a dataset of weight 0 does not count."""
    with pytest.raises(TrainingError, match="No case to learn from annotates a structure of the decoder heart"):
        patches_for(examples, recipe, "dense", ["heart"])
    silent = replace(recipe, dataset=(recipe.dataset[0], replace(recipe.dataset[1], weight=0.0)))
    with pytest.raises(TrainingError, match="decoder body"):
        patches_for(examples, silent, "dense", ["body"])


def test_every_stage_draws_other_patches(recipe: Recipe, examples: list[Example]) -> None:
    """The same stage gives the same patches again, another stage and another seed give others."""

    def images(stage: str, seed: int = 7) -> torch.Tensor:
        patches = patches_for(examples, replace(recipe, seed=seed), stage, ["lungs"])
        return torch.stack([patch.image for number in range(2) for patch in patches.batch(number)])

    first = images("prune-lungs-structured-0.5-1")
    assert torch.equal(first, images("prune-lungs-structured-0.5-1"))
    for stage, seed in (("prune-lungs-structured-0.5-2", 7), ("recover-lungs", 7), ("prune-lungs-structured-0.5-1", 8)):
        assert not torch.equal(first, images(stage, seed))


@pytest.mark.parametrize(("cut", "error"), [(1, PowerCut), (4, PowerCut), (6, PowerCut), (4, KeyboardInterrupt), (6, KeyboardInterrupt)])
def test_a_stage_goes_on_to_the_same_bits(
    recipe: Recipe, examples: list[Example], pupil: Callable[[], Learner], tmp_path: Path, cut: int, error: type[BaseException]
) -> None:
    """Cut anywhere, even after the last step, and resumed with a fresh learner: the averages are those of an undisturbed stage."""
    patches, straight = patches_for(examples, recipe, "dense", ["lungs"]), pupil()
    common = {"patches": patches, "rule": recipe.optim}
    (tmp_path / "straight").mkdir()
    assert run_stage("dense", straight, run=tmp_path / "straight", reports=Reports(), resume=False, **common) == 6
    with pytest.raises(error):
        run_stage("dense", pupil(), run=tmp_path, reports=cut_at(cut, error), resume=False, **common)
    again, steps = pupil(), []
    run_stage("dense", again, run=tmp_path, reports=Reports(step=lambda step: steps.append(step.iteration)), resume=True, **common)
    assert steps == list(range({1: 1, 4: 4 if error is PowerCut else 5, 6: 7}[cut], 7))
    assert all(torch.equal(tensor, again.average.tensors[name]) for name, tensor in straight.average.tensors.items())


def test_the_state_of_the_stage_before_is_not_resumed(recipe: Recipe, examples: list[Example], pupil: Callable[[], Learner], tmp_path: Path) -> None:
    """Though the last stage's state lies there, of the same shape, the next begins at its first step."""
    patches, steps = patches_for(examples, recipe, "dense", ["lungs"]), []
    run_stage("dense", pupil(), patches, recipe.optim, run=tmp_path, reports=Reports(), resume=False)
    listen = Reports(step=lambda step: steps.append(step.iteration))
    run_stage("recover-lungs", pupil(), patches, recipe.optim, run=tmp_path, reports=listen, resume=True)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_whoever_listens_may_stop_a_stage(recipe: Recipe, examples: list[Example], pupil: Callable[[], Learner], tmp_path: Path) -> None:
    """Asked after every step; at True the state is saved and KeyboardInterrupt comes out."""
    answers = iter([False, True])
    patches = patches_for(examples, recipe, "dense", ["lungs"])
    with pytest.raises(KeyboardInterrupt):
        run_stage("dense", pupil(), patches, recipe.optim, run=tmp_path, reports=Reports(stop=lambda: next(answers)), resume=False)
    assert read_average(tmp_path / STATE)[1] == 2


def test_a_stage_says_what_it_is(recipe: Recipe, examples: list[Example], pupil: Callable[[], Learner], tmp_path: Path) -> None:
    """Its name and number of steps are told before the first; its rows in the table bear its name."""
    told: list[object] = []
    reports = Reports(stage=lambda name, steps: told.append((name, steps)), step=lambda step: told.append(step.iteration))
    rule = replace(recipe.optim, iterations=20)
    run_stage("dense", pupil(), patches_for(examples, recipe, "dense", ["lungs"]), rule, run=tmp_path, reports=reports, resume=False)
    assert told == [("dense", 20), *range(1, 21)]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].startswith("dense,20,")


def test_a_stage_of_no_steps_does_nothing(recipe: Recipe, examples: list[Example], pupil: Callable[[], Learner], tmp_path: Path) -> None:
    """A recovery of 0 steps leaves the weights as they are."""
    student = pupil()
    before = {name: tensor.clone() for name, tensor in student.network.state_dict().items()}
    patches = patches_for(examples, recipe, "dense", ["lungs"])
    assert run_stage("recover", student, patches, replace(recipe.optim, iterations=0), run=tmp_path, reports=Reports(), resume=False) == 0
    assert all(np.array_equal(tensor, before[name]) for name, tensor in student.network.state_dict().items())
