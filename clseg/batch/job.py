"""Job: what is wanted of every scan of a batch; Outcome: how one of them ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import clseg
from clseg.batch.case import Case
from clseg.errors import ClsegError
from clseg.output import Output
from clseg.results import Outputs
from clseg.settings import Settings

DONE, KEPT, FAILED, FATAL = "done", "kept", "failed", "fatal"
_WHERE = ("device", "threads", "offline", "sources", "max_memory")  # settings that say where it is computed, not what comes out


@dataclass(frozen=True)
class Job:
    """`output` receives one folder per case; `outputs` are fields of `Outputs`.

    With `resume` a case is kept as it is when its run.json says that the same was wanted
    of the same scan; `command` is noted there.
    """

    output: Path
    roi: tuple[str, ...] = ("all",)
    settings: Settings = field(default_factory=Settings)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    series: str | None = None
    resume: bool = False
    command: tuple[str, ...] = ()
    version: str = clseg.__version__

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", Path(self.output).absolute())

    def folder(self, case: Case) -> Path:
        """Where the results of a case go."""
        return self.output / case.name

    def place(self, case: Case) -> Output:
        """The same with the names of the files there."""
        return Outputs(**self.outputs).at(self.folder(case))

    def request(self, structures: list[str], weights: Mapping[str, str]) -> dict[str, Any]:
        """All that decides what comes out for a given scan, as plain JSON."""
        how = {f.name: getattr(self.settings, f.name) for f in fields(Settings) if f.name not in _WHERE}
        asked = {"clseg": self.version, "structures": structures, "weights": dict(weights), "settings": how}
        return json.loads(json.dumps({**asked, "outputs": dict(self.outputs), "series": self.series}, default=str))


@dataclass(frozen=True)
class Outcome:
    """`status` is done, kept (an earlier run had done it), failed, or fatal: no other case can do better.

    `sentence` says what was found; `error` and `tip` what went wrong; `warnings`,
    `notes` and `details` were said on the way.
    """

    case: Case
    status: str
    sentence: str = ""
    error: str = ""
    tip: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


def failure(case: Case, error: Exception, status: str = FAILED) -> Outcome:
    """The outcome of a case that ended with an error: its own words, or a sentence about one that nobody foresaw."""
    if isinstance(error, ClsegError):
        return Outcome(case, status, error=error.message, tip=error.tip or "")
    if isinstance(error, MemoryError):
        return Outcome(case, status, error="There is not enough main memory for this.", tip="Cut the scan to what is needed, or use a larger machine.")
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return Outcome(case, status, error=f"Something went wrong that should not: {told}", tip="Run this scan alone with -v, and report what it says.")
