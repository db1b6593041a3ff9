"""Shapes: signed distances in mm, negative inside, over arrays of world coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float, float]
Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # x, y, z (mm) → mm


@dataclass(frozen=True)
class Shape:
    """A signed distance in mm (negative inside) and the box, corner to corner, outside of which it is positive."""

    low: Point
    high: Point
    distance: Distance

    def grown(self, mm: float) -> Shape:
        """The same shape with its surface moved outwards by `mm` (inwards when negative)."""
        low, high = (tuple(c + sign * mm for c in corner) for sign, corner in ((-1, self.low), (1, self.high)))
        return Shape(low, high, lambda x, y, z: self.distance(x, y, z) - mm)

    def within(self, *others: Distance) -> Shape:
        """What lies inside this shape and inside all `others`."""
        return Shape(self.low, self.high, lambda x, y, z: all_of(self.distance(x, y, z), *(o(x, y, z) for o in others)))


def ellipsoid(centre: Point, radii: Point, turn: Point = (0, 0, 0)) -> Shape:
    """An ellipsoid, turned by degrees about x, y and z."""
    rotation = _rotation(turn) if any(turn) else None

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = [x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2])]
        if rotation is not None:
            p = [sum(np.float32(rotation[i, j]) * p[i] for i in range(3)) for j in range(3)]
        unit = np.sqrt(sum((q / np.float32(r)) ** 2 for q, r in zip(p, radii, strict=True)))
        slope = np.sqrt(sum((q / np.float32(r * r)) ** 2 for q, r in zip(p, radii, strict=True))) + np.float32(1e-6)
        return unit * (unit - 1) / slope

    reach = radii if rotation is None else (max(radii),) * 3
    low, high = (tuple(c + sign * r for c, r in zip(centre, reach, strict=True)) for sign in (-1, 1))
    return Shape(low, high, distance)


def tube(
    points: Sequence[Sequence[float]], radius: float | Sequence[float] | np.ndarray, squash: Point = (1, 1, 1)
) -> list[Shape]:
    """Round-ended cones along a line of points; `squash` multiplies the radius along x, y, z."""
    radii = np.broadcast_to(np.asarray(radius, float), len(points))
    pairs = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    return [_capsule(tuple(a), tuple(b), ra, rb, squash) for a, b, ra, rb in pairs]


def plate(a: Point, b: Point, c: Point, thickness: float) -> Shape:
    """A flat triangle with rounded-off thickness (mm)."""
    corners = np.asarray([a, b, c], float)
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    normal /= np.linalg.norm(normal)
    middle = plane(normal, corners[0])
    edges = [plane(np.cross(corners[(i + 1) % 3] - corners[i], normal), corners[i]) for i in range(3)]
    half = thickness / 2

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return all_of(np.abs(middle(x, y, z)) - np.float32(half), *(edge(x, y, z) for edge in edges))

    return Shape(tuple(corners.min(0) - half), tuple(corners.max(0) + half), distance)


def plane(outward: Sequence[float], point: Sequence[float]) -> Distance:
    """The half space behind a plane through `point`."""
    n = (np.asarray(outward, float) / np.linalg.norm(outward)).astype(np.float32)
    offset = np.float32(np.dot(n, point))
    return lambda x, y, z: n[0] * x + n[1] * y + n[2] * z - offset


def block(centre: Point, half_width: float, half_depth: float, height: float) -> Shape:
    """An upright elliptic cylinder, such as a vertebral body."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        u, v = (x - np.float32(centre[0])) / half_width, (y - np.float32(centre[1])) / half_depth
        side = (np.sqrt(u**2 + v**2) - 1) * np.float32(half_depth)
        return all_of(side, np.abs(z - np.float32(centre[2])) - np.float32(height / 2))

    reach = np.array([half_width, half_depth, height / 2])
    return Shape(tuple(np.subtract(centre, reach)), tuple(np.add(centre, reach)), distance)


def barrel(rows: Sequence[Sequence[float]], power: float) -> Shape:
    """A stack of rounded rectangles: z, half width, front y, back y."""
    curve = profile(rows)

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        width, front, back = curve(z)
        middle, depth = (front + back) / 2, (front - back) / 2
        u, v = np.abs(x) / width, np.abs(y - middle) / depth
        size = (u**power + v**power) ** np.float32(1 / power)
        slope = np.sqrt((u / width) ** 2 + (v / depth) ** 2) + np.float32(1e-6)
        return size * (size - 1) / slope

    table = np.asarray(rows, float)
    low = (-table[:, 1].max(), table[:, 3].min(), table[:, 0].min())
    return Shape(low, (table[:, 1].max(), table[:, 2].max(), table[:, 0].max()), distance)


def profile(rows: Sequence[Sequence[float]]) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth function of z through the rows of a table (z first); the result has one more, leading axis."""
    from scipy.interpolate import PchipInterpolator

    table = np.asarray(sorted(rows), float)
    curve = PchipInterpolator(table[:, 0], table[:, 1:])
    return lambda z: np.moveaxis(curve(np.clip(z, table[0, 0], table[-1, 0])), -1, 0).astype(np.float32)


def all_of(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """The distance to what lies inside all of them."""
    for other in others:
        first = np.maximum(first, other)
    return first


def mirror(points: Sequence[Sequence[float]], side: float) -> list[Point]:
    """The points on the right (side 1) or their mirror images on the left (side -1)."""
    return [(side * p[0], p[1], p[2]) for p in points]


def _rotation(degrees: Point) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        matrix = step @ matrix
    return matrix


def _capsule(start: Point, end: Point, r0: float, r1: float, squash: Point) -> Shape:
    scale = 1 / np.asarray(squash, np.float32)
    a, along = np.asarray(start, np.float32) * scale, (np.asarray(end) - start).astype(np.float32) * scale
    length2 = float(along @ along) + 1e-6

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = [q * s - c for q, s, c in zip((x, y, z), scale, a, strict=True)]
        t = np.clip(sum(q * np.float32(v / length2) for q, v in zip(p, along, strict=True)), 0, 1)
        gap = np.sqrt(sum((q - t * v) ** 2 for q, v in zip(p, along, strict=True)))
        return (gap - (np.float32(r0) + t * np.float32(r1 - r0))) * np.float32(min(squash))

    reach = max(r0, r1) * np.asarray(squash)
    return Shape(tuple(np.minimum(start, end) - reach), tuple(np.maximum(start, end) + reach), distance)
