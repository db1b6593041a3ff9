"""A decoder, and a label, is wanted in the slices whose body-part score lies in its range, and everywhere when nobody knows better."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clseg.inference.extent import Reach, extents, label_extents
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


# ---- labels with a range of their own --------------------------------------------------------------------------------


def neck(**label_slices: tuple[float | None, float | None] | None) -> Model:
    """A decoder of larynx and oesophagus with the range 0.2 to 0.7."""
    decoders = {"neck": SimpleNamespace(spec=SimpleNamespace(labels=("larynx", "esophagus")))}
    return Model(None, decoders, {"neck": (0.2, 0.7)}, {}, {"neck": label_slices} if label_slices else {})  # type: ignore[arg-type]


def test_a_label_has_slices_of_its_own():
    """Larynx from 0.5 up are slices 5 to 7; the oesophagus, which has no range of its own, is not named."""
    assert label_extents(neck(larynx=(0.5, None)), 8, SCORES) == {"neck": {"larynx": (5, 8)}}


def test_a_label_can_be_out_of_range_while_its_decoder_runs():
    """An abdomen up to 0.4 shows no larynx; the decoder looks for the oesophagus alone."""
    model, scores = neck(larynx=(0.5, 0.7), esophagus=(0.2, 0.7)), SCORES[:5]
    reach = Reach(extents(model, 5, scores), label_extents(model, 5, scores))
    assert reach.labels == {"neck": {"larynx": None, "esophagus": (2, 5)}}
    assert reach.decoders == {"neck": (2, 5)}
    assert reach.reached("neck", ("larynx", "esophagus")) == {"esophagus"}


def test_a_decoder_is_not_asked_beyond_all_its_labels():
    """With 0.5 to 0.6 and 0.4 to 0.5 the decoder's range of 0.2 to 0.7 shrinks to slices 4 to 6; with one label unknown it does not."""
    assert extents(neck(larynx=(0.5, 0.6), esophagus=(0.4, 0.5)), 8, SCORES) == {"neck": (4, 7)}
    assert extents(neck(larynx=(0.5, 0.6)), 8, SCORES) == {"neck": (2, 8)}


def test_a_decoder_is_asked_only_where_what_is_wanted_of_it_can_be():
    """Of larynx and oesophagus the larynx alone is wanted: slices 5 and 6; the oesophagus without a range of its own: all of the decoder's."""
    both = neck(larynx=(0.5, 0.6), esophagus=(0.2, 0.5))
    assert extents(both, 8, SCORES, {"larynx", "liver"}) == {"neck": (5, 7)}
    assert extents(both, 8, SCORES, {"larynx", "esophagus"}, {"neck": ("larynx", "")}) == {"neck": (5, 7)}
    assert extents(both, 8, SCORES, {"larynx", "esophagus"}) == {"neck": (2, 7)}
    assert extents(neck(larynx=(0.5, 0.6)), 8, SCORES, {"esophagus"}) == {"neck": (2, 8)}
    assert extents(neck(larynx=(0.5, 0.6)), 8, SCORES, {"larynx"}) == {"neck": (5, 7)}


def test_a_decoder_without_a_slice_reaches_none_of_its_labels():
    """No label has a slice, so the decoder has none."""
    model = neck(larynx=(0.9, 1.0), esophagus=(0.8, 1.0))
    reach = Reach(extents(model, 8, SCORES), label_extents(model, 8, SCORES))
    assert reach.decoders == {"neck": None}
    assert reach.reached("neck", ("larynx", "esophagus")) == set()


def test_without_scores_labels_are_everywhere():
    """What is not known restricts nothing."""
    assert label_extents(neck(larynx=(0.5, 0.7)), 8) == {}
