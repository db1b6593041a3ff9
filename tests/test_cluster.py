"""The same batch on Dask's workers: identical results, also when workers are killed; whatever is wrong is one sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("distributed")

import clseg
from clseg.batch import DONE, FAILED, KEPT, Job, cases_of, cluster, run
from clseg.batch.cluster import on_cluster, with_workers
from clseg.errors import ClsegError, UsageError
from clseg.settings import Settings
from tests.small_batch import left_in, spoil, write_scans

ROOT = Path(__file__).parents[1]
DASK = {"DASK_LOGGING__DISTRIBUTED": "error"}


def job(output: Path, **more) -> Job:
    settings = {"model": "tiny", "threads": 1, "offline": True, **more.pop("settings", {})}
    return Job(output, settings=Settings(**settings), outputs={"statistics": True}, **more)


class Dask:
    """A scheduler and workers, each a process of its own as a user starts them; `address` is the scheduler's."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self.processes, self.workers = scratch, [], []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self._start("scheduler", "--host", self.address, "--no-dashboard", "--no-show")

    def worker(self, *more: str, **environment: str) -> subprocess.Popen:
        one = self._start("worker", self.address, "--nthreads", "1", "--local-directory", str(self._scratch), "--no-dashboard", "--memory-limit", "0", *more, **environment)
        self.workers.append(one)
        return one

    def wait_for(self, count: int) -> None:
        from distributed import Client

        with Client(self.address, timeout=300, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=600)

    def _start(self, *words: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *words]
        one = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **DASK, "PYTHONPATH": str(ROOT), **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes.append(one)
        return one


@pytest.fixture
def dask(tmp_path) -> Iterator[Dask]:
    one = Dask(tmp_path / "scratch")
    yield one
    for process in one.processes[::-1]:
        process.terminate()
    for process in one.processes[::-1]:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def killing(victims: Callable[[], subprocess.Popen], after: int) -> Callable[[object], None]:
    """A listener that kills a process with SIGKILL when so many cases have ended."""
    heard: list[object] = []

    def tell(outcome: object) -> None:
        heard.append(outcome)
        if len(heard) == after:
            victims().send_signal(signal.SIGKILL)

    return tell


# ---- a real cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_changes_nothing(tiny_model, tmp_path, dask):
    """20 scans with 3 bad ones, a scheduler and two workers of which one is killed after five cases: the files of a local run.

    The case that it had is done by the other.  Afterwards --resume on the cluster keeps all that the cluster has done, and a
    local one too.
    """
    tiny_model()
    spoil(write_scans(tmp_path / "scans", 20)[4::6])
    cases = cases_of(tmp_path / "scans", tmp_path / "out")
    run(cases, job(tmp_path / "here"))
    for _ in range(2):
        dask.worker("--no-nanny")
    dask.wait_for(2)
    outcomes = run(cases, job(tmp_path / "there"), way=on_cluster(dask.address), tell=killing(lambda: dask.workers[0], 5))
    assert dask.workers[0].wait(timeout=10) == -signal.SIGKILL
    assert [one.case for one in outcomes] == cases
    assert sum(one.status == DONE for one in outcomes) == 17
    assert [one.case.name for one in outcomes if one.status == FAILED] == ["s04", "s10", "s16"]
    assert left_in(tmp_path / "there") == left_in(tmp_path / "here")
    for way in ({"way": on_cluster(dask.address)}, {}):
        assert sum(one.status == KEPT for one in run(cases, job(tmp_path / "there", resume=True), **way)) == 17


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gpu_workers_are_asked_for_by_their_resource(tiny_model, tmp_path, dask):
    """Where a worker advertises GPU, it alone gets cases; with --device cpu all do."""
    tiny_model()
    write_scans(tmp_path / "scans", 4)
    cases = cases_of(tmp_path / "scans", tmp_path / "out")
    dask.worker("--no-nanny", "--resources", "GPU=1")
    dask.worker("--no-nanny", CLSEG_HOME=str(tmp_path / "nowhere"))  # knows no model: whatever it gets is fatal
    dask.wait_for(2)
    outcomes = run(cases, job(tmp_path / "out", settings={"device": "auto"}), way=on_cluster(dask.address))
    assert [one.status for one in outcomes] == [DONE] * 4
    with pytest.raises(ClsegError, match="On the worker tcp://.*Unknown model 'tiny'"):
        run(cases, job(tmp_path / "out", settings={"device": "cpu"}), way=on_cluster(dask.address))


DEADLY = """
import os, sys
sys.addaudithook(lambda event, words: os._exit(9) if event == "open" and str(words[0]).endswith("s01.nii.gz") else None)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scan_that_kills_its_workers_fails_alone(tiny_model, tmp_path, monkeypatch):
    """Workers that die again and again on one case (as of too little memory) cost this case, not the others."""
    import dask.config
    from distributed import LocalCluster

    tiny_model()
    write_scans(tmp_path / "scans", 3)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)  # every process that is started from now on dies of this scan
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    setting = dask.config.set({"distributed.scheduler.allowed-failures": 1})
    with setting, LocalCluster(n_workers=2, threads_per_worker=1, death_timeout=600, dashboard_address=None, memory_limit=0, local_directory=str(tmp_path / "scratch"), silence_logs=50) as local:
        outcomes = run(cases_of(tmp_path / "scans", tmp_path / "out"), job(tmp_path / "out"), way=on_cluster(local.scheduler_address))
    assert [one.status for one in outcomes] == [DONE, FAILED, DONE]
    assert "2 workers died while they worked on this scan" in outcomes[1].error
    assert "memory" in outcomes[1].tip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_of_this_machine(tiny_model, tmp_path):
    """--workers 2: the files of a run in one process; nothing is left of the workers."""
    tiny_model()
    spoil(write_scans(tmp_path / "scans", 6)[1:4])
    cases = cases_of(tmp_path / "scans", tmp_path / "out")
    run(cases, job(tmp_path / "here"))
    outcomes = run(cases, job(tmp_path / "there"), way=with_workers(2))
    assert [one.status for one in outcomes] == [DONE, FAILED, FAILED, FAILED, DONE, DONE]
    assert left_in(tmp_path / "there") == left_in(tmp_path / "here")


def test_a_daemonic_process_is_told_that_it_may_not_have_workers(tiny_model, tmp_path, monkeypatch):
    """One sentence and what to do instead; nothing is written."""
    tiny_model()
    write_scans(tmp_path / "scans", 2)
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {**multiprocessing.current_process()._config, "daemon": True})
    with pytest.raises(UsageError, match="--workers starts processes") as refused:
        run(cases_of(tmp_path / "scans", tmp_path / "out"), job(tmp_path / "out"), way=with_workers(2))
    assert "Leave --workers out" in refused.value.tip


# ---- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tiny_model, tmp_path):
    """A cluster in threads of this process, and two scans."""
    from distributed import LocalCluster

    tiny_model()
    write_scans(tmp_path / "scans", 2)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, death_timeout=600, dashboard_address=None, protocol="tcp://", host="127.0.0.1", silence_logs=50, memory_limit=0) as local:
        yield local.scheduler_address


def test_a_cluster_does_what_is_done_here(small, tmp_path):
    """Done, failed and kept cases, warnings and files."""
    (tmp_path / "scans" / "s01.nii.gz").write_bytes(b"")
    cases = cases_of(tmp_path / "scans", tmp_path / "out")
    here = run(cases, job(tmp_path / "here"))
    there = run(cases, job(tmp_path / "there"), way=on_cluster(small))
    assert [one.status for one in there] == [DONE, FAILED]
    assert here[1] == there[1]
    assert left_in(tmp_path / "there") == left_in(tmp_path / "here")
    assert [one.status for one in run(cases, job(tmp_path / "there", resume=True), way=on_cluster(small))] == [KEPT, FAILED]


def test_another_version_is_one_sentence(small, tmp_path, monkeypatch):
    """On a worker that is there, and on one that comes later."""
    cases = cases_of(tmp_path / "scans", tmp_path / "out")
    with pytest.raises(ClsegError, match=rf"On the worker tcp://.* runs clseg {clseg.__version__}, this is clseg 9\.9"):
        run(cases, job(tmp_path / "out", version="9.9"), way=on_cluster(small))
    monkeypatch.setattr(cluster, "look", lambda paths: ("0.0.1", [True, True]))
    with pytest.raises(ClsegError, match=r"The worker tcp://.* runs clseg 0\.0\.1, this is clseg"):
        run(cases, job(tmp_path / "out"), way=on_cluster(small))


def test_files_that_workers_do_not_see_are_one_sentence(small, tmp_path, monkeypatch):
    """Scans on a disk of the client's own; results on one of the worker's own."""
    cases = cases_of(tmp_path / "scans", tmp_path / "out")
    monkeypatch.setattr(cluster, "look", lambda paths: (clseg.__version__, [False, True]))
    with pytest.raises(ClsegError, match=r"does not see .*s00\.nii\.gz") as caught:
        run(cases, job(tmp_path / "out"), way=on_cluster(small))
    assert "share" in caught.value.tip
    monkeypatch.undo()


def test_workers_that_all_died_are_one_sentence(small, tmp_path):
    """Processes of this machine that never come back; a cluster may still get workers, and is waited for."""
    from distributed import Client

    with Client(small, set_as_default=False) as client:
        client.retire_workers(list(client.nthreads()))
        with pytest.raises(ClsegError, match="All workers have died"):
            list(cluster.hand_out(client, cases_of(tmp_path / "scans", tmp_path), job(tmp_path / "out"), patience_s=0.1))


def test_a_result_that_is_lost_with_its_worker_is_waited_for(small, tmp_path, monkeypatch):
    """A worker that dies between its last byte and its answer: the case is pending again, and in the end done."""
    from distributed import Client, Future

    original, asked = Future.result, []

    def result(self, timeout=None):
        asked.append(1)
        if len(asked) == 1:
            raise TimeoutError
        return original(self, timeout)

    monkeypatch.setattr(Future, "result", result)
    with Client(small, set_as_default=False) as client:
        outcomes = list(cluster.hand_out(client, cases_of(tmp_path / "scans", tmp_path), job(tmp_path / "out")))
    assert [one.status for one in outcomes] == [DONE, DONE]
    assert len(asked) == 3


def test_results_that_are_not_seen_here_are_one_sentence(small, tmp_path, monkeypatch):
    """A worker that says done, and no run.json on this side."""
    cases = cases_of(tmp_path / "scans", tmp_path / "out")
    monkeypatch.setattr(cluster, "SEEN_S", 0.1)
    monkeypatch.setattr(cluster.Bench, "write", lambda self, one: cluster.Outcome(one.case, DONE))
    with pytest.raises(ClsegError, match=r"has written the results of 's0.', but .*run\.json is not there"):
        run(cases, job(tmp_path / "out"), way=on_cluster(small))


@pytest.mark.parametrize(("address", "error", "told"), [("tcp://127.0.0.1:9", ClsegError, "No Dask scheduler answers at tcp://127.0.0.1:9"), ("nonsense://x", UsageError, "is no address of a Dask scheduler")])
def test_a_scheduler_that_is_not_there(tiny_model, tmp_path, monkeypatch, address, error, told):
    """Nobody listens, or no address at all: one sentence, soon."""
    tiny_model()
    write_scans(tmp_path / "scans", 2)
    monkeypatch.setattr(cluster, "PATIENCE_S", 1.0)
    began = time.monotonic()
    with pytest.raises(error, match=told):
        run(cases_of(tmp_path / "scans", tmp_path / "out"), job(tmp_path / "out"), way=on_cluster(address))
    assert time.monotonic() - began < 60


def test_without_dask_the_extra_is_named(tiny_model, tmp_path, monkeypatch):
    """pip install 'clseg[cluster]'."""
    tiny_model()
    write_scans(tmp_path / "scans", 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for way in (with_workers(1), on_cluster("tcp://x:1")):
        with pytest.raises(UsageError, match="need Dask") as caught:
            run(cases_of(tmp_path / "scans", tmp_path / "out"), job(tmp_path / "out"), way=way)
        assert caught.value.tip == "pip install 'clseg[cluster]'"
