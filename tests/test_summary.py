"""The tables over all cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clseg.batch.case import Case
from clseg.batch.job import DONE, FAILED, KEPT, Outcome
from clseg.batch.summary import clear, statistics_in, write_failures, write_summaries
from clseg.errors import InputError


def write_case(output: Path, name: str, text: str) -> None:
    (output / name).mkdir()
    (output / name / "statistics.csv").write_text(text)


def test_long_and_wide(tmp_path):
    """A row per case and structure with all columns; a row per case with volumes, empty where nothing was found; numbers as they were written."""
    write_case(tmp_path, "b", "structure,status,volume_ml\nliver,complete,1500.125\nspleen,absent,\n")
    write_case(tmp_path, "a", "structure,status,volume_ml\nliver,cut_by_fov,0.5\nspleen,complete,7\n")
    files = write_summaries(tmp_path, ["b", "a"])
    assert [file.name for file in files] == ["summary.csv", "summary_wide.csv"]
    assert files[0].read_text() == "case,structure,status,volume_ml\nb,liver,complete,1500.125\nb,spleen,absent,\na,liver,cut_by_fov,0.5\na,spleen,complete,7\n"
    assert files[1].read_text() == "case,liver_ml,spleen_ml\nb,1500.125,\na,0.5,7\n"


def test_cases_with_other_structures_have_empty_cells(tmp_path):
    """Columns of all cases, in the order in which they come."""
    write_case(tmp_path, "a", "structure,volume_ml\nliver,1\n")
    write_case(tmp_path, "b", "structure,volume_ml,kind\nspleen,2,structure\n")
    long, wide = write_summaries(tmp_path, ["a", "b"])
    assert long.read_text() == "case,structure,volume_ml,kind\na,liver,1,\nb,spleen,2,structure\n"
    assert wide.read_text() == "case,liver_ml,spleen_ml\na,1,\nb,,2\n"


def test_families_are_not_counted_twice(tmp_path):
    """Lungs of 1 + 2 mL: the long table has the family's row and its kind, the wide one no column for it."""
    rows = "lung_left,structure,1\nlung_right,structure,2\nlungs,family,3\n"
    write_case(tmp_path, "a", f"structure,kind,volume_ml\n{rows}")
    long, wide = write_summaries(tmp_path, ["a"])
    assert long.read_text() == "case,structure,kind,volume_ml\na,lung_left,structure,1\na,lung_right,structure,2\na,lungs,family,3\n"
    assert wide.read_text() == "case,lung_left_ml,lung_right_ml\na,1,2\n"


def test_radiomics_of_all_cases(tmp_path):
    """A row per case and structure, features in columns; `clear` removes the table, and where no case has radiomics there is none."""
    for name, mean in (("a", "5.5"), ("b", "")):
        write_case(tmp_path, name, "structure,volume_ml\nliver,1\n")
        (tmp_path / name / "radiomics.csv").write_text(f"structure,original_firstorder_Mean\nliver,{mean}\n")
    file = write_summaries(tmp_path, ["a", "b"])[2]
    assert file.name == "summary_radiomics.csv"
    assert file.read_text() == "case,structure,original_firstorder_Mean\na,liver,5.5\nb,liver,\n"
    clear(tmp_path)
    assert not file.exists()
    (tmp_path / "a" / "radiomics.csv").unlink()
    assert len(write_summaries(tmp_path, ["a"])) == 2


def test_statistics_that_are_json_alone(tmp_path):
    """TotalSegmentator's format: 1500 mm³ are 1.5 mL."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "statistics.json").write_text(json.dumps({"liver": {"volume": 1500.0, "intensity": 60.5}}))
    long, wide = write_summaries(tmp_path, ["a"])
    assert long.read_text() == "case,structure,volume,intensity\na,liver,1500.0,60.5\n"
    assert wide.read_text() == "case,liver_ml\na,1.5\n"


@pytest.mark.parametrize("text", [None, "", "[1]", '{"liver": 3}'])
def test_statistics_that_are_not_there_are_one_sentence(tmp_path, text):
    """Missing, broken, or of somebody else."""
    if text is not None:
        (tmp_path / "statistics.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        statistics_in(tmp_path)


def test_failures_are_those_that_failed(tmp_path):
    """Case, path, error and tip, in the order given, commas and quotes kept; without a failure there is no file."""
    one, two, three = (Outcome(Case(name, Path("/d") / name), status, error=error, tip=tip) for name, status, error, tip in
                       [("a", FAILED, 'no "CT", sorry', ""), ("b", DONE, "", ""), ("c", FAILED, "empty", "copy it")])  # fmt: skip
    file = write_failures(tmp_path, [one, two, three])
    assert file.read_text() == 'case,path,error,tip\na,/d/a,"no ""CT"", sorry",\nc,/d/c,empty,copy it\n'
    clear(tmp_path)
    assert write_failures(tmp_path, [two, Outcome(two.case, KEPT)]) is None
    assert list(tmp_path.iterdir()) == []
