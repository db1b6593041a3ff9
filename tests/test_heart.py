"""A heart that leans to the left is seen in a made-up chest, and its mirror image is suspected."""

from __future__ import annotations

import numpy as np
import pytest

from clseg.inference.heart import look_at_chest
from clseg.volume import Volume


def chest(shift_mm: float, slices: int = 40) -> Volume:
    """300 × 200 mm of body, two lungs, and between them 60 mm of soft tissue whose middle lies `shift_mm` left (RAS, 4 mm)."""
    x, y = np.meshgrid(np.arange(-180, 180, 4) + 2.0, np.arange(-120, 120, 4) + 2.0, indexing="ij")
    plane = np.where(np.hypot(x / 150, y / 100) < 1, 40, -1000)
    lungs = (np.hypot(x / 130, y / 80) < 1) & (np.abs(x + shift_mm) > 30)
    plane[lungs] = -850
    return Volume(np.repeat(plane[:, :, None], slices, axis=2).astype(np.int16), np.diag([4.0, 4, 4, 1]))


RISING = np.linspace(0.42, 0.62, 40)


@pytest.mark.parametrize("shift_mm", [-20.0, 0.0, 12.0, 20.0])
def test_the_lean_is_measured(shift_mm):
    """Within 2 mm, half a voxel; the lung on the other side is the larger one."""
    found = look_at_chest(chest(shift_mm), RISING)
    assert found.heart_left_mm == pytest.approx(shift_mm, abs=2)
    assert np.sign(round(found.right_share - 0.5, 2)) == np.sign(shift_mm)


@pytest.mark.parametrize(("shift_mm", "swapped"), [(20.0, False), (5.0, False), (0.0, False), (-5.0, False), (-20.0, True)])
def test_only_a_clear_lean_to_the_right_is_suspected(shift_mm, swapped):
    """5 mm to the right happen in healthy people; 20 mm with a smaller right lung do not."""
    assert look_at_chest(chest(shift_mm), RISING).swapped is swapped


def test_a_collapsed_left_lung_is_no_swap():
    """The heart leans to the right, away from a right lung that is the larger one all the same: nothing is said."""
    volume = chest(-20)
    volume.array[10:34] = np.where(volume.array[10:34] == -850, 40, volume.array[10:34])  # the outer part of the left lung is solid
    found = look_at_chest(volume, RISING)
    assert found.right_share > 0.515
    assert not found.swapped


def test_too_little_chest_says_nothing():
    """80 mm of chest, a head, or air alone."""
    assert look_at_chest(chest(20, 20), np.linspace(0.46, 0.56, 20)) is None
    assert look_at_chest(chest(20), np.linspace(0.8, 1.0, 40)) is None
    assert look_at_chest(Volume(np.full((90, 60, 40), -1000, np.int16), np.diag([4.0, 4, 4, 1])), RISING) is None
