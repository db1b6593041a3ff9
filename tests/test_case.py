"""Names of cases: safe, different, and as one would have called them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clseg.batch.case import Case, named, safe, title_of
from clseg.errors import UsageError
from clseg.output import Output


def names_of(*paths: str, **given: str) -> list[str]:
    return [case.name for case in named([Path(path) for path in paths], {Path(path): name for name, path in given.items()})]


@pytest.mark.parametrize(
    ("file", "title"),
    [("a_0000.nii.gz", "a_0000"), ("A.NII", "A"), ("x.nrrd", "x"), ("v1.2.mha", "v1.2"), ("study.zip", "study"), ("a.nii.gz.nii.gz", "a"), (".nii", ".nii"), ("plain", "plain")],
)
def test_a_title_is_the_file_name_without_the_endings_of_scans(file, title):
    """Other dots stay; a name that is an ending alone stays whole."""
    assert title_of(Path("scans") / file) == title


def test_a_ct_is_called_like_its_folder():
    """s0001/ct.nii.gz → s0001, as in TotalSegmentator's data set; imaging.nii.gz as in KiTS."""
    assert names_of("/d/s0001/ct.nii.gz", "/d/s0002/CT.nii.gz", "/d/case_00000/imaging.nii.gz") == ["s0001", "s0002", "case_00000"]


def test_cases_that_clash_get_the_names_of_their_parents():
    """All of them do, as many as are needed; who does not clash keeps the short name."""
    assert names_of("/d/a/x.nii", "/d/b/x.nii", "/d/b/y.nii") == ["a_x", "b_x", "y"]
    assert names_of("/d/1/a/x.nii", "/d/2/a/x.nii") == ["1_a_x", "2_a_x"]
    assert names_of("/d/p1/s/ct.nii", "/d/p2/s/ct.nii") == ["p1_s", "p2_s"]


def test_capitals_make_no_difference():
    """On Windows and macOS A and a are one folder."""
    assert names_of("/d/A/x.nii", "/d/B/X.nii") == ["A_x", "B_X"]


def test_what_is_the_same_after_all_gets_a_number():
    """`/x.nii` and `/x.nrrd` have no parents that could tell them apart."""
    assert names_of("/x.nii", "/x.nrrd", "/x.mha") == ["x", "x_2", "x_3"]


def test_chosen_names_are_kept_and_others_give_way():
    """The name of a list goes before that of a file."""
    assert names_of("/d/q.nii", "/d/x.nii", x="/d/q.nii") == ["x", "d_x"]


@pytest.mark.parametrize(("name", "better"), [("../x", "_x"), ("a/b", "a_b"), ("x.nii.gz", "x.nii_gz"), ("con", "_con"), (".hidden", "hidden"), ("summary.csv", "summary_csv")])
def test_an_unsafe_name_is_refused_with_a_better_one(name, better):
    """Nothing is written outside the output, to a device of Windows, or over a summary."""
    with pytest.raises(UsageError) as caught:
        named([Path("/a.nii")], {Path("/a.nii"): name})
    assert caught.value.tip == f"Call it '{better}'."


def test_nothing_may_be_there_twice():
    """One path twice, or one chosen name twice, capitals aside."""
    with pytest.raises(UsageError, match="path '/a.nii' is there twice"):
        named([Path("/a.nii"), Path("/a.nii")])
    with pytest.raises(UsageError, match="case 'x' is there twice"):
        named([Path("/a.nii"), Path("/b.nii")], {Path("/a.nii"): "x", Path("/b.nii"): "X"})


@given(st.text(max_size=300))
@example("..")
@example("肝" * 200)
@example("x.zip.png")
@example("a.nii.gz.nii.gz")
@example("LPT1.txt")
def test_any_name_becomes_a_folder_directly_in_the_output(name):
    """Whatever a file is called, its results lie in one folder, and clseg takes the name for a folder; safe names stay."""
    one = safe(name)
    assert Path("/out", one).parent == Path("/out")
    assert one not in ("", ".", "..")
    assert len(one.encode()) <= 151
    assert Output.at(Path("/nowhere/out", one), False).folder == Path("/nowhere/out", one)
    assert safe(one) == one


def test_a_case_is_a_name_and_a_path():
    """In the order of the paths."""
    assert named([Path("/b.nii"), Path("/a.nii")]) == [Case("b", Path("/b.nii")), Case("a", Path("/a.nii"))]
