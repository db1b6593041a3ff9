"""Progress of the library as rich bars on stderr, one per stage; nothing but warnings in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clseg.cli.console import Terminal
from clseg.progress import Advance, Progress


class Bars(Progress):
    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        with self.terminal.progress(unit) as bars:
            if bars is None:
                self.terminal.detail(name)
                yield lambda units: None
                return
            task = bars.add_task(name, total=total)
            yield lambda units: bars.advance(task, units)

    def warn(self, text: str) -> None:
        self.terminal.warn(text)

    def note(self, text: str) -> None:
        self.terminal.note(text)

    def detail(self, text: str) -> None:
        self.terminal.detail(text)
