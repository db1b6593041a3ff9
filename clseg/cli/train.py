"""`clseg train`: a general encoder and its decoders from a recipe."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clseg.cli.console import Terminal, exit_codes

if TYPE_CHECKING:
    from clseg.training.loop import Step
    from clseg.training.pretrain import Reports

# glibc gives large buffers back to the system after every step and asks for them again: 12–27 % of the time.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_MMAP_THRESHOLD_": "8000000000"}


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; recipes/starter.toml is a commented example.")],
    run: Annotated[Path | None, typer.Option("--run", help="Folder of this run Default: runs/<recipe name>.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Train a general encoder and its decoders from partially labelled datasets."""
    _keep_memory()
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.recipe import read_recipe
        from clseg.training.pretrain import pretrain

        plan = read_recipe(recipe)
        folder = run or Path("runs") / plan.name
        with terminal.progress() as progress:
            reports = _reports(terminal, progress, plan.optim.iterations, stop=_stop_asked())
            files = pretrain(plan, folder, resume=resume, reports=reports)
        for part, file in files.items():
            terminal.result(f"{part}\t{file}")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    folder: Annotated[Path | None, typer.Option("--into", help="Folder for the weights. Default: <run>/weights.", show_default=False)] = None,
    manifest: Annotated[Path | None, typer.Option("--manifest", help="List the weights in this manifest.", show_default=False)] = None,
    sources: Annotated[str, typer.Option("--sources", help="What stands before a file name in the manifest's sources, e.g. package:data/starter/.")] = "",
) -> None:
    """Write the weights of a run as files that inference loads, and list them in a manifest."""
    terminal = Terminal()
    with exit_codes(terminal):
        from clseg.training.export import export_run, list_in_manifest

        recipe, files = export_run(run, folder or run / "weights")
        if manifest is not None:
            list_in_manifest(manifest, recipe, files, sources=sources)
        for part, file in files.items():
            terminal.result(f"{part}\t{file}")


def _keep_memory() -> None:
    """Start this process again with glibc told to keep its memory; needs to be set before the first allocation."""
    if sys.platform == "linux" and not all(name in os.environ for name in KEEP_MEMORY):
        os.environ.update(KEEP_MEMORY)
        os.execv(sys.executable, [sys.executable, "-m", "clseg", *sys.argv[1:]])


def _stop_asked() -> Callable[[], bool]:
    """Ctrl-C and SIGTERM (schedulers) end the run after the present step, with its state saved; a second time at once.

    The handlers are set, not added to: a shell's `&` would hide SIGINT otherwise.
    """
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return lambda: bool(asked)


def _reports(terminal: Terminal, progress: object, iterations: int, *, stop: Callable[[], bool]) -> Reports:
    """Bars on a terminal, a line per 100 iterations in a log."""
    from clseg.training.pretrain import Reports

    started = time.monotonic()
    tasks: dict[str, int] = {}

    def advance(name: str, total: int, done: int, text: str) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(text, total=total)  # type: ignore[attr-defined]
        progress.update(tasks[name], completed=done, description=text)  # type: ignore[attr-defined]

    def case(done: int, total: int, name: str) -> None:
        if progress is not None:
            advance("case", total, done, "Preparing cases")
        elif done == total:
            terminal.note(f"{total} cases prepared")

    def step(step: Step) -> None:
        loss = sum(step.losses.values()) / max(1, len(step.losses))
        if progress is not None:
            advance("step", iterations, step.iteration, f"Training, loss {loss:.2f}")
        elif step.iteration % 100 == 0 or step.iteration == iterations:
            minutes = (time.monotonic() - started) / 60
            terminal.note(f"iteration {step.iteration}/{iterations}  loss {loss:.3f}  {minutes:.1f} min")

    return Reports(case, step, stop)
