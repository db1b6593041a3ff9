"""Facts about the folder of a run: who may train in it, what is noted, when states are saved."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from clseg.errors import TrainingError, UsageError
from clseg.recipe import Recipe, to_dict
from clseg.training.distributed import World
from clseg.training.loop import Learner, Step, learner
from clseg.training.network import fresh
from clseg.training.run import STATE, Keeper, Metrics, Reports, alone, draw_curves, note_recipe
from clseg.training.state import read_average
from clseg.training.validation import append
from tests.small_dataset import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


def step(iteration: int, **losses: float) -> Step:
    return Step(iteration, losses or {"a": 1.0}, 0.1, 0.5)


def pupil(recipe: Recipe, here: World | None = None) -> Learner:
    return learner(fresh(recipe), recipe.optim, here=here)


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


# ---- alone ------------------------------------------------------------------------------------------------------------


def test_one_training_at_a_time(tmp_path: Path) -> None:
    """A second one is refused as long as the first runs, and not after it, however it ended."""
    with pytest.raises(KeyError), alone(tmp_path / "run"):
        with pytest.raises(TrainingError, match="Another process is training in .*run") as caught, alone(tmp_path / "run"):
            pass
        assert "--run" in str(caught.value.tip)
        raise KeyError
    with alone(tmp_path / "run"):
        pass


def test_of_several_processes_the_first_holds_the_folder(tmp_path: Path) -> None:
    """The others of the same training enter without a lock."""
    with FileLock(tmp_path / ".lock") as lock, alone(tmp_path, first=False):
        assert lock.is_locked
        with pytest.raises(TrainingError, match="Another process"), alone(tmp_path):
            pass


def test_a_folder_in_which_nothing_was_begun_goes_again(tmp_path: Path) -> None:
    """A refused call leaves no empty folder; one that was there, or in which something is, stays."""
    with pytest.raises(TrainingError), alone(tmp_path / "new"):
        raise TrainingError("refused")
    assert not (tmp_path / "new").exists()
    with pytest.raises(TrainingError), alone(tmp_path / "begun"):
        (tmp_path / "begun" / "recipe.json").write_text("{}")
        raise TrainingError("stopped")
    assert (tmp_path / "begun" / "recipe.json").is_file()
    (tmp_path / "mine").mkdir()
    with alone(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


# ---- recipe.json ------------------------------------------------------------------------------------------------------


def test_what_is_trained_on_what_is_noted(recipe: Recipe, tmp_path: Path) -> None:
    """Recipe, seed, versions and the hashes of the weights that the run builds on."""
    (tmp_path / "run").mkdir()
    note_recipe(recipe, tmp_path / "run", resume=False, weights={"encoder": "12"})
    noted = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (noted["recipe"]["name"], noted["seed"], noted["weights"]) == ("tiny", 7, {"encoder": "12"})
    assert noted["versions"]["torch"] == torch.__version__


def test_a_run_is_never_resumed_on_other_weights(recipe: Recipe, tmp_path: Path) -> None:
    """When a supporter was updated meanwhile, what was trained so far is not mixed with it."""
    note_recipe(recipe, tmp_path, resume=False, weights={"encoder": "12", "lungs": "3"})
    note_recipe(recipe, tmp_path, resume=True, weights={"encoder": "12", "lungs": "3"})
    before = (tmp_path / "recipe.json").read_bytes()
    with pytest.raises(TrainingError, match="have changed since it was started"):
        note_recipe(recipe, tmp_path, resume=True, weights={"encoder": "12", "lungs": "4"})
    assert (tmp_path / "recipe.json").read_bytes() == before


def test_a_run_from_before_weights_were_noted_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    """A recipe.json without hashes belongs to a training that builds on none."""
    note_recipe(recipe, tmp_path, resume=False)
    noted = json.loads((tmp_path / "recipe.json").read_text())
    del noted["weights"]
    (tmp_path / "recipe.json").write_text(json.dumps(noted))
    note_recipe(recipe, tmp_path, resume=True)
    assert json.loads((tmp_path / "recipe.json").read_text())["weights"] == {}


def touched(recipe: Recipe, name: str) -> None:
    """A file of the dataset as of another time."""
    os.utime(recipe.folder / "dataset" / name, ns=(1, 1))


def resumed(recipe: Recipe, run: Path) -> list[str]:
    """What is told when the run goes on."""
    told: list[str] = []
    note_recipe(recipe, run, resume=True, tell=told.append)
    return told


def test_cases_that_changed_are_told_once(recipe: Recipe, tmp_path: Path) -> None:
    """A label file and a CT that were written again are told with their cases; the run goes on, and the next time nothing is told."""
    note_recipe(recipe, tmp_path, resume=False)
    assert resumed(recipe, tmp_path) == []
    touched(recipe, "a/labels.nii.gz")
    touched(recipe, "c/ct.nii.gz")
    assert resumed(recipe, tmp_path) == [
        f"warning: The cases are not those with which the run in {tmp_path} was started, by size or time of their files: "
        "2 changed (mapped/a, masked/c); it goes on with what is there now."
    ]
    assert resumed(recipe, tmp_path) == []


def test_cases_that_came_or_went_are_told(recipe: Recipe, tmp_path: Path) -> None:
    """A case that the index lists no more, one it lists now, and one that is held out now."""
    note_recipe(recipe, tmp_path, resume=False)
    shutil.copytree(recipe.folder / "dataset" / "b", recipe.folder / "dataset" / "b2")
    (recipe.folder / "dataset" / "index.csv").write_text("case,split\na,train\nb,val\nb2,train\n")
    wide = replace(recipe, dataset=(recipe.dataset[0], replace(recipe.dataset[1], cases=("b*", "c"))))
    noted = json.loads((tmp_path / "recipe.json").read_text()) | {"recipe": to_dict(wide)}
    (tmp_path / "recipe.json").write_text(json.dumps(noted))
    assert "1 changed (masked/b), 1 new (masked/b2), 1 gone (masked/c); it goes on" in resumed(wide, tmp_path)[0]


def test_a_dataset_that_was_moved_is_the_same(recipe: Recipe, tmp_path: Path) -> None:
    """Where the files lie does not count."""
    note_recipe(recipe, tmp_path, resume=False)
    shutil.copytree(recipe.folder / "dataset", tmp_path / "moved" / "dataset")  # copies with their times
    assert resumed(replace(recipe, folder=tmp_path / "moved"), tmp_path) == []


def test_a_run_from_before_cases_were_noted_goes_on_in_silence(recipe: Recipe, tmp_path: Path) -> None:
    """Without marks nobody knows, and from now on they are noted."""
    note_recipe(recipe, tmp_path, resume=False)
    noted = json.loads((tmp_path / "recipe.json").read_text())
    assert set(noted.pop("cases")) == {"mapped/a", "masked/b", "masked/c"}
    (tmp_path / "recipe.json").write_text(json.dumps(noted))
    assert resumed(recipe, tmp_path) == []
    assert len(json.loads((tmp_path / "recipe.json").read_text())["cases"]) == 3


@pytest.mark.parametrize("sign", [STATE, "stages/dense/x.safetensors"])
def test_a_started_run_is_not_begun_again(recipe: Recipe, tmp_path: Path, sign: str) -> None:
    """A state or a finished stage is a run: it is resumed or left alone; nothing is noted over it."""
    (tmp_path / sign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / sign).write_bytes(b"")
    with pytest.raises(TrainingError, match="holds a run already") as caught:
        note_recipe(recipe, tmp_path, resume=False)
    assert "--resume" in str(caught.value.tip)
    assert not (tmp_path / "recipe.json").exists()


def test_a_run_that_saved_nothing_may_begin_again(recipe: Recipe, tmp_path: Path) -> None:
    """Killed before its first state, it needs no --resume, and the recipe may be another."""
    note_recipe(recipe, tmp_path, resume=False)
    note_recipe(replace(recipe, seed=8), tmp_path, resume=False)
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 8


@pytest.mark.parametrize("damaged", [b"", b'{"recipe": {"na', b"[1, 2]", b"{}", b"\xff\xfe\x00", b'{"recipe": 1}', b'{"recipe": {"name": "x"}, "weights": 3}'])
def test_a_damaged_recipe_json_is_told(recipe: Recipe, tmp_path: Path, damaged: bytes) -> None:
    """The file, that it cannot be used, and what to do; without --resume it is written anew."""
    note_recipe(recipe, tmp_path, resume=False)
    (tmp_path / "recipe.json").write_bytes(damaged)
    with pytest.raises(TrainingError, match=r"recipe\.json .*, so nobody knows what this run trains\.") as caught:
        note_recipe(recipe, tmp_path, resume=True)
    assert caught.value.tip == "Put back a copy of it, or train in a new folder with --run."
    note_recipe(recipe, tmp_path, resume=False)
    note_recipe(recipe, tmp_path, resume=True)


# ---- keeper -----------------------------------------------------------------------------------------------------------


def test_a_state_is_saved_every_few_steps_and_after_the_last(recipe: Recipe, tmp_path: Path) -> None:
    """Every 3 of 7: after 3, 6 and 7, with the number of steps done."""
    keeper, saved = Keeper(tmp_path / STATE, pupil(recipe), every=3, last=7), []
    for number in range(1, 8):
        (tmp_path / STATE).unlink(missing_ok=True)
        keeper(step(number))
        if (tmp_path / STATE).is_file():
            saved.append((number, read_average(tmp_path / STATE)[1]))
    assert saved == [(3, 3), (6, 6), (7, 7)]


def test_an_unsettled_step_is_not_saved(recipe: Recipe, tmp_path: Path) -> None:
    """Between the optimiser's step and the end of the iteration there is no whole state; before and after there is."""
    student = pupil(recipe)
    keeper = Keeper(tmp_path / STATE, student, every=100, last=100)
    keeper.save_if_settled()
    assert not (tmp_path / STATE).exists()  # nothing is done yet
    keeper(step(1))
    student.optimiser.step()
    keeper.save_if_settled()
    assert not (tmp_path / STATE).exists()
    keeper(step(2))
    keeper.save_if_settled()
    assert read_average(tmp_path / STATE)[1] == 2


def test_only_the_first_process_saves(recipe: Recipe, tmp_path: Path) -> None:
    """The second of two writes nothing, but reads what the first has saved."""
    Keeper(tmp_path / STATE, pupil(recipe, World(1, 2, 1)), every=1, last=9)(step(1))
    assert not (tmp_path / STATE).exists()
    Keeper(tmp_path / STATE, pupil(recipe), every=1, last=9)(step(4))
    other = Keeper(tmp_path / STATE, pupil(recipe, World(1, 2, 1)), every=1, last=9)
    other.restore()
    assert other.done == 4


def test_a_state_of_another_stage_does_not_count(recipe: Recipe, tmp_path: Path) -> None:
    """A stage that finds only the state of the one before begins at 0, with its own weights."""
    Keeper(tmp_path / STATE, pupil(recipe), every=1, last=9, stage="dense")(step(4))
    student = pupil(replace(recipe, seed=99))
    before = {name: tensor.clone() for name, tensor in student.network.state_dict().items()}
    keeper = Keeper(tmp_path / STATE, student, every=1, last=9, stage="recover-x")
    keeper.restore()
    assert keeper.done == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.network.state_dict().items())


# ---- metrics and curves -----------------------------------------------------------------------------------------------


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metrics, "every", 1)


@pytest.mark.usefixtures("every_step")
def test_stages_share_one_table(tmp_path: Path) -> None:
    """A later stage adds its rows and its decoders' columns; earlier rows stay under their own columns."""
    for stage, losses in (("dense", {"a": 1.0, "b": 2.0}), ("recover-c", {"c": 3.0})):
        metrics = Metrics(tmp_path / "m.csv", list(losses), 0, stage)
        metrics(step(1, **losses))
        metrics.close()
    assert table(tmp_path / "m.csv") == [
        ["stage", "iteration", "rate", "seconds", "a", "b", "c"],
        ["dense", "1", "0.1", "0.500", "1.0000", "2.0000"],
        ["recover-c", "1", "0.1", "0.500", "", "", "3.0000"],
    ]


@pytest.mark.usefixtures("every_step")
def test_a_resumed_stage_writes_no_row_twice(tmp_path: Path) -> None:
    """Rows after the saved state go, rows of other stages stay."""
    for stage in ("dense", "recover-a"):
        metrics = Metrics(tmp_path / "m.csv", ["a"], 0, stage)
        for number in (1, 2, 3):
            metrics(step(number))
        metrics.close()
    metrics = Metrics(tmp_path / "m.csv", ["a"], 1, "recover-a")
    metrics(step(2, a=9.0))
    metrics.close()
    assert [(row[0], row[1]) for row in table(tmp_path / "m.csv")[1:]] == [*(("dense", n) for n in "123"), *(("recover-a", n) for n in "12")]


@pytest.mark.usefixtures("every_step")
def test_curves_are_drawn_from_the_tables(tmp_path: Path) -> None:
    """Losses and Dice as pictures where there are two points to join; without a table nothing is drawn."""
    draw_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []
    metrics = Metrics(tmp_path / "metrics.csv", ["a"], 0, "dense")
    for number in (1, 2):
        metrics(step(number))
    metrics.close()
    (tmp_path / "validation.csv").write_text("stage,iteration,structure,cases,dice\ndense,1,liver,1,0.5\n")
    draw_curves(tmp_path)
    assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "dice.png").exists()


@pytest.mark.parametrize("damaged", [b"\xff\xfe\x00\x01", bytes(300), b"a,b\n1,2\n", b"\nstage,iteration\n"])
@pytest.mark.parametrize("file", ["metrics.csv", "validation.csv"])
def test_a_damaged_table_is_told(tmp_path: Path, file: str, damaged: bytes) -> None:
    """The file, what is wrong, what to do: by whoever adds rows to it and by whoever draws it."""
    (tmp_path / file).write_bytes(damaged)
    adds = {"metrics.csv": lambda path: Metrics(path, ["a"], 0), "validation.csv": lambda path: append(path, "dense", 1, {"liver": {"a": 0.5}})}
    for use in (lambda: adds[file](tmp_path / file), lambda: draw_curves(tmp_path)):
        with pytest.raises(TrainingError, match=f"{file} (cannot be read|begins with .*, expected the columns stage, iteration)") as caught:
            use()
        assert "go on with --resume" in str(caught.value.tip)
    assert (tmp_path / file).read_bytes() == damaged


@pytest.mark.parametrize(("split", "judges"), [("train", "training"), ("val", "held-out")])
def test_curves_say_which_cases_they_are_of(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, judges: str) -> None:
    """What is scored on the cases to learn from is not called held out."""
    axes: list[str] = []
    monkeypatch.setattr("clseg.report.curves.plot_curves", lambda path, series, x, y: axes.append(y))
    note_recipe(replace(recipe, validation=replace(recipe.validation, split=split)), tmp_path, resume=False)
    (tmp_path / "validation.csv").write_text("stage,iteration,structure,cases,dice\ndense,1,liver,1,0.5\ndense,2,liver,1,0.6\n")
    draw_curves(tmp_path)
    assert axes == [f"Dice on {judges} cases"]


@pytest.mark.usefixtures("every_step")
def test_damaged_rows_are_no_points(tmp_path: Path) -> None:
    """A torn row and a cell that is no number are left out of the curves; the others are drawn."""
    (tmp_path / "metrics.csv").write_text("stage,iteration,rate,seconds,a\ndense,1,0.1,0.5,1.0\n\ndense,2,0.1,0.5,#?\ndense,3,0.1,0.5,0.5\ndense,4")
    draw_curves(tmp_path)
    assert (tmp_path / "losses.png").is_file()


def test_nobody_needs_to_listen() -> None:
    """The default reports hear everything and never stop."""
    reports = Reports()
    reports.case(1, 2, "a")
    reports.stage("dense", 3)
    reports.step(step(1))
    reports.note("x")
    assert reports.stop() is False


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    """--run names a file: a sentence of the call's fault, and the file stays."""
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="a file of that name is in its place"), alone(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "mine"
