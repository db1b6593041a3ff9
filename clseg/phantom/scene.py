"""Scene: the tables beside this file, and how their entries become shapes and paint.

A part of the body is a list of groups.  A group's `strokes` are painted in their
order; with `sides = ["right", "left"]` all of them are painted on the right and then,
mirrored, on the left (they are written with positive x, the patient's right).
A stroke is a shape with its paint, or paint and several `shapes`:

    ellipsoid = [[x, y, z], …]  one at every centre; radii = [x, y, z]; turn = degrees about x, y, z
    tube = [[x, y, z], …]       along the points; radius = one for all or one per point, or taper = [first, last];
                                squash = what multiplies the radius along x, y, z
    plate = [a, b, c]           a triangle; thickness
    block = [[x, y, z]]         an upright elliptic cylinder; half_width (x), half_depth (y), height (z)
    grown                       moves the surface outwards
    behind = [normal, point]    only what lies behind that plane
    within = ["cavity"]         only what lies inside surfaces that the code names

    hu      a number, a tissue of phantom.toml, a tissue and a difference ("muscle + 5"), or a texture of the code
    core    the same for what lies deeper than the cortex of a bone
    mask    the mask that gets the voxels ({side} is filled in); "" takes them out of every mask;
            without it every mask stays as it is
    only    the mask outside of which nothing is painted

Lengths are in mm.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from clseg.phantom.canvas import Canvas
from clseg.phantom.shapes import Distance, Shape, block, ellipsoid, mirror, plane, plate, tube

Entry = Mapping[str, Any]
Tone = float | np.ndarray

SIDES = {"right": 1.0, "left": -1.0}  # x is positive on the patient's right
PAINT = ("hu", "core", "mask", "only")


@lru_cache
def table(name: str) -> dict[str, Any]:
    """A TOML file of this folder; not to be changed."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    return tomllib.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of this folder."""
    return list(csv.DictReader(files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()))


HU: dict[str, float] = table("phantom.toml")["hu"]


def draw(
    canvas: Canvas,
    groups: Iterable[Entry],
    *,
    limits: Mapping[str, Distance] | None = None,
    textures: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Paint the strokes of all groups; `limits` and `textures` are what the code calls by name in them."""
    for side, stroke in strokes_of(groups):
        shape = {key: value for key, value in stroke.items() if key not in PAINT}
        paint = {key: value for key, value in stroke.items() if key in PAINT}
        shapes = [one for each in shape.get("shapes", [shape]) for one in shapes_of(each, side, limits)]
        _paint(canvas, shapes, side, textures or {}, **paint)


def strokes_of(groups: Iterable[Entry]) -> Iterator[tuple[str, Entry]]:
    """Side ('right', 'left', or '' for a group without sides) and stroke, in the order of painting."""
    for group in groups:
        for side in group.get("sides", ("",)):
            for stroke in group["strokes"]:
                yield side, stroke


def shapes_of(entry: Entry, side: str = "", limits: Mapping[str, Distance] | None = None) -> list[Shape]:
    """The shapes of one entry, on the given side."""
    sizes = dict(entry)
    kind = next(name for name in _MAKERS if name in sizes)
    sign = SIDES.get(side, 1.0)
    points = mirror(sizes.pop(kind), sign)
    grown, behind, within = (sizes.pop(key, None) for key in ("grown", "behind", "within"))
    if "turn" in sizes:
        x, y, z = sizes["turn"]
        sizes["turn"] = (x, sign * y, sign * z)
    shapes = _MAKERS[kind](points, **sizes)
    bounds = [*([plane(*behind)] if behind else []), *((limits or {})[name] for name in within or ())]
    shapes = [one.grown(grown) for one in shapes] if grown else shapes
    return [one.within(*bounds) for one in shapes] if bounds else shapes


def bone(
    canvas: Canvas,
    shapes: list[Shape],
    *,
    rim: float = HU["cortex"],
    core: float = HU["marrow"],
    name: str | None = "skeleton",
) -> None:
    """Paint bone: a dense rim around marrow."""
    canvas.paint(shapes, rim, name)
    canvas.paint([one.grown(-table("phantom.toml")["cortex_mm"]) for one in shapes], core, name)


def tone(hu: float | str, textures: Mapping[str, np.ndarray] | None = None) -> Tone:
    """A number, 'muscle', 'muscle + 5' or the name of a texture, as HU."""
    if not isinstance(hu, str):
        return hu
    if textures and hu in textures:
        return textures[hu]
    name, *difference = hu.split(maxsplit=1)
    return HU[name] + float("".join(difference).replace(" ", "") or 0)


def _paint(
    canvas: Canvas,
    shapes: list[Shape],
    side: str,
    textures: Mapping[str, np.ndarray],
    *,
    hu: float | str,
    core: float | str | None = None,
    mask: str | None = None,
    only: str = "",
) -> None:
    name = None if mask is None else mask.format(side=side)
    if core is None:
        canvas.paint(shapes, tone(hu, textures), name, only=only)
    else:
        bone(canvas, shapes, rim=tone(hu), core=tone(core), name=name)


def _ellipsoids(centres: list[Any], *, radii: Any, turn: Any = (0, 0, 0)) -> list[Shape]:
    return [ellipsoid(centre, radii, turn) for centre in centres]


def _tube(points: list[Any], *, radius: Any = None, taper: Any = None, squash: Any = (1, 1, 1)) -> list[Shape]:
    return tube(points, radius if taper is None else np.linspace(*taper, len(points)), squash)


def _plate(corners: list[Any], *, thickness: float) -> list[Shape]:
    return [plate(*corners, thickness)]


def _blocks(centres: list[Any], *, half_width: float, half_depth: float, height: float) -> list[Shape]:
    return [block(centre, half_width, half_depth, height) for centre in centres]


_MAKERS = {"ellipsoid": _ellipsoids, "tube": _tube, "plate": _plate, "block": _blocks}
