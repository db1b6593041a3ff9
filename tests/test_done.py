"""What counts as finished, and what a killed run leaves behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from clseg.batch.done import digest_of, is_complete, sweep
from clseg.errors import UsageError
from clseg.io.files import writing
from clseg.volume import Volume
from tests.dicom_files import write_series


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    """sha256 of "abc"."""
    (tmp_path / "a.nii").write_bytes(b"abc")
    assert digest_of(tmp_path / "a.nii") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_a_dicom_folder_is_what_sha256sum_says(tmp_path):
    """Of its DICOM files alone: notes beside them change nothing, one bit of a slice does."""
    write_series(tmp_path / "s" / "a", Volume(np.zeros((4, 4, 2), np.int16)))
    (tmp_path / "s" / "notes.txt").write_text("x")
    said = subprocess.run("sha256sum a/1-000.dcm a/1-001.dcm | sha256sum", shell=True, cwd=tmp_path / "s", capture_output=True, text=True, check=True)
    before = digest_of(tmp_path / "s")
    assert said.stdout.split()[0] == before
    (tmp_path / "s" / "notes.txt").write_text("y")
    assert digest_of(tmp_path / "s") == before
    file = tmp_path / "s" / "a" / "1-001.dcm"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert digest_of(tmp_path / "s") != before


@pytest.mark.parametrize(("header", "data"), [("ct.mhd", "ct.raw"), ("ct.nhdr", "ct.raw")])
def test_the_digest_of_a_header_covers_its_data_file(tmp_path, header, data):
    """MetaImage and NRRD in two files: the lines of sha256sum of both."""
    sitk.WriteImage(sitk.Image(3, 3, 3, sitk.sitkInt16), str(tmp_path / header))
    lines = "".join(f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in (header, data))
    assert digest_of(tmp_path / header) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_header_that_names_no_data_file_of_its_folder_stands_for_itself(tmp_path):
    """LOCAL, LIST and files of other folders."""
    for line in ("LOCAL", "LIST", "../elsewhere.raw", "missing.raw"):
        (tmp_path / "x.mhd").write_text(f"NDims = 3\nElementDataFile = {line}\n")
        assert digest_of(tmp_path / "x.mhd") == hashlib.sha256((tmp_path / "x.mhd").read_bytes()).hexdigest()


def test_there_is_no_digest_of_nothing(tmp_path):
    """The same sentence as for a single scan."""
    with pytest.raises(UsageError, match="There is no file or folder"):
        digest_of(tmp_path / "nothing")


# ---- complete ---------------------------------------------------------------------------------------------------------

REQUEST = {"structures": ["liver"], "settings": {"step": 0.5}}


@pytest.fixture
def case(tmp_path) -> Path:
    (tmp_path / "liver.nii.gz").write_bytes(b"mask")
    (tmp_path / "run.json").write_text(json.dumps({"batch": {"sha256": "d", "request": REQUEST}, "files": ["liver.nii.gz", "run.json"]}))
    return tmp_path


def test_complete_is_what_was_wanted_of_the_same_scan_and_is_all_there(case):
    """Another scan, another request or a missing file is not."""
    assert is_complete(case, "d", REQUEST)
    assert not is_complete(case, "e", REQUEST)
    assert not is_complete(case, "d", {**REQUEST, "settings": {"step": 0.25}})
    (case / "liver.nii.gz").unlink()
    assert not is_complete(case, "d", REQUEST)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"batch": null}', '{"batch": {"sha256": "d", "request": {}}}', '{"files": []}'])
def test_a_run_json_that_is_somebody_elses_is_not_complete(case, text):
    """Broken, empty, or that of a single scan."""
    (case / "run.json").write_text(text)
    assert not is_complete(case, "d", REQUEST)


def test_unfinished_files_are_swept_and_nothing_else(tmp_path):
    """Those that `writing` begins; files of others, hidden or not, stay."""
    (tmp_path / "meshes").mkdir()
    with pytest.raises(KeyError), writing(tmp_path / "liver.nii.gz") as stream:
        stream.write(b"x")
        (part,) = tmp_path.glob(".*.part")
        kept = part.name
        raise KeyError
    theirs = [".x.part", "a.12-0123abcd.part", ".download.part", "liver.nii.gz"]
    for name in (kept, f"meshes/{kept}", *theirs):
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path, below=True, older_s=100.0)
    assert (tmp_path / kept).is_file()
    sweep(tmp_path)
    assert [(tmp_path / kept).is_file(), (tmp_path / "meshes" / kept).is_file()] == [False, True]
    sweep(tmp_path, below=True)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == sorted(theirs)
