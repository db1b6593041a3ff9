"""Stopwatch: seconds and peak memory of every stage of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from clseg.footprint import peak


@dataclass(frozen=True)
class Lap:
    """One stage: its name, seconds, and the highest resident memory of the process so far (MiB; null on Windows)."""

    stage: str
    seconds: float
    peak_memory_mib: float | None


@dataclass
class Stopwatch:
    laps: list[Lap] = field(default_factory=list)

    @contextmanager
    def lap(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.laps.append(Lap(stage, round(time.perf_counter() - began, 3), peak_memory_mib()))


class Laps:
    """Stages that take turns: their seconds are added up, and noted in the order in which they first began."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._turns = Stopwatch()

    def lap(self, stage: str) -> AbstractContextManager[None]:
        return self._turns.lap(stage)

    def note(self) -> None:
        """Give the laps to the stopwatch: of each stage the sum of its seconds, and its highest memory."""
        turns: dict[str, list[Lap]] = {}
        for one in self._turns.laps:
            turns.setdefault(one.stage, []).append(one)
        for stage, laps in turns.items():
            self._stopwatch.laps.append(Lap(stage, round(sum(lap.seconds for lap in laps), 3), laps[-1].peak_memory_mib))


def peak_memory_mib() -> float | None:
    """Peak resident set size of this process, as the operating system counts it."""
    known = peak()
    return round(known / 2**20, 1) if known else None
