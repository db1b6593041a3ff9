"""Cluster: a batch on the workers of a Dask cluster, or on several processes of this machine.

Every worker keeps one model loaded; it reads the scan and writes the results itself, so both must lie on storage that all
machines share.  Only as many cases are handed out as there are workers (or as they have of the resource GPU, where some
advertise it), so that a worker that is lost costs its own case alone, which another worker takes over.  Errors of a case
come back as its outcome.

Dask's processes trust each other: whoever reaches the scheduler's port can run programs on all workers.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clseg
from clseg.batch.bench import Bench
from clseg.batch.case import Case
from clseg.batch.job import DONE, FATAL, Job, Outcome, failure
from clseg.batch.run import Way
from clseg.cores import cores, refuse_daemonic
from clseg.errors import ClsegError, UsageError
from clseg.progress import SILENT, Progress

if TYPE_CHECKING:
    from distributed import Client, Future, Scheduler, Worker, WorkerPlugin

GPU = "GPU"  # a resource of workers: how many scans they can have at a time
PATIENCE_S = 30.0  # for a scheduler to answer
SEEN_S = 30.0  # for results to be seen here: shared folders may need a moment
FRESH_S = 2.0  # how long the number of workers is believed
POLL_S = 0.02
START_S = 600.0  # for processes of this machine to start, also when it is busy

_ONE_AT_A_TIME = threading.Lock()


# ---- on this side -----------------------------------------------------------------------------------------------------


def on_cluster(address: str) -> Way:
    """Do batches on the cluster whose scheduler is at `address`, e.g. tcp://host:8786, tls:// as Dask's configuration says."""
    return partial(_on_cluster, address)


def with_workers(count: int, report: Progress = SILENT) -> Way:
    """Do batches in `count` processes of this machine, which share its threads; `report` hears of weights that are fetched before."""
    return partial(_with_workers, count, report)


def _on_cluster(address: str, cases: Sequence[Case], job: Job) -> Iterator[Outcome]:
    with _quiet(), _client(address) as client:
        yield from hand_out(client, cases, job)


def _with_workers(count: int, report: Progress, cases: Sequence[Case], job: Job) -> Iterator[Outcome]:
    refuse_daemonic("--workers", "Leave --workers out: one process keeps all cores busy.")
    _dask()
    from distributed import LocalCluster

    Bench(job, report).fetch()
    count = min(count, len(cases))
    threads = job.settings.threads or max(1, cores() // count)
    with _quiet(), tempfile.TemporaryDirectory(prefix="clseg-workers-") as scratch, LocalCluster(
        n_workers=count, threads_per_worker=threads, processes=True, host="127.0.0.1", protocol="tcp://",
        dashboard_address="127.0.0.1:0", memory_limit=0, local_directory=scratch, silence_logs=logging.CRITICAL, death_timeout=START_S,
    ) as cluster, _client(cluster) as client:  # fmt: skip
        yield from hand_out(client, cases, job, patience_s=START_S)


def hand_out(client: Client, cases: Sequence[Case], job: Job, *, patience_s: float = math.inf) -> Iterator[Outcome]:
    """The outcomes as cases are finished on the client's cluster; for workers that will come it waits as long as `patience_s`.

    Raises ClsegError when workers have another version of clseg or do not see the files, when the scheduler is lost and when
    there are no workers left.
    """
    _check_workers(client, cases, job)
    if patience_s < math.inf:
        client.register_plugin(_deaf())
    crew = _Crew(client, job, patience_s)
    waiting = iter(cases)
    try:
        while True:
            for case in islice(waiting, max(0, crew.places() - len(crew.futures))):
                crew.submit(case)
            if not crew.futures:
                return
            yield from crew.ended()
    finally:
        with suppress(Exception):  # the scheduler may be the reason for going
            client.cancel(list(crew.futures), force=True)


class _Crew:
    """The workers of a client and the cases that they have just now."""

    def __init__(self, client: Client, job: Job, patience_s: float) -> None:
        self._client, self._job, self._patience_s = client, job, patience_s
        gpus = job.settings.device != "cpu" and client.run_on_scheduler(_places, GPU) > 0
        self._resource = GPU if gpus else None
        self._known, self._asked, self._manned = 0, -math.inf, time.monotonic()
        self.futures: dict[Future, Case] = {}

    def places(self) -> int:
        """How many scans all workers together can have; at least one, for the worker that will come."""
        now = time.monotonic()
        if now - self._asked >= FRESH_S:
            try:
                self._known, self._asked = self._client.run_on_scheduler(_places, self._resource), now
            except (OSError, TimeoutError) as error:
                raise _lost() from error
            self._manned = now if self._known else self._manned
            if now - self._manned > self._patience_s:
                raise ClsegError("All workers have died, and none came back.", tip="Most often there is too little memory: use fewer workers. The same command with --resume goes on.")
        return max(1, self._known)

    def submit(self, case: Case) -> None:
        future = self._client.submit(work, case, self._job, resources={GPU: 1} if self._resource else None, pure=False, key=f"clseg-{case.name}-{os.urandom(4).hex()}")
        self.futures[future] = case

    def ended(self) -> Iterator[Outcome]:
        """Wait until a case has ended, and tell how.  A result that was lost with its worker is pending again: Dask computes it once more."""
        while True:
            over = [future for future in self.futures if future.status in ("finished", "error", "cancelled")]
            outcomes = [(future, self._outcome(future)) for future in over]
            for future, outcome in outcomes:
                if outcome is not None:
                    del self.futures[future]
                    yield outcome
            if any(outcome for _, outcome in outcomes):
                return
            self.places()
            time.sleep(POLL_S)

    def _outcome(self, future: Future) -> Outcome | None:
        """How a case ended; None when its worker went before it could say so.  A case that its workers did not survive has failed."""
        from distributed import KilledWorker

        case = self.futures[future]
        if future.status == "cancelled":
            raise _lost()
        try:
            outcome: Outcome = future.result(timeout=PATIENCE_S)
        except TimeoutError:
            return None
        except KilledWorker as error:
            return failure(case, _killed(error))
        except Exception as error:  # `work` raises nothing: it could not be brought to the worker
            if future.status == "cancelled":
                raise _lost() from error
            raise ClsegError(f"A worker could not take a case: {_words(error)}.", tip="Install the same clseg on client, scheduler and workers.") from error
        if outcome.status == DONE:
            self._see(outcome)
        return outcome

    def _see(self, outcome: Outcome) -> None:
        """Results that are not seen from here were written somewhere else; shared folders may need a moment."""
        file, until = self._job.folder(outcome.case) / "run.json", time.monotonic() + SEEN_S
        while not file.is_file():
            if time.monotonic() > until:
                raise ClsegError(f"A worker has written the results of '{outcome.case.name}', but {file} is not there.", tip="The output must lie on storage that this machine and all workers share.")
            time.sleep(0.5)
            if file.parent.is_dir():
                os.listdir(file.parent)  # lets network file systems look again


def _check_workers(client: Client, cases: Sequence[Case], job: Job) -> None:
    """Ask the workers that are there whether they can do the job at all."""
    try:
        answers = client.run(look, [cases[0].path, job.output], on_error="return")
    except Exception as error:  # the scheduler's own troubles
        raise ClsegError(f"The workers cannot be asked: {_words(error)}.", tip="Is the scheduler running, with the same version of Dask?") from error
    for worker, answer in answers.items():
        if isinstance(answer, Exception):
            raise ClsegError(f"The worker {worker} cannot run clseg: {_words(answer)}.", tip=f"Install clseg {clseg.__version__} there.")
        version, seen = answer
        if version != clseg.__version__:
            raise _another_version(worker, version, clseg.__version__)
        for path, there in zip((cases[0].path, job.output), seen, strict=True):
            if path.exists() and not there:
                raise ClsegError(f"The worker {worker} does not see {path}.", tip="Scans and output must lie on storage that all workers share under the same path.")


@contextmanager
def _client(cluster: Any) -> Iterator[Client]:
    """A client of a cluster or an address; ClsegError when nobody answers."""
    _dask()
    from distributed import Client

    try:
        client = Client(cluster, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ClsegError(f"No Dask scheduler answers at {cluster}: {_words(error)}.", tip="Start one with `dask scheduler`, and give its address as it says it.") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"'{cluster}' is no address of a Dask scheduler: {_words(error)}.", tip="It looks like tcp://host:8786.") from error
    with closing(client):
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's log stays silent: what concerns the user comes back as outcomes."""
    _dask()
    import distributed  # noqa: F401  (sets up its log)

    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _dask() -> None:
    """UsageError without the package."""
    from importlib.util import find_spec

    if find_spec("distributed") is None:
        raise UsageError("--cluster and --workers need Dask, which is not installed.", tip="pip install 'clseg[cluster]'")


def _killed(error: Any) -> ClsegError:
    return ClsegError(
        f"{error.allowed_failures + 1} workers died while they worked on this scan, the last at {error.last_worker.address}.",
        tip="Most often there is too little memory: segment it on a larger machine, or cut it to what is needed.",
    )


def _lost() -> ClsegError:
    return ClsegError("The Dask scheduler was lost.", tip="What is finished stays; start it again, and the same command with --resume goes on.")


def _another_version(worker: str, theirs: str, ours: str) -> ClsegError:
    return ClsegError(f"The worker {worker} runs clseg {theirs}, this is clseg {ours}.", tip="Install the same version everywhere.")


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


# ---- on the scheduler and on workers ----------------------------------------------------------------------------------


def work(case: Case, job: Job) -> Outcome:
    """One case on a worker; never raises."""
    from distributed import get_worker

    worker = get_worker()
    try:
        if job.version != clseg.__version__:
            raise _another_version(worker.address, clseg.__version__, job.version)
        bench = _warm(worker, job)
        one = bench.segment(bench.read(case))
    except Exception as error:  # what no case can do without
        told = failure(case, error, FATAL)
        return replace(told, error=f"On the worker {worker.address}: {told.error}")
    return bench.write(one)


def look(paths: Sequence[Path]) -> tuple[str, list[bool]]:
    """The version of clseg on a worker, and which of the paths it sees."""
    return clseg.__version__, [Path(path).exists() for path in paths]


def _warm(worker: Worker, job: Job) -> Bench:
    """The bench of this worker, made for its first case; without a number of threads it takes all that the worker has."""
    with _ONE_AT_A_TIME:
        threads = job.settings.threads or worker.state.nthreads
        mine = replace(job, settings=replace(job.settings, threads=threads))
        bench = getattr(worker, "clseg_bench", None)
        if bench is None or bench.job != mine:
            bench = Bench(mine)
            worker.clseg_bench = bench
        return bench


def _places(resource: str | None, dask_scheduler: Scheduler | None = None) -> int:
    """How many scans all workers together can have: as many as they have of a resource, or one each; run on the scheduler.

    Without a resource nothing but their number keeps cases apart: Dask gives a case to the worker that has least to do, and
    one that gets two computes them one after the other.
    """
    workers = dask_scheduler.workers.values() if dask_scheduler else ()
    return int(sum(worker.resources.get(resource, 0) if resource else 1 for worker in workers))


def _deaf() -> WorkerPlugin:
    """Workers of this machine shall not hear Ctrl-C, which a terminal sends to all processes: the one that started them ends them."""
    from distributed import WorkerPlugin

    class Deaf(WorkerPlugin):
        name = "clseg-deaf"

        async def setup(self, worker: Worker) -> None:
            if threading.current_thread() is threading.main_thread():  # of a process of its own
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    return Deaf()
