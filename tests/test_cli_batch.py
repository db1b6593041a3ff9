"""Many scans on the command line: what is said, how it ends, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clseg.batch.case import Case
from clseg.batch.job import DONE, FAILED, Outcome
from clseg.cli.batch import overall, show_profiles, tell
from clseg.cli.console import Terminal
from tests.small_batch import left_in, write_scans
from tests.test_cli import call, error_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scans(tiny_model, tmp_path) -> Path:
    tiny_model()
    write_scans(tmp_path / "scans", 2)
    return tmp_path / "scans"


def words(scans: object, out: Path, *more: object) -> list[object]:
    return ["-i", scans, "-o", out, "-m", "tiny", "--threads", 1, *more]


# ---- what is said -----------------------------------------------------------------------------------------------------


def test_a_folder_of_scans(scans, tmp_path):
    """A folder per case with what the options ask for; one sentence on stderr, stdout stays empty."""
    result = call(*words(scans, tmp_path / "out", "--ml", "--stats", "--roi", "lungs"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == ["2 scans", f"2 of 2 cases done, written to {tmp_path / 'out'}"]
    assert sorted(os.listdir(tmp_path / "out")) == ["s00", "s01", "summary.csv", "summary_wide.csv"]
    run = json.loads((tmp_path / "out" / "s00" / "run.json").read_text())
    assert set(os.listdir(tmp_path / "out" / "s00")) == set(run["files"])
    assert "segmentation.nii.gz" in run["files"]
    assert run["batch"]["request"]["structures"] == ["lung_left", "lung_right"]


@pytest.mark.parametrize("kind", ["pattern", "txt", "csv"])
def test_patterns_and_lists_give_the_same(scans, tmp_path, kind):
    """`"scans/*.nii.gz"`, a .txt and a .csv of the same scans: the same files."""
    (tmp_path / "l.txt").write_text("scans/s00.nii.gz\nscans/s01.nii.gz\n")
    (tmp_path / "l.csv").write_text("case,path\ns00,scans/s00.nii.gz\ns01,scans/s01.nii.gz\n")
    given = {"pattern": f"{scans}/*.nii.gz", "txt": tmp_path / "l.txt", "csv": tmp_path / "l.csv"}[kind]
    assert call(*words(scans, tmp_path / "a", "--stats")).exit_code == 0
    assert call(*words(given, tmp_path / "b", "--stats")).exit_code == 0
    assert left_in(tmp_path / "a") == left_in(tmp_path / "b")


def test_a_failed_case_is_told_and_is_exit_code_1(scans, tmp_path):
    """At once as a warning, at the end in a table on stderr and as the error; the others are done."""
    (scans / "s00.nii.gz").write_bytes(b"")
    result = call(*words(scans, tmp_path / "out"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert error_of(result) == "1 of 2 cases failed."
    assert "warning: s00 failed: " in result.stderr
    assert re.search(r"^[│┃|] s00 +[│┃|]", result.stderr, re.MULTILINE)
    assert "failures.csv" in result.stderr
    assert (tmp_path / "out" / "s01" / "run.json").is_file()
    quiet = call(*words(scans, tmp_path / "out", "-q"))
    assert quiet.exit_code == 1
    assert quiet.stderr.startswith("error: 1 of 2 cases failed.")


def test_resumed_it_says_what_was_there(scans, tmp_path):
    """And with -v a line per case."""
    call(*words(scans, tmp_path / "out"))
    (tmp_path / "out" / "s01" / "run.json").unlink()
    result = call(*words(scans, tmp_path / "out", "--resume", "-v"))
    assert f"2 of 2 cases done (1 by an earlier run), written to {tmp_path / 'out'}" in result.stderr
    assert "s00: complete already" in result.stderr
    assert re.search(r"s01: \d of 5 structures found in [\d.]+ s", result.stderr)


def test_a_profile_is_per_scan(tmp_path, capsys):
    """1 s and 3 s of reading, 4 s of segmenting one of two scans: 2, 2 and 4 s per scan; the highest memory of all."""
    laps = [[("read", 1.0, 100.0)], [("read", 3.0, 300.0), ("segment", 4.0, 200.0)]]
    for number, stages in enumerate(laps):
        (tmp_path / f"{number}.json").write_text(json.dumps({"stages": [{"stage": s, "seconds": t, "peak_memory_mib": m} for s, t, m in stages]}))
    show_profiles([tmp_path / "0.json", tmp_path / "1.json"], Terminal())
    rows = [re.sub("[│┃|]", " ", line).split() for line in capsys.readouterr().err.splitlines()]
    assert ["read", "2.00", "50%", "300"] in rows
    assert ["segment", "2.00", "50%", "200"] in rows
    assert ["all", "4.00", "100%", "300"] in rows


def test_a_profile_of_a_batch(scans, tmp_path):
    """Stages of all cases in one table; nothing at all where every case was kept."""
    assert "seconds per scan" in call(*words(scans, tmp_path / "out", "--profile")).stderr
    again = call(*words(scans, tmp_path / "out", "--profile", "--resume"))
    assert again.exit_code == 0
    assert re.search(r"all +[│┃|] +– ", again.stderr)


class Lively(Terminal):
    """A terminal with bars."""

    @property
    def lively(self) -> bool:
        return True


def test_the_bar_counts_cases(monkeypatch):
    """After the first of three `case 2 of 3`, after the last `case 3 of 3`; in a pipe there is none."""
    seen = []
    terminal = Lively()
    with overall(terminal, 3) as advance:
        import rich.progress

        original = rich.progress.Progress.update
        monkeypatch.setattr(rich.progress.Progress, "update", lambda self, task, **what: (seen.append((what["completed"], what["description"])), original(self, task, **what)))
        for _ in range(3):
            advance()
    assert seen == [(1, "case 2 of 3"), (2, "case 3 of 3"), (3, "case 3 of 3")]
    with overall(Terminal(quiet=True), 3) as advance:
        advance()
    assert len(seen) == 3


def test_what_was_said_about_a_case_is_said_with_its_name(capsys):
    """Warnings always, notes and details with -v."""
    case = Case("s1", Path("/d/s1.nii"))
    outcome = Outcome(case, DONE, "found", warnings=("tilted",), notes=("series 2 was taken",), details=("Memory: 1 MiB",))
    tell(outcome, Terminal())
    assert capsys.readouterr().err == "warning: s1: tilted\n"
    tell(outcome, Terminal(verbose=True))
    assert capsys.readouterr().err == "s1: series 2 was taken\ns1: Memory: 1 MiB\nwarning: s1: tilted\ns1: found\n"
    tell(Outcome(case, FAILED, error="empty"), Terminal())
    assert capsys.readouterr().err == "warning: s1 failed: empty\n"


@pytest.mark.parametrize("more", [(), ("--max-memory", "1T"), pytest.param(("--workers", "2"), marks=pytest.mark.slow)])
def test_the_plan_of_memory_of_every_case(scans, tmp_path, more):
    """With -v, wherever it is computed: the lines that a single scan gets, every one with the name of its case; kept cases have none."""
    plan = ["Memory: ", "  before ", "  prepare ", "  segment ", "  clean ", "  restore ", "  write "]
    told = call(*words(scans, tmp_path / "out", "-v", *more)).stderr.splitlines()
    for case in ("s00", "s01"):
        mine = [line.removeprefix(f"{case}: ") for line in told if line.startswith(f"{case}: ")]
        first = next(number for number, line in enumerate(mine) if line.startswith("Memory: "))
        assert [line[: len(start)] for line, start in zip(mine[first:], plan, strict=False)] == plan
    assert "Memory: " not in call(*words(scans, tmp_path / "out", "-v", "--resume", *more)).stderr
    assert "Memory: " not in call(*words(scans, tmp_path / "again")).stderr


# ---- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["-o", "x.nii.gz"], "The output of 2 scans is a folder, given x.nii.gz."),
        (["--cluster", "tcp://x:1", "--workers", "2"], "--cluster and --workers exclude each other."),
        (["--resume", "--no-overwrite"], "--resume replaces what an interrupted run has left, --no-overwrite forbids it."),
        (["--roi", "lvier"], "Unknown"),
        (["-m", "nobody"], "Unknown model"),
        (["-d", "gpu"], "Unknown device"),
    ],
)
def test_calls_that_cannot_be_meant(scans, tmp_path, monkeypatch, more, sentence):
    """One sentence, exit code 2, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    result = call(*words("scans", Path("out")), *more)
    assert result.exit_code == 2
    assert sentence in error_of(result)
    assert sorted(os.listdir(tmp_path)) == ["scans"]


@pytest.mark.parametrize("option", ["--resume", "--workers", "--cluster"])
def test_a_single_scan_is_not_a_batch(scans, tmp_path, option):
    """The options of batches are refused, rather than heard and not heeded."""
    value = {"--resume": [], "--workers": ["2"], "--cluster": ["tcp://x:1"]}[option]
    result = call(*words(scans / "s00.nii.gz", tmp_path / "out", option, *value))
    assert result.exit_code == 2
    assert f"{option} is for many scans" in error_of(result)


def test_nothing_is_replaced_that_shall_not(scans, tmp_path):
    """--no-overwrite looks at all cases before the first is read."""
    (tmp_path / "out" / "s01").mkdir(parents=True)
    result = call(*words(scans, tmp_path / "out", "--no-overwrite"))
    assert result.exit_code == 2
    assert "s01 is there already" in error_of(result)
    assert os.listdir(tmp_path / "out") == ["s01"]


def test_a_manifest_of_ones_own_goes_to_the_workers_by_its_full_path(scans, tmp_path, own_home, monkeypatch):
    """Workers have another current folder; addresses stay as they are."""
    from clseg.cli.batch import Many, job_of
    from clseg.weights.sources import Sources

    monkeypatch.chdir(own_home)
    options = {"model": "tiny", "series": None, "sources": Sources()}
    for given, sent in (("weights_manifest.json", str(own_home / "weights_manifest.json")), ("https://x/m.json", "https://x/m.json"), (None, None)):
        assert job_of(tmp_path, ["all"], options, {}, Many(workers=2), Sources(manifest=given)).settings.sources.manifest == sent
    assert job_of(tmp_path, ["all"], options, {}, Many(), Sources(manifest="weights_manifest.json")).settings.sources == Sources()


# ---- interrupted ------------------------------------------------------------------------------------------------------


def test_who_interrupts_is_told_how_it_goes_on(scans, tmp_path, monkeypatch):
    """Ctrl-C while a scan is segmented: exit code 130, and the way on before the last line."""
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("clseg.batch.bench.Bench.segment", interrupted)
    result = call(*words(scans, tmp_path / "out"))
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-2:] == [
        "What is finished stays; the same command with --resume goes on from there.",
        "error: Interrupted; no half-written file is left behind.",
    ]


def alive(group, *, patience_s=5.0):
    """The processes of a group that still run `patience_s` later; those that have ended and wait for init to notice do not count."""
    psutil = pytest.importorskip("psutil")
    until = time.monotonic() + patience_s
    while True:
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("more", [[], ["--workers", "2"]], ids=["here", "workers"])
def test_ctrl_c_stops_cleanly(tiny_model, tmp_path, more):
    """Exit code 130 and one sentence; whole cases stay, nothing half written, no process; resumed here, all are done.

    The signal goes to the whole group, as from a terminal.
    """
    pytest.importorskip("distributed")
    tiny_model()
    write_scans(tmp_path / "scans", 16)
    command = [sys.executable, "-m", "clseg", *map(str, words(tmp_path / "scans", tmp_path / "out", "--ml"))]
    running = subprocess.Popen([*command, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(list((tmp_path / "out").glob("*/run.json"))) < 3:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)
    stdout, stderr = running.communicate(timeout=300)
    assert (running.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "error: Interrupted; no half-written file is left behind."
    assert "Traceback" not in stderr
    assert not alive(running.pid)
    done = len(list((tmp_path / "out").glob("*/run.json")))
    assert 3 <= done < 16
    assert not [file for file in (tmp_path / "out").rglob("*") if file.name.endswith(".part")]
    resumed = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert resumed.returncode == 0
    assert f"16 of 16 cases done ({done} by an earlier run)" in resumed.stderr
