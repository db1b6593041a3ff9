"""Many scans in one process: every case for itself, one model, and an end that is the same however it was reached."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from clseg.batch import DONE, FAILED, KEPT, Job, cases_of, run
from clseg.batch.job import FATAL, Outcome
from clseg.errors import ClsegError, UsageError, WeightsError
from clseg.io import files as io_files
from clseg.pipeline import Segmenter, segment
from clseg.segmentation import Segmentation
from clseg.settings import Settings
from tests.small_batch import left_in, spoil, write_scans

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scans(tiny_model, tmp_path) -> Path:
    tiny_model()
    write_scans(tmp_path / "scans")
    return tmp_path / "scans"


def job(output: Path, **more) -> Job:
    return Job(output, settings=Settings(model="tiny", threads=1), **{"outputs": {"statistics": True}, **more})


def ends(scans: Path, wanted: Job) -> dict[str, str]:
    """Case → status."""
    return {one.case.name: one.status for one in run(cases_of(scans, wanted.output), wanted)}


def test_what_does_not_change_the_result_is_not_asked_for(tmp_path):
    """With another limit of memory finished cases are kept: it decides in how many passes they are computed; another step is another result."""
    asked = [Job(tmp_path, settings=Settings(**more)).request(["liver"], {}) for more in ({}, {"max_memory": 10**9, "threads": 3}, {"step": 0.7})]
    assert asked[0] == asked[1] != asked[2]


def test_under_a_limit_of_memory_cases_come_one_after_the_other(scans, tmp_path, monkeypatch):
    """No scan is read before the last is written, for the limit is that of the whole process."""
    steps = []
    for owner, name in ((Segmenter, "open"), (Segmenter, "segment"), (Segmentation, "save")):
        monkeypatch.setattr(owner, name, noting(steps, getattr(owner, name), name))
    limited = Job(tmp_path / "out", settings=Settings(model="tiny", threads=1, max_memory=2**40))
    assert set(ends(scans, limited).values()) == {DONE}
    assert steps == ["open", "segment", "save"] * 3


def noting(steps: list[str], original, name: str):
    """The same function, which also notes its name."""

    def noted(*given, **more):
        steps.append(name)
        return original(*given, **more)

    return noted


# ---- an undisturbed run -----------------------------------------------------------------------------------------------


def test_every_case_gets_what_it_would_get_alone(scans, tmp_path):
    """The same masks and statistics as one call per scan; run.json says in addition which case it was and what was asked."""
    assert ends(scans, job(tmp_path / "out")) == {"s00": DONE, "s01": DONE, "s02": DONE}
    segment(scans / "s01.nii.gz", model="tiny", threads=1).save(tmp_path / "alone", statistics=True)
    alone, batch = left_in(tmp_path / "alone"), left_in(tmp_path / "out" / "s01")
    said = batch["run.json"].pop("batch")
    assert batch == alone
    assert said["case"] == "s01"
    assert said["sha256"] == alone["run.json"]["input"]["sha256"]
    assert said["request"]["settings"] == {"model": "tiny", "step": 0.5, "restore": "smooth"} | said["request"]["settings"]


def test_the_summaries_hold_all_cases_in_their_order(scans, tmp_path):
    """Row by row what the cases' own tables say; none without statistics, and those of an earlier run go."""
    run(cases_of(scans, tmp_path), job(tmp_path / "out"))
    expected = []
    for name in ("s00", "s01", "s02"):
        header, *rows = (tmp_path / "out" / name / "statistics.csv").read_text().splitlines()
        expected += [f"{name},{row}" for row in rows]
    assert (tmp_path / "out" / "summary.csv").read_text().splitlines() == [f"case,{header}", *expected]
    assert [line.split(",")[0] for line in (tmp_path / "out" / "summary_wide.csv").read_text().splitlines()] == ["case", "s00", "s01", "s02"]
    run(cases_of(scans, tmp_path), job(tmp_path / "out", outputs={}))
    assert sorted(os.listdir(tmp_path / "out")) == ["s00", "s01", "s02"]


def test_the_model_is_loaded_once(scans, tmp_path, monkeypatch):
    """For three cases."""
    loaded = []
    original = Segmenter._load
    monkeypatch.setattr(Segmenter, "_load", lambda self, files: loaded.append(1) or original(self, files))
    run(cases_of(scans, tmp_path), job(tmp_path / "out"))
    assert loaded == [1]


def test_reading_and_writing_go_on_beside_computing(scans, tmp_path, monkeypatch):
    """While a case is segmented the next is read and the last is written; never more than one ahead and one behind.

    The second case is not finished segmenting before the third has been read and the first been written; it would wait
    for ever if they were not done meanwhile.
    """
    threading_names, read, written = set(), {name: threading.Event() for name in ("s00", "s01", "s02")}, threading.Event()
    opening, segmenting, saving = Segmenter.open, Segmenter.segment, Segmentation.save

    def open_one(self, path, **more):
        threading_names.add(threading.current_thread().name.rsplit("_")[0])
        opened = opening(self, path, **more)
        read[path.name[:3]].set()
        return opened

    def segment_one(self, opened):
        if "s00" in opened.source:
            assert read["s01"].wait(60)
            time.sleep(0.05)
            assert not read["s02"].is_set()
        if "s01" in opened.source:
            assert read["s02"].wait(60)
            assert written.wait(60)
        return segmenting(self, opened)

    def save_one(self, folder, **more):
        threading_names.add(threading.current_thread().name.rsplit("_")[0])
        files = saving(self, folder, **more)
        written.set()
        return files

    monkeypatch.setattr(Segmenter, "open", open_one)
    monkeypatch.setattr(Segmenter, "segment", segment_one)
    monkeypatch.setattr(Segmentation, "save", save_one)
    assert set(ends(scans, job(tmp_path / "out")).values()) == {DONE}
    assert threading_names == {"clseg-read", "clseg-write"}


# ---- cases that fail --------------------------------------------------------------------------------------------------


def test_three_bad_scans_of_twenty(tiny_model, tmp_path):
    """17 results, 3 rows in failures.csv with path, reason and advice, in the order of the cases; summaries of 17."""
    tiny_model()
    spoil(write_scans(tmp_path / "scans", 20)[4::6])
    outcomes = run(cases_of(tmp_path / "scans", tmp_path / "out"), job(tmp_path / "out"))
    assert sum(one.status == DONE for one in outcomes) == 17
    assert sum((tmp_path / "out" / f"s{number:02d}" / "run.json").is_file() for number in range(20)) == 17
    header, *rows = (tmp_path / "out" / "failures.csv").read_text().splitlines()
    assert header == "case,path,error,tip"
    assert [row.split(",")[:2] for row in rows] == [[f"s{n:02d}", str(tmp_path / "scans" / f"s{n:02d}.nii.gz")] for n in (4, 10, 16)]
    assert ["0 bytes" in rows[0], "incomplete" in rows[1], "a text file" in rows[2]] == [True] * 3
    assert not {"s04", "s10", "s16"} & set(os.listdir(tmp_path / "out"))
    assert len((tmp_path / "out" / "summary_wide.csv").read_text().splitlines()) == 18


@pytest.mark.parametrize("step", ["open", "segment", "save"])
@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("no\nidea"), "Something went wrong that should not: RuntimeError: no idea"), (MemoryError(), "not enough main memory")],
    ids=["unforeseen", "memory"],
)
def test_an_error_in_any_step_ends_its_case_alone(scans, tmp_path, monkeypatch, step, error, told):
    """Reading, segmenting or writing: one sentence, and the other cases are done."""
    owner, calls = (Segmentation if step == "save" else Segmenter), []
    original = getattr(owner, step)

    def fail_second(self, *words, **more):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(self, *words, **more)

    monkeypatch.setattr(owner, step, fail_second)
    outcomes = run(cases_of(scans, tmp_path / "out"), job(tmp_path / "out"))
    assert [one.status for one in outcomes] == [DONE, FAILED, DONE]
    assert told in outcomes[1].error
    assert outcomes[1].tip


def test_with_a_limit_of_memory_there_is_one_scan_at_a_time(scans, tmp_path, monkeypatch):
    """The plan is made for one scan: the next is not read before the last is written, and the outcome is the same."""
    steps = []
    for name in ("open", "segment"):
        done = getattr(Segmenter, name)
        monkeypatch.setattr(Segmenter, name, lambda *a, _name=name, _done=done, **k: (steps.append(_name), _done(*a, **k))[1])
    save = Segmentation.save
    monkeypatch.setattr(Segmentation, "save", lambda *a, **k: (steps.append("save"), save(*a, **k))[1])
    limited = Job(tmp_path / "out", settings=Settings(model="tiny", threads=1, max_memory=1 << 40))
    assert ends(scans, limited) == {"s00": DONE, "s01": DONE, "s02": DONE}
    assert steps == ["open", "segment", "save"] * 3


def test_what_cannot_be_written_is_told_before_it_is_computed(scans, tmp_path, monkeypatch):
    """DICOM results of scans that are no DICOM: every case fails, and none is segmented."""
    monkeypatch.setattr(Segmenter, "segment", lambda *a, **k: pytest.fail("it was segmented"))
    wanted = job(tmp_path / "out", outputs={"types": ("dicom_rtstruct",)})
    outcomes = run(cases_of(scans, wanted.output), wanted)
    assert [(one.status, "DICOM" in one.error) for one in outcomes] == [(FAILED, True)] * 3


def test_what_no_case_can_do_without_ends_the_batch(scans, tmp_path, own_home, monkeypatch):
    """Unknown names, missing weights and devices: at once, instead of as many failures as scans."""
    cases = cases_of(scans, tmp_path / "out")
    with pytest.raises(UsageError, match="Unknown"):
        run(cases, job(tmp_path / "out", roi=("lvier",)))
    with pytest.raises(UsageError, match="cuda"):
        run(cases, Job(tmp_path / "out", settings=Settings(model="tiny", device="cuda:77")))
    next((own_home / "tiny").glob("*.safetensors")).unlink()
    with pytest.raises(WeightsError):
        run(cases, job(tmp_path / "out"))
    with pytest.raises(ClsegError, match="worker is ill"):
        run(cases, job(tmp_path / "out"), way=lambda cases, _: (Outcome(case, FATAL, error="The worker is ill.") for case in cases))


def test_warnings_belong_to_their_case(scans, tmp_path):
    """What reading notices is told with the name of the case, although the next one is read meanwhile."""
    import nibabel as nib
    import numpy as np

    image = nib.load(scans / "s01.nii.gz")
    array = image.get_fdata(dtype=np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), scans / "s01.nii.gz")
    outcomes = run(cases_of(scans, tmp_path / "out"), job(tmp_path / "out"))
    assert [len(one.warnings) for one in outcomes] == [0, 1, 0]


def test_details_are_told_and_not_kept(scans, tmp_path):
    """The plan of memory of every case is heard as it ends; what is returned for 100,000 cases does not hold it."""
    heard = []
    outcomes = run(cases_of(scans, tmp_path / "out"), job(tmp_path / "out"), tell=heard.append)
    assert [sum(text.startswith("Memory: ") for text in one.details) for one in heard] == [1, 1, 1]
    assert [one.details for one in outcomes] == [()] * 3


# ---- going on ---------------------------------------------------------------------------------------------------------


def test_resumed_what_is_complete_is_kept_and_the_summaries_cover_all(scans, tmp_path):
    """Untouched files keep their times; a removed mask, another scan or another wish is done again; without --resume all is."""
    out = tmp_path / "out"
    ends(scans, job(out))
    whole = left_in(out)
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*/*")}
    assert set(ends(scans, job(out, resume=True)).values()) == {KEPT}
    assert left_in(out) == whole
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*/*")} == times
    next((out / "s00").glob("*.nii.gz")).unlink()
    (out / "summary.csv").unlink()
    assert ends(scans, job(out, resume=True)) == {"s00": DONE, "s01": KEPT, "s02": KEPT}
    assert left_in(out) == whole
    (scans / "s02.nii.gz").write_bytes((scans / "s01.nii.gz").read_bytes())
    assert ends(scans, job(out, resume=True)) == {"s00": KEPT, "s01": KEPT, "s02": DONE}
    for other in ({"roi": ("lungs",)}, {"outputs": {"multilabel": True}}, {"settings": Settings(model="tiny", step=0.6, threads=1)}, {"series": None, "version": "9"}):
        assert set(ends(scans, Job(**{**vars(job(out, resume=True)), **other})).values()) == {DONE}


def test_where_it_is_computed_makes_no_other_request(scans, tmp_path):
    """Threads, device, --offline and --max-memory are free to change between runs."""
    ends(scans, job(tmp_path / "out"))
    elsewhere = Settings(model="tiny", threads=2, device="cpu", offline=True, max_memory=1 << 40)
    assert set(ends(scans, Job(tmp_path / "out", settings=elsewhere, outputs={"statistics": True}, resume=True)).values()) == {KEPT}


def test_other_weights_are_another_request(scans, tmp_path, tiny_model):
    """The same model trained again has another sha256."""
    ends(scans, job(tmp_path / "out"))
    tiny_model(seed=1)
    assert set(ends(scans, job(tmp_path / "out", resume=True)).values()) == {DONE}


def test_a_failed_case_is_tried_again(scans, tmp_path):
    """And failures.csv goes when it no longer fails."""
    good = (scans / "s01.nii.gz").read_bytes()
    (scans / "s01.nii.gz").write_bytes(b"")
    assert ends(scans, job(tmp_path / "out")) == {"s00": DONE, "s01": FAILED, "s02": DONE}
    assert ends(scans, job(tmp_path / "out", resume=True)) == {"s00": KEPT, "s01": FAILED, "s02": KEPT}
    assert (tmp_path / "out" / "failures.csv").is_file()
    (scans / "s01.nii.gz").write_bytes(good)
    assert ends(scans, job(tmp_path / "out", resume=True)) == {"s00": KEPT, "s01": DONE, "s02": KEPT}
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_a_dicom_folder_is_kept_until_a_slice_changes(tiny_model, tmp_path):
    """It has no one file whose hash could tell."""
    from clseg.io.files import read
    from tests.dicom_files import write_series

    tiny_model()
    volume = read(write_scans(tmp_path / "elsewhere", 1)[0])
    for name in ("a", "b"):
        files = write_series(tmp_path / "scans" / name, volume)
    assert ends(tmp_path / "scans", job(tmp_path / "out")) == {"a": DONE, "b": DONE}
    assert ends(tmp_path / "scans", job(tmp_path / "out", resume=True)) == {"a": KEPT, "b": KEPT}
    files[3].write_bytes(files[3].read_bytes()[:-4] + (1000).to_bytes(4, "little"))
    assert ends(tmp_path / "scans", job(tmp_path / "out", resume=True)) == {"a": KEPT, "b": DONE}


def test_every_scan_is_hashed_once(tiny_model, tmp_path, monkeypatch):
    """Two files and a DICOM folder are one hash a file and one a slice: done for the first time, with --resume and nothing there, and kept."""
    from clseg.io.files import read
    from tests.dicom_files import write_series

    tiny_model()
    scans = write_scans(tmp_path / "scans", 2)
    slices = write_series(tmp_path / "scans" / "d", read(scans[0]))
    begun = []
    monkeypatch.setattr(io_files, "hashlib", SimpleNamespace(sha256=lambda: (begun.append(1), hashlib.sha256())[1]))
    for out, resume, end in (("a", False, DONE), ("b", True, DONE), ("b", True, KEPT)):
        begun.clear()
        assert set(ends(tmp_path / "scans", job(tmp_path / out, resume=resume)).values()) == {end}
        assert len(begun) == 2 + len(slices)
    assert left_in(tmp_path / "a") == left_in(tmp_path / "b")


def test_a_scan_that_changes_before_it_is_read_is_noted_as_it_was_read(scans, tmp_path, monkeypatch):
    """Replaced after --resume has hashed it: run.json has the sha256 of the bytes that were segmented, and the next run keeps the case."""
    original, other = Segmenter.open, (scans / "s02.nii.gz").read_bytes()

    def open_another(self, path, **more):
        if path.name == "s01.nii.gz":
            path.write_bytes(other)
        return original(self, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "open", open_another)
        assert set(ends(scans, job(tmp_path / "out", resume=True)).values()) == {DONE}
    run_json = json.loads((tmp_path / "out" / "s01" / "run.json").read_text())
    assert run_json["batch"]["sha256"] == run_json["input"]["sha256"] == hashlib.sha256(other).hexdigest()
    assert set(ends(scans, job(tmp_path / "out", resume=True)).values()) == {KEPT}


def test_an_interrupted_batch_keeps_what_is_finished(scans, tmp_path, monkeypatch):
    """Ctrl-C while the third case is segmented: the first two are whole, there is no summary, no thread goes on; resumed all is as ever."""
    ends(scans, job(tmp_path / "straight"))
    original = Segmenter.segment

    def interrupted(self, opened):
        if "s02" in opened.source:
            raise KeyboardInterrupt
        return original(self, opened)

    monkeypatch.setattr(Segmenter, "segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(cases_of(scans, tmp_path / "out"), job(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == ["s00", "s01"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clseg-")]
    monkeypatch.setattr(Segmenter, "segment", original)
    assert ends(scans, job(tmp_path / "out", resume=True)) == {"s00": KEPT, "s01": KEPT, "s02": DONE}
    assert left_in(tmp_path / "out") == left_in(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_the_middle_and_resumed_it_leaves_the_same_bytes(tiny_model, tmp_path):
    """20 scans with 3 bad ones; `kill -9` after six results, and again after twelve; then --resume: all files as after an undisturbed run."""
    tiny_model()
    spoil(write_scans(tmp_path / "scans", 20)[4::6])

    def words(out: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "clseg", "-i", str(tmp_path / "scans"), "-o", str(tmp_path / out), "-m", "tiny", "--threads", "1", "--stats", "--ml", "-q", *more]

    assert subprocess.run(words("straight"), cwd=ROOT, capture_output=True, timeout=600).returncode == 1
    for already in (6, 12):
        process = subprocess.Popen(words("killed", "--resume"), cwd=ROOT, stderr=subprocess.DEVNULL)
        while len(list((tmp_path / "killed").glob("*/run.json"))) < already:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert not (tmp_path / "killed" / "summary.csv").exists()
    resumed = subprocess.run(words("killed", "--resume"), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert resumed.returncode == 1
    assert "3 of 20 cases failed" in resumed.stderr
    straight = left_in(tmp_path / "straight")
    assert len(straight) == 17 * 5 + 3
    assert left_in(tmp_path / "killed") == straight
    assert len(json.loads((tmp_path / "killed" / "s00" / "run.json").read_text())["files"]) == 5
