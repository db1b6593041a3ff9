"""The outline of the patient, and what lies between skin and cavity."""

from __future__ import annotations

import numpy as np

from clseg.phantom.canvas import Canvas
from clseg.phantom.scene import HU, shapes_of, strokes_of, table
from clseg.phantom.shapes import Shape, barrel, profile

TRUNK_POWER = 2.35  # of the rounded rectangle that its cross-section is


def outline(canvas: Canvas) -> None:
    """Trunk, neck, head and shoulders, joined smoothly; arms leave the field of view."""
    scene = table("outline.toml")
    _join(canvas, barrel(scene["trunk"], TRUNK_POWER), 0)
    for side, entry in strokes_of(scene["joined"]):
        form = {key: value for key, value in entry.items() if key != "softness_mm"}
        for shape in shapes_of(form, side):
            _join(canvas, shape, entry["softness_mm"])


def trunk(canvas: Canvas) -> None:
    """Skin, fat under it, and muscle with thin sheets of fat in the rest."""
    x, y, z = canvas.axes
    depth = -canvas.body
    groove = 7 * np.exp(-((x / 13) ** 2)) * (y < 40) * ((z < 200) & (z > -260))  # over the spine
    canvas.body += groove.astype(np.float32)
    (fat,) = profile(table("outline.toml")["fat_mm"])(z)
    sheets = np.exp(-((canvas.texture((15, 13, 40)) / 0.13) ** 2))
    muscle = HU["muscle"] - 75 * sheets
    under = np.clip((depth - fat - 2.5) / 3 + 0.5, 0, 1)  # 0 in the fat, 1 in the muscle
    tissue = (HU["fat"] + 8 * canvas.texture((12, 12, 12))) * (1 - under) + muscle * under
    skin = np.clip((3.6 - depth) / 2.5, 0, 1)
    canvas.fill(canvas.body, tissue + skin * (HU["skin"] - tissue))


def _join(canvas: Canvas, shape: Shape, softness_mm: float) -> None:
    """Add a shape to the body, its edge with what is there already rounded off."""
    around = shape.grown(softness_mm + 12)
    box = canvas.box(around.low, around.high)
    if box is None:
        return
    new, old = shape.distance(*canvas.within(box)), canvas.body[box]
    near = np.clip(1 - np.abs(new - old) / max(softness_mm, 1e-3), 0, 1)
    canvas.body[box] = np.minimum(new, old) - near**2 * np.float32(softness_mm / 4)
