"""Turning a volume keeps every voxel's place in the patient, and turning back is exact."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.errors import InputError, UsageError
from clseg.spatial.orient import box_before, to_orientation, undo_orientation
from clseg.volume import Header, Volume
from tests.lattice import affine_of

CODES = ["".join(axes) for pairs in permutations(("LR", "AP", "IS")) for axes in product(*pairs)]


def numbered(affine: np.ndarray, shape: tuple[int, int, int] = (2, 3, 4)) -> Volume:
    """A volume in which every voxel has a number of its own."""
    return Volume(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)


def places(volume: Volume) -> np.ndarray:
    """World coordinates (mm) of the voxels in the order of their numbers, shape (voxels, 3)."""
    ijk = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1).reshape(-1, 3)
    world = ijk @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return world[np.argsort(volume.array.ravel())]


@st.composite
def affines(draw) -> np.ndarray:
    """Oblique, anisotropic, left- or right-handed grids anywhere."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] * random.uniform(0.5, 5, 3)
    affine[:3, 3] = random.uniform(-500, 500, 3)
    return affine


def test_there_are_48_orders():
    """The test below covers all axis orders there are."""
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", CODES)
@settings(max_examples=8, deadline=None)
@given(affine=affines())
def test_turned_volume_keeps_places_and_turns_back(code, affine):
    """For every order and oblique grid: voxels stay where they are in the patient, and the way back is exact."""
    volume = numbered(affine)
    turned = to_orientation(volume, code)
    assert turned.orientation == code
    np.testing.assert_allclose(places(turned), places(volume), atol=1e-9)
    np.testing.assert_array_equal(undo_orientation(turned.array, volume, code), volume.array)
    np.testing.assert_array_equal(to_orientation(turned, volume.orientation).array, volume.array)


def test_two_voxels_by_hand():
    """From LAS to RAS the first axis is turned round: the voxel at i=0 goes to the end."""
    volume = numbered(np.diag([-1.0, 1, 1, 1]))
    turned = to_orientation(volume)
    assert turned.array[1, 0, 0] == volume.array[0, 0, 0]
    assert turned.affine[0, 3] == -1


def test_turning_copies_nothing():
    """A turned array and one turned back are views; a volume that lies right is itself, header and all."""
    volume = numbered(np.diag([-1.0, -1, 2, 1]))
    turned = to_orientation(volume, "SAR")
    assert np.shares_memory(turned.array, volume.array)
    assert np.shares_memory(undo_orientation(turned.array, volume, "SAR"), volume.array)
    assert to_orientation(volume, "LPS") is volume


def test_header_does_not_outlive_its_grid():
    """The header of the file describes the file's grid and not the turned one."""
    volume = Volume(numbered(np.eye(4)).array, np.eye(4), Header(None, 0, np.eye(4), 1))
    assert to_orientation(volume, "LPS").header is None
    assert to_orientation(volume, "RAS").header is volume.header


@pytest.mark.parametrize("code", ["", "RA", "RAX", "RLS", "ras", "RASS"])
def test_unknown_orders_are_refused(code):
    """What is not one of the 48 orders is a UsageError."""
    with pytest.raises(UsageError, match="Unknown orientation"):
        to_orientation(numbered(np.eye(4)), code)


def test_array_of_another_shape_is_not_turned_back():
    """An array that is not in the axes of the code is an InputError, not a wrong mask."""
    volume = numbered(np.eye(4))
    with pytest.raises(InputError, match=r"\(4, 3, 2\)"):
        undo_orientation(volume.array, volume, "SAR")


@given(st.sampled_from(CODES), st.sampled_from(CODES), st.data())
def test_a_box_of_the_turned_axes_holds_the_same_voxels_before(own, code, data):
    """Cut and then turned is turned and then cut."""
    shape = (3, 4, 5)
    volume = Volume(np.arange(60).reshape(shape), affine_of(own, shape, (1.0, 1.0, 1.0)))
    turned = to_orientation(volume, code).array
    starts = [data.draw(st.integers(0, n - 1)) for n in turned.shape]
    box = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, turned.shape, strict=True))
    part = Volume(volume.array[box_before(volume, box, code)], volume.affine)
    np.testing.assert_array_equal(to_orientation(part, code).array, turned[box])
