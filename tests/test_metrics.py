"""Segmentation metrics, with numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt

from clseg.errors import InputError
from clseg.metrics import Scores, bootstrap_interval, score

MM = (1.0, 1.0, 1.0)


def voxels(*places, shape=(12, 12, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def cube(start: int) -> np.ndarray:
    """3×3×3 voxels from i = start, j = k = 4."""
    mask = np.zeros((12, 12, 12), bool)
    mask[start : start + 3, 4:7, 4:7] = True
    return mask


def test_cubes_shifted_by_one_voxel():
    """Two 3-cubes one voxel apart share 18 of 27 voxels (Dice 2/3) and 16 of 26 surface voxels; the rest is 1 mm off."""
    scores = score(cube(4), cube(5), MM, tolerance_mm=0.5)
    assert (scores.dice, scores.surface_dice, scores.hd95_mm) == pytest.approx((2 / 3, 16 / 26, 1.0))
    assert score(cube(4), cube(5), MM, tolerance_mm=1.0).surface_dice == 1.0  # the tolerance is inclusive


def test_cubes_shifted_along_a_long_voxel_edge():
    """With 2 mm along i the nine voxels of the far face are 2 mm off, the inner tenth still 1 mm."""
    scores = score(cube(4), cube(5), (2.0, 1.0, 1.0), tolerance_mm=1.0)
    assert (scores.dice, scores.surface_dice, scores.hd95_mm) == pytest.approx((2 / 3, 17 / 26, 2.0))


def test_volumes_in_ml():
    """27 voxels of 2×5×10 mm are 2.7 mL, one voxel 0.1 mL."""
    scores = score(voxels((5, 5, 5)), cube(4), (2.0, 5.0, 10.0))
    assert (scores.reference_ml, scores.predicted_ml) == pytest.approx((2.7, 0.1))


def test_single_voxels():
    """Voxels 3 and 4 apart along two axes are 5 mm apart: no overlap, within 5 mm but not within 4.9."""
    one, other = voxels((0, 0, 0)), voxels((3, 4, 0))
    assert score(one, other, MM, tolerance_mm=5.0) == Scores(0.0, 1.0, 5.0, 0.001, 0.001)
    assert score(one, other, MM, tolerance_mm=4.9).surface_dice == 0.0


def test_anisotropic_neighbours():
    """Neighbours along an axis of 5 mm voxels are 5 mm apart."""
    assert score(voxels((2, 2, 2)), voxels((2, 2, 3)), (0.5, 0.5, 5.0)).hd95_mm == 5.0


def test_hd95_is_the_larger_of_two_directions():
    """One far voxel beside a true one: 95 % of the way from 0 to 10 mm, whichever mask has it."""
    true, spilled = voxels((1, 1, 1)), voxels((1, 1, 1), (11, 1, 1))
    assert score(spilled, true, MM).hd95_mm == score(true, spilled, MM).hd95_mm == pytest.approx(9.5)


def test_the_tolerance_is_3_mm_unless_told():
    """3 mm off is within the default tolerance, 4 mm is not."""
    assert score(voxels((0, 0, 0)), voxels((3, 0, 0)), MM).surface_dice == 1.0
    assert score(voxels((0, 0, 0)), voxels((4, 0, 0)), MM).surface_dice == 0.0


def test_both_empty_has_no_score():
    """Nothing predicted where nothing is: no score, rather than a perfect one; the volumes are true zeros."""
    assert score(voxels(), voxels(), MM) == Scores(None, None, None, 0.0, 0.0)


@pytest.mark.parametrize(("prediction", "reference"), [(voxels(), cube(4)), (cube(4), voxels())])
def test_one_empty_is_a_miss_without_distance(prediction, reference):
    """A missed or invented structure has Dice 0 and surface Dice 0, and no distance."""
    scores = score(prediction, reference, MM)
    assert (scores.dice, scores.surface_dice, scores.hd95_mm) == (0.0, 0.0, None)


def test_the_edge_of_the_image_is_a_surface():
    """A mask that fills the image has the image's outer voxels as surface, not none.

    Around a 4-cube a layer has 96 voxels at 1 mm, 48 at √2 and 8 at √3; the 95th percentile of these 152 has the
    rank 143.45, between the last √2 (143) and the first √3 (144).
    """
    inner, full = np.zeros((6, 6, 6), bool), np.ones((6, 6, 6), bool)
    inner[1:-1, 1:-1, 1:-1] = True
    assert score(full, inner, MM).hd95_mm == pytest.approx(0.55 * np.sqrt(2) + 0.45 * np.sqrt(3))


def test_numbers_serve_as_masks():
    """Masks read from files as uint8 score as booleans do."""
    assert score(cube(4).astype(np.uint8) * 255, cube(5).astype(np.uint8), MM) == score(cube(4), cube(5), MM)


def test_memory_order_changes_nothing():
    """Masks in Fortran order score as in C order."""
    assert score(np.asfortranarray(cube(4)), cube(5), MM) == score(cube(4), cube(5), MM)


@st.composite
def pairs(draw):
    """Two masks of one small shape, neither empty, and a spacing."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = [rng.random(shape) < draw(st.floats(0.02, 0.98)) for _ in range(2)]
    for mask in masks:
        mask[tuple(rng.integers(n) for n in shape)] = True
    return (*masks, draw(st.tuples(*[st.sampled_from([0.5, 1.0, 2.5, 5.0])] * 3)))


@settings(max_examples=50, deadline=None)
@given(pairs())
def test_scores_are_symmetric_and_bounded(pair):
    """Prediction and reference may be exchanged; both Dice lie in 0…1, HD95 below the image's diagonal."""
    one, other, spacing = pair
    there, back = score(one, other, spacing), score(other, one, spacing)
    assert (there.dice, there.surface_dice, there.hd95_mm) == (back.dice, back.surface_dice, back.hd95_mm)
    assert 0 <= there.dice <= 1
    assert 0 <= there.surface_dice <= 1
    assert 0 <= there.hd95_mm <= np.linalg.norm(np.multiply(one.shape, spacing))


@settings(max_examples=30, deadline=None)
@given(pairs())
def test_a_mask_agrees_with_itself(pair):
    """Identical masks have Dice 1, surface Dice 1 even without tolerance, and no distance."""
    scores = score(pair[0], pair[0].copy(), pair[2], tolerance_mm=0.0)
    assert (scores.dice, scores.surface_dice, scores.hd95_mm) == (1.0, 1.0, 0.0)


@settings(max_examples=50, deadline=None)
@given(pairs())
def test_agrees_with_distance_transforms(pair):
    """Surfaces by erosion and distances by a Euclidean distance transform over the whole image give the same."""
    one, other, spacing = pair
    edges = [mask & ~binary_erosion(mask) for mask in (one, other)]
    to_other, to_one = (distance_transform_edt(~edge, sampling=spacing) for edge in edges[::-1])
    distances = [to_other[edges[0]], to_one[edges[1]]]
    scores = score(one, other, spacing, tolerance_mm=1.3)
    assert scores.surface_dice == pytest.approx(np.mean(np.concatenate(distances) <= 1.3))
    assert scores.hd95_mm == pytest.approx(max(np.percentile(d, 95) for d in distances))


@settings(max_examples=30, deadline=None)
@given(pairs(), st.permutations(range(3)), st.integers(0, 2))
def test_the_order_of_the_axes_does_not_matter(pair, axes, flipped):
    """Turning and flipping both masks with their spacing leaves every score as it is."""
    one, other, spacing = pair
    turned = [np.flip(mask, flipped).transpose(axes) for mask in (one, other)]
    after = score(*turned, tuple(spacing[axis] for axis in axes))
    assert vars(after) == pytest.approx(vars(score(one, other, spacing)))


@pytest.mark.parametrize(
    ("shape", "spacing", "sentence"),
    [
        ((12, 12, 11), MM, r"\(12, 12, 12\), the reference \(12, 12, 11\)"),
        ((12, 12, 12), (1.0, 0.0, 1.0), "positive lengths"),
        ((12, 12, 12), (1.0, 1.0), "3 positive lengths"),
    ],
)
def test_wrong_input_is_refused(shape, spacing, sentence):
    """Masks of two shapes and impossible spacings are refused in a sentence that names them."""
    with pytest.raises(InputError, match=sentence):
        score(cube(4), np.zeros(shape, bool), spacing)


def test_bootstrap_of_two_cases():
    """Two cases 0 and 1 drawn twice have the mean 0, ½, 1 with odds 1:2:1: 95 % reaches from 0 to 1, 40 % is ½ alone."""
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_bootstrap_of_equal_cases():
    """Cases that are all alike leave no doubt about their mean."""
    assert bootstrap_interval([0.75] * 5) == (0.75, 0.75)


def test_bootstrap_repeats_itself():
    """The same seed gives the same interval, another seed another one."""
    cases = np.linspace(0, 1, 15) ** 2
    assert bootstrap_interval(cases, seed=3) == bootstrap_interval(cases, seed=3) != bootstrap_interval(cases, seed=4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_bootstrap_stays_among_the_values(cases):
    """The interval is ordered and leaves neither the smallest nor the largest value behind."""
    low, high = bootstrap_interval(cases, repeats=100)
    assert min(cases) - 1e-9 <= low <= high <= max(cases) + 1e-9


@pytest.mark.parametrize("cases", [[], [0.5, float("nan")], [0.5, None]])
def test_bootstrap_needs_numbers(cases):
    """No values, NaN and None are refused: the caller leaves out cases without a score."""
    with pytest.raises(InputError, match="at least one value"):
        bootstrap_interval(cases)
