"""Regions: box and size of every label, in one pass, whatever the order of memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import find_objects

from clseg.spatial import regions as module
from clseg.spatial.regions import Region, memory_order, regions


def test_two_labels_have_their_boxes_and_voxels():
    """A 2×3×4 block of label 7 without one voxel has 23 and its box; a single voxel of label 300 is a box of its own."""
    labels = np.zeros((6, 7, 8), np.uint16)
    labels[1:3, 2:5, 3:7] = 7
    labels[1, 2, 3] = 0
    labels[5, 6, 7] = 300
    assert regions(labels) == {
        7: Region((slice(1, 3), slice(2, 5), slice(3, 7)), 23),
        300: Region((slice(5, 6), slice(6, 7), slice(7, 8)), 1),
    }


def test_a_run_does_not_go_on_in_the_next_row():
    """The last voxel of one row and the first of the next lie side by side in memory and far apart in the patient."""
    labels = np.zeros((1, 2, 5), np.uint8)
    labels[0, 0, 4] = labels[0, 1, 0] = 1
    assert regions(labels) == {1: Region((slice(0, 1), slice(0, 2), slice(0, 5)), 2)}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_background_alone_has_no_region(dtype):
    """Zeros, and what is below zero, are no labels."""
    labels = np.zeros((3, 4, 5), dtype)
    assert regions(labels) == {}
    if np.issubdtype(dtype, np.signedinteger):
        labels[1, 1, 1] = -3
        assert regions(labels) == {}


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    axes=st.permutations(range(3)),
    slab=st.sampled_from([1, 7, 40, 1 << 22]),
)
def test_they_are_those_of_scipy(shape, seed, share, axes, slab):
    """For any map in any order of memory, in slabs of any size: the boxes of find_objects and the counts of bincount."""
    random = np.random.default_rng(seed)
    labels = (random.integers(0, 5, shape) * (random.random(shape) < share)).astype(np.uint16).transpose(axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLAB_VOXELS", slab)
        found = regions(labels)
    expected = {n: box for n, box in enumerate(find_objects(labels), 1) if box is not None}
    assert {n: one.box for n, one in found.items()} == expected
    assert list(found) == sorted(expected)
    assert {n: one.voxels for n, one in found.items()} == {n: int((labels == n).sum()) for n in expected}


def test_views_that_run_backwards_are_measured_too():
    """A flipped view has the box where the view has the voxels."""
    labels = np.zeros((4, 5, 6), np.uint16)
    labels[0, 1, 2] = 9
    assert regions(labels[::-1, :, ::-1]) == {9: Region((slice(3, 4), slice(1, 2), slice(3, 4)), 1)}


def test_memory_order_goes_from_slow_to_fast():
    """C order is 0, 1, 2; Fortran order, that of files, is 2, 1, 0."""
    array = np.zeros((4, 5, 6))
    assert memory_order(array) == (0, 1, 2)
    assert memory_order(np.asfortranarray(array)) == (2, 1, 0)
