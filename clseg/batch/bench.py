"""Bench: does a job to one case after the other, in the three steps read, segment and write."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from clseg.batch.case import Case
from clseg.batch.done import digest_of, is_complete, sweep
from clseg.batch.job import DONE, KEPT, Job, Outcome, failure
from clseg.io.files import Hashes
from clseg.pipeline import Segmenter
from clseg.progress import SILENT, Advance, Progress
from clseg.results import check_possible, find_source

if TYPE_CHECKING:
    from clseg.io.formats import Source
    from clseg.pipeline import Opened
    from clseg.segmentation import Segmentation


@dataclass
class Underway:
    """A case between two steps; `outcome` is there as soon as it has ended."""

    case: Case
    digest: str = ""
    source: Source = None
    opened: Opened | None = None
    result: Segmentation | None = None
    outcome: Outcome | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def ended(self) -> Outcome:
        """The outcome with all that was said on the way."""
        assert self.outcome is not None
        return replace(self.outcome, warnings=tuple(self.warnings), notes=tuple(self.notes), details=tuple(self.details))


class Bench:
    """Keeps the model of a job loaded.  The steps may be taken in different threads, each case's in their order.

    An error of a case ends that case alone.  What no case can do without is raised: UsageError for names and devices
    that are not there, WeightsError for weights; `load` raises it before the first case does.
    """

    def __init__(self, job: Job, report: Progress = SILENT) -> None:
        self.job = job
        self._heard = Heard(report)
        self._computing = threading.Lock()  # one scan at a time has the device
        settings = {f.name: getattr(job.settings, f.name) for f in fields(job.settings)}
        self._segmenter = Segmenter(job.roi, report=self._heard, **settings)
        self._request = job.request([a.name for a in self._segmenter.wanted], self._segmenter.weights)

    def fetch(self) -> None:
        """Have the weights on this machine."""
        self._segmenter.fetch()

    def read(self, case: Case) -> Underway:
        """Read and check a scan, and whether its results can be written, unless an earlier run has finished it."""
        one, hashed = Underway(case), Hashes()
        with self._on(one):
            if self.job.resume and is_complete(self.job.folder(case), digest_of(case.path, hashed), self._request):
                one.outcome = Outcome(case, KEPT, "complete already")
                return one
            one.source = find_source(self.job.place(case).types, case.path, self.job.series)
            check_possible(self.job.place(case), one.source)  # told now, not when all has been computed
            one.opened = self._segmenter.open(case.path, series=self.job.series, hashed=hashed)
            one.digest = digest_of(case.path, hashed)  # of what was read: a file that has changed since it was hashed is hashed again
        return one

    def segment(self, one: Underway) -> Underway:
        """Find the structures."""
        if one.outcome is None and one.opened is not None:
            with self._heard.about(one):
                self._segmenter.load()
            with self._on(one), self._computing:
                result = self._segmenter.segment(one.opened)
                noted = {"command": list(self.job.command), "batch": {"case": one.case.name, "sha256": one.digest, "request": self._request}}
                one.result = replace(result, facts={**result.facts, **noted})
        one.opened = None
        return one

    def write(self, one: Underway) -> Outcome:
        """Write the results."""
        if one.outcome is None and one.result is not None:
            with self._on(one):
                folder = self.job.folder(one.case)
                sweep(folder, below=True)
                replace(one.result, source=one.source).save(folder, **self.job.outputs)
                one.outcome = Outcome(one.case, DONE, _sentence(one.result))
        one.result = one.source = None
        return one.ended()

    @contextmanager
    def _on(self, one: Underway) -> Iterator[None]:
        """Whatever goes wrong is the outcome of this case."""
        with self._heard.about(one):
            try:
                yield
            except Exception as error:
                one.outcome = failure(one.case, error)


class Heard(Progress):
    """Notes what is said about a case in its own lists; what is said in between goes to `others`."""

    def __init__(self, others: Progress) -> None:
        self._others = others
        self._here = threading.local()

    @contextmanager
    def about(self, one: Underway) -> Iterator[None]:
        """All that this thread says belongs to this case."""
        self._here.case = one
        try:
            yield
        finally:
            self._here.case = None

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        if self._case is not None:
            yield lambda units: None
            return
        with self._others.stage(name, total, unit) as advance:
            yield advance

    def warn(self, text: str) -> None:
        if self._case is None:
            self._others.warn(text)
        else:
            self._case.warnings.append(text)

    def note(self, text: str) -> None:
        if self._case is None:
            self._others.note(text)
        else:
            self._case.notes.append(text)

    def detail(self, text: str) -> None:
        if self._case is None:
            self._others.detail(text)
        else:
            self._case.details.append(text)

    @property
    def _case(self) -> Underway | None:
        return getattr(self._here, "case", None)


def _sentence(result: Segmentation) -> str:
    seconds = sum(lap.seconds for lap in result.stopwatch.laps)
    return f"{len(result.present)} of {len(result.wanted)} structures found in {seconds:.1f} s"
