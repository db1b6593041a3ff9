"""The neck: fat between the muscles, vessels, hyoid, larynx, thyroid, trachea and oesophagus."""

from __future__ import annotations

import numpy as np

from clseg.phantom.canvas import Canvas
from clseg.phantom.scene import HU, Entry, draw, table
from clseg.phantom.shapes import ellipsoid, tube


def neck(canvas: Canvas) -> None:
    """Everything between head and chest, and the airway and gullet down to their ends."""
    scene = table("neck.toml")
    draw(canvas, [*scene["soft"], *scene["larynx"]])
    _cricoid(canvas, scene["cricoid"])
    draw(canvas, scene["glottis"])
    _airway(canvas)
    draw(canvas, scene["gullet"])


def _cricoid(canvas: Canvas, ring: Entry) -> None:
    """A ring of beads."""
    x, y, z = ring["centre"]
    for angle in np.radians(np.arange(0, 360, ring["step_deg"])):
        bead = (x + ring["half_width"] * np.sin(angle), y + ring["half_depth"] * np.cos(angle), z)
        canvas.paint(ellipsoid(bead, ring["radii"]), ring["hu"])


def _airway(canvas: Canvas) -> None:
    """All walls, then all the air in them, so that no wall stands in a bifurcation."""
    scene = table("neck.toml")
    for line in scene["airway"]:
        canvas.paint(tube(line["tube"], np.add(line["radius"], scene["airway_wall_mm"])), HU["muscle"], "")
    for line in scene["airway"]:
        canvas.paint(tube(line["tube"], line["radius"]), HU["air"] + 5, "trachea")
