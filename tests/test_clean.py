"""Cleaning keeps one piece of what comes in one piece, drops specks, and touches nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.catalogue import Catalogue
from clseg.inference.clean import clean
from clseg.inference.merge import Layer

CATALOGUE = Catalogue.builtin()
LIVER, SPLEEN, SKELETON = (CATALOGUE[name] for name in ("liver", "spleen", "skeleton"))
VOXEL_MM3 = 27.0  # 3 mm; 0.1 mL are 3.7 of them


def layer(shape=(40, 20, 20)) -> Layer:
    return Layer(np.zeros(shape, np.uint16), np.full(shape, 200, np.uint8))


def block(onto: Layer, anatomy, x: int, n: int = 4, y: int = 0) -> None:
    """A cube of n³ voxels."""
    onto.labels[x : x + n, y : y + n, :n] = anatomy.id


def count(onto: Layer, anatomy) -> int:
    return int((onto.labels == anatomy.id).sum())


def test_the_catalogue_says_which_are_single():
    """The facts that the tests below stand on."""
    assert (LIVER.single_component, SKELETON.single_component) == (True, False)


def test_only_the_largest_piece_of_a_single_organ_stays():
    """Pieces of 5³ and 4³: the larger is the liver, the smaller is gone."""
    onto = layer()
    block(onto, LIVER, 0, 4)
    block(onto, LIVER, 10, 5)
    clean(onto, [LIVER], VOXEL_MM3)
    assert count(onto, LIVER) == 125
    assert (onto.labels[10:15, :5, :5] == LIVER.id).all()


def test_of_equal_pieces_one_stays():
    """Two cubes of the same size: one of them, not both."""
    onto = layer()
    block(onto, LIVER, 0)
    block(onto, LIVER, 10)
    clean(onto, [LIVER], VOXEL_MM3)
    assert count(onto, LIVER) == 64


def test_many_pieces_of_others_stay_without_specks():
    """Bones of 5³ and 4³ stay; 3 voxels (0.08 mL) go."""
    onto = layer()
    block(onto, SKELETON, 0, 4)
    block(onto, SKELETON, 10, 5)
    onto.labels[30, 10, 4:7] = SKELETON.id
    clean(onto, [SKELETON], VOXEL_MM3)
    assert count(onto, SKELETON) == 64 + 125


@pytest.mark.parametrize(("voxels", "stays"), [(3, False), (4, True)])
def test_a_speck_is_less_than_a_tenth_of_a_millilitre(voxels, stays):
    """On a 3 mm grid 3 voxels are a speck and 4 are not, alone or not."""
    for anatomy in (LIVER, SKELETON):
        onto = layer()
        onto.labels[5, 5, 5 : 5 + voxels] = anatomy.id
        clean(onto, [anatomy], VOXEL_MM3)
        assert count(onto, anatomy) == (voxels if stays else 0)


@pytest.mark.parametrize(("voxels", "stays"), [(7407, False), (7408, True)])
def test_a_piece_of_body_below_200_ml_is_couch(voxels, stays):
    """The catalogue knows how small a piece of the body may be: 7408 voxels of 27 mm³ are 200 mL; two large pieces are trunk and arm."""
    body = CATALOGUE["body"]
    onto = layer((60, 30, 30))
    block(onto, body, 0, 25)
    block(onto, body, 26, 20)
    onto.labels[50:].reshape(-1)[:voxels] = body.id
    clean(onto, [body], VOXEL_MM3)
    assert count(onto, body) == 25**3 + 20**3 + (voxels if stays else 0)


@pytest.mark.parametrize(("voxels", "stays"), [(3, False), (4, True)])
def test_the_body_of_a_thin_scan_stays(voxels, stays):
    """Where there is no larger piece, even 4 voxels are the body; a speck is not."""
    body = CATALOGUE["body"]
    onto = layer()
    onto.labels[5, 5, :voxels] = body.id
    clean(onto, [body], VOXEL_MM3)
    assert count(onto, body) == (voxels if stays else 0)


def test_a_small_bone_beside_a_large_one_stays():
    """Of structures of many pieces nothing is measured against the largest: 19 voxels beside 1000 are a rib's end."""
    onto = layer((40, 30, 30))
    block(onto, SKELETON, 0, 10)
    onto.labels[30, 20, :19] = SKELETON.id
    clean(onto, [SKELETON], VOXEL_MM3)
    assert count(onto, SKELETON) == 1000 + 19


def test_pieces_that_touch_at_a_corner_are_one():
    """26 neighbours count: two cubes that share one corner stay together."""
    onto = layer()
    block(onto, LIVER, 0)
    onto.labels[4:8, 4:8, 4:8] = LIVER.id
    clean(onto, [LIVER], VOXEL_MM3)
    assert count(onto, LIVER) == 128


def test_two_organs_that_touch_are_cleaned_apart():
    """A piece of liver beside the spleen is not held by it."""
    onto = layer()
    block(onto, LIVER, 0, 5)
    block(onto, LIVER, 14, 2)
    block(onto, SPLEEN, 16, 4)
    clean(onto, [LIVER, SPLEEN], VOXEL_MM3)
    assert (count(onto, LIVER), count(onto, SPLEEN)) == (125, 64)


def test_what_goes_leaves_no_score():
    """The voxel of a speck has neither id nor probability afterwards; every other score stays."""
    onto = layer()
    block(onto, LIVER, 0, 5)
    onto.labels[20, 10, 10] = LIVER.id
    clean(onto, [LIVER], VOXEL_MM3)
    assert onto.score[20, 10, 10] == 0
    assert (np.delete(onto.score.ravel(), np.ravel_multi_index((20, 10, 10), onto.score.shape)) == 200).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(1.0, 200.0))
def test_cleaning_only_removes_and_never_touches_others(seed, voxel_mm3):
    """Whatever is painted: no voxel changes from one structure to another, and those not named stay as they are."""
    random = np.random.default_rng(seed)
    onto = layer((12, 12, 12))
    onto.labels[:] = random.choice(np.array([0, 0, LIVER.id, SPLEEN.id, SKELETON.id], np.uint16), onto.labels.shape)
    before, scores = onto.labels.copy(), onto.score.copy()
    clean(onto, [LIVER, SKELETON], voxel_mm3)
    changed = onto.labels != before
    assert (onto.labels[changed] == 0).all()
    assert not (changed & ~np.isin(before, (LIVER.id, SKELETON.id))).any()
    np.testing.assert_array_equal(onto.score[~changed], scores[~changed])
    once = onto.labels.copy()
    clean(onto, [LIVER, SKELETON], voxel_mm3)
    np.testing.assert_array_equal(onto.labels, once)


def test_an_empty_layer_is_clean():
    """Nothing there, nothing done."""
    onto = layer()
    clean(onto, [LIVER, SKELETON], VOXEL_MM3)
    assert not onto.labels.any()
