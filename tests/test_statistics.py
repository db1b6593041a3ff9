"""Files of statistics: clseg's and TotalSegmentator's, radiomics beside them."""

from __future__ import annotations

import csv
import json

import pytest

from clseg.errors import UsageError
from clseg.measure import FamilyStatistics, Statistics
from clseg.output import Output
from clseg.radiomics import FEATURES
from clseg.report.statistics import Measured, save_statistics, to_json

LIVER = Statistics("cut_by_fov", 10, 120.0, 0.12, hu_mean=54.1234567, cut_faces=("superior",))
MEASURED = Measured(
    {"liver": LIVER, "spleen": Statistics("absent"), "brain": Statistics("out_of_range")},
    {"both": FamilyStatistics("partial", 10, 120.0, 0.12, members=("liver",), missing=("spleen",))},
    {"liver": dict.fromkeys(FEATURES, 1.5), "spleen": dict.fromkeys(FEATURES), "brain": dict.fromkeys(FEATURES)},
)


def test_totalsegmentators_format_has_two_numbers_per_structure():
    """mm³, and mean HU to five digits; what was not found is 0.0 in both, as its readers expect; no families, no radiomics."""
    assert to_json(MEASURED, format="totalsegmentator") == {
        "liver": {"volume": 120.0, "intensity": 54.12346},
        "spleen": {"volume": 0.0, "intensity": 0.0},
        "brain": {"volume": 0.0, "intensity": 0.0},
    }


def test_an_intensity_that_nobody_measured_is_not_made_up():
    """Without a CT TotalSegmentator writes nothing at all; here the intensity is null."""
    without = Measured({"liver": Statistics("complete", 10, 120.0, 0.12)})
    assert to_json(without, format="totalsegmentator") == {"liver": {"volume": 120.0, "intensity": None}}


def test_clsegs_format_holds_radiomics_per_structure():
    """Under `radiomics`; null for what was not found; families in their section."""
    plain = to_json(MEASURED)
    assert plain["liver"]["radiomics"]["original_shape_Sphericity"] == 1.5
    assert plain["spleen"]["radiomics"] is None
    assert plain["families"]["both"]["missing"] == ["spleen"]
    assert "radiomics" not in to_json(Measured(MEASURED.structures))["liver"]


def test_the_files_of_clsegs_format(tmp_path):
    """statistics.json and .csv, and radiomics.csv with a row per structure and empty cells for what was not found."""
    files = save_statistics(Output.at(tmp_path, False), MEASURED)
    assert [file.name for file in files] == ["statistics.json", "statistics.csv", "radiomics.csv"]
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(to_json(MEASURED)))
    with files[1].open(newline="") as table:
        assert [(row["structure"], row["kind"]) for row in csv.DictReader(table)] == [("liver", "structure"), ("spleen", "structure"), ("brain", "structure"), ("both", "family")]
    with files[2].open(newline="") as table:
        rows = {row["structure"]: row for row in csv.DictReader(table)}
    assert rows["liver"]["original_firstorder_Mean"] == "1.5"
    assert {value for key, value in rows["spleen"].items() if key != "structure"} == {""}


def test_the_file_of_totalsegmentators_format(tmp_path):
    """One JSON and no CSV, as there; names beside x.nii.gz begin with x."""
    plain = Measured(MEASURED.structures)
    files = save_statistics(Output.at(tmp_path / "x.nii.gz", False), plain, format="totalsegmentator")
    assert [file.name for file in files] == ["x.statistics.json"]


def test_another_format_is_a_wrong_call():
    """Both known ones are named."""
    with pytest.raises(UsageError, match="expected clseg or totalsegmentator"):
        to_json(MEASURED, format="excel")
