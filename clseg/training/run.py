"""Run: one training in one folder: who watches, what is noted, how it is stopped and goes on.

    recipe.json         what is trained, on which cases, and with which versions
    metrics.csv         losses per decoder, a row per 20 iterations
    validation.csv      Dice per structure on held-out cases
    losses.png, dice.png both as pictures
    state.safetensors   the latest saved state of the stage at work
    stages/             what finished stages made
    weights/            the result
"""

from __future__ import annotations

import csv
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import clseg
from clseg import recipe as recipes
from clseg.allocator import keep_memory
from clseg.errors import TrainingError
from clseg.io.files import prepare_folder, write_json
from clseg.training.cases.stamps import difference, stamps
from clseg.training.loop import Learner, Step
from clseg.training.noted import METRICS, RECIPE, VALIDATION, noted, table
from clseg.training.state import load_state, save_state

STATE = "state.safetensors"


@dataclass(frozen=True)
class Reports:
    """Who hears of progress and may end it.

    `case(done, total, name)` while preparing, `stage(name, iterations)` when a stage
    begins, `step(Step)` while training, `note(text)` for everything else worth a line;
    `stop()` is asked after every step: True ends the run there, with its state saved.
    """

    case: Callable[[int, int, str], None] = lambda done, total, name: None
    stage: Callable[[str, int], None] = lambda name, iterations: None
    step: Callable[[Step], None] = lambda step: None
    note: Callable[[str], None] = lambda text: None
    stop: Callable[[], bool] = lambda: False


@contextmanager
def alone(run: Path, *, first: bool = True) -> Iterator[None]:
    """One training at a time in a run's folder (of several processes of one training, the first holds the lock).

    A folder in which nothing was begun, because the call was refused, goes again.
    """
    fresh = first and not run.exists()
    prepare_folder(run)
    try:
        with FileLock(run / ".lock", timeout=0) if first else nullcontext():
            yield
    except Timeout as error:
        raise TrainingError(f"Another process is training in {run}.", tip="Choose another folder with --run.") from error
    finally:
        if fresh and {path.name for path in run.iterdir()} <= {".lock"}:
            (run / ".lock").unlink(missing_ok=True)
            run.rmdir()


def note_recipe(
    recipe: Any, run: Path, *, resume: bool, weights: Mapping[str, str] | None = None, tell: Callable[[str], object] = lambda text: None
) -> None:
    """Note what is trained, on which weights (sha256 by name) and cases; never train over another run, never resume with others.

    Cases that seem to be others when a run is resumed are told, not refused: of their files
    only sizes and times are looked at, and a copy may have another time.
    """
    started = (run / STATE).is_file() or (run / "stages").is_dir()
    if started and not resume:
        raise TrainingError(f"{run} holds a run already.", tip="Go on with --resume, or choose another folder.")
    facts = recipes.to_dict(recipe)
    before = noted(run) if resume else {}
    if before and before["recipe"] != facts:
        raise TrainingError(f"The run in {run} was started with another recipe.", tip="Train it in a new folder.")
    if before and before.get("weights", {}) != dict(weights or {}):
        raise TrainingError(f"The weights on which the run in {run} builds have changed since it was started.", tip="Train it in a new folder.")
    cases = stamps(recipe)
    if others := difference(before.get("cases", cases), cases):
        tell(f"warning: The cases are not those with which the run in {run} was started, by size or time of their files: {others}; it goes on with what is there now.")
    versions = {"clseg": clseg.__version__, "torch": torch.__version__, "python": platform.python_version()}
    told = {"recipe": facts, "folder": str(recipe.folder), "seed": recipe.seed, "versions": versions, "weights": dict(weights or {}), "cases": cases}
    write_json(run / RECIPE, told)


def quicken(threads: int) -> None:
    """Settings that training wants; denormals cost a factor of ten on x86, memory that comes and goes a quarter of the time."""
    keep_memory()
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


@dataclass
class Keeper:
    """Callback: saves the state every `every` iterations and after the last; knows how many are done.

    `stage` names what the state belongs to: a state of another stage is not restored.
    """

    path: Path
    learner: Learner
    every: int
    last: int
    stage: str = "train"
    done: int = 0
    settled: bool = True

    def __post_init__(self) -> None:
        self.learner.optimiser.register_step_pre_hook(lambda *_: setattr(self, "settled", False))

    def __call__(self, step: Step) -> None:
        self.done, self.settled = step.iteration, True
        if self.done % self.every == 0 or self.done == self.last:
            self._save()

    def restore(self) -> None:
        """Go on from the saved state, if there is one of this stage."""
        if self.path.is_file():
            self.done = load_state(self.path, self.learner, self.stage)

    def save_if_settled(self) -> None:
        """Save unless the interruption came while the weights were being changed."""
        if self.done and self.settled:
            self._save()

    def _save(self) -> None:
        if self.learner.here.first:
            save_state(self.path, self.learner, self.stage, self.done)


class Metrics:
    """Callback: one row per 20 iterations with the mean loss of every decoder in `metrics.csv`."""

    every = 20

    def __init__(self, path: Path, decoders: list[str], done: int, stage: str = "train") -> None:
        rows = table(path, METRICS)
        rows[1:] = [row for row in rows[1:] if len(row) >= 4 and row[1].isdigit()]  # a kill may have torn the last one
        kept = [row for row in rows[1:] if row[0] != stage or int(row[1]) <= done]
        columns = list(dict.fromkeys([*(rows[0][4:] if rows else ()), *decoders]))
        self.file = path.open("w", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file)
        self.writer.writerow([*METRICS, *columns])
        self.writer.writerows(kept)
        self.file.flush()
        self.columns, self.stage = columns, stage
        self.pending: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.pending.append(step)
        if step.iteration % self.every:
            return
        means = []
        for name in self.columns:
            values = [s.losses[name] for s in self.pending if name in s.losses]
            means.append(f"{sum(values) / len(values):.4f}" if values else "")
        seconds = sum(s.seconds for s in self.pending) / len(self.pending)
        self.writer.writerow([self.stage, step.iteration, f"{step.rate:.3g}", f"{seconds:.3f}", *means])
        self.file.flush()
        self.pending.clear()

    def close(self) -> None:
        self.file.close()


def draw_curves(run: Path) -> None:
    """`losses.png` and, where there are scores, `dice.png`, from the files of a run."""
    from clseg.report.curves import plot_curves

    recipe = noted(run).get("recipe", {})
    judges = "training" if recipe.get("validation", {}).get("split") == recipe.get("split", "train") else "held-out"
    losses = _series(table(run / "metrics.csv", METRICS), lambda row: [(f"{row['stage']} {name}", row["iteration"], row[name]) for name in list(row)[4:]])
    dice = _series(table(run / "validation.csv", VALIDATION), lambda row: [(f"{row['stage']} {row['structure']}", row["iteration"], row["dice"])])
    for name, series, axis in (("losses.png", losses, "loss"), ("dice.png", dice, f"Dice on {judges} cases")):
        if series:
            plot_curves(run / name, series, "iteration", axis)


def _series(rows: list[list[str]], points: Callable[[dict[str, str]], list[tuple[str, str, str]]]) -> list[Any]:
    """Curves by name out of a table with its header; cells without a number are left out, and so are lines of a single point."""
    from clseg.report.curves import Curve

    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows[1:]:
        whole = [*row, *[""] * len(rows[0])]  # rows of earlier stages are shorter
        for name, x, y in points(dict(zip(rows[0], whole, strict=False))):
            with suppress(ValueError):
                found.setdefault(name, []).append((float(x), float(y)))
    return [Curve(name, [x for x, _ in mine], [y for _, y in mine]) for name, mine in found.items() if len(mine) > 1]
