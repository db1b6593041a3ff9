"""Pretrain: one general encoder and its decoders, jointly, from partially labelled datasets."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

import clseg
from clseg import recipe as recipes
from clseg.errors import TrainingError
from clseg.io.files import write_json
from clseg.recipe import Recipe
from clseg.training.average import Average
from clseg.training.cases import find_cases
from clseg.training.examples import Example, load_example
from clseg.training.export import export
from clseg.training.loop import Step, make_optimiser, train
from clseg.training.network import Trainee, start_weights
from clseg.training.patches import Patches
from clseg.training.state import load_state, save_state

STATE = "state.safetensors"


@dataclass(frozen=True)
class Reports:
    """Who hears of progress and may end it.

    `case(done, total, name)` while preparing, `step(Step)` while training; `stop()` is
    asked after every step: True ends the run there, with its state saved.
    """

    case: Callable[[int, int, str], None] = lambda done, total, name: None
    step: Callable[[Step], None] = lambda step: None
    stop: Callable[[], bool] = lambda: False


def pretrain(recipe: Recipe, run: Path, *, resume: bool = False, reports: Reports | None = None) -> dict[str, Path]:
    """Train and export; returns the weights files by part name (`encoder`, then the decoders).

    `run` receives `recipe.json`, `metrics.csv`, `state.safetensors` (every
    `checkpoint_every` iterations and when stopped) and `weights/`.  With `resume` the
    run goes on from its last state and draws the same patches as if it had never
    stopped.  Raises KeyboardInterrupt when stopped, TrainingError when another
    process trains in the same folder.
    """
    reports = reports or Reports()
    with _alone(run):
        _prepare_run(recipe, run, resume)
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        torch.set_flush_denormal(True)  # denormals cost a factor of ten on x86

        patches = Patches(load_examples(recipe, run.parent / "cache", reports), recipe)
        network = Trainee(recipe)
        start_weights(network, recipe.seed)
        optimiser = make_optimiser(network, recipe.optim)
        average = Average(network, recipe.optim.average)
        keeper = Keeper(run / STATE, network, optimiser, average, recipe.optim.checkpoint_every, recipe.optim.iterations)
        if resume:
            keeper.restore()

        metrics = Metrics(run / "metrics.csv", list(network.decoders), keeper.done)
        callbacks = (keeper, metrics, reports.step, _stopper(reports.stop))
        try:
            train(network, optimiser, average, patches, start=keeper.done, rule=recipe.optim, callbacks=callbacks)
        except KeyboardInterrupt:
            keeper.save_if_settled()
            raise
        finally:
            metrics.close()
        return export(recipe, average, run / "weights", done=keeper.done)


@dataclass
class Keeper:
    """Callback: saves the state every `every` iterations and after the last; knows how many are done."""

    path: Path
    network: Trainee
    optimiser: torch.optim.Optimizer
    average: Average
    every: int
    last: int
    done: int = 0
    settled: bool = True

    def __post_init__(self) -> None:
        self.optimiser.register_step_pre_hook(lambda *_: setattr(self, "settled", False))

    def __call__(self, step: Step) -> None:
        self.done, self.settled = step.iteration, True
        if self.done % self.every == 0 or self.done == self.last:
            self._save()

    def restore(self) -> None:
        """Go on from the saved state, if there is one."""
        if self.path.is_file():
            self.done = load_state(self.path, self.network, self.optimiser, self.average)

    def save_if_settled(self) -> None:
        """Save unless the interruption came while the weights were being changed."""
        if self.done and self.settled:
            self._save()

    def _save(self) -> None:
        save_state(self.path, self.network, self.optimiser, self.average, self.done)


def _stopper(stop: Callable[[], bool]) -> Callable[[Step], None]:
    def ask(step: Step) -> None:
        if stop():
            raise KeyboardInterrupt

    return ask


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """One process at a time in a run's folder."""
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise TrainingError(f"Another process is training in {run}.", tip="Choose another folder with --run.") from error


def load_examples(recipe: Recipe, cache: Path, reports: Reports) -> list[Example]:
    """Every case of the recipe as an Example, through the cache."""
    cases = find_cases(recipe)
    examples = []
    for index, case in enumerate(cases):
        examples.append(load_example(case, recipe, cache))
        reports.case(index + 1, len(cases), case.name)
    return examples


class Metrics:
    """Callback: one row per 20 iterations with the mean loss of every decoder in `metrics.csv`."""

    every = 20

    def __init__(self, path: Path, decoders: list[str], done: int) -> None:
        rows = list(csv.reader(path.open())) if done and path.is_file() else []
        kept = [row for row in rows[1:] if int(row[0]) <= done]
        self.file = path.open("w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerow(["iteration", "rate", "seconds", *decoders])
        self.writer.writerows(kept)
        self.decoders = decoders
        self.pending: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.pending.append(step)
        if step.iteration % self.every:
            return
        means = []
        for name in self.decoders:
            values = [s.losses[name] for s in self.pending if name in s.losses]
            means.append(f"{sum(values) / len(values):.4f}" if values else "")
        seconds = sum(s.seconds for s in self.pending) / len(self.pending)
        self.writer.writerow([step.iteration, f"{step.rate:.3g}", f"{seconds:.3f}", *means])
        self.file.flush()
        self.pending.clear()

    def close(self) -> None:
        self.file.close()


def _prepare_run(recipe: Recipe, run: Path, resume: bool) -> None:
    """Note what is trained; never train over another run, never resume with another recipe."""
    if (run / STATE).is_file() and not resume:
        raise TrainingError(f"{run} holds a run already.", tip="Go on with --resume, or choose another folder.")
    facts = recipes.to_dict(recipe)
    known = run / "recipe.json"
    if resume and known.is_file() and json.loads(known.read_text())["recipe"] != facts:
        raise TrainingError(f"The run in {run} was started with another recipe.", tip="Train it in a new folder.")
    versions = {"clseg": clseg.__version__, "torch": torch.__version__, "python": platform.python_version()}
    write_json(known, {"recipe": facts, "folder": str(recipe.folder), "versions": versions})
