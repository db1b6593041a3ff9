"""The box around the body holds the body and not what lies beneath it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.phantom import small_phantom
from clseg.spatial.crop import body_box

AIR, FAT, COUCH = -1000, -100, 200


def scan(shape=(80, 80, 40)) -> np.ndarray:
    return np.full(shape, AIR, np.int16)


def ball(array: np.ndarray, centre, radius: float, hu: int = FAT, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Paint a ball (voxel centre, radius in mm) and return where it is."""
    x, y, z = np.ogrid[tuple(slice(0, n) for n in array.shape)]
    inside = sum(((i - c) * s) ** 2 for i, c, s in zip((x, y, z), centre, spacing, strict=True)) <= radius**2
    array[inside] = hu
    return inside


def bounds(box) -> list[tuple[int, int]]:
    return [(part.start, part.stop) for part in box]


def holds(box, mask: np.ndarray) -> bool:
    return int(mask[box].sum()) == int(mask.sum())


@settings(max_examples=25)
@given(
    centre=st.tuples(*[st.floats(10, 50)] * 3),
    radius=st.floats(15, 45),
    spacing=st.tuples(*[st.sampled_from([0.8, 1.5, 3.0, 5.0])] * 3),
)
def test_the_box_holds_the_body_and_its_margin(centre, radius, spacing):
    """Wherever a ball lies and however thick the slices are, it is in the box with 15 mm around it or up to the border."""
    array = scan((60, 60, 60))
    body = ball(array, centre, radius, spacing=spacing)
    box = body_box(array, spacing)
    assert holds(box, body)
    for axis, part in enumerate(box):
        filled = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        assert part.start == 0 or (filled[0] - part.start) * spacing[axis] >= 10
        assert part.stop == 60 or (part.stop - 1 - filled[-1]) * spacing[axis] >= 10


def test_the_box_is_not_much_larger_than_the_body():
    """A ball of 20 mm in 80 mm of air: about 20 + 15 mm to every side, within a few probes of 4 mm."""
    array = scan((80, 80, 80))
    ball(array, (40, 40, 40), 12)
    for start, stop in bounds(body_box(array, (1.0, 1.0, 1.0))):
        assert 40 - 12 - 15 - 8 <= start <= 40 - 12 - 10
        assert 40 + 12 + 10 <= stop <= 40 + 12 + 15 + 9


def test_a_thin_table_does_not_extend_the_box():
    """A couch top of 4 mm under the body, touching it and as wide as the scan, leaves the box as it was."""
    array = scan((160, 100, 60))
    ball(array, (80, 50, 30), 30)
    alone = body_box(array, (1.0, 1.0, 1.0))
    array[:, 16:20, :] = COUCH
    with_table = body_box(array, (1.0, 1.0, 1.0))
    assert bounds(with_table) == bounds(alone)
    assert alone[0].start > 20


def test_both_legs_are_in_the_box():
    """Two cylinders that do not touch, one half as large as the other, are both kept."""
    array = scan((160, 80, 30))
    x, y = np.ogrid[:160, :80]
    legs = (np.hypot(x - 40, y - 40) < 28) | (np.hypot(x - 120, y - 40) < 20)
    array[legs] = FAT
    assert holds(body_box(array, (1.0, 1.0, 1.0), margin_mm=4), np.broadcast_to(legs[..., None], array.shape))


def test_a_speck_far_away_does_not_extend_the_box():
    """A piece of 1 % of the body's size in the corner stays outside."""
    array = scan((120, 120, 60))
    ball(array, (40, 40, 30), 28)
    ball(array, (108, 108, 50), 6)
    assert max(stop for _, stop in bounds(body_box(array, (1.0, 1.0, 1.0)))[:2]) < 100


def test_nothing_dense_gives_the_whole_array():
    """In air there is nothing to crop to."""
    assert body_box(scan((5, 6, 7)), (3.0, 3.0, 3.0)) == (slice(0, 5), slice(0, 6), slice(0, 7))


def test_a_body_too_thin_to_survive_the_opening_is_found_nevertheless():
    """A slab of one slice is all there is, so it is what the box holds."""
    array = scan((40, 40, 20))
    array[10:30, 10:30, 9] = FAT
    box = body_box(array, (4.0, 4.0, 4.0))
    assert holds(box, array > AIR)


def test_dense_everywhere_gives_the_whole_array():
    """A crop inside the body touches all borders."""
    assert bounds(body_box(np.full((20, 30, 40), 50, np.int16), (3.0, 3.0, 3.0))) == [(0, 20), (0, 30), (0, 40)]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_body_of_the_phantom_is_in_its_box(stride):
    """Also when every second slice is left out."""
    ct, masks = small_phantom()
    box = body_box(ct.array[:, :, ::stride], (6.0, 6.0, 6.0 * stride))
    assert holds(box, masks["body"][:, :, ::stride])
