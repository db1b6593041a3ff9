"""Label tables name and colour the numbers of a label map for ITK-SNAP and 3D Slicer."""

from __future__ import annotations

import pytest

from clseg.catalogue import Catalogue
from clseg.errors import InputError
from clseg.io.formats.label_tables import write_itksnap, write_slicer_colours
from clseg.io.labels import read_label_table

CATALOGUE = Catalogue.builtin()
WANTED = (CATALOGUE["body"], CATALOGUE["liver"])


def test_itksnap_gets_eight_columns_a_row(tmp_path):
    """Index, red, green, blue, opacity, two switches, name in quotes; index 0 is the clear label, comments begin with #."""
    write_itksnap(tmp_path / "x.txt", WANTED)
    rows = [line.split(maxsplit=7) for line in (tmp_path / "x.txt").read_text().splitlines() if not line.startswith("#")]
    assert rows == [
        ["0", "0", "0", "0", "0", "0", "0", '"Clear Label"'],
        ["1", "177", "122", "101", "1", "1", "1", '"body"'],
        ["110", "221", "130", "101", "1", "1", "1", '"liver"'],
    ]


def test_slicer_gets_six_columns_a_row(tmp_path):
    """Number, name without blanks, red, green, blue, opacity; the first line says what the file is."""
    write_slicer_colours(tmp_path / "x.ctbl", WANTED)
    lines = (tmp_path / "x.ctbl").read_text().splitlines()
    assert lines[0].startswith("# Color table file")
    assert lines[2:] == ["0 Background 0 0 0 0", "1 body 177 122 101 255", "110 liver 221 130 101 255"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.json", '{"liver": 5, "spleen": 5}', "the id 5 is called 'liver' and 'spleen'"),
        ("x.json", '{"labels": {"5": "liver", "spleen": 5}}', "the id 5 is called 'liver' and 'spleen'"),
        ("x.json", '{"liver": [5, 300]}', r"'liver' stands beside \[5, 300\]"),
        ("x.json", '{"liver": true}', "'liver' stands beside true"),
        ("x.json", '["liver"]', "it holds no object"),
        ("x.csv", "id,name\n5,liver\n5,spleen\n", "the id 5 is called 'liver' and 'spleen'"),
    ],
)
def test_a_table_that_would_lose_a_name_is_refused(tmp_path, name, text, sentence):
    """One id cannot have two names, and what is no id is quoted."""
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_label_table(tmp_path / name)


def test_names_and_ids_may_stand_either_way_round(tmp_path):
    """{name: id}, {id: name}, whole numbers with a point, and a pair that is said twice."""
    for text in ('{"liver": 5.0, "spleen": 2.0}', '{"liver": 5, "spleen": 2}', '{"5": "liver", "2": "spleen"}', '{"liver": 5, "5": "liver", "spleen": 2}'):
        (tmp_path / "x.json").write_text(text)
        assert read_label_table(tmp_path / "x.json") == {2: "spleen", 5: "liver"}
