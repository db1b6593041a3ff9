"""Facts about a training run: it survives being killed, and it never mixes with another."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from clseg.errors import TrainingError
from clseg.recipe import Recipe, to_dict
from clseg.training.average import Average
from clseg.training.loop import Step
from clseg.training.pretrain import pretrain
from clseg.training.run import Metrics, Reports
from clseg.training.state import read_average
from tests.small_dataset import tiny_recipe


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A run sets torch's threads and denormals for its process; other tests shall not notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row in metrics.csv for every iteration."""
    monkeypatch.setattr(Metrics, "every", 1)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Six iterations, saved every three."""
    return tiny_recipe(tmp_path)


def stop_at(iteration: int, error: type[BaseException]) -> Reports:
    def step(step: Step) -> None:
        if step.iteration == iteration:
            raise error

    return Reports(step=step)


class PowerCut(Exception):
    """Ends a run without any chance to save."""


def contents(files: dict[str, Path]) -> dict[str, bytes]:
    return {part: path.read_bytes() for part, path in files.items()}


def rows(run: Path) -> list[list[str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def done(run: Path) -> int:
    return read_average(run / "state.safetensors")[1]


def test_a_run_leaves_everything_in_its_folder(recipe: Recipe, tmp_path: Path) -> None:
    """Recipe with versions, metrics, state and one weights file per part; examples are cached beside the run."""
    seen: list[tuple[int, int, str]] = []
    run = tmp_path / "runs" / "one"
    files = pretrain(recipe, run, reports=Reports(case=lambda *facts: seen.append(facts)))
    assert seen == [(1, 2, "a"), (2, 2, "b")]
    assert {p.name for p in run.iterdir()} == {".lock", "recipe.json", "metrics.csv", "losses.png", "state.safetensors", "weights"}
    assert files == {part: run / "weights" / f"{part}.safetensors" for part in ("encoder", "lungs", "solid", "body")}
    facts = json.loads((run / "recipe.json").read_text())
    assert facts["recipe"] == to_dict(recipe)
    assert facts["folder"] == str(recipe.folder)
    assert set(facts["versions"]) == {"clseg", "torch", "python"}
    assert len(list((tmp_path / "runs" / "cache").iterdir())) == 2
    assert done(run) == 6


def test_metrics_have_a_row_per_iteration(recipe: Recipe, tmp_path: Path) -> None:
    """Iteration, rate and seconds, then the loss of every decoder in the recipe's order, empty where none learned."""
    pretrain(recipe, tmp_path / "run")
    head, *body = rows(tmp_path / "run")
    assert head == ["stage", "iteration", "rate", "seconds", "lungs", "solid", "body"]
    assert [int(row[1]) for row in body] == [1, 2, 3, 4, 5, 6]
    assert all(float(row[4]) > 0 for row in body)
    assert all(cell == "" or float(cell) >= 0 for row in body for cell in row[4:])


def test_metrics_are_means_over_twenty_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses 1 … 20 are one row with their mean 10.5; a decoder that learned in none has no number."""
    monkeypatch.setattr(Metrics, "every", 20)
    metrics = Metrics(tmp_path / "metrics.csv", ["a", "b"], 0)
    for i in range(1, 31):
        metrics(Step(i, {"a": float(i)}, 0.5, 2.0))
    metrics.close()
    assert rows(tmp_path)[1:] == [["train", "20", "0.5", "2.000", "10.5000", ""]]


@pytest.mark.parametrize(("stop", "error", "saved"), [(4, PowerCut, 3), (3, PowerCut, 3), (2, PowerCut, None), (4, KeyboardInterrupt, 4)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    recipe: Recipe, tmp_path: Path, stop: int, error: type[BaseException], saved: int | None
) -> None:
    """Six iterations straight or killed on the way and resumed: weights and metrics are byte for byte the same.

    A power cut falls back to the last saved state (every third iteration, or none);
    Ctrl-C saves where it stands.
    """
    straight = contents(pretrain(recipe, tmp_path / "straight"))
    run = tmp_path / "killed"
    torch.manual_seed(99)  # nothing hangs on torch's global state
    with pytest.raises(error):
        pretrain(recipe, run, reports=stop_at(stop, error))
    if saved is None:
        assert not (run / "state.safetensors").exists()
    else:
        assert done(run) == saved
    torch.manual_seed(100)
    steps: list[int] = []
    resumed = pretrain(recipe, run, resume=True, reports=Reports(step=lambda step: steps.append(step.iteration)))
    assert steps == list(range((saved or 0) + 1, 7))
    assert contents(resumed) == straight
    without_seconds = [[row[:3] + row[4:] for row in rows(tmp_path / name)] for name in ("straight", "killed")]
    assert without_seconds[0] == without_seconds[1]


def test_whoever_listens_may_end_a_run(recipe: Recipe, tmp_path: Path) -> None:
    """`stop` is asked after every step; True ends the run there with its state saved, and it goes on to the same bytes."""
    straight = contents(pretrain(recipe, tmp_path / "straight"))
    answers = iter([False] * 2 + [False, False, False, False, True])  # two cases, then steps
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path / "run", reports=Reports(stop=lambda: next(answers)))
    assert done(tmp_path / "run") == 5
    assert contents(pretrain(recipe, tmp_path / "run", resume=True)) == straight


def test_ctrl_c_while_weights_change_falls_back(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between the fifth step's weights and their average, the state of iteration 3 stays; resumed, bytes agree."""
    straight = contents(pretrain(recipe, tmp_path / "straight"))
    update = Average.update

    def interrupted(self: Average, network: torch.nn.Module, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        update(self, network, step)

    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tmp_path / "run")
    assert done(tmp_path / "run") == 3
    assert contents(pretrain(recipe, tmp_path / "run", resume=True)) == straight


def test_two_processes_never_train_in_one_folder(recipe: Recipe, tmp_path: Path) -> None:
    """While another holds the folder a run is refused before anything is written there."""
    run = tmp_path / "run"
    run.mkdir()
    with FileLock(run / ".lock"), pytest.raises(TrainingError, match="Another process is training"):
        pretrain(recipe, run)
    assert tree(run) == {}


def test_resuming_a_finished_run_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    """There is nothing left to do: the weights and metrics are written again as they were."""
    run = tmp_path / "run"
    first, table = contents(pretrain(recipe, run)), rows(run)
    assert contents(pretrain(recipe, run, resume=True)) == first
    assert rows(run) == table


def test_resuming_what_was_never_started_starts_it(recipe: Recipe, tmp_path: Path) -> None:
    """--resume on an empty folder is a plain run."""
    assert contents(pretrain(recipe, tmp_path / "a", resume=True)) == contents(pretrain(recipe, tmp_path / "b"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def test_a_run_is_never_trained_over(recipe: Recipe, tmp_path: Path) -> None:
    """Without --resume a folder with a state is refused and left as it was."""
    run = tmp_path / "run"
    pretrain(recipe, run)
    before = tree(run)
    with pytest.raises(TrainingError, match="holds a run already") as caught:
        pretrain(recipe, run)
    assert "--resume" in caught.value.tip
    assert tree(run) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, seed=8),
        lambda r: replace(r, optim=replace(r.optim, iterations=7)),
        lambda r: replace(r, decoder=r.decoder[:2]),
        lambda r: replace(r, dataset=(replace(r.dataset[0], weight=2.0), r.dataset[1])),
    ],
    ids=["seed", "iterations", "decoders", "weights of datasets"],
)
def test_a_run_is_never_resumed_with_another_recipe(
    recipe: Recipe, tmp_path: Path, change: Callable[[Recipe], Recipe]
) -> None:
    """Any other knob is refused, and the run is left as it was."""
    run = tmp_path / "run"
    pretrain(recipe, run)
    before = tree(run)
    with pytest.raises(TrainingError, match="started with another recipe"):
        pretrain(change(recipe), run, resume=True)
    assert tree(run) == before


def test_the_recipes_folder_may_move(recipe: Recipe, tmp_path: Path) -> None:
    """The folder that the recipe was read from is no knob: a moved data set can be resumed."""
    pretrain(recipe, tmp_path / "run")
    (tmp_path / "moved").mkdir()
    (tmp_path / "dataset").rename(tmp_path / "moved" / "dataset")
    files = pretrain(replace(recipe, folder=tmp_path / "moved"), tmp_path / "run", resume=True)
    assert set(files) == {"encoder", "lungs", "solid", "body"}
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["folder"] == str(tmp_path / "moved")
