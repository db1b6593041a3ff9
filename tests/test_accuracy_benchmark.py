"""Facts about the benchmark of accuracy: means over cases with intervals, and who drew the labels beside every number."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from benchmarks.accuracy import (
    Line,
    case_table,
    false_table,
    falsely_painted,
    kinds_beside,
    of_recipe,
    of_table,
    summarised,
    summary_table,
)
from clseg.errors import InputError
from clseg.io.nifti import write_mask
from clseg.metrics import Scores, bootstrap_interval
from clseg.volume import Volume

LINES = [
    Line("a", "liver", "human", Scores(0.8, 0.9, 4.0, 1000, 900)),
    Line("b", "liver", "human", Scores(0.6, 0.7, 8.0, 1000, 1200)),
    Line("c", "liver", "human", Scores(0.0, 0.0, None, 1000, 0)),
    Line("d", "liver", "automatic", Scores(1.0, 1.0, 0.0, 1000, 1000)),
    Line("a", "spleen", "human", Scores(None, None, None, 0, 0)),
]


def test_means_are_by_structure_and_by_who_drew_it():
    """0.8, 0.6 and a missed 0: mean Dice 0.467, HD95 of the two found 6; the automatic label has a line of its own; nothing to compare is no 0."""
    human, automatic, empty = summarised(LINES)
    assert (human["structure"], human["kind"], human["cases"], human["missed"]) == ("liver", "human", 3, 1)
    assert human["dice"] == pytest.approx(1.4 / 3)
    assert human["dice_interval"] == bootstrap_interval([0.8, 0.6, 0.0])
    assert (human["hd95_mm"], human["hd95_mm_interval"]) == (6.0, bootstrap_interval([4.0, 8.0]))
    assert (automatic["kind"], automatic["dice"], automatic["cases"]) == ("automatic", 1.0, 1)
    assert (empty["cases"], empty["dice"], empty["dice_interval"]) == (0, None, None)


def test_the_tables_say_who_drew_it():
    """Every line has the kind of its label."""
    assert summary_table(summarised(LINES)).splitlines()[3] == "| liver | automatic | 1 | 0 | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) | 0.0 (0.0 to 0.0) |"
    assert case_table(LINES).splitlines()[4] == "| c | liver | human | 0.000 | 0.000 | – | 1000.0 | 0.0 |"


def test_what_is_painted_where_nothing_can_be_is_millilitres():
    """Of two scans without a spleen one has 2.5 mL of it; whoever has a reference is not in the table; nothing painted has no case."""
    more = Line("b", "spleen", "human", Scores(0.0, 0.0, None, 0, 2.5))
    assert falsely_painted([*LINES, more]) == [{"structure": "spleen", "cases": 2, "painted": 1, "most_ml": 2.5, "case": "b"}]
    assert false_table(falsely_painted([*LINES, more])).splitlines()[2] == "| spleen | b | 2 | 1 | 2.5 |"
    assert false_table(falsely_painted(LINES)).splitlines()[2] == "| spleen | – | 1 | 0 | 0.0 |"


def test_a_group_speaks_for_its_structures(tmp_path):
    """`lungs` in case.json is about lung_left and lung_right; the mandible's own word goes before that of the skeleton's file."""
    told = {"lungs": "automatic", "mandible": "human (clinical contour)", "our_own_organ": "human"}
    (tmp_path / "case.json").write_text(json.dumps({"label_kind": told}))
    found = kinds_beside(tmp_path / "ct.nii.gz")
    assert found["lung_left"] == found["lung_right"] == "automatic"
    assert (found["mandible"], found["our_own_organ"]) == ("human (clinical contour)", "human")
    assert kinds_beside(tmp_path / "elsewhere" / "ct.nii.gz") == {}


def given(*cases: str) -> argparse.Namespace:
    return argparse.Namespace(case=list(cases), model="starter", device="cpu")


def test_a_table_of_predictions(tmp_path):
    """Half of the liver found: Dice 2·4 / (4 + 8); only the case asked for is scored; a case that comes twice is refused."""
    whole, half = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    whole[:, 1:3, 1:3], half[:1, 1:3, 1:3] = True, True
    for name, mask in (("reference", whole), ("prediction", half)):
        (tmp_path / name).mkdir()
        write_mask(tmp_path / name / "liver.nii.gz", mask, Volume(mask.astype(np.int16), np.eye(4)))
    table = tmp_path / "cases.csv"
    table.write_text("case,prediction,reference,kind\na,prediction,reference,human\nb,reference,reference,\n")
    first, second = of_table(table, given())
    assert (first.case, first.kind, first.scores.dice) == ("a", "human", pytest.approx(8 / 12))
    assert (second.kind, second.scores.dice) == ("unknown", 1.0)
    assert [line.case for line in of_table(table, given("b"))] == ["b"]
    table.write_text("case,prediction,reference\na,prediction,reference\na,prediction,reference\n")
    with pytest.raises(InputError, match="'a' twice"):
        of_table(table, given())
    table.write_text("case,mask\na,b\n")
    with pytest.raises(InputError, match="reference and prediction or ct"):
        of_table(table, given())


def test_a_recipes_labels_are_of_whom_its_cases_say(monkeypatch):
    """The body of an OpenKBP patient is automatic, the mandible a human's, whoever else is in the list; only the case asked for is run."""
    from pathlib import Path

    recipe = Path(__file__).parents[1] / "recipes" / "starter.toml"
    if not (recipe.parents[2] / "shared" / "data" / "index.csv").is_file():
        pytest.skip("the real CTs of ../shared/data are not on this machine")
    asked = {}

    def validate(recipe, **options):
        asked.update(options)
        return {"openkbp/pt_101": {"mandible": LINES[0].scores, "body": LINES[3].scores}}

    monkeypatch.setattr("clseg.training.validate.validate", validate)
    lines = of_recipe(recipe, argparse.Namespace(case=["openkbp/pt_101"], model="starter", device="cpu", split="val"))
    assert [(line.structure, line.kind) for line in lines] == [("mandible", "human (clinical contour)"), ("body", "automatic")]
    assert (asked["only"], asked["absent"]) == (["openkbp/pt_101"], True)
