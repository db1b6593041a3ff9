"""Facts about the splines of nnU-Net and CL-Net: SciPy's numbers, values inside the input's, slices one by one where voxels are long."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from clseg.inference.planned.resample import coarse_axis, new_shape, resample, spline
from clseg.network.plan import Resampling

CUBIC = Resampling(3, 0, "auto")
ONE = (1.0, 1.0, 1.0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_new_sizes_are_rounded_half_to_even() -> None:
    """2.5 → 2, 3.5 → 4, 0.2 → 1 (never nothing)."""
    assert new_shape((5, 7, 2), (1.0, 1.0, 1.0), (2.0, 2.0, 10.0)) == (2, 4, 1)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(14, 5, 9), (7, 11, 5)])
def test_a_matrix_per_axis_is_scipys_zoom(order: int, shape: tuple[int, int, int]) -> None:
    """Within 1e-5 of zoom in three dimensions, cut to the input's range, for growing and shrinking axes."""
    array = noise(9, 8, 7)
    found = resample(array, shape, Resampling(order), ONE, ONE)
    factors = [m / n for m, n in zip(shape, array.shape, strict=True)]
    expected = ndimage.zoom(array.numpy().astype(float), factors, order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(found, expected.clip(array.min(), array.max()), atol=1e-5)


def test_a_line_stays_a_line_and_never_leaves_its_range() -> None:
    """Doubled, 0 1 2 3 … lies at −0.25 0.25 0.75 …, and the ends are cut to 0 and 7."""
    found = resample(torch.arange(8.0).reshape(8, 1, 1), (16, 1, 1), Resampling(1), ONE, ONE).ravel()
    np.testing.assert_allclose(found, np.clip(np.arange(16) / 2 - 0.25, 0, 7), atol=1e-6)
    step = torch.zeros(8, 1, 1)
    step[4:] = 1
    cubic = resample(step, (31, 1, 1), CUBIC, ONE, ONE)
    assert (float(cubic.min()), float(cubic.max())) == (0.0, 1.0)
    assert (spline(8, 31, 3) @ step.numpy().ravel()).max() > 1.01  # uncut it would overshoot


@pytest.mark.parametrize(
    ("rule", "spacing", "target", "axis"),
    [
        ("auto", (3.0, 1.0, 1.0), ONE, None),  # not more than three times
        ("auto", (3.1, 1.0, 1.0), ONE, 0),
        ("auto", ONE, (1.0, 1.0, 3.1), 2),  # the target is asked where the scan is even
        ("auto", (3.1, 1.0, 1.0), (1.0, 1.0, 9.0), 0),  # the scan is asked first
        ("auto", (9.0, 9.0, 1.0), ONE, None),  # two long axes are none
        ("never", (9.0, 1.0, 1.0), ONE, None),
        ("always", (1.0, 1.5, 1.0), ONE, 1),
        ("always", ONE, (1.0, 1.0, 9.0), None),
    ],
)
def test_which_axis_is_coarse(rule: str, spacing: tuple, target: tuple, axis: int | None) -> None:
    """One axis alone, more than three times as long as the shortest."""
    assert coarse_axis(Resampling(3, 0, rule), spacing, target) == axis


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_coarse_slices_are_resampled_one_by_one_and_picked(axis: int) -> None:
    """Every slice of the result is one of the input, zoomed in its plane and cut to its own range."""
    array = torch.movedim(noise(4, 6, 5) * torch.tensor([1.0, 5.0, 0.1, 1.0])[:, None, None], 0, axis)
    spacing = tuple(6.0 if a == axis else 1.0 for a in range(3))
    shape = tuple(10 if a == axis else n * 2 for a, n in enumerate(array.shape))
    found = torch.movedim(resample(array, shape, CUBIC, spacing, ONE), axis, 0)  # type: ignore[arg-type]
    picked = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]  # floor((i + 0.5) · 4 / 10)
    slices = torch.movedim(array, axis, 0).numpy().astype(float)
    for values, source in zip(found, picked, strict=True):
        plane = ndimage.zoom(slices[source], 2, order=3, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(values, plane.clip(slices[source].min(), slices[source].max()), atol=1e-5)


def test_equal_shapes_are_left_alone() -> None:
    """Nothing is computed, whatever the spacings say."""
    array = noise(4, 4, 4)
    assert resample(array, (4, 4, 4), CUBIC, (9.0, 1.0, 1.0), ONE) is array
