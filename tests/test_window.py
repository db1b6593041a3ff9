"""Windows cover the scan in steps that are not too long, and count most in their middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import UsageError
from clseg.inference.window import gaussian, starts


def test_starts_by_hand():
    """100 voxels, windows of 40, half a window apart: 0, 20, 40, 60."""
    assert starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert starts(40, 40, 0.5) == [0]
    assert starts(41, 40, 0.5) == [0, 1]


@given(st.integers(1, 64), st.integers(0, 300), st.floats(0.01, 1.0))
def test_windows_cover_every_voxel_and_end_at_the_border(patch, more, step):
    """First at 0, last at the border, in between no voxel without a window and no window twice."""
    found = starts(patch + more, patch, step)
    covered = np.zeros(patch + more, int)
    for start in found:
        covered[start : start + patch] += 1
    assert covered.min() >= 1
    assert (found[0], found[-1] + patch) == (0, patch + more)
    assert len(set(found)) == len(found)


@given(st.integers(1, 64), st.integers(0, 300), st.floats(0.01, 1.0))
def test_the_step_is_never_exceeded(patch, more, step):
    """Neighbouring windows are at most step x window apart, and never closer than they must be to be apart."""
    gaps = np.diff(starts(patch + more, patch, step))
    assert gaps.size == 0 or gaps.max() <= max(1, patch * step + 1e-6)


@given(st.integers(1, 64), st.integers(0, 300), st.floats(0.05, 1.0))
def test_windows_are_the_same_from_both_ends(patch, more, step):
    """Up to a voxel of rounding, windows lie symmetrically."""
    found = np.array(starts(patch + more, patch, step))
    np.testing.assert_allclose(found, (more - found)[::-1], atol=1)


@pytest.mark.parametrize("step", [0.0, -0.5, 1.01, float("nan")])
def test_a_step_that_makes_no_sense_is_refused(step):
    """A share of the window lies between 0 and 1."""
    with pytest.raises(UsageError, match="between 0 and 1"):
        starts(100, 40, step)


def test_the_weight_falls_from_the_middle_as_a_gaussian():
    """In a window of 17 voxels sigma is 17/8: one sigma from the middle counts e^-0.5 times as much as the middle."""
    weight = gaussian((17, 17, 17))
    assert weight[8, 8, 8] == pytest.approx(1.0)
    assert weight[10, 8, 8].item() == pytest.approx(np.exp(-0.5 * (2 / (17 / 8)) ** 2), rel=1e-5)
    assert torch.equal(weight, weight.flip((0, 1, 2)))
    torch.testing.assert_close(weight, weight.permute(2, 0, 1))


@given(st.tuples(*[st.integers(1, 24)] * 3))
def test_every_voxel_of_a_window_counts(patch):
    """No weight is so small that dividing by it loses the answer."""
    weight = gaussian(patch)
    assert tuple(weight.shape) == patch
    assert 1e-3 <= weight.min() <= weight.max() <= 1
