"""Sheared scans go onto a right-angled grid that holds all of them, and labels come back to where they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.io.check import check
from clseg.spatial.orthonormal import AIR_HU, from_orthonormal, orthonormal_grid, to_orthonormal
from clseg.volume import Volume


def sheared(shape, spacing, shear: float, origin=(10.0, -20.0, 30.0), flip=(1, 1, 1)) -> np.ndarray:
    """A grid whose slices are shifted along y by `shear` mm per mm, as a tilted gantry does."""
    affine = np.diag([*np.multiply(spacing, flip), 1.0]).astype(float)
    affine[1, 2] = shear * spacing[2]
    affine[:3, 3] = origin
    return affine


def world(volume: Volume) -> np.ndarray:
    """Voxel centres in mm, shape (x, y, z, 3)."""
    ijk = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    return ijk @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def ball_in(volume: Volume, centre_mm, radius_mm: float) -> np.ndarray:
    return ((world(volume) - centre_mm) ** 2).sum(-1) <= radius_mm**2


def middle(volume: Volume) -> np.ndarray:
    return world(volume).reshape(-1, 3).mean(axis=0)


sheared_volumes = st.builds(
    lambda shape, spacing, shear, flip: Volume(np.zeros(shape, np.int16), sheared(shape, spacing, shear, flip=flip)),
    st.tuples(*[st.integers(12, 24)] * 3),
    st.tuples(*[st.sampled_from([1.0, 2.0, 3.0])] * 3),
    st.floats(-0.5, 0.5),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
)


@settings(max_examples=25)
@given(sheared_volumes)
def test_the_new_grid_is_right_angled_and_as_fine(volume):
    """Its axes are at right angles, its voxels as long as the scan's, and it points the same ways."""
    straight = to_orthonormal(volume)
    axes = straight.affine[:3, :3] / straight.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(straight.spacing, volume.spacing, rtol=1e-9)
    assert straight.orientation == volume.orientation


@settings(max_examples=25)
@given(sheared_volumes)
def test_the_grid_is_known_before_anything_is_resampled(volume):
    """Shape, place and type of the straightened scan; all its voxels are one in memory."""
    grid, straight = orthonormal_grid(volume), to_orthonormal(volume)
    assert (grid.shape, grid.array.dtype, grid.array.strides) == (straight.shape, straight.array.dtype, (0, 0, 0))
    np.testing.assert_array_equal(grid.affine, straight.affine)


@settings(max_examples=25)
@given(sheared_volumes)
def test_no_voxel_is_lost(volume):
    """Every voxel centre of the scan lies inside the new grid."""
    straight = to_orthonormal(volume)
    homogeneous = np.concatenate([world(volume).reshape(-1, 3), np.ones((volume.array.size, 1))], axis=1)
    inside = (homogeneous @ np.linalg.inv(straight.affine).T)[:, :3]
    assert (inside >= -0.5).all()
    assert (inside <= np.array(straight.shape) - 0.5).all()


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (1.5, 1.0, 3.0)])
@pytest.mark.parametrize("shear", [-0.5, 0.1, 0.35])
def test_a_ball_stays_a_ball_and_comes_back(shear, spacing, flip):
    """A ball of 60 HU lies at the same place in mm on the right-angled grid, and its mask comes back with Dice above 0.9."""
    shape = tuple(round(36 / s) for s in spacing)
    volume = Volume(np.zeros(shape, np.int16), sheared(shape, spacing, shear, flip=flip))
    radius = 12.0
    inside = ball_in(volume, middle(volume), radius)
    scan = Volume(np.where(inside, 60, -1000).astype(np.int16), volume.affine)
    straight = to_orthonormal(scan)
    expected = ball_in(straight, middle(volume), radius)
    found = straight.array > (60 - 1000) / 2
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9
    back = from_orthonormal(expected.astype(np.uint16) * 7, straight, scan)
    assert back.dtype == np.uint16
    assert back.shape == scan.shape
    assert set(np.unique(back)) <= {0, 7}
    assert 2 * ((back == 7) & inside).sum() / ((back == 7).sum() + inside.sum()) > 0.9


def test_outside_the_scan_is_air():
    """The corners that no slice of the tilted scan reaches hold -1024 HU."""
    scan = Volume(np.full((10, 20, 20), 50, np.int16), sheared((10, 20, 20), (2.0, 2.0, 2.0), 0.5))
    straight = to_orthonormal(scan)
    assert straight.array.min() == AIR_HU
    assert straight.array.max() == 50
    assert straight.shape[1] > scan.shape[1]


def test_a_right_angled_grid_is_left_alone():
    """Without shear the grid is the scan's own and so are the numbers, oblique or not."""
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] * (1.0, 2.0, 3.0)
    scan = Volume(np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8), np.int16), turned)
    straight = to_orthonormal(scan)
    assert straight.same_grid(scan, tolerance_mm=1e-6)
    np.testing.assert_allclose(straight.array, scan.array, atol=1)  # interpolated numbers are cut to whole HU


@pytest.mark.parametrize("shear", [0.05, 0.3])
def test_the_check_asks_for_this_and_no_more(shear):
    """What `check` calls sheared is not so after `to_orthonormal`."""
    scan = np.full((20, 20, 20), -1000, np.int16)
    scan[5:15, 5:15, 5:15] = 50
    volume = Volume(scan, sheared(scan.shape, (2.0, 2.0, 2.0), shear))
    assert check(volume).needs_orthonormal
    assert not check(to_orthonormal(volume)).needs_orthonormal
