"""Facts about plots: every point lies where the axes say, and the file is the same twice."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clseg.errors import InputError, OutputError
from clseg.report.curves import MARGIN_PX, SIZE_PX, Curve, _Axis, _Frame, curves, plot_curves, round_step

RED, BLUE = (255, 0, 0), (0, 0, 255)
LEFT, TOP = MARGIN_PX[0], MARGIN_PX[2]
WIDTH, HEIGHT = SIZE_PX[0] - MARGIN_PX[0] - MARGIN_PX[1], SIZE_PX[1] - MARGIN_PX[2] - MARGIN_PX[3]


def where(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels of nearly that colour as (row, column)."""
    far = np.abs(np.asarray(picture).astype(int) - colour).sum(axis=-1)
    return np.argwhere(far < 120)


def test_a_point_lies_where_the_axes_say() -> None:
    """On axes from 0 to 10 and 0 to 1 the point (2, 0.75) is a fifth from the left and a quarter from the top."""
    corners = Curve("", (0, 10), (0, 1), "points", BLUE)
    picture = curves([corners, Curve("", (2,), (0.75,), "points", RED)], "x", "y")
    row, column = where(picture, RED).mean(axis=0)
    assert (column, row) == pytest.approx((LEFT + WIDTH / 5, TOP + HEIGHT / 4), abs=1.5)


def test_a_line_goes_from_point_to_point() -> None:
    """From corner to corner: in each column of the frame the line is on the diagonal."""
    picture = curves([Curve("", (0, 10), (0, 1), "line", RED)], "x", "y")
    pixels = where(picture, RED)
    assert len(set(pixels[:, 1])) > 0.98 * WIDTH
    diagonal = TOP + HEIGHT * (1 - (pixels[:, 1] - LEFT) / WIDTH)
    assert np.abs(pixels[:, 0] - diagonal).max() < 4


def test_what_is_not_a_number_is_a_gap() -> None:
    """Nothing is drawn between 4 and 6 where the middle point is missing; a point alone between gaps is a dot."""
    x = (0, 4, 5, 6, 8, 9, 10)
    picture = curves([Curve("", x, (0, 0, math.nan, 1, math.inf, 0.5, math.nan), "line", RED)], "x", "y")
    pixels = where(picture, RED)
    shares = (pixels[:, 1] - LEFT) / WIDTH
    assert not ((shares > 0.42) & (shares < 0.58)).any()
    lonely = pixels[np.abs(shares - 0.9) < 0.02]
    assert lonely.mean(axis=0) == pytest.approx((TOP + HEIGHT / 2, LEFT + 0.9 * WIDTH), abs=1.5)


def test_rings_are_hollow_and_dashes_have_gaps() -> None:
    """The middle of a ring is white; a dashed line covers 8 pixels of 13."""
    corners = Curve("", (0, 10), (0, 1), "points", BLUE)
    ring = curves([corners, Curve("", (5,), (0.5,), "hollow", RED)], "x", "y")
    row, column = (round(value) for value in where(ring, RED).mean(axis=0))
    assert np.asarray(ring)[row, column].tolist() == [255, 255, 255]
    dashed = curves([corners, Curve("", (0, 10), (0.5, 0.5), "dashed", RED)], "x", "y")
    assert len(set(where(dashed, RED)[:, 1])) / WIDTH == pytest.approx(8 / 13, abs=0.06)


def test_the_legend_hides_no_point_where_a_corner_is_free() -> None:
    """With points in three corners the legend stands in the fourth, and its swatch has the curve's colour."""
    x, y = (0, 0, 10), (0, 1, 1)
    picture = curves([Curve("three corners", x, y, "points", RED)], "x", "y")
    pixels = where(picture, RED)
    right_below = pixels[(pixels[:, 1] > LEFT + 0.7 * WIDTH) & (pixels[:, 0] > TOP + 0.7 * HEIGHT)]
    assert len(right_below) > 30


@given(st.floats(1e-12, 1e12))
def test_ticks_are_round(rough: float) -> None:
    """The step is 1, 2 or 5 times a power of ten, at least as large as asked for, less than two and a half times."""
    step = round_step(rough)
    assert rough * (1 - 1e-6) <= step < 2.5 * rough * (1 + 1e-6)
    assert f"{step:e}"[0] in "125"


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_an_axis_holds_every_value(values: list[float]) -> None:
    """All values lie within; there are between two and nine ticks, the last at the end."""
    axis = _Axis.over(values)
    assert all(-1e-6 <= axis.share(value) <= 1 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 9
    assert axis.ticks[-1] == pytest.approx(axis.high, rel=1e-9, abs=1e-9 * axis.step)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [(0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]), (-10, 30, ["-10", "0", "10", "20", "30"]), (0.9, 0.91, ["0.900", "0.902", "0.904", "0.906", "0.908", "0.910"])],
)
def test_ticks_have_as_many_digits_as_they_need(low: float, high: float, texts: list[str]) -> None:
    """Tenths, whole numbers and thousandths, without a negative zero."""
    axis = _Axis.over([low, high])
    assert [axis.text(tick) for tick in axis.ticks] == texts


def test_a_single_value_stands_in_the_middle() -> None:
    """One point, or a constant, has room on both sides; zero too."""
    for value in (0.0, -3.0, 0.75):
        axis = _Axis.over([value, value])
        assert axis.low < value < axis.high
    assert _Frame(_Axis.over([1.0]), _Axis.over([1.0])).box[0] == 3 * LEFT


def test_the_same_plot_has_the_same_bytes(tmp_path: Path) -> None:
    """Written twice the files are equal, hold the picture, and nothing else is in the folder."""
    series = [Curve("lungs", range(5), (5, 4, 3, 2, 1)), Curve("body", range(5), (1, 2, 1, 2, 1), "joined")]
    for name in ("a.png", "b.png"):
        plot_curves(tmp_path / name, series, "iteration", "loss", title="both")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(curves(series, "iteration", "loss", title="both")))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_plotted_is_refused(tmp_path: Path) -> None:
    """No point at all, x and y of different length, an unknown style, a folder that is not there."""
    with pytest.raises(InputError, match="nothing to plot"):
        curves([Curve("", (1.0,), (math.nan,))], "x", "y")
    with pytest.raises(InputError, match="2 x and 1 y"):
        Curve("lungs", (1, 2), (1,))
    with pytest.raises(InputError, match="style"):
        Curve("lungs", (1,), (1,), "wavy")
    with pytest.raises(OutputError):
        plot_curves(tmp_path / "missing" / "x.png", [Curve("", (1,), (1,))], "x", "y")
