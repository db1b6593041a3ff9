"""Run: a batch from its cases to its summaries, wherever it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from clseg.batch.case import Case
from clseg.batch.done import sweep
from clseg.batch.job import FAILED, FATAL, Job, Outcome
from clseg.batch.local import run_here
from clseg.batch.summary import clear, write_failures, write_summaries
from clseg.errors import ClsegError
from clseg.io.files import prepare_folder

_SURELY_DEAD_S = 10.0  # runs of other cases may share the output, and write their summaries meanwhile

Way = Callable[[Sequence[Case], Job], Iterator[Outcome]]


def run(cases: Sequence[Case], job: Job, *, way: Way = run_here, tell: Callable[[Outcome], object] = lambda outcome: None) -> list[Outcome]:
    """Do the job to all cases and return their outcomes in the order of the cases; `tell` hears of each as it ends, with all details.

    failures.csv is there afterwards when a case failed, the summaries when statistics are wanted; they cover all cases
    that are done, those that an earlier run has finished too.  Raises OutputError when the output cannot be written, and
    what no case can do without: names, devices, weights, the cluster.
    """
    prepare_folder(job.output)
    clear(job.output)
    outcomes = {}
    with closing(way(cases, job)) as ended:
        for one in ended:
            if one.status == FATAL:
                raise ClsegError(one.error, tip=one.tip or None)
            tell(one)
            outcomes[one.case.name] = replace(one, details=())  # of 100,000 cases they would fill the memory
    ordered = [outcomes[case.name] for case in cases]
    sweep(job.output, older_s=_SURELY_DEAD_S)
    write_failures(job.output, ordered)
    done = [one.case.name for one in ordered if one.status != FAILED]
    if job.outputs.get("statistics") and done:
        write_summaries(job.output, done)
    return ordered
