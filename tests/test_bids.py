"""BIDS: cases are called after their files, and a folder of derivatives says that it is one."""

from __future__ import annotations

import csv
import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

import clseg
from clseg.catalogue import Catalogue
from clseg.errors import UsageError
from clseg.io.bids import CaseName, check_dataset, write_dataset, write_sidecars
from clseg.output import REPORTS

CATALOGUE = Catalogue.builtin()


@pytest.mark.parametrize(
    ("name", "folder", "stem"),
    [
        ("sub-01_ct.nii.gz", "sub-01/anat", "sub-01_desc-clseg"),
        ("sub-01_ses-2_acq-low_run-3_ct.nii", "sub-01/ses-2/anat", "sub-01_ses-2_acq-low_run-3_desc-clseg"),
        ("sub-AB_ses-x", "sub-AB/ses-x/anat", "sub-AB_ses-x_desc-clseg"),
        ("sub-01_desc-preproc_space-orig_ct.nii.gz", "sub-01/anat", "sub-01_desc-clseg"),
        ("patient_007 (old).v2.nii.gz", "sub-patient007oldv2/anat", "sub-patient007oldv2_desc-clseg"),
        ("ses-2_sub-01_ct.nii.gz", "sub-ses2sub01ct/anat", "sub-ses2sub01ct_desc-clseg"),
        ("sub-01_left_lung_ct.nrrd", "sub-sub01leftlungct/anat", "sub-sub01leftlungct_desc-clseg"),
        ("1.2.840.113", "sub-12840113/anat", "sub-12840113_desc-clseg"),
    ],
)
def test_a_case_is_called_after_its_file(name, folder, stem):
    """Entities of a BIDS name are kept, those of a derivative apart; any other name becomes one subject of letters and digits."""
    case = CaseName.of(name)
    assert (case.folder, case.stem) == (Path(folder), stem)


def test_a_name_without_letters_needs_a_subject():
    """`___.nii.gz` cannot be a label of BIDS."""
    with pytest.raises(UsageError, match="no letters") as caught:
        CaseName.of("___.nii.gz")
    assert "--subject" in (caught.value.tip or "")


def test_a_dataset_of_derivatives_says_who_made_it(tmp_path):
    """Name, BIDSVersion, DatasetType and GeneratedBy; what is beyond BIDS is to be ignored; twice the same bytes."""
    files = write_dataset(tmp_path)
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in write_dataset(tmp_path)] == before
    said = json.loads((tmp_path / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion", "DatasetType", "GeneratedBy"} == set(said)
    assert (said["DatasetType"], said["GeneratedBy"][0]["Name"], said["GeneratedBy"][0]["Version"]) == ("derivative", "clseg", clseg.__version__)
    ignored = (tmp_path / ".bidsignore").read_text().splitlines()
    assert [name for name in REPORTS if not any(fnmatch(f"sub-01_desc-clseg_{name}", pattern) for pattern in ignored)] == []


def test_what_is_ignored_may_be_the_users(tmp_path):
    """A .bidsignore that is there stays as it is."""
    (tmp_path / ".bidsignore").write_text("mine\n")
    write_dataset(tmp_path)
    assert (tmp_path / ".bidsignore").read_text() == "mine\n"


@pytest.mark.parametrize("content", ['{"Name": "raw", "BIDSVersion": "1.8.0"}', '{"GeneratedBy": [{"Name": "fMRIPrep"}]}', "not JSON", "[]"])
def test_somebody_elses_dataset_is_left_alone(tmp_path, content):
    """A raw dataset, another program's derivatives, a file that nobody can read."""
    file = tmp_path / "dataset_description.json"
    file.write_text(content)
    for write in (check_dataset, write_dataset):
        with pytest.raises(UsageError, match="dataset of its own") as caught:
            write(tmp_path)
        assert "derivatives" in (caught.value.tip or "")
    assert file.read_text() == content


def test_a_label_map_has_a_table_and_a_sidecar(tmp_path):
    """Tab-separated index, name and colour in hexadecimal digits; not drawn by hand."""
    write_sidecars(tmp_path / "sub-01_desc-clseg_dseg.nii.gz", (CATALOGUE["body"], CATALOGUE["liver"]))
    with (tmp_path / "sub-01_desc-clseg_dseg.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows == [["index", "name", "color"], ["1", "body", "#b17a65"], ["110", "liver", "#dd8265"]]
    assert json.loads((tmp_path / "sub-01_desc-clseg_dseg.json").read_text())["Manual"] is False
