"""Slices are moved within their planes and evened by straight lines, and nothing else happens to them."""

from __future__ import annotations

import numpy as np

from clseg.spatial.straighten import evened, straightened
from clseg.volume import AIR_HU


def test_whole_pixels_move_without_change():
    """The second slice lies two columns to the right and one row up: it is there, whole, and air is where nothing was."""
    stack = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    out, corner = straightened(stack, np.array([[0.0, 0.0], [2.0, -1.0]]))
    assert (out.shape, out.dtype) == ((2, 4, 6), np.int16)
    np.testing.assert_array_equal(corner, [0, -1])
    np.testing.assert_array_equal(out[0, 1:, :4], stack[0])
    np.testing.assert_array_equal(out[1, :3, 2:], stack[1])
    assert (np.count_nonzero(out == AIR_HU), out[0, 0, 0], out[1, 3, 5]) == (24, AIR_HU, AIR_HU)


def test_half_a_pixel_mixes_neighbours_evenly():
    """[10, 20, 40] moved by half a column is [(air + 10) / 2, 15, 30, (40 + air) / 2]."""
    stack = np.array([[[10.0, 20, 40]], [[10, 20, 40]]], np.float32)
    out, corner = straightened(stack, np.array([[0.0, 0.0], [0.5, 0.0]]))
    np.testing.assert_allclose(out[0, 0], [10, 20, 40, AIR_HU])
    np.testing.assert_allclose(out[1, 0], [(AIR_HU + 10) / 2, 15, 30, (40 + AIR_HU) / 2])
    np.testing.assert_array_equal(corner, [0, 0])


def test_evening_interpolates_between_heights():
    """Slices 0, 10, 40 at 0, 1 and 4 mm are 0, 10, 20, 30, 40 at whole millimetres."""
    stack = np.array([0, 10, 40], np.int16).reshape(3, 1, 1)
    out = evened(stack, np.array([0.0, 1, 4]), 1.0)
    assert out.dtype == np.int16
    np.testing.assert_array_equal(out.ravel(), [0, 10, 20, 30, 40])


def test_integers_are_rounded_not_cut():
    """Between 0 and 3 at a third and two thirds lie 1 and 2; between -1 and 0 a half rounds to the even 0."""
    np.testing.assert_array_equal(evened(np.array([0, 3], np.int16).reshape(2, 1, 1), np.array([0.0, 3]), 1.0).ravel(), [0, 1, 2, 3])
    np.testing.assert_array_equal(evened(np.array([-1, 0], np.int16).reshape(2, 1, 1), np.array([0.0, 2]), 1.0).ravel(), [-1, 0, 0])
