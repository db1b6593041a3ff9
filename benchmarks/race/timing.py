"""Timing: wall time, processor time and peak memory of a program from its start to its end, in pairs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from race.gpu import Used, watched

LAUNCHER = """
import json, os, resource, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
files = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
began = time.perf_counter()
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=files)
_, status, used = os.wait4(pid, 0)
seconds = time.perf_counter() - began
unit = 2**20 if sys.platform == "darwin" else 2**10
told = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / unit}
print(json.dumps({"code": os.waitstatus_to_exitcode(status), **told}))
"""
"""Starts a program out of a small process: a child's peak memory is never less than what its parent held when it was started."""


@dataclass(frozen=True)
class Run:
    """One program from start to end: wall seconds, seconds of all its processors, peak resident memory in MiB, and of the GPU's where it is watched."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    gpu_mib: float | None = None


@dataclass(frozen=True)
class Spread:
    """The median of several numbers, the least and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Pairs:
    """Runs of two ways of doing the same, taken in turns."""

    ours: tuple[Run, ...]
    theirs: tuple[Run, ...]

    def ratio(self, what: str) -> Spread:
        """`what` (a field of Run) of ours over that of theirs, pair by pair."""
        return Spread.of([getattr(a, what) / getattr(b, what) for a, b in zip(self.ours, self.theirs, strict=True)])

    def to_dict(self) -> dict[str, object]:
        return {side: [asdict(run) for run in getattr(self, side)] for side in ("ours", "theirs")}


def measured(command: Sequence[str | Path], environment: Mapping[str, str], log: Path, used: Used | None = None) -> Run:
    """Run a program and measure it; what it prints goes to the end of `log`.

    Memory is that of the largest process, should the program have several; of a GPU, watched through
    `used`, it is what all processes take beyond what was taken before.  RuntimeError, with the last
    lines of the log, when the program fails.
    """
    words = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(log), *map(str, command)]
    with watched(used) as gpu:
        done = subprocess.run(words, env=dict(environment), capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    if code := told.pop("code"):
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {code}:\n{last}")
    return Run(**told, gpu_mib=gpu.mib)


def in_turns(ours: Callable[[], Run], theirs: Callable[[], Run], repeats: int, say: Callable[[str], None]) -> Pairs:
    """Ours, theirs, theirs, ours, ours, … so that whatever else the machine does, and whatever it still holds, meets both."""
    first, second = [], []
    for repeat in range(repeats):
        for way, runs in ((ours, first), (theirs, second))[:: 1 if repeat % 2 == 0 else -1]:
            runs.append(way())
            name = "clseg" if way is ours else "peer"
            say(f"    {name:5s} {_shown(runs[-1])}")
    return Pairs(tuple(first), tuple(second))


def added(runs: Sequence[Run]) -> Run:
    """Runs one after the other as one: times add up, the largest memory counts."""
    gpu = [one.gpu_mib for one in runs if one.gpu_mib is not None]
    return Run(sum(one.seconds for one in runs), sum(one.cpu_seconds for one in runs), max(one.peak_mib for one in runs), max(gpu, default=None))


def _shown(run: Run) -> str:
    gpu = "" if run.gpu_mib is None else f"   {run.gpu_mib:7.0f} MiB of the GPU"
    return f"{run.seconds:8.2f} s   {run.cpu_seconds:8.2f} s of processors   {run.peak_mib:7.0f} MiB{gpu}"
