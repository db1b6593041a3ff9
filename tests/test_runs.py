"""Label maps as runs: the same voxels, box by box, and the same regions, in a fraction of the memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from clseg.spatial.regions import regions
from clseg.spatial.runs import LabelRuns, slices_of, where

MAPS = arrays(np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.sampled_from([0, 0, 0, 1, 2, 65535]))


@st.composite
def parts_of(draw, length: int) -> slice:
    first = draw(st.integers(0, length))
    return slice(first, draw(st.integers(first, length)))


@given(MAPS, st.sampled_from("CF"))
def test_an_array_comes_back_voxel_for_voxel(labels, order):
    """Whatever lies in it and in whichever order of memory; what comes back is uint16 in Fortran order."""
    found = np.asarray(LabelRuns.of(np.asarray(labels, order=order)))
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.uint16
    assert found.flags.f_contiguous


@given(st.data())
def test_a_box_is_that_of_the_array(data):
    """Also an empty one, and one whose slices have no ends."""
    labels = data.draw(MAPS)
    box = tuple(data.draw(parts_of(length)) for length in labels.shape)
    runs = LabelRuns.of(labels)
    np.testing.assert_array_equal(runs[box], labels[box])
    np.testing.assert_array_equal(runs[:, 1:, box[2]], labels[:, 1:, box[2]])


@given(MAPS, st.sampled_from("CF"))
def test_regions_are_those_of_the_array(labels, order):
    """Box and voxels of every label, also where runs go on from one row to the next."""
    assert regions(LabelRuns.of(labels)) == regions(np.asarray(labels, order=order))


def test_a_run_that_goes_on_into_the_next_row_touches_both_ends():
    """Of rows of 4 voxels the last 2 of one and the first of the next: the box is 4 wide and 2 high, the voxels are 3."""
    labels = np.zeros((4, 3, 1), np.uint16)
    labels[2:, 0, 0] = labels[0, 1, 0] = 7
    region = regions(LabelRuns.of(labels))[7]
    assert (region.box, region.voxels) == ((slice(0, 4), slice(0, 2), slice(0, 1)), 3)


@given(MAPS, MAPS)
def test_slices_that_are_set_again_are_the_new_ones(first, second):
    """Nothing is left of what was there, whether the new slices hold something or not."""
    i, j, k = (min(a, b) for a, b in zip(first.shape, second.shape, strict=True))
    runs = LabelRuns.of(first[:i, :j])
    runs.put(0, second[:i, :j, :k])
    expected = first[:i, :j].copy()
    expected[:, :, :k] = second[:i, :j, :k]
    np.testing.assert_array_equal(np.asarray(runs), expected)


def test_slices_may_be_set_in_any_order_and_those_that_are_not_are_empty():
    """Of four slices the last and then the second are set; the others are 0."""
    runs = LabelRuns((2, 2, 4))
    runs.put(3, np.full((2, 2, 1), 5, np.uint16))
    runs.put(1, np.full((2, 2, 1), 9, np.uint16))
    assert [int(runs[:, :, k : k + 1].max()) for k in range(4)] == [0, 9, 0, 5]
    assert np.asarray(runs).sum() == 4 * (5 + 9)


@given(MAPS, st.integers(1, 100))
def test_parts_are_all_slices_once(labels, most):
    """Whatever the size of a part, of an array as of runs; a part holds at least a slice."""
    for one in (labels, LabelRuns.of(labels)):
        parts = list(slices_of(one, most))
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts], axis=2), labels)
        assert all(part.shape[2] == rows.stop - rows.start for rows, part in parts)
        assert all(part.size <= max(most, labels[:, :, 0].size) for _, part in parts)


def test_a_long_body_takes_a_hundredth_of_its_voxels():
    """A cylinder in 200 slices of 256 × 256: 2 × 256 runs a slice instead of 65,536 voxels; empty slices take nothing."""
    x, y = np.mgrid[:256, :256] - 128
    labels = np.zeros((256, 256, 200), np.uint16, order="F")
    labels[..., 50:150] = (x**2 + y**2 < 100**2)[..., None]
    runs = LabelRuns.of(labels)
    assert runs.nbytes < labels.nbytes / 100
    assert runs.size == labels.size
    assert LabelRuns((256, 256, 200)).nbytes == 0


@given(st.data())
def test_a_mask_is_where_the_label_is(data):
    """In any box, of runs as of an array."""
    labels = data.draw(MAPS)
    box = tuple(data.draw(parts_of(length)) for length in labels.shape)
    for label in (1, 2, 3, 65535):
        np.testing.assert_array_equal(where(LabelRuns.of(labels), label, box), labels[box] == label)
        np.testing.assert_array_equal(where(labels, label, box), labels[box] == label)
