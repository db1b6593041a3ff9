"""Which scans a folder, a pattern and a list mean."""

from __future__ import annotations

import gzip
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clseg.batch.case import SCAN_ENDINGS
from clseg.batch.find import LOOKED_FOR, cases_of, is_scan
from clseg.errors import InputError, UsageError
from clseg.volume import Volume
from tests.dicom_files import marked, write_series


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(given: object, output: object = "/nowhere/out") -> dict[str, str] | None:
    """Case → path from the folder `scans` on; None for a single scan."""
    cases = cases_of(str(given), str(output))
    return None if cases is None else {case.name: case.path.as_posix().rpartition("scans/")[2] for case in cases}


def series(folder: Path, study: str = "", number: int = 1) -> None:
    volume = Volume(np.zeros((4, 4, 2), np.int16))
    write_series(folder, volume, marked(StudyInstanceUID=study, PatientID="P") if study else marked(), series=number)


@pytest.fixture
def scans(tmp_path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


# ---- folders ----------------------------------------------------------------------------------------------------------


def test_scan_files_of_a_folder_by_name(scans):
    """By their endings, also where they are broken; what is no scan and what is hidden does not count."""
    touch(scans, "b.nii.gz", "a.nrrd", "c.MHA", "d.nii", "readme.txt", "labels.json", ".hidden.nii", "e.raw")
    assert found(scans) == {"a": "a.nrrd", "b": "b.nii.gz", "c": "c.MHA", "d": "d.nii"}


def test_scans_without_an_ending_are_told_by_content(scans):
    """NIfTI, plain or compressed, NRRD and MetaImage."""
    nifti = bytes(344) + b"n+1\0" + bytes(100)
    (scans / "plain").write_bytes(nifti)
    (scans / "packed.gz").write_bytes(gzip.compress(nifti))
    (scans / "other.gz").write_bytes(gzip.compress(b"x" * 400))
    (scans / "cut.gz").write_bytes(gzip.compress(os.urandom(4000))[:100])
    (scans / "nrrd").write_bytes(b"NRRD0004\n")
    (scans / "meta").write_bytes(b"NDims = 3\nDimSize = 1 1 1\n")
    assert [name for name in sorted(os.listdir(scans)) if is_scan(scans / name)] == ["meta", "nrrd", "packed.gz", "plain"]


def test_folders_of_cases(scans):
    """A folder with a ct is this case, whatever masks lie in it and below; other folders are gone through to the bottom."""
    touch(scans, "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz", "s0001/old.nii.gz", "site/p1/thorax.nii", "site/p2/thorax.nii", "x.nii")
    assert found(scans) == {"s0001": "s0001/ct.nii.gz", "p1_thorax": "site/p1/thorax.nii", "p2_thorax": "site/p2/thorax.nii", "x": "x.nii"}


def test_a_folder_of_dicom_folders(scans):
    """Every patient is a case; of a patient with several series of one study the rule takes one; NIfTI may lie beside them."""
    series(scans / "p1", "1.1")
    series(scans / "p2" / "arterial", "1.2", 1)
    series(scans / "p2" / "venous", "1.2", 2)
    touch(scans, "x.nii")
    assert found(scans) == {"p1": "p1", "p2": "p2", "x": "x.nii"}


def test_several_studies_of_one_patient_are_several_cases(scans):
    """A study is a case."""
    series(scans / "p1" / "before", "1.1")
    series(scans / "p1" / "after", "1.2")
    series(scans / "p2", "1.3")
    assert found(scans) == {"after": "p1/after", "before": "p1/before", "p2": "p2"}


@pytest.mark.parametrize("below", [[""], ["a"], ["a", "b"], ["x/a", "y/b"]], ids=str)
def test_one_dicom_study_is_one_scan(scans, below):
    """Slices in the folder itself, or all series of one study below it: as ever, the series is chosen by rule."""
    for number, name in enumerate(below):
        series(scans / name, "1.1", number)
    assert found(scans) is None


def test_dicom_that_does_not_name_its_study_is_not_joined(scans):
    """Anonymised folders are cases of their own rather than one of them lost."""
    series(scans / "a")
    series(scans / "b")
    assert found(scans) == {"a": "a", "b": "b"}


def test_dicom_beside_its_export_is_one_scan(scans):
    """Slices in the folder itself win, as ever."""
    series(scans, "1.1")
    touch(scans, "export.nii.gz")
    assert found(scans) is None


def test_zips_count_when_they_hold_dicom(scans):
    """Or when they are damaged, which reading will tell; other archives do not."""
    series(scans.parent / "elsewhere", "1.1")
    with zipfile.ZipFile(scans / "study.zip", "w") as archive:
        for file in (scans.parent / "elsewhere").iterdir():
            archive.write(file, file.name)
    with zipfile.ZipFile(scans / "papers.zip", "w") as archive:
        archive.writestr("paper.txt", "x" * 500)
    (scans / "broken.zip").write_bytes(b"PK\x03\x04")
    assert found(scans) == {"broken": "broken.zip", "study": "study.zip"}


def test_results_of_an_earlier_run_are_no_scans(scans):
    """An output inside the folder of scans is left out; a folder that is both is refused."""
    touch(scans, "x.nii", "out/x/liver.nii.gz", "other/y.nii")
    assert found(scans, scans / "out") == {"y": "other/y.nii", "x": "x.nii"}
    assert "liver" in found(scans)
    with pytest.raises(UsageError, match="is the folder of the scans"):
        found(scans, scans)


def test_what_a_run_json_lists_is_no_scan(scans):
    """Results of an earlier call among the scans, in a folder and beside the scan; a run.json of another program lists nothing."""
    touch(scans, "a.nii.gz", "x.nii.gz", "done/liver.nii.gz", "done/mine.nii.gz")
    run = {"versions": {"clseg": "0.1.0"}, "files": ["x.nii.gz"]}
    (scans / "x.run.json").write_text(json.dumps(run))
    (scans / "done" / "run.json").write_text(json.dumps({**run, "files": ["liver.nii.gz", "run.json"]}))
    assert set(found(scans)) == {"a", "mine"}
    (scans / "x.run.json").write_text(json.dumps({"files": ["x.nii.gz"]}))
    assert set(found(scans)) == {"a", "mine", "x"}


def test_links_are_followed_but_not_in_circles(scans, tmp_path):
    """A case may be a link to elsewhere; one that leads back up is left alone."""
    touch(tmp_path, "elsewhere/ct.nii")
    (scans / "linked").symlink_to(tmp_path / "elsewhere")
    (scans / "back").symlink_to(scans)
    assert found(scans) == {"linked": "linked/ct.nii"}


def test_a_file_is_a_single_scan(scans):
    """What reading says about it is said as ever; so for what is not there."""
    touch(scans, "one/x.nii")
    assert found(scans / "one" / "x.nii") is None
    assert found(scans / "nothing") is None


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ((), "no files"),
        ((".hidden",), "no files"),
        (("a.txt",), "1 file: a.txt"),
        (("sub/z.bin", "b.csv", "a.txt"), "3 files: a.txt, b.csv, sub/z.bin"),
        (("a.txt", "b.csv", "c.md", "d.png", "e"), "5 files: a.txt, b.csv, c.md and 2 more"),
        (("run.json", "liver.nii.gz"), "2 files: liver.nii.gz, run.json"),
    ],
)
def test_a_folder_without_scans_is_refused_with_what_it_holds(scans, files, there):
    """The sentence says what was looked for and what was found, results of our own included; the tip says that these do not count."""
    touch(scans, *files)
    if "run.json" in files:
        (scans / "run.json").write_text(json.dumps({"versions": {"clseg": "1"}, "files": ["run.json", "liver.nii.gz"]}))
    with pytest.raises(InputError) as caught:
        found(scans)
    assert caught.value.message == f"There is no scan in '{scans}': looked for {LOOKED_FOR}, found {there}."
    assert "results of clseg are never taken for scans" in caught.value.tip


def test_what_is_said_to_be_looked_for_is_what_is_found():
    """The endings in the sentence are those by which scan files are told."""
    assert set(re.findall(r"\.[a-z]+(?:\.gz)?", LOOKED_FOR)) == set(SCAN_ENDINGS)


# ---- patterns ---------------------------------------------------------------------------------------------------------


def test_a_pattern_means_what_it_matches(scans):
    """Files by name, folders as above, through folders with **; what is no scan does not count."""
    touch(scans, "a.nii", "b.nii", "c.nrrd", "readme.txt", "s1/ct.nii", "deep/er/x.nii")
    assert found(scans / "*.nii") == {"a": "a.nii", "b": "b.nii"}
    assert found(scans / "[ac].*") == {"a": "a.nii", "c": "c.nrrd"}
    assert found(scans / "s*") == {"s1": "s1/ct.nii"}
    assert list(found(scans / "**" / "*.nii")) == ["a", "b", "x", "s1"]


def test_a_pattern_that_matches_nothing_is_refused(scans):
    """The user is told what to look at."""
    with pytest.raises(UsageError, match="No scan matches"):
        found(scans / "*.nii")


def test_a_file_whose_name_looks_like_a_pattern_is_itself(scans):
    """`x[1].nii` is there, so it is meant."""
    touch(scans, "x[1].nii", "x1.nii")
    assert found(scans / "x[1].nii") is None


# ---- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_of_paths(scans):
    """A path a line, relative to the list; comments and empty lines do not count; what is missing fails later, on its own."""
    (scans / "list.txt").write_text("# two scans\na.nii\n\n  sub/../b.nii\n/abs/c.nii\n", encoding="utf-8")
    assert found(scans / "list.txt") == {"a": "a.nii", "b": "b.nii", "c": "/abs/c.nii"}


@pytest.mark.parametrize("text", ["case,path\nA,x/1.nii\n,2.nii\n", "\ufeffCT;Case;age\nx/1.nii;A;7\n2.nii;;8\n", "path\tcase\nx/1.nii\tA\n2.nii\t\n"], ids=["commas", "semicolons", "tabs"])
def test_a_table_of_paths(scans, text):
    """The columns path or ct, and case, in any order, as spreadsheets write them; an empty case is called like its file."""
    (scans / "list.csv").write_text(text, encoding="utf-8")
    assert found(scans / "list.csv") == {"A": "x/1.nii", "2": "2.nii"}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("l.txt", "# nothing\n", "names no scan"),
        ("l.csv", "case,file\nA,x\n", "needs a column path or ct, it has: case, file"),
        ("l.csv", "", "needs a column path or ct, it has: nothing"),
        ("l.txt", "a.nii\n./a.nii\n", "is there twice"),
        ("l.csv", "case,path\n../x,a.nii\n", "cannot be the name of a folder"),
    ],
)
def test_lists_that_cannot_be_meant(scans, name, text, sentence):
    """Refused in one sentence before anything is read."""
    (scans / name).write_text(text)
    with pytest.raises(UsageError, match=sentence):
        found(scans / name)


def test_a_list_that_is_no_text(scans):
    """A picture called .txt."""
    (scans / "l.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as text"):
        found(scans / "l.txt")


def test_a_scan_that_is_called_like_a_list_is_a_scan(scans):
    """Content goes before the name."""
    (scans / "ct.txt").write_bytes(bytes(344) + b"n+1\0")
    assert found(scans / "ct.txt") is None


def test_results_never_lie_over_their_own_scan(scans):
    """out/body/body.nii.gz is a result of the case body."""
    (scans / "l.txt").write_text("out/body/body.nii.gz\n")
    with pytest.raises(UsageError, match="would lie over the input"):
        found(scans / "l.txt", scans / "out")
