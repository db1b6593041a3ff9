"""Curves: a line or point plot as PNG, for losses over iterations, Dice over pruning rate and the like.

    plot_curves("loss.png", [Curve("lungs", iterations, losses)], "iteration", "loss")

The font that comes with Pillow writes Latin letters and digits only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from clseg.errors import InputError
from clseg.io.files import writing

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

STYLES = ("line", "points", "joined", "hollow", "dashed")  # joined: points on a line; hollow: rings
SIZE_PX = (900, 560)
MARGIN_PX = (72, 20, 34, 58)  # left, right, top, bottom
FINE = 3  # drawn this much larger, then made smaller: smooth lines
LINE_PX, MARK_PX, TICK_PX, FONT_PX, LEGEND_PX = 2.0, 4.5, 5, 13, 19
TICKS = 6  # about so many on an axis
BACKGROUND, INK, FAINT = (255, 255, 255), (40, 40, 40), (225, 225, 225)
# Okabe & Ito: told apart by colour-blind eyes too
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 120, 120), (0, 0, 0),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in the order in which they are joined; one that is not a number is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    colour: Colour | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise InputError(f"Curve '{self.name}' has {len(self.x)} x and {len(self.y)} y, expected as many of each.")
        if self.style not in STYLES:
            raise InputError(f"The style of a curve is one of {', '.join(STYLES)}, given '{self.style}' for '{self.name}'.")

    @property
    def pieces(self) -> list[list[Point]]:
        """The points between the gaps."""
        pieces: list[list[Point]] = [[]]
        for x, y in zip(self.x, self.y, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                pieces[-1].append((float(x), float(y)))
            elif pieces[-1]:
                pieces.append([])
        return [piece for piece in pieces if piece]


def curves(series: Sequence[Curve], x_label: str, y_label: str, *, title: str = "") -> Image:
    """The plot as an RGB picture: axes that hold every point, round ticks, a legend of the names that are not empty.

    Raises InputError when there is not a single point.
    """
    from PIL import Image, ImageDraw

    points = [point for curve in series for piece in curve.pieces for point in piece]
    if not points:
        raise InputError(f"There is nothing to plot as '{y_label}' over '{x_label}': no curve has a point.")
    frame = _Frame(_Axis.over([x for x, _ in points]), _Axis.over([y for _, y in points]))
    picture = Image.new("RGB", tuple(n * FINE for n in SIZE_PX), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    frame.draw(draw, x_label, title)
    colours = [curve.colour or COLOURS[i % len(COLOURS)] for i, curve in enumerate(series)]
    for curve, colour in zip(series, colours, strict=True):
        _draw_curve(draw, frame, curve, colour)
    entries = [(curve, colour) for curve, colour in zip(series, colours, strict=True) if curve.name]
    if entries:
        _draw_legend(draw, entries, _legend_box(frame, entries, points))
    _draw_upwards(picture, y_label)
    return picture.resize(SIZE_PX, Image.Resampling.LANCZOS)


def plot_curves(path: str | os.PathLike[str], series: Sequence[Curve], x_label: str, y_label: str, *, title: str = "") -> None:
    """Write the picture of `curves` as a PNG file, whole or not at all; the same points give the same bytes.

    Raises OutputError when it cannot be written, and what `curves` raises.
    """
    picture = curves(series, x_label, y_label, title=title)
    with writing(path) as file:
        picture.save(file, format="PNG", optimize=True)


# --- axes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """From `low` to `high`, with a tick every `step`."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float]) -> _Axis:
        """An axis from tick to tick that holds all values."""
        low, high = min(values), max(values)
        if high - low <= 1e-12 * max(abs(low), abs(high)):  # a single value stands in the middle
            room = abs(low) / 2 or 1.0
            low, high = low - room, high + room
        step = round_step((high - low) / TICKS)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    @property
    def ticks(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def text(self, tick: float) -> str:
        """A tick in as many digits as the step needs."""
        if self.step >= 1e5 or self.step < 1e-4:
            return f"{tick if abs(tick) > self.step / 2 else 0:.3g}"
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return f"{round(tick, digits) + 0.0:.{digits}f}"

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class _Frame:
    """The rectangle between the margins, in fine pixels."""

    x: _Axis
    y: _Axis

    @property
    def box(self) -> Box:
        left, right, top, bottom = (n * FINE for n in MARGIN_PX)
        return left, top, SIZE_PX[0] * FINE - right, SIZE_PX[1] * FINE - bottom

    def place(self, point: Point) -> Point:
        left, top, right, bottom = self.box
        return left + self.x.share(point[0]) * (right - left), bottom - self.y.share(point[1]) * (bottom - top)

    def draw(self, draw: ImageDraw, x_label: str, title: str) -> None:
        left, top, right, bottom = self.box
        font, gap = _font(), TICK_PX * FINE
        for tick in self.x.ticks:
            at = self.place((tick, self.y.low))[0]
            draw.line((at, top, at, bottom), fill=FAINT, width=FINE)
            draw.text((at, bottom + gap), self.x.text(tick), fill=INK, anchor="mt", font=font)
        for tick in self.y.ticks:
            at = self.place((self.x.low, tick))[1]
            draw.line((left, at, right, at), fill=FAINT, width=FINE)
            draw.text((left - gap, at), self.y.text(tick), fill=INK, anchor="rm", font=font)
        draw.rectangle(self.box, outline=INK, width=FINE)
        draw.text(((left + right) / 2, (SIZE_PX[1] - 10) * FINE), x_label, fill=INK, anchor="mb", font=font)
        draw.text((left, (MARGIN_PX[2] - 10) * FINE), title, fill=INK, anchor="lb", font=font)


# --- curves --------------------------------------------------------------------------------------------------------


def _draw_curve(draw: ImageDraw, frame: _Frame, curve: Curve, colour: Colour) -> None:
    for piece in curve.pieces:
        places = [frame.place(point) for point in piece]
        if curve.style == "dashed":
            _draw_dashes(draw, places, colour)
        elif curve.style in ("line", "joined"):
            draw.line(places, fill=colour, width=round(LINE_PX * FINE), joint="curve")
        lonely = curve.style == "line" and len(places) == 1
        for place in places if lonely or curve.style in ("points", "joined", "hollow") else ():
            _draw_mark(draw, place, colour, hollow=curve.style == "hollow")


def _draw_mark(draw: ImageDraw, place: Point, colour: Colour, *, hollow: bool) -> None:
    (x, y), r = place, MARK_PX * FINE
    draw.ellipse((x - r, y - r, x + r, y + r), fill=BACKGROUND if hollow else colour, outline=colour, width=round(1.5 * FINE))


def _draw_dashes(draw: ImageDraw, places: Sequence[Point], colour: Colour) -> None:
    """Dashes of 8 pixels, 5 between them, anew from every point."""
    on, off = 8 * FINE, 5 * FINE
    for (x0, y0), (x1, y1) in pairwise(places):
        length = math.hypot(x1 - x0, y1 - y0)
        for number in range(math.ceil(length / (on + off))):
            a, b = number * (on + off) / length, min(1.0, (number * (on + off) + on) / length)
            ends = (x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0))
            draw.line(ends, fill=colour, width=round(LINE_PX * FINE))


def _legend_box(frame: _Frame, entries: Sequence[tuple[Curve, Colour]], points: Sequence[Point]) -> Box:
    """The corner of the frame where the legend hides fewest points; top right where it makes no difference."""
    width = max(_font().getlength(curve.name) for curve, _ in entries) + 44 * FINE
    height, gap = (len(entries) * LEGEND_PX + 4) * FINE, 6 * FINE
    left, top, right, bottom = frame.box
    corners = [(x, y, x + width, y + height) for x in (right - gap - width, left + gap) for y in (top + gap, bottom - gap - height)]
    places = [frame.place(point) for point in points]
    near = 3 * MARK_PX * FINE
    return min(corners, key=lambda c: sum(c[0] - near <= x <= c[2] + near and c[1] - near <= y <= c[3] + near for x, y in places))


def _draw_legend(draw: ImageDraw, entries: Sequence[tuple[Curve, Colour]], box: Box) -> None:
    draw.rectangle(box, fill=BACKGROUND, outline=FAINT, width=FINE)
    left = box[0] + 6 * FINE
    for number, (curve, colour) in enumerate(entries):
        middle = box[1] + (2 + (number + 0.5) * LEGEND_PX) * FINE
        if curve.style == "dashed":
            _draw_dashes(draw, [(left, middle), (left + 26 * FINE, middle)], colour)
        elif curve.style in ("line", "joined"):
            draw.line((left, middle, left + 26 * FINE, middle), fill=colour, width=round(LINE_PX * FINE))
        if curve.style in ("points", "joined", "hollow"):
            _draw_mark(draw, (left + 13 * FINE, middle), colour, hollow=curve.style == "hollow")
        draw.text((left + 34 * FINE, middle), curve.name, fill=INK, anchor="lm", font=_font())


def _draw_upwards(picture: Image, text: str) -> None:
    """The y label, read from below."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = ImageDraw.Draw(picture).textbbox((0, 0), text, font=_font())
    strip = Image.new("RGB", (max(1, round(right - left)), max(1, round(bottom - top))), BACKGROUND)
    ImageDraw.Draw(strip).text((-left, -top), text, fill=INK, font=_font())
    strip = strip.rotate(90, expand=True)
    middle = (MARGIN_PX[2] + SIZE_PX[1] - MARGIN_PX[3]) * FINE // 2
    picture.paste(strip, (10 * FINE, middle - strip.height // 2))


def _font() -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(FONT_PX * FINE)
