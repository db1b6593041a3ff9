"""Watching a training: bars on a terminal, lines in a log, Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clseg.cli.console import Terminal

if TYPE_CHECKING:
    from clseg.training.loop import Step
    from clseg.training.run import Reports


@contextmanager
def watched(terminal: Terminal) -> Iterator[Reports]:
    """Reports for one training; Ctrl-C and SIGTERM end it after the present step, with its state saved."""
    with terminal.progress() as progress:
        watcher = Watcher(terminal, progress)
        from clseg.training.run import Reports

        yield Reports(watcher.case, watcher.stage, watcher.step, watcher.note, _stop_asked())


class Watcher:
    """Says how far a training is: a bar per stage with loss and time left, or a line per 100 steps."""

    every = 100

    def __init__(self, terminal: Terminal, progress: Any) -> None:
        self.terminal, self.progress = terminal, progress
        self.task: Any = None
        self.name, self.total, self.began = "", 0, time.monotonic()

    def case(self, done: int, total: int, name: str) -> None:
        if self.progress is not None:
            self._bar("Preparing cases", total, done)
        elif done == total:
            self.terminal.note(f"{total} cases prepared")

    def stage(self, name: str, iterations: int) -> None:
        self.name, self.total, self.began = name, iterations, time.monotonic()

    def step(self, step: Step) -> None:
        loss = sum(step.losses.values()) / max(1, len(step.losses))
        if self.progress is not None:
            self._bar(f"{self.name}, loss {loss:.2f}", self.total, step.iteration)
        elif step.iteration % self.every == 0 or step.iteration == self.total:
            minutes = (time.monotonic() - self.began) / 60
            self.terminal.note(f"{self.name}  {step.iteration}/{self.total}  loss {loss:.3f}  {minutes:.1f} min")

    def note(self, text: str) -> None:
        self.terminal.note(text)

    def _bar(self, text: str, total: int, done: int) -> None:
        if self.task is None or self.progress.tasks[self.task].total != total or done < self.progress.tasks[self.task].completed:
            if self.task is not None:
                self.progress.update(self.task, visible=False)
            self.task = self.progress.add_task(text, total=total)
        self.progress.update(self.task, completed=done, description=text)


def _stop_asked() -> Callable[[], bool]:
    """Whether Ctrl-C or SIGTERM (schedulers) came; a second time they end the program at once.

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
