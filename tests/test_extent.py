"""A decoder is wanted in the slices whose body-part score lies in its range, and everywhere when nobody knows better."""

from __future__ import annotations

import pytest

from clseg.inference.extent import extents
from clseg.network.model import Model

SCORES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def model(**slices: tuple[float | None, float | None] | None) -> Model:
    return Model(encoder=None, decoders={}, slices=slices)  # type: ignore[arg-type]


def test_a_range_becomes_slices():
    """Scores 0.2 to 0.4 are slices 2, 3 and 4 here, bounds included."""
    assert extents(model(liver=(0.2, 0.4)), 8, SCORES) == {"liver": (2, 5)}


def test_out_of_range_is_none():
    """No slice shows the head, so the brain's decoder has nothing to do."""
    assert extents(model(brain=(0.9, 1.0), liver=(0.0, 1.0)), 8, SCORES) == {"brain": None, "liver": (0, 8)}


def test_scores_that_waver_give_one_piece():
    """A slice in between with a stray score is not cut out."""
    assert extents(model(liver=(0.2, 0.4)), 5, [0.1, 0.2, 0.9, 0.4, 0.5]) == {"liver": (1, 4)}


@pytest.mark.parametrize(
    ("wanted", "expected"), [((None, 0.3), (0, 4)), ((0.3, None), (3, 8)), ((None, None), (0, 8)), ((None, -0.1), None)]
)
def test_an_open_bound_restricts_nothing(wanted, expected):
    """Where nobody knows the end of a structure, the range reaches to the end of the scan."""
    assert extents(model(esophagus=wanted), 8, SCORES) == {"esophagus": expected}


@pytest.mark.parametrize(("wanted", "scores"), [(None, SCORES), ((0.2, 0.4), None), (None, None)])
def test_without_range_or_scores_it_is_everywhere(wanted, scores):
    """What is not known restricts nothing."""
    assert extents(model(liver=wanted), 8, scores) == {"liver": (0, 8)}
