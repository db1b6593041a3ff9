"""A Volume is an array with a place in the patient, checked when it is made."""

from __future__ import annotations

import numpy as np
import pytest

from clseg.errors import InputError
from clseg.volume import Volume


def grid(scale=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.diag([*scale, 1.0])
    affine[:3, 3] = origin
    return affine


def test_spacing_and_volume_of_a_voxel_come_from_the_affine():
    """Axes of length 2, 3 and 4 mm make voxels of 24 mm³, mirrored or not."""
    volume = Volume(np.zeros((2, 2, 2)), grid((-2.0, 3.0, 4.0)))
    assert volume.spacing == (2.0, 3.0, 4.0)
    assert volume.voxel_mm3 == pytest.approx(24.0)
    assert (volume.shape, volume.orientation) == ((2, 2, 2), "LAS")


def test_a_rotated_grid_keeps_its_spacing():
    """Turning the patient by 30° about z changes no edge length."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.5236), -np.sin(0.5236)], [np.sin(0.5236), np.cos(0.5236)]]
    assert Volume(np.zeros((2, 2, 2)), turn @ grid((1.0, 2.0, 5.0))).spacing == pytest.approx((1.0, 2.0, 5.0))


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 3, 3, 1)])
def test_only_three_dimensions_are_taken(shape):
    """Arrays of 1, 2 or 4 dimensions are refused with their shape in the message."""
    with pytest.raises(InputError, match=str(len(shape))):
        Volume(np.zeros(shape))


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.diag([1.0, 1.0, 0.0, 1.0]), np.diag([1.0, np.nan, 1.0, 1.0])])
def test_an_affine_that_places_nothing_is_refused(affine):
    """A matrix of the wrong shape, without an inverse or with NaN is no affine."""
    with pytest.raises(InputError, match="invertible"):
        Volume(np.zeros((2, 2, 2)), affine)


def test_like_keeps_the_grid_and_refuses_another_shape():
    """`like` swaps the array and nothing else."""
    volume = Volume(np.zeros((2, 3, 4)), grid(origin=(5.0, 6.0, 7.0)))
    other = volume.like(np.ones((2, 3, 4)))
    assert other.same_grid(volume)
    assert other.array.all()
    with pytest.raises(InputError, match=r"\(2, 3, 4\)"):
        volume.like(np.ones((4, 3, 2)))


def test_same_grid_looks_at_the_corners():
    """A spacing wrong by 1 % is the same grid for 2 voxels within 0.1 mm, not for 100."""
    for length, same in ((2, True), (100, False)):
        one = Volume(np.zeros((length, 2, 2)), grid())
        assert one.same_grid(Volume(np.zeros((length, 2, 2)), grid((1.01, 1.0, 1.0))), tolerance_mm=0.1) is same
    assert not one.same_grid(Volume(np.zeros((2, 2, length)), grid()))
