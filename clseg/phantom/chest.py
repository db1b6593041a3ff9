"""The chest: lungs with their vessels, heart and great vessels."""

from __future__ import annotations

import numpy as np

from clseg.phantom.canvas import Canvas
from clseg.phantom.limits import above_the_diaphragm, behind_the_spine, beside_the_heart, cavity
from clseg.phantom.scene import HU, SIDES, draw, table
from clseg.phantom.shapes import Shape, tube


def lungs(canvas: Canvas) -> None:
    """The space inside ribs and abdominal wall, filled with fat, and in it the lungs with their vessels."""
    inside = cavity()
    canvas.paint(inside.grown(2), HU["fat"])
    canvas.paint(inside.grown(2).within(behind_the_spine), HU["muscle"])
    texture = canvas.texture(table("chest.toml")["lung_texture_mm"])
    air = HU["lung"] + 22 * texture - np.float32(0.45) * (canvas.axes[1] - 40)  # denser at the back
    for side in SIDES:
        lung = f"lung_{side}"
        canvas.paint(inside.within(beside_the_heart(side), above_the_diaphragm), air, lung)
        canvas.paint(_vessel_tree(canvas.random, side), HU["blood"] - 40, only=lung)


def mediastinum(canvas: Canvas) -> None:
    """Heart with four chambers in its fat, aorta, cavae and pulmonary arteries."""
    draw(canvas, table("chest.toml")["mediastinum"])


def _vessel_tree(random: np.random.Generator, side: str) -> list[Shape]:
    """Branches from the hilum into the lung, each thinner and shorter than its parent."""
    tree, mirrored, shapes = table("chest.toml")["vessel_tree"], np.array([SIDES[side], 1, 1]), []
    hilum = mirrored * tree["hilum"]
    buds = [(hilum, mirrored * way, tree["radius_mm"], tree["length_mm"]) for way in tree["directions"]]
    while buds:
        start, direction, radius, length = buds.pop()
        direction = direction / np.linalg.norm(direction)
        end = start + direction * length
        shapes += tube([start, end], (radius, radius * 0.7))
        if radius > 1.2:
            turned = [direction + random.normal(0, 0.55, 3) for _ in range(2)]
            buds += [(end, way, radius * 0.73, length * 0.78) for way in turned]
    return shapes
