"""Batch: many scans with one loaded model, in this process or on the workers of a Dask cluster.

    cases = cases_of("scans/", "out/")          # Case: a name and a path
    job = Job(Path("out/"), roi=("chest",), outputs={"statistics": True}, resume=True)
    outcomes = run(cases, job, tell=lambda outcome: None)

`find` says which scans are meant and `case` what they are called; `job` is what is wanted of them, `bench` does it to
one after the other, `local` overlaps reading, computing and writing, `cluster` hands cases to workers; `done` knows
which cases an earlier run has finished, `summary` writes what is known of all.
"""

from __future__ import annotations

from clseg.batch.case import Case
from clseg.batch.find import cases_of
from clseg.batch.job import DONE, FAILED, KEPT, Job, Outcome
from clseg.batch.local import run_here
from clseg.batch.run import run

__all__ = ["DONE", "FAILED", "KEPT", "Case", "Job", "Outcome", "cases_of", "run", "run_here"]
