"""How names are spelled, counted and given a side."""

from __future__ import annotations

import pytest

from clseg.words import as_word, base_and_side, other_side, side_of, singulars, tokens_of


@pytest.mark.parametrize("roi", ["chest, liver,aorta,", ["chest", "liver, aorta"], ["chest,liver", " ", "aorta"]])
def test_tokens(roi):
    """Commas and lists separate, what is empty is nothing."""
    assert tokens_of(roi) == ["chest", "liver", "aorta"]


@pytest.mark.parametrize("text", ["Left  Kidney", " left-kidney", "LEFT_kidney ", "left - kidney"])
def test_one_spelling(text):
    assert as_word(text) == "left_kidney"


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("left_upper_lobe", ("upper_lobe", "left")),
        ("kidney_r", ("kidney", "right")),
        ("left_right_shunt", ("shunt", "")),
        ("liver", ("liver", "")),
    ],
)
def test_base_and_side(word, parts):
    assert base_and_side(word) == parts


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("arteries", "artery"),
        ("lungs", "lung"),
        ("vertebrae", "vertebra"),
        ("humeri", "humerus"),
        ("left_kidneys", "kidney_left"),
    ],
)
def test_singulars(plural, singular):
    """The word itself comes first."""
    found = list(singulars(plural))
    assert found[0] == plural
    assert singular in found


def test_sides():
    assert side_of("Kidney_Left") == "left"
    assert side_of("left_right_shunt") == ""
    assert side_of("leftover") == ""
    assert other_side("rib_left_4") == "rib_right_4"
    assert other_side("cleft") == "cleft"


@pytest.mark.parametrize(
    ("left", "right"),
    [("kidney_left", "kidney_right"), ("Gland_Left", "Gland_Right"), ("GLAND LEFT", "GLAND RIGHT"), ("Left-Lung", "Right-Lung"), ("Lung_L", "Lung_R"), ("lung_l", "lung_r"), ("Parotid Lt", "Parotid Rt")],
)
def test_the_other_side_is_spelled_alike(left, right):
    """Whatever capitals a dataset uses, each is the partner of the other and on its side."""
    assert (other_side(left), other_side(right)) == (right, left)
    assert (side_of(left), side_of(right)) == ("left", "right")


@pytest.mark.parametrize("name", ["liver", "vertebrae_L1", "l", "right_left_shunt", "l_spine", "cleft", "control"])
def test_names_without_a_side_have_none(name):
    """A letter says a side as the last of several words only."""
    assert side_of(name) == ""
