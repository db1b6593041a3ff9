"""Outlines: closed lines from which every rule of filling makes the mask again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clseg.spatial.outline import outlines


def by_even_and_odd(lines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres a ray leaves an odd number of times."""
    from skimage.measure import points_in_poly

    centres = np.argwhere(np.ones(shape)).astype(float)
    return np.logical_xor.reduce([points_in_poly(centres, line) for line in lines]).reshape(shape)


def by_painting(lines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Each line filled by itself as a drawing program does, at 16-fold size, one over the other."""
    from PIL import Image, ImageDraw

    canvas = Image.new("1", (shape[1] * 16, shape[0] * 16))
    for line in lines:
        ImageDraw.Draw(canvas).polygon([(16 * j + 8, 16 * i + 8) for i, j in line.tolist()], fill=1)
    return np.array(canvas)[8::16, 8::16]


def test_one_pixel_is_a_diamond() -> None:
    """A pixel at (1, 2): four points half a pixel around its centre, area a half."""
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    (line,) = outlines(mask)
    assert sorted(map(tuple, line.tolist())) == [(0.5, 2.0), (1.0, 1.5), (1.0, 2.5), (1.5, 2.0)]


def test_a_rectangle_has_its_corners_cut() -> None:
    """3 × 5 pixels: eight points, area 15 − ½; they may reach half a pixel beyond the mask's edge."""
    (line,) = outlines(np.ones((3, 5), bool))
    following = np.roll(line, -1, axis=0)
    assert len(line) == 8
    assert abs((line[:, 0] * following[:, 1] - line[:, 1] * following[:, 0]).sum()) / 2 == 14.5
    assert (line.min(), line[:, 0].max(), line[:, 1].max()) == (-0.5, 2.5, 4.5)


def test_holes_are_joined_and_islands_stand_alone() -> None:
    """A ring with an island in its hole: two lines, of which one goes through the channel twice."""
    mask = np.ones((9, 9), bool)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    ring, island = sorted(outlines(mask), key=len, reverse=True)
    points, counts = np.unique(ring, axis=0, return_counts=True)
    assert (counts == 2).sum() == 2  # both ends of the channel
    assert (points[counts == 2][:, 1] == points[counts == 2][0, 1]).all()  # along a row
    assert len(island) == 4
    np.testing.assert_array_equal(by_even_and_odd([ring, island], mask.shape), mask)


def test_corners_do_not_join() -> None:
    """Two pixels that touch at a corner are two lines, two holes that do are one, for the pixels between them do not touch: one channel."""
    assert len(outlines(np.eye(2, dtype=bool))) == 2
    mask = ~np.pad(np.eye(2, dtype=bool), 1)
    (line,) = outlines(mask)
    assert (np.unique(line, axis=0, return_counts=True)[1] == 2).sum() == 2


@pytest.mark.parametrize("fill", [by_even_and_odd, by_painting])
@given(mask=arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans()))
def test_filling_gives_the_mask_back(fill, mask: np.ndarray) -> None:
    """Any mask, by two rules of filling; as many lines as pieces."""
    from scipy.ndimage import label

    lines = outlines(mask)
    assert len(lines) == label(mask)[1]
    if lines:
        np.testing.assert_array_equal(fill(lines, mask.shape), mask)
