"""Scores along a scan: slices are framed, scored, smoothed, and their ends straightened; orientation changes nothing."""

from __future__ import annotations

import time
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clseg.inference.bodypart import (
    frame,
    head_first,
    plausible,
    score_grid,
    score_scan,
    score_slices,
    settle,
    smooth,
    straighten_ends,
    to_ras,
    upside_down,
)
from clseg.network.bodypart import BodypartSpec, SliceScorer
from clseg.phantom import small_phantom
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume

SPEC = BodypartSpec(widths=(4,), size=16, spacing_mm=10.0, smooth_mm=0.0)
SLOPE = (0.0005, 0.002)


class Brightness(nn.Module):
    """Says the mean of a slice: 0 for air (-1) up to 1."""

    def __init__(self, spec: BodypartSpec = SPEC) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.mean(dim=(1, 2, 3)) + 1) / 2


def brighter_upwards(n: int = 12) -> torch.Tensor:
    """(8, 10, n): a block whose slices grow brighter towards the head."""
    hu = torch.full((8, 10, n), -1000.0)
    hu[2:6, 1:9] = torch.linspace(0, 1000, n)
    return hu


# ---- framing ------------------------------------------------------------------------------------------------------


def test_small_slices_lie_in_the_middle_of_air() -> None:
    """A 4 × 2 block at the network's own spacing keeps its voxels, in the middle of 16 × 16."""
    slices = frame(torch.full((4, 2, 3), 40.0), (10.0, 10.0, 5.0), SPEC)
    assert slices.shape == (3, 16, 16)
    assert (slices == 40).sum() == 4 * 2 * 3
    assert (slices[:, 6:10, 7:9] == 40).all()
    assert (slices != 40).sum() == (slices == -1000).sum()


def test_wide_slices_are_cut_around_the_middle() -> None:
    """Of 20 voxels the middle 16 are seen."""
    hu = torch.arange(20.0)[:, None, None].expand(20, 20, 1)
    assert torch.allclose(frame(hu, (10.0, 10.0, 5.0), SPEC)[0, :, 0], torch.arange(2.0, 18.0))


# ---- orientation --------------------------------------------------------------------------------------------------

CODES = ["".join(code) for order in permutations(("LR", "AP", "SI")) for code in product(*order)]


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_is_turned_as_nibabel_does(code: str) -> None:
    """`to_ras` agrees with `to_orientation` for all orders whose last axis is head-foot, and says None to the others."""
    array = np.arange(24.0).reshape(2, 3, 4)
    stored = to_orientation(Volume(array, np.diag([1.0, 2.0, 3.0, 1.0])), code)
    turned = to_ras(torch.from_numpy(np.ascontiguousarray(stored.array)), stored.spacing, code)
    if code[2] not in "SI":
        assert turned is None
        return
    hu, spacing = turned
    assert np.array_equal(hu.numpy(), array)
    assert spacing == (1.0, 2.0, 3.0)


def test_scores_belong_to_the_slices_of_the_grid() -> None:
    """A grid whose slices run downwards gets the same scores in reverse; one that is not axial gets none."""
    hu = brighter_upwards()
    up = score_grid(hu, (10.0, 10.0, 10.0), Brightness())
    assert (np.diff(up) > 0).all()
    down = score_grid(hu.flip(2), (10.0, 10.0, 10.0), Brightness(), "RAI")
    assert np.allclose(down, up[::-1])
    assert score_grid(hu.permute(2, 1, 0), (10.0, 10.0, 10.0), Brightness(), "SAR") is None


@pytest.mark.parametrize("code", ["LPS", "RAI", "SAL", "ASR"])
def test_how_a_scan_is_stored_does_not_matter(code: str) -> None:
    """The same scan in another orientation has the same scores, from the feet up."""
    ct, _ = small_phantom()
    expected, got = score_scan(ct, Brightness()), score_scan(to_orientation(ct, code), Brightness())
    assert np.allclose(got.values, expected.values, atol=1e-6)
    assert len(expected.values) == len(expected.raw) == ct.shape[2]
    assert np.allclose(expected.z_mm, np.arange(48) * 6.0)


def test_calibration_is_a_line() -> None:
    """gain 2 and offset 0.5 turn x into 2·x + 0.5."""
    slices = brighter_upwards().permute(2, 0, 1)
    line = BodypartSpec(widths=(4,), size=16, spacing_mm=10.0, smooth_mm=0.0, gain=2.0, offset=0.5)
    assert np.allclose(score_slices(slices, Brightness(line)), 2 * score_slices(slices, Brightness()) + 0.5)


@pytest.mark.parametrize("slices", [1, 2, 3, 5, 20])
def test_scans_of_few_slices_have_scores(slices: int) -> None:
    """One slice or a few: a finite score for each, on the scan's own grid."""
    ct, _ = small_phantom()
    few = Volume(ct.array[:, :, 20 : 20 + slices], ct.affine)
    scores = score_scan(few, Brightness(BodypartSpec(widths=(4,), size=16, spacing_mm=10.0, slope=SLOPE)))
    assert scores.values.shape == (slices,)
    assert np.isfinite(scores.values).all()


def test_thin_slices_are_not_scored_one_by_one() -> None:
    """Slices of 1 mm are averaged to 3 mm; every slice still has its own score, and a line stays a line."""
    n = 60
    array = np.full((8, 10, n), -1000, np.int16)
    array[1:7, 1:9] = np.linspace(0, 1000, n).astype(np.int16)
    calls = []
    scorer = Brightness()
    scorer.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    scores = score_scan(Volume(array, np.diag([10.0, 10.0, 1.0, 1.0])), scorer)
    assert sum(calls) == n / 3
    assert len(scores.values) == n
    assert (np.diff(scores.values) > 0).all()


# ---- smoothing and ends -------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.floats(-1, 1), st.floats(-0.1, 0.1), st.floats(0, 8))
def test_smoothing_keeps_a_line(n: int, start: float, step: float, sigma: float) -> None:
    """However few slices and however wide the Gaussian, a straight curve is left as it is."""
    line = start + step * np.arange(n)
    assert np.allclose(smooth(line, sigma), line, atol=1e-9)


def test_smoothing_weakens_a_stray_slice() -> None:
    """One slice that is off by 1 is off by 1 / (σ·√(2π)) afterwards."""
    values = np.zeros(41)
    values[20] = 1
    assert smooth(values, 3.0)[20] == pytest.approx(1 / (3 * np.sqrt(2 * np.pi)), rel=1e-3)


def test_an_end_that_falls_is_continued_in_a_line() -> None:
    """Arms above the head: what falls at the end is replaced by the slope of the rest, at both ends."""
    line = 0.001 * np.arange(100.0)
    bent = line.copy()
    bent[:5] = line[5] + 0.01 * np.arange(5, 0, -1)
    bent[-8:] = line[-9] - 0.01 * np.arange(1, 9)
    assert np.allclose(straighten_ends(bent, 1.0, SLOPE), line)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(-0.001 * np.arange(100.0), id="upside down"),
        pytest.param(np.r_[np.full(60, 0.3), 0.3 + 0.001 * np.arange(40.0)], id="more than a third"),
        pytest.param(np.zeros(30), id="flat"),
        pytest.param(np.array([0.5, 0.1]), id="two slices"),
    ],
)
def test_a_curve_that_is_mostly_implausible_is_left_alone(values: np.ndarray) -> None:
    """Where the rest is no better than the end, nobody knows what would be right."""
    assert np.array_equal(straighten_ends(values, 1.0, SLOPE), values)


def test_no_more_than_ten_centimetres_are_replaced() -> None:
    """Of an end of 120 mm in a scan of 900 mm nothing is replaced, of one of 90 mm all."""
    line = 0.001 * np.arange(900.0)
    for end, replaced in ((120, False), (90, True)):
        bent = line.copy()
        bent[-end:] = line[-end - 1]
        assert np.allclose(straighten_ends(bent, 1.0, SLOPE), line) == replaced


def test_a_dip_becomes_the_nearest_plausible_curve() -> None:
    """0, 2, 1, 3 a step apart, 0.5 to 2 a step: the dip is shared by both sides of it."""
    assert plausible(np.array([0.0, 2.0, 1.0, 3.0]), 1.0, (0.5, 2.0)) == pytest.approx([0.0, 1.25, 1.75, 3.0], abs=1e-6)


def test_one_stray_slice_moves_only_what_is_near_it() -> None:
    """Metal in the middle of a chest: 4.5 cm away from it the settled curve is where it was to 0.03 (26 mm)."""
    spec = BodypartSpec(widths=(4,), size=16, smooth_mm=10.0, slope=(0.0001, 0.0035))
    z = np.arange(0.0, 120.0, 3.0)
    line = 0.3 + z / 880
    stray = line.copy()
    stray[20] += 1.0
    settled = settle(stray, z, spec)
    assert np.abs(settled - line)[np.abs(z - z[20]) > 45].max() < 0.03
    assert head_first(settled) == pytest.approx(1)


def test_a_short_scan_from_head_to_feet_keeps_falling() -> None:
    """Scores that fall cleanly over 17 cm are no noise: they stay, so that organs are looked for where they are."""
    spec = BodypartSpec(widths=(4,), size=16, slope=SLOPE)
    z = np.arange(0.0, 171.0, 3.0)
    falling = 0.6 - z / 880
    assert np.allclose(settle(falling, z, spec), falling, atol=1e-3)


def test_a_long_scan_against_its_header_is_still_noticed_when_its_scores_are_noisy() -> None:
    """Over 60 cm a correlation of about -0.7 is enough: the settled scores fall, and the warning comes."""
    spec = BodypartSpec(widths=(4,), size=16, slope=SLOPE)
    z = np.arange(0.0, 600.0, 3.0)
    noisy = 0.9 - z / 880 + 0.3 * np.sin(z / 25)
    assert -0.9 < head_first(noisy) < -0.5
    assert upside_down(settle(noisy, z, spec))


def test_a_plausible_curve_is_left_as_it_is() -> None:
    """Rising within the range everywhere, also where the range has no upper end."""
    line = 0.001 * np.arange(100.0) + 0.0002 * np.sin(np.arange(100.0))
    assert np.allclose(plausible(line, 1.0, SLOPE), line, atol=1e-12)
    assert np.allclose(plausible(line, 1.0, (0.0, np.inf)), line, atol=1e-12)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=40), st.floats(0.5, 10))
def test_a_plausible_curve_rises_as_fast_as_bodies_do(values: list[float], step: float) -> None:
    """Every slope lies in the range, and doing it twice changes nothing more."""
    out = plausible(np.array(values), step, SLOPE)
    slopes = np.diff(out) / step
    assert (slopes >= SLOPE[0] - 1e-9).all()
    assert (slopes <= SLOPE[1] + 1e-9).all()
    assert np.allclose(plausible(out, step, SLOPE), out, atol=1e-6)


def test_settled_scores_rise_unless_the_scan_is_upside_down() -> None:
    """A wavy scan of 60 cm comes out in order; one from head to feet still falls, so that it can be noticed."""
    spec = BodypartSpec(widths=(4,), size=16, slope=SLOPE)
    z = np.arange(0.0, 600.0, 3.0)
    wavy = 0.2 + z / 1000 + 0.05 * np.sin(z / 20)
    assert head_first(wavy) < 0.99
    assert head_first(settle(wavy, z, spec)) == pytest.approx(1)
    assert upside_down(settle(wavy[::-1].copy(), z, spec))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=25), st.floats(0.5, 10))
def test_settled_scores_are_finite_and_as_many(raw: list[float], step: float) -> None:
    """Any scores of 1 to 25 slices can be settled."""
    spec = BodypartSpec(widths=(4,), size=16, slope=SLOPE)
    values = settle(np.array(raw), np.arange(len(raw)) * step, spec)
    assert values.shape == (len(raw),)
    assert np.isfinite(values).all()


def test_direction_tells_a_header_that_lies() -> None:
    """1 for scores that rise, −1 for scores that fall, 0 where nothing is known."""
    rising = np.array([0.1, 0.2, 0.25, 0.4])
    assert head_first(rising) == pytest.approx(1)
    assert head_first(rising[::-1]) == pytest.approx(-1)
    assert head_first(rising[:2]) == head_first(np.ones(5)) == head_first(np.array([])) == 0


@pytest.mark.slow
def test_three_hundred_slices_take_less_than_two_seconds() -> None:
    """The starter's network on a scan of 420 × 420 × 900 mm, resampling included."""
    hu = torch.rand(140, 140, 300) * 100
    scorer = SliceScorer(BodypartSpec()).eval()
    score_grid(hu[..., :8], (3.0, 3.0, 3.0), scorer)
    began = time.perf_counter()
    score_grid(hu, (3.0, 3.0, 3.0), scorer)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("scores", "expected"),
    [(np.linspace(0.9, 0.4, 50), True), (np.linspace(0.4, 0.9, 50), False), (np.linspace(0.5, 0.4, 50), False), (np.array([0.9, 0.4]), False)],
    ids=["head to feet", "feet to head", "too short to say", "two slices"],
)
def test_a_body_against_its_header_is_noticed(scores: np.ndarray, expected: bool) -> None:
    """Scores that fall over half a body mean an upside-down header; over a few centimetres they mean nothing."""
    assert upside_down(scores) is expected
