"""Label tables name and colour the numbers of a label map for ITK-SNAP and 3D Slicer."""

from __future__ import annotations

from clseg.catalogue import Catalogue
from clseg.io.formats.label_tables import write_itksnap, write_slicer_colours

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
