"""Facts about planned windows: as few as the step allows, evenly spread, weighted by a Gaussian around the middle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import UsageError
from clseg.inference.planned.windows import gaussian, starts


@pytest.mark.parametrize(
    ("size", "patch", "step", "expected"),
    [
        (8, 8, 0.5, [0]),
        (9, 8, 0.5, [0, 1]),
        (12, 8, 0.5, [0, 4]),
        (13, 8, 0.5, [0, 2, 5]),  # 2.5 is rounded to even
        (72, 32, 0.5, [0, 13, 27, 40]),
        (30, 8, 0.8, [0, 6, 11, 16, 22]),
        (20, 5, 0.5, [0, 2, 5, 8, 10, 12, 15]),  # 2.5 voxels apart: the step is no whole number
    ],
)
def test_starts_by_hand(size: int, patch: int, step: float, expected: list[int]) -> None:
    """ceil((size − patch) / (step · patch)) + 1 windows at round(i · (size − patch) / (n − 1))."""
    assert starts(size, patch, step) == expected


@given(st.integers(1, 40), st.integers(0, 200), st.floats(0.1, 1.0))
def test_windows_cover_the_axis(patch: int, more: int, step: float) -> None:
    """From the first voxel to the last without a gap."""
    found = starts(patch + more, patch, step)
    assert (found[0], found[-1]) == (0, more)
    assert all(0 <= b - a <= patch for a, b in pairwise(found))


def test_a_step_beyond_the_window_is_refused() -> None:
    """0 would never end, more than 1 leave gaps."""
    for step in (0.0, 1.5):
        with pytest.raises(UsageError, match="share of the window"):
            starts(9, 8, step)


def test_the_gaussian_by_hand() -> None:
    """1 at voxel patch // 2, exp(−½ (d / σ)²) beside it with σ = patch / 8, nowhere 0."""
    weight = gaussian((16, 16, 16))
    assert weight[8, 8, 8] == weight.max() == 1
    assert weight[7, 8, 8] == pytest.approx(np.exp(-0.5 / 4), rel=1e-5)
    assert weight[8, 4, 8] == pytest.approx(np.exp(-0.5 * 16 / 4), rel=1e-5)
    assert weight.min() > 0
    assert weight.dtype == np.float32


def test_what_underflows_gets_the_smallest_weight() -> None:
    """In the far corner of a long window SciPy's Gaussian is cut off; the least positive weight stands there."""
    weight = gaussian((40, 4, 4))
    assert weight[0, 0, 0] == weight.min() > 0


@pytest.mark.parametrize("patch", [(8, 8, 8), (7, 9, 32), (28, 60, 56), (1, 3, 5)])
def test_the_gaussian_is_scipys_to_the_last_bit(patch: tuple[int, int, int]) -> None:
    """A point blurred by SciPy, divided by its largest value, the smallest positive one where nothing is left: what nnU-Net does."""
    from scipy import ndimage

    point = np.zeros(patch)
    point[tuple(n // 2 for n in patch)] = 1
    blurred = ndimage.gaussian_filter(point, [n / 8 for n in patch], mode="constant")
    expected = (blurred / blurred.max()).astype(np.float32)
    expected[expected == 0] = expected[expected > 0].min()
    np.testing.assert_array_equal(gaussian(patch), expected)
