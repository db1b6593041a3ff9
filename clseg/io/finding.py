"""Finding: one thing that was noticed about a scan, and the command or option that mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clseg.progress import Progress

NOTE, WARNING, FAULT = "note", "warning", "fault"


@dataclass(frozen=True)
class Finding:
    """A sentence about a scan.

    `level` is 'note' (nothing needs to be done), 'warning' (usable, with care) or 'fault' (not usable); `topic` is a
    word such as 'spacing' or 'values'; `mend` says what to do about it, and is empty where nothing can be done.
    """

    level: str
    topic: str
    text: str
    mend: str = ""

    def __post_init__(self) -> None:
        if self.level not in (NOTE, WARNING, FAULT):
            raise ValueError(f"A finding is a note, a warning or a fault, not {self.level!r}.")


Found = Callable[[Finding], object]  # who is told of findings, e.g. `list.append`


def unheard(finding: Finding) -> None:
    """For callers who do not want to know."""


def told(report: Progress) -> Found:
    """For those who are told of progress: notes as notes, all else as warnings."""

    def tell(finding: Finding) -> None:
        say = report.note if finding.level == NOTE else report.warn
        say(f"{finding.text} {finding.mend}".strip())

    return tell
