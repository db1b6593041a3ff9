"""The abdomen: muscles, bowel, stomach, liver, spleen, pancreas and kidneys."""

from __future__ import annotations

import numpy as np

from clseg.phantom.canvas import Canvas
from clseg.phantom.limits import below_the_diaphragm, cavity
from clseg.phantom.scene import HU, draw, table
from clseg.phantom.shapes import Distance, plane, tube


def abdomen(canvas: Canvas) -> None:
    """Everything between diaphragm and pelvis; what is painted later covers what was there."""
    scene, inside = table("abdomen.toml"), cavity().grown(-3).distance
    limits = {"cavity": inside, "below_the_diaphragm": below_the_diaphragm}
    draw(canvas, scene["muscles"])
    _colon(canvas, inside)
    for _ in range(scene["coils"]["count"]):
        _coil(canvas, inside)
    _stomach(canvas)
    draw(canvas, [*scene["liver"], *scene["upper_left"], *scene["kidneys"]], limits=limits)


def _colon(canvas: Canvas, inside: Distance) -> None:
    """Round the abdomen, with stool and gas."""
    scene = table("abdomen.toml")
    lumps = canvas.texture(scene["stool_texture_mm"])
    stool = np.where(lumps > 0.75, np.float32(HU["air"] + 150), 10 + 30 * lumps)
    for part in scene["colon"]:
        wall = [one.within(inside) for one in tube(part["tube"], part["radius"])]
        canvas.paint(wall, HU["bowel"], "")
        canvas.paint([one.grown(-scene["colon_wall_mm"]) for one in wall], stool)


def _coil(canvas: Canvas, inside: Distance) -> None:
    """A short bent piece of small bowel at a random place; one in five holds gas."""
    random, habit = canvas.random, table("abdomen.toml")["coils"]
    start = random.uniform(*habit["start"])
    line = [start, *(start + np.cumsum(random.normal(0, 1, (3, 3)) * habit["step"], axis=0))]
    radius = random.uniform(*habit["radius"])
    canvas.paint([one.within(inside) for one in tube(line, radius)], HU["bowel"] + 20)
    filling = HU["air"] + 100 if random.random() < habit["share_with_gas"] else HU["fluid"]
    canvas.paint([one.within(inside) for one in tube(line, radius - habit["wall_mm"])], filling)


def _stomach(canvas: Canvas) -> None:
    """Wall, fluid, and gas in front of it."""
    place = table("abdomen.toml")["stomach"]
    outside = tube(place["tube"], place["radius"])
    inside = [one.grown(-place["wall_mm"]).within(below_the_diaphragm) for one in outside]
    canvas.paint([one.within(below_the_diaphragm) for one in outside], HU["bowel"], "")
    canvas.paint(inside, HU["fluid"])
    canvas.paint([one.within(plane(*place["gas_above"])) for one in inside], HU["air"])
