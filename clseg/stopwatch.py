"""Stopwatch: seconds and peak memory of every stage of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


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


def peak_memory_mib() -> float | None:
    """Peak resident set size of this process, as the operating system counts it."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
