"""Bright even tissue speaks for a contrast agent; rough bone does not."""

from __future__ import annotations

import numpy as np

from clseg.inference.contrast import bright_share, guess_contrast
from clseg.volume import Volume

GRID = np.diag([3.0, 3, 3, 1])


def soft(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(45, 10, (40, 40, 40)).astype(np.float32)


def test_a_vessel_with_contrast_is_seen():
    """A tube of 250 HU with 9 × 9 of 40 × 40 voxels: its inner 7 × 7 are even, so their share is 49 / (1600 - 121) or a little more."""
    hu = soft()
    hu[10:19, 10:19] += 205
    assert abs(bright_share(Volume(hu, GRID)) - 49 / (1600 - 121)) < 0.01
    assert guess_contrast(Volume(hu, GRID)) == "probably with"


def test_soft_tissue_and_spongy_bone_are_not_contrast():
    """Muscle alone, and marrow with trabeculae that differ by 100 HU from voxel to voxel."""
    assert guess_contrast(Volume(soft(), GRID)) == "probably without"
    bone = soft()
    bone[10:30, 10:30] = np.random.default_rng(1).normal(250, 100, (20, 20, 40))
    assert guess_contrast(Volume(bone, GRID)) == "probably without"


def test_air_alone_has_no_share():
    """Nothing is divided by nothing."""
    assert bright_share(Volume(np.full((8, 8, 8), -1000, np.int16), GRID)) == 0.0
