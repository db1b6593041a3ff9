"""The main job needs one process and nothing beside it: no shared memory, no home to write to, no children, no temporary files."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clseg import segment
from clseg.io.nifti import write_volume
from clseg.phantom import small_phantom
from clseg.volume import Volume

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ct(tmp_path) -> Path:
    """A small torso as a file."""
    volume, _ = small_phantom()
    write_volume(tmp_path / "ct.nii.gz", Volume(np.asfortranarray(volume.array), volume.affine))
    return tmp_path / "ct.nii.gz"


def words(ct: Path, out: Path) -> list[str]:
    return ["-i", str(ct), "-o", str(out), "-m", "tiny", "--stats", "--preview", "--offline", "-q"]


def assert_complete(out: Path) -> None:
    """The folder holds the files that its run.json names, masks among them, and nothing else."""
    run = json.loads((out / "run.json").read_text())
    assert {file.name for file in out.iterdir()} == set(run["files"])
    assert run["structures"]


# ---- inside other programs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [False, True], ids=["in the loop", "in a thread of the loop"])
def test_it_works_where_an_event_loop_runs(tiny_model, ct, tmp_path, threaded):
    """As in a notebook, whose cells run inside asyncio; and in a thread beside it."""
    tiny_model()

    def work() -> None:
        segment(ct, model="tiny").save(tmp_path / "out", statistics=True)

    async def cell() -> None:
        assert asyncio.get_running_loop()
        await asyncio.to_thread(work) if threaded else work()

    asyncio.run(cell())
    assert_complete(tmp_path / "out")


def _in_a_daemon(ct: str, out: str) -> None:
    """What the daemon runs: it may have no children (proved first), and need not."""
    with pytest.raises(AssertionError, match="daemonic processes are not allowed to have children"):
        multiprocessing.Process(target=print).start()
    segment(ct, model="tiny").save(out, statistics=True)


@pytest.mark.slow
def test_it_works_in_a_daemonic_process(tiny_model, ct, tmp_path):
    """As in the workers of other programs, which are not allowed to have children."""
    tiny_model()
    daemon = multiprocessing.get_context("spawn").Process(target=_in_a_daemon, args=(str(ct), str(tmp_path / "out")), daemon=True)
    daemon.start()
    daemon.join(timeout=120)
    assert daemon.exitcode == 0
    assert_complete(tmp_path / "out")


# ---- on poor machines -------------------------------------------------------------------------------------------------


def in_a_world(setup: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`clseg ARGUMENTS` in a mount namespace of its own, after the shell commands `setup`; skips where there are none."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us have a mount namespace (it takes root on Linux)")
    script = f'set -e; {setup}; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "clseg", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **variables}, timeout=120)


SHM = {
    "64 KiB": "mount -t tmpfs -o size=64k tmpfs /dev/shm; if head -c 100000 /dev/zero > /dev/shm/probe; then exit 99; fi; rm /dev/shm/probe",
    "none": "mount -t tmpfs -o ro tmpfs /dev/shm; if touch /dev/shm/probe; then exit 99; fi",
}


@pytest.mark.slow
@pytest.mark.parametrize("size", SHM)
def test_it_needs_no_shared_memory(tiny_model, ct, tmp_path, size):
    """/dev/shm of 64 KiB, as in containers, or one where nothing can be made (a probe proves it, else exit 99): all results are there."""
    tiny_model()
    result = in_a_world(SHM[size], *words(ct, tmp_path / "out"))
    assert (result.returncode, result.stdout) == (0, "")
    assert "Traceback" not in result.stderr
    assert_complete(tmp_path / "out")


@pytest.mark.slow
def test_it_writes_nothing_at_home(tiny_model, own_home, ct, tmp_path):
    """Home and the weights' folder read-only (a probe proves it, else exit 99): all results are there, and not a word of complaint."""
    tiny_model()
    home = tmp_path / "user"
    home.mkdir()
    sealed = "; ".join(f'mount --bind "{one}" "{one}"; mount -o remount,ro,bind "{one}"; if touch "{one}/probe" 2>/dev/null; then exit 99; fi' for one in (home, own_home))
    result = in_a_world(sealed, *words(ct, tmp_path / "out"), HOME=str(home), CLSEG_HOME=str(own_home))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert_complete(tmp_path / "out")


# ---- nothing started, nothing left ------------------------------------------------------------------------------------

WATCHED = """
import os, sys
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.startfile", "_winapi.CreateProcess"}

def stop(event, *arguments):
    os.write(2, f"STARTED {event} {arguments}\\n".encode())
    os._exit(77)

sys.addaudithook(lambda event, arguments: stop(event, *arguments) if event in STARTS else None)
if os.name == "posix":  # multiprocessing starts its children through this, which no audit event tells
    import _posixsubprocess
    _posixsubprocess.fork_exec = lambda *arguments: stop("fork_exec", *arguments)
"""


def watched(program: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program that ends with 77 when it starts another; its temporary files belong into `folder`."""
    command = [sys.executable, "-c", WATCHED + program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(folder)}, timeout=120)


@pytest.mark.parametrize("how", ["import subprocess; subprocess.run(['true'])", "os.fork()", "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()"])
def test_the_watch_sees_every_way_to_start_a_process(tmp_path, how):
    """So that the test below can fail."""
    if os.name == "nt" and "fork" in how:
        pytest.skip("Windows cannot fork")
    result = watched(how, tmp_path)
    assert result.returncode == 77
    assert "STARTED" in result.stderr


@pytest.mark.slow
def test_it_starts_no_process_and_leaves_no_file(tiny_model, ct, tmp_path):
    """From the first import to the last mask: no child, nothing in the folder for temporary files, nothing but results in the output."""
    tiny_model()
    (tmp_path / "temporary").mkdir()
    before = sorted(ROOT.iterdir())
    result = watched("from clseg.cli.app import main\nmain()", tmp_path / "temporary", *words(ct, tmp_path / "out"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(ROOT.iterdir()) == before
    assert_complete(tmp_path / "out")
