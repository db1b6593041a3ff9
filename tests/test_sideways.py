"""Organs of the midline are not looked for in the flanks: where the middle is, and which windows of a row see what lies near it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clseg.inference.sideways import ACROSS, bands, hull, middles, windows_seeing
from clseg.inference.window import starts

SPACING = (3.0, 3.0, 3.0)


def trunk(shape: tuple[int, int, int] = (100, 60, 4), left: int = 30, right: int = 70) -> np.ndarray:
    """Air with a body from voxel `left` to `right` along x."""
    hu = np.full(shape, -1000.0, np.float32)
    hu[left:right, 10:50] = 40.0
    return hu


# ---- the middle of the body ------------------------------------------------------------------------------------------


def test_the_middle_has_half_of_the_body_on_either_side() -> None:
    """A body from 30 to 70 has its middle at 49.5, to a voxel; an arm beside it moves that by half of the arm, a lung in it by nothing."""
    assert middles(trunk(), SPACING) == pytest.approx(49.5, abs=1)
    with_arm = trunk()
    with_arm[80:84, 25:35] = 40.0
    assert middles(with_arm, SPACING) == pytest.approx(49.5, abs=2)
    with_lung = trunk()
    with_lung[33:47, 14:46] = -850.0
    np.testing.assert_array_equal(middles(with_lung, SPACING), middles(trunk(), SPACING))


def test_a_slice_without_tissue_has_no_middle() -> None:
    """Air, and a wire of some voxels, say nothing."""
    hu = trunk()
    hu[..., 1] = -1000.0
    hu[..., 2] = -1000.0
    hu[5:7, 5:7, 2] = 3000.0
    assert np.isnan(middles(hu, SPACING)).tolist() == [False, True, True, False]


def test_a_body_that_the_scan_cuts_has_no_middle() -> None:
    """One shoulder alone: its midline may be anywhere, so that all windows are computed; a couch that goes on does no harm."""
    assert np.isnan(middles(trunk(left=0, right=40), SPACING)).all()
    assert np.isnan(middles(trunk(left=60, right=100), SPACING)).all()
    couch = trunk()
    couch[:, 2:4] = 100.0
    assert middles(couch, SPACING) == pytest.approx(49.5, abs=1)


def test_a_couch_does_not_move_the_middle() -> None:
    """It lies under the body and is as wide on both sides; its foam is lighter than tissue."""
    hu = trunk()
    hu[:, 2:4] = -500.0
    hu[10:90, 4] = 100.0
    assert middles(hu, SPACING) == pytest.approx(49.5, abs=1)


# ---- bands -----------------------------------------------------------------------------------------------------------


def test_a_band_is_as_wide_as_the_range_around_every_middle() -> None:
    """-30 to 60 mm are ten voxels to the left and twenty to the right; without a middle there is no band."""
    found = bands(np.array([50.0, np.nan, 40.0]), (-30.0, 60.0), 3.0)
    np.testing.assert_array_equal(found, [[40.0, np.nan, 30.0], [70.0, np.nan, 60.0]])
    assert hull(found) == (30.0, 70.0)
    assert hull(found[:, 1:2]) is None
    assert hull(None) is None


def test_a_grid_that_counts_to_the_left_mirrors_the_range() -> None:
    """To the patient's right are lower voxels there."""
    np.testing.assert_array_equal(bands(np.array([50.0]), (-30.0, 60.0), 3.0, "LPS"), [[30.0], [60.0]])


@pytest.mark.parametrize(("sideways", "orientation"), [(None, "RAS"), ((-30.0, 60.0), "SAR"), ((-30.0, 60.0), "PRS")])
def test_what_is_not_known_or_does_not_lie_along_x_restricts_nothing(sideways: tuple[float, float] | None, orientation: str) -> None:
    """Then every window is computed."""
    assert bands(np.array([50.0]), sideways, 3.0, orientation) is None
    assert windows_seeing([0, 28, 57], 80, hull(bands(np.array([50.0]), sideways, 3.0, orientation)), ACROSS) == [0, 28, 57]


# ---- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("band", "expected"),
    [
        ((50.0, 90.0), [28]),  # the cord of a trunk of 400 mm
        ((10.0, 30.0), [0]),
        ((-40.0, -20.0), [0]),  # beyond the scan
        ((200.0, 220.0), [57]),
        ((20.0, 110.0), [0, 28, 57]),
        ((50.0, 110.0), [28, 57]),
        ((-10.0, 200.0), [0, 28, 57]),
        (None, [0, 28, 57]),
    ],
)
def test_the_windows_that_see_the_band(band: tuple[float, float] | None, expected: list[int]) -> None:
    """Three windows of 80 over 137 voxels."""
    assert windows_seeing([0, 28, 57], 80, band, ACROSS) == expected


@given(st.integers(1, 400), st.integers(2, 96), st.floats(0.1, 1.0), st.floats(-50, 450), st.floats(0, 300), st.floats(0.25, 0.5))
def test_every_voxel_of_a_band_lies_in_a_window_and_well_inside_where_one_sees_it_so(size: int, patch: int, step: float, low: float, width: float, seen: float) -> None:
    """Whatever scan, window and band: a voxel of the band is as near to a chosen window's centre as it is seen from there, or as near as any window is."""
    every = starts(max(size, patch), patch, step)
    chosen = windows_seeing(every, patch, (low, low + width), seen)
    assert chosen
    assert chosen == sorted(set(chosen) & set(every))
    half = (patch - 1) / 2
    for voxel in np.linspace(low, low + width, 50):
        mine = min(abs(start + half - voxel) for start in chosen)
        assert mine <= max(patch * seen, min(abs(start + half - voxel) for start in every)) + 1e-6


@given(st.integers(1, 400), st.floats(-50, 450), st.floats(0, 300), st.floats(0, 50))
def test_a_wider_band_never_needs_fewer_windows(size: int, low: float, width: float, more: float) -> None:
    """What is added to a range does not take windows away."""
    every = starts(max(size, 80), 80, 0.5)
    assert len(windows_seeing(every, 80, (low, low + width), ACROSS)) <= len(windows_seeing(every, 80, (low - more, low + width + more), ACROSS))
