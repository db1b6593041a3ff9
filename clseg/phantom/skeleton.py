"""The skeleton below the skull: spine, ribcage, shoulders and pelvis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from clseg.phantom.canvas import Canvas
from clseg.phantom.limits import CAVITY_POWER, canal_y, vertebrae
from clseg.phantom.scene import HU, SIDES, bone, draw, rows, table
from clseg.phantom.shapes import Point, block, mirror, profile, tube

Vertebra = Mapping[str, float]  # a row of vertebrae.csv


def spine(canvas: Canvas) -> None:
    """Vertebrae with arches, discs, canal and cord."""
    column = list(vertebrae().values())
    discs = tube([(0.0, v["y"], v["z"]) for v in column], [v["half_width"] - 2 for v in column], (1, 0.8, 1))
    canvas.paint(discs, HU["disc"], "")
    for vertebra in column:
        _vertebra(canvas, vertebra)
    draw(canvas, table("skeleton.toml")["top_of_the_spine"])
    _canal(canvas)


def ribcage(canvas: Canvas) -> None:
    """Twelve ribs a side running round the chest and down to the front, their cartilage, and the sternum."""
    wall = profile(table("outline.toml")["cavity"])
    for rib in rows("ribs.csv"):
        line = _rib_line(wall, rib)
        for side in SIDES.values():
            bone(canvas, tube(mirror(line, side), 4.8, (0.85, 0.85, 1.25)), core=260)
            _cartilage(canvas, rib, line[-1], side)
    for upper, lower in itertools.pairwise(table("skeleton.toml")["sternum"]):
        bone(canvas, tube([upper[:3], lower[:3]], (upper[3], lower[3]), (1, 0.33, 0.5)), core=190)


def shoulders(canvas: Canvas) -> None:
    """Clavicles, scapulae and the upper ends of the arms."""
    draw(canvas, table("skeleton.toml")["shoulders"])


def pelvis(canvas: Canvas) -> None:
    """Upper sacrum and the wings of the ilium."""
    draw(canvas, table("skeleton.toml")["pelvis"])


def _vertebra(canvas: Canvas, v: Vertebra) -> None:
    """Body, spinous process, and on both sides arch, joint and transverse process."""
    z, y, canal = v["z"], v["y"], v["y"] - v["half_depth"] - 9.5
    root = (0, canal - 10, z - 0.25 * v["height"])
    tip = (0, root[1] - v["spinous_length"] + 14, root[2] - v["spinous_drop"])
    body = block((0, y, z), v["half_width"], v["half_depth"], v["height"] - 4)
    bone(canvas, [body], rim=400, core=HU["marrow"] - 40)
    bone(canvas, tube([root, tip], (5, 4), (0.75, 1, 1.5)))
    pedicle = (0.62 * v["half_width"], y - 0.6 * v["half_depth"], z + 0.15 * v["height"])
    arch = [pedicle, (12, canal + 1, z), (10, canal - 7, z - 0.1 * v["height"]), root]
    joint = [(13, canal - 2, z + 0.52 * v["height"]), (14, canal - 4, z - 0.62 * v["height"])]
    transverse = [(12, canal, z), (v["transverse_reach"], canal - 6, z + 2)]
    for side in SIDES.values():
        bone(canvas, tube(mirror(arch, side), (4.5, 4.5, 4, 4), (0.9, 0.9, 1.3)), core=330)
        bone(canvas, tube(mirror(joint, side), 4.6), core=420)
        bone(canvas, tube(mirror(transverse, side), (4.6, 3.6)), core=300)


def _canal(canvas: Canvas) -> None:
    """The spinal canal with the cord, and the cauda equina below it."""
    canal = [(0.0, canal_y(z), z) for z in np.arange(-290.0, 268.0, 9.0)]
    canvas.paint(tube(canal, 8.2, (1.15, 0.95, 1)), HU["csf"], "")
    cord = [p for p in canal if p[2] > -146]
    thickness = np.interp([p[2] for p in cord], (-146, -100, 120, 190, 262), (2.5, 5, 5, 6, 6))
    canvas.paint(tube(cord, thickness, (1.2, 0.95, 1)), HU["brain"], "spinal_cord")
    canvas.paint(tube([p for p in canal if p[2] < -136], 5), HU["fluid"] + 12)


def _rib_line(wall: Callable[[np.ndarray], np.ndarray], rib: Mapping[str, str]) -> list[Point]:
    """From the vertebra round the inside of the chest wall, on the right side."""
    vertebra, drop, end = vertebrae()[rib["vertebra"]], float(rib["front_drop"]), float(rib["front_angle_deg"])
    z0, y0 = vertebra["z"] + 5, vertebra["y"]
    points = [(16.0, y0 - 9, z0), (0.8 * vertebra["transverse_reach"] + 4, y0 - vertebra["half_depth"] - 14, z0 - 2)]
    for angle in np.linspace(27, end, 18):
        z = z0 - 4 - drop * ((angle - 27) / (end - 27)) ** 0.9
        width, front, back = (float(v) for v in wall(np.array(z)))
        points.append((*_on_the_wall(angle, width + 6, (front + back) / 2, (front - back) / 2 + 6), z))
    return points


def _on_the_wall(angle: float, half_width: float, middle: float, half_depth: float) -> tuple[float, float]:
    """x and y on a rounded rectangle, `angle` degrees from its back."""
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    x = half_width * sine ** (2 / CAVITY_POWER)
    return x, middle - half_depth * np.sign(cosine) * abs(cosine) ** (2 / CAVITY_POWER)


def _cartilage(canvas: Canvas, rib: Mapping[str, str], front: Point, side: float) -> None:
    """From the front end of a rib to the sternum or to the costal margin; floating ribs have none."""
    if not rib["cartilage_x"]:
        return
    end = (float(rib["cartilage_x"]), float(rib["cartilage_y"]), float(rib["cartilage_z"]))
    line, radius = ([front, _hanging(front, end), end], 5) if rib["reaches"] == "sternum" else ([front, end], 4.5)
    canvas.paint(tube(mirror(line, side), radius), HU["cartilage"])


def _hanging(a: Point, b: Point) -> Point:
    """A point between two, nearer to the second in depth and lower in height: cartilage hangs."""
    return ((a[0] + b[0]) / 2, max(a[1], b[1]) - 2, (2 * a[2] + b[2]) / 3 - 4)
