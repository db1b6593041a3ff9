"""Many scans in one call: `clseg -i scans/ -o out/`, here, in several processes or on a cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clseg.cli.console import Terminal
from clseg.errors import ClsegError, UsageError

if TYPE_CHECKING:
    from clseg.batch import Case, Job, Outcome
    from clseg.batch.run import Way
    from clseg.weights.sources import Sources


@dataclass(frozen=True)
class Many:
    """What the call says about many scans: go on where an earlier one ended, and where to compute."""

    resume: bool = False
    cluster: str | None = None
    workers: int | None = None

    def cases(self, input: Path, output: Path, roi: list[str], model: str, sources: Sources) -> list[Case] | None:
        """The cases that the input means; None for a single scan, for which none of the options may be said.

        Wrong names are told before folders are looked through.
        """
        from clseg.asked import asked
        from clseg.batch import cases_of
        from clseg.weights.cache import manifest

        asked(manifest(sources=sources), model, roi)
        if self.cluster and self.workers:
            raise UsageError("--cluster and --workers exclude each other.", tip="--workers starts processes on this machine, --cluster uses those of a scheduler.")
        cases = cases_of(input, output)
        if cases is None and (said := self._said()):
            raise UsageError(f"{said} is for many scans; {input} is one.", tip='Give a folder of scans, a pattern in quotes ("scans/*.nii.gz") or a list (.txt, .csv).')
        return cases

    def way(self, terminal: Terminal) -> Way:
        """Where the cases are computed."""
        from clseg.batch import run_here
        from clseg.cli.progress import Bars

        if not self._said(apart="--resume"):
            return partial(run_here, report=Bars(terminal))
        from clseg.batch.cluster import on_cluster, with_workers

        return on_cluster(self.cluster) if self.cluster else with_workers(self.workers or 1, Bars(terminal))

    def _said(self, apart: str = "") -> str:
        """The first of the options that was given."""
        given = {"--resume": self.resume, "--cluster": self.cluster, "--workers": self.workers}
        return next((option for option, value in given.items() if value and option != apart), "")


def segment_many(
    cases: Sequence[Case], job: Job, many: Many, terminal: Terminal, *, overwrite: bool = True, profile: bool = False
) -> None:
    """Segment all cases, tell how they ended, and fail when one has failed."""
    from clseg.batch import DONE, FAILED, KEPT, run

    check_many(cases, job, overwrite)
    terminal.note(f"{len(cases)} scan{'' if len(cases) == 1 else 's'}")
    with overall(terminal, len(cases)) as advance, way_on(terminal):
        outcomes = run(cases, job, way=many.way(terminal), tell=lambda outcome: (tell(outcome, terminal), advance()))
    counts = {status: sum(one.status == status for one in outcomes) for status in (DONE, KEPT, FAILED)}
    earlier = f" ({counts[KEPT]} by an earlier run)" if counts[KEPT] else ""
    terminal.note(f"{counts[DONE] + counts[KEPT]} of {len(cases)} cases done{earlier}, written to {job.output}")
    if profile:
        show_profiles([job.folder(one.case) / "run.json" for one in outcomes if one.status == DONE], terminal)
    if counts[FAILED]:
        terminal.aside("", ["case", "error"], [[one.case.name, one.error] for one in outcomes if one.status == FAILED])
        raise ClsegError(f"{counts[FAILED]} of {len(cases)} cases failed.", tip=f"{job.output / 'failures.csv'} says why; the same command with --resume tries these alone again.")


@contextmanager
def way_on(terminal: Terminal) -> Iterator[None]:
    """Who interrupts a batch is told how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        terminal.note("What is finished stays; the same command with --resume goes on from there.")
        raise


def job_of(output: Path, roi: list[str], options: dict[str, Any], outputs: dict[str, Any], many: Many, sources: Sources) -> Job:
    """The job that the options say; workers of a cluster look for weights themselves, where `sources` says."""
    from clseg.batch import Job
    from clseg.cli.segment import without_secrets
    from clseg.settings import Settings

    settings = {name: value for name, value in options.items() if name != "series"}
    if many.cluster or many.workers:
        settings["sources"] = _absolute(sources)
    command = tuple(without_secrets(word) for word in sys.argv[1:])
    return Job(output, tuple(roi), Settings(**settings), outputs, options["series"], many.resume, command)


def check_many(cases: Sequence[Case], job: Job, overwrite: bool) -> None:
    """Refuse what is wrong with the output before anything is read or made."""
    from clseg.batch.case import SUMMARIES
    from clseg.io.files import check_writable
    from clseg.output import Output
    from clseg.results import check_tools

    if job.outputs.get("bids"):
        raise UsageError("--bids names one scan, and these are many.", tip="Call clseg once for each, with the same -o: they share the dataset.")
    if Output.at(job.output, False).named is not None:
        raise UsageError(f"The output of {len(cases)} scans is a folder, given {job.output.name}.", tip="-o out/ --ml writes one label map per scan, out/CASE/segmentation.nii.gz.")
    if cases:
        check_tools(job.place(cases[0]))
    if not overwrite:
        if job.resume:
            raise UsageError("--resume replaces what an interrupted run has left, --no-overwrite forbids it.", tip="Leave one of them out.")
        taken = (place for place in (*map(job.folder, cases), *(job.output / name for name in SUMMARIES)) if place.exists())
        if place := next(taken, None):
            raise UsageError(f"{place} is there already.", tip="Choose another output, or allow --overwrite.")
    check_writable(job.output, 1_000_000)


@contextmanager
def overall(terminal: Terminal, count: int) -> Iterator[Callable[[], None]]:
    """One bar over all cases; the value is called when one has ended.  The bar comes with the first of them.

    Until then others may be shown: weights that are downloaded.
    """
    from contextlib import ExitStack

    with ExitStack() as stack:
        bars: list[Any] = []
        ended = [0]

        def advance() -> None:
            if not bars:
                bars.append(stack.enter_context(terminal.progress()))
                if bars[0] is not None:
                    bars[0].add_task("", total=count)
            ended[0] += 1
            if bars[0] is not None:
                bars[0].update(bars[0].task_ids[0], completed=ended[0], description=f"case {min(ended[0] + 1, count)} of {count}")

        yield advance


def tell(outcome: Outcome, terminal: Terminal) -> None:
    """Warnings of a case; one that failed; with -v all that is known of every case."""
    from clseg.batch import FAILED

    name = outcome.case.name
    for text in (*outcome.notes, *outcome.details):
        terminal.detail(f"{name}: {text}")
    for text in outcome.warnings:
        terminal.warn(f"{name}: {text}")
    if outcome.status == FAILED:
        terminal.warn(f"{name} failed: {outcome.error}")
    else:
        terminal.detail(f"{name}: {outcome.sentence}")


def show_profiles(runs: Sequence[Path], terminal: Terminal) -> None:
    """Seconds per scan of every stage over these run.json, and the highest memory of a process, on stderr."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for one in json.loads(run.read_text(encoding="utf-8"))["stages"]:
            stages.setdefault(one["stage"], []).append(one)
    total = sum(one["seconds"] for laps in stages.values() for one in laps)
    rows = [_profile_row(name, laps, len(runs), total) for name, laps in stages.items()]
    every = [one for laps in stages.values() for one in laps]
    terminal.aside("", ["stage", "seconds per scan", "share", "peak MiB so far"], [*rows, _profile_row("all", every, len(runs), total)])


def _profile_row(name: str, laps: Sequence[dict[str, Any]], scans: int, total: float) -> list[str]:
    seconds, peak = sum(one["seconds"] for one in laps), max((one["peak_memory_mib"] or 0 for one in laps), default=0)
    return [name, f"{seconds / scans:.2f}" if scans else "–", f"{seconds / total:.0%}" if total else "–", f"{peak:.0f}" if peak else "–"]


def _absolute(sources: Sources) -> Sources:
    """The same for processes that run elsewhere: a manifest's file with its full path."""
    listing = sources.manifest
    return replace(sources, manifest=str(Path(listing).absolute())) if isinstance(listing, (str, Path)) and "://" not in str(listing) else sources
