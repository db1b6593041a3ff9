"""Facts about what a planned network sees: its axes, the box, intensities in the plan's order, and the way back."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.inference.planned.prepare import look, network_axes, nonzero_bounds, normalise, prepare, scan_axes
from clseg.inference.planned.resample import resample
from clseg.io.files import read
from clseg.network.plan import Plan, Scheme
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume
from clseg.weights.importers.nnunet import find_trainings, plan_of

CT = Scheme("ct", -100.0, 100.0, 50.0, 10.0)
PLAN = Plan("nnunet", (2.0, 2.0, 2.0), (8, 8, 8), CT)
SPACING = (1.0, 2.0, 4.0)


def scan(code: str = "LPS", shape: tuple[int, int, int] = (6, 5, 4)) -> Volume:
    """A scan of 1 × 2 × 4 mm (i, j, k) in LPS, stored in the order `code`; every voxel has another value, none is 0."""
    array = np.arange(1, 1 + np.prod(shape), dtype=np.int16).reshape(shape)
    return to_orientation(Volume(array, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])), code)


def test_as_stored_the_axes_are_reversed() -> None:
    """(i, j, k) becomes (k, j, i), with the spacing of each."""
    array, spacing = network_axes(scan(), PLAN)
    assert array.shape == (4, 5, 6)
    assert spacing == (4.0, 2.0, 1.0)
    assert array[1, 2, 3] == scan().array[3, 2, 1]


def test_a_transpose_follows() -> None:
    """Axis 0 of the network is axis 2 of (z, y, x), which is i."""
    array, spacing = network_axes(scan(), replace(PLAN, transpose=(2, 0, 1)))
    assert array.shape == (6, 4, 5)
    assert spacing == (1.0, 4.0, 2.0)
    assert array[3, 1, 2] == scan().array[3, 2, 1]


@pytest.mark.parametrize("code", ["LPS", "RAS", "SAR", "AIL"])
def test_with_an_orientation_storage_does_not_matter(code: str) -> None:
    """A plan in RAS sees the same array however the scan is stored; one without sees what is stored."""
    plan = replace(PLAN, orientation="RAS", transpose=(1, 2, 0))
    array, spacing = network_axes(scan(code), plan)
    expected, same = network_axes(scan("RAS"), plan)
    assert np.array_equal(array, expected)
    assert spacing == same
    assert np.array_equal(network_axes(scan(code), PLAN)[0], scan(code).array.T)


@given(st.sampled_from(["LPS", "RAS", "SAR", "PIR"]), st.sampled_from(["", "RAS", "LPS"]), st.sampled_from(list(permutations(range(3)))))
def test_the_way_back_undoes_the_way_there(code: str, orientation: str, transpose: tuple[int, int, int]) -> None:
    """scan_axes(network_axes(scan)) is the scan's array, for every order and transpose."""
    one = scan(code)
    plan = replace(PLAN, orientation=orientation, transpose=transpose)
    assert np.array_equal(scan_axes(network_axes(one, plan)[0], one, plan), one.array)


def test_the_box_holds_all_that_is_not_zero() -> None:
    """Two voxels span it; a scan of zeros is looked at whole."""
    array = np.zeros((9, 8, 7))
    assert nonzero_bounds(array) == ((0, 9), (0, 8), (0, 7))
    array[2, 3, 4] = array[5, 1, 4] = -7
    assert nonzero_bounds(array) == ((2, 6), (1, 4), (4, 5))


def test_a_view_says_where_and_how_large() -> None:
    """A border of zeros is cut; 4 mm slices double, 1 mm columns halve; without crop the whole counts."""
    one = scan()
    one.array[0] = 0
    view = look(one, PLAN)
    assert (view.bounds, view.cropped, view.shape) == (((0, 4), (0, 5), (1, 6)), (4, 5, 5), (8, 5, 2))
    assert look(one, replace(PLAN, crop="none")).cropped == (4, 5, 6)


def test_decoders_with_equal_sight_have_equal_views() -> None:
    """Ensemble and export concern only the way back."""
    assert look(scan(), PLAN) == look(scan(), replace(PLAN, ensemble="x", export="nearest"))


@pytest.mark.parametrize("first", [True, False])
def test_intensities_come_before_or_after_resampling(first: bool) -> None:
    """The two orders differ where clipping meets overshoot; each is the plan's."""
    plan = replace(PLAN, normalise_first=first)
    view = look(scan(), plan)
    raw = torch.from_numpy(np.ascontiguousarray(scan().array.T, dtype=np.float32))
    by_hand = lambda values: (values.clamp(-100, 100) - 50) / 10  # noqa: E731
    steps = [by_hand, lambda values: resample(values, view.shape, plan.image, view.spacing, plan.spacing_mm)]
    expected = raw
    for step in steps if first else steps[::-1]:
        expected = step(expected)
    assert torch.equal(prepare(scan(), view), expected)
    assert not torch.equal(expected, prepare(scan(), look(scan(), replace(plan, normalise_first=not first))))


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (CT, [-15.0, -5.0, -3.0, 5.0]),
        (Scheme("none"), [-300.0, 0.0, 20.0, 500.0]),
        (Scheme("rescale"), [0.0, 0.375, 0.4, 1.0]),
        (Scheme("zscore"), [-355 / 286.4873, -55 / 286.4873, -35 / 286.4873, 445 / 286.4873]),
        (Scheme("zscore", masked=True), [-373.3333 / 328.7687, 0.0, -53.3333 / 328.7687, 426.6667 / 328.7687]),
    ],
)
def test_every_scheme_by_hand(scheme: Scheme, expected: list[float]) -> None:
    """−300, 0, 20 and 500: mean 55 and deviation 286.49; without the 0: 73.33 and 328.77."""
    image = torch.tensor([-300.0, 0.0, 20.0, 500.0]).reshape(4, 1, 1)
    np.testing.assert_allclose(normalise(image, scheme).ravel(), expected, rtol=1e-5)


def test_holes_of_zeros_belong_to_the_mask() -> None:
    """A zero inside the body is normalised with it, one outside stays 0."""
    image = torch.full((5, 5, 5), 10.0)
    image[1:4, 1:4, 1:4] = 30.0
    image[2, 2, 2] = image[0, 0, 0] = 0.0
    found = normalise(image, Scheme("zscore", masked=True))
    assert found[0, 0, 0] == 0
    assert found[2, 2, 2] < found[0, 0, 1] < 0


@pytest.mark.parametrize("name", ["plain", "resenc"])
@pytest.mark.parametrize("case", ["ct_a", "ct_b"])
def test_the_fixtures_are_prepared_as_nnunet_does(shared: Path, name: str, case: str) -> None:
    """nnunetv2's own preprocessed scans, within 1e-5 (units of a standard deviation): crop, order 3, slices one by one."""
    root = shared / "fixtures" / f"nnunetv2_{name}"
    one = read(root / "reference" / f"{case}_0000.nii.gz")
    (training,) = find_trainings(root)
    found = prepare(one, look(one, plan_of(training)))
    with np.load(root / "reference" / f"{case}_preprocessed_s2.npz") as reference:
        np.testing.assert_allclose(found[::2, ::2, ::2], reference["data"][0], atol=1e-5)
