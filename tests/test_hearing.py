"""Decoders heard in chunks say what they say together; some have to be in one chunk."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.catalogue import Catalogue
from clseg.inference.evidence import united
from clseg.inference.extent import Reach
from clseg.inference.hearing import bonds
from clseg.inference.merge import Canvas, Question
from clseg.inference.predictor import Slab
from tests.test_merge import CATALOGUE, DECODERS, WANTED, everything, random_canvas, random_probabilities


def test_decoders_that_know_one_organ_are_heard_together():
    """Two know the liver and a third shares the kidney with one of them: one group; the lungs are another, in the order given."""
    labels = {"lungs": ("lung_left",), "a": ("liver", "spleen"), "b": ("liver", "kidney_left"), "c": ("kidney_left",)}
    assert bonds(labels, ["lung_left", "liver", "kidney_left"], CATALOGUE) == [["lungs"], ["a", "b", "c"]]


def test_organs_that_nobody_asked_for_bind_nobody():
    """Without the liver among the wanted ones its decoders have nothing to settle."""
    assert bonds({"a": ("liver", "spleen"), "b": ("liver",)}, ["spleen"], CATALOGUE) == [["a"], ["b"]]


@pytest.mark.parametrize(("pathological", "expected"), [({"a"}, [["a", "b", "t"], ["c"]]), (set(), [["a", "b"], ["t"], ["c"]]), ({"a", "b"}, [["a", "b"], ["t"], ["c"]])])
def test_lesions_are_heard_with_those_they_decide_between(pathological, expected):
    """A liver tumour says which of two livers is heard where one knows sick livers and one does not."""
    labels = {"a": ("liver",), "b": ("liver",), "t": ("gtv_liver",), "c": ("spleen",)}
    assert bonds(labels, ["liver", "spleen", "gtv_liver"], CATALOGUE, pathological) == expected


def test_no_decoders_no_groups():
    assert bonds({}, ["liver"], Catalogue.builtin()) == []


CHUNKS = [[["trunk"], ["lungs"], ["lobes"], ["abdomen", "again", "tumour"]], [["lobes", "abdomen", "again", "tumour"], ["trunk", "lungs"]]]


def test_the_chunks_below_are_allowed():
    """They keep together what belongs together."""
    assert bonds(DECODERS, WANTED, CATALOGUE, {"again"}) == CHUNKS[0]


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 11), max_size=4, unique=True), st.sampled_from(CHUNKS))
def test_chunks_give_the_canvas_of_all_at_once(seed, cuts, chunks):
    """Kept, packed and merged later: labels, scores and what is faint are the same, lesions, rivals and extents included."""
    probabilities, shape = random_probabilities(seed), (5, 4, 12)
    onto = Canvas(Question(shape, tuple(CATALOGUE[name] for name in WANTED), CATALOGUE, (5.0, 10.0, 5.0), Reach({"abdomen": (0, 9)}), frozenset({"again"})))
    heard = []
    for chunk in chunks:
        hearing, sheets = onto.hearing(), []
        for low, high in pairwise((0, *sorted(cuts), 12)):
            sheets += hearing.hear(Slab(low, {name: probabilities[name][..., low:high] for name in chunk}), DECODERS)
        heard.append([sheet.packed() for sheet in (*sheets, *hearing.rest())])
    for sheet in united(heard, shape[2]):
        onto.merge(sheet)
    assert everything(onto) == everything(random_canvas(seed, (0, 12)))


def test_a_decoder_that_claims_nothing_keeps_nothing():
    """Background everywhere: no voxel, no bit."""
    onto = Canvas(Question((4, 4, 4), (CATALOGUE["liver"],), CATALOGUE))
    silent = torch.cat([torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)])
    (sheet,) = onto.hearing().hear(Slab(0, {"abdomen": silent}), {"abdomen": ("liver",)})
    assert sheet.packed().claims["abdomen"].nbytes == 0
    onto.merge(sheet.packed())
    assert not np.any(onto.layers[1].labels)
