"""Local: a batch in this process; while one scan is segmented, the next is read and the last is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from clseg.batch.bench import Bench, Underway
from clseg.batch.case import Case
from clseg.batch.job import Job, Outcome
from clseg.progress import SILENT, Progress


def run_here(cases: Sequence[Case], job: Job, report: Progress = SILENT) -> Iterator[Outcome]:
    """The outcomes in the order of the cases.

    Never more than three scans are in memory; with a limit of memory, which is planned for one scan, never more than one.
    When it is closed or interrupted, the scan that is being written is
    finished first.  Raises what no case can do without, see `Bench`.
    """
    bench = Bench(job, report)
    bench.fetch()
    if job.settings.max_memory is not None:
        yield from (bench.write(bench.segment(bench.read(case))) for case in cases)
        return
    reader, writer = ThreadPoolExecutor(1, "clseg-read"), ThreadPoolExecutor(1, "clseg-write")
    try:
        last: Future[Outcome] | None = None
        for one in _read_ahead(reader, cases, bench):
            bench.segment(one)
            if last is not None:
                yield last.result()
            last = writer.submit(bench.write, one)
            del one  # it is the writer's now
        if last is not None:
            yield last.result()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()


def _read_ahead(reader: ThreadPoolExecutor, cases: Sequence[Case], bench: Bench) -> Iterator[Underway]:
    """The cases, each read while the one before it is worked on."""
    waiting = [reader.submit(bench.read, case) for case in cases[:1]]
    for following in (*cases[1:], None):
        ready = waiting.pop().result()
        if following is not None:
            waiting.append(reader.submit(bench.read, following))
        yield ready
        del ready
