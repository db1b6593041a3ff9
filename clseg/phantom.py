"""A synthetic torso CT made of analytic shapes and noise, with its true masks: no patient data.

    ct, masks = phantom()                     # head to upper pelvis, 2.5 × 2.5 × 3 mm, about two seconds
    ct, masks = phantom(extent="chest")       # a part of it
    ct, masks = small_phantom()               # a tiny one for unit tests

World coordinates are RAS+ millimetres: x grows to the patient's Right, so the
liver lies at positive x; y grows to the front; z grows to the head.  The origin
lies near the eighth thoracic vertebra.  Every shape is a signed distance in mm,
negative inside; it is painted with a soft edge one voxel wide, as a scanner's
partial volume would do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clseg.errors import InputError, UnknownName
from clseg.volume import Spacing, Volume

Point = tuple[float, float, float]
Masks = dict[str, np.ndarray]

# --- what is painted with ------------------------------------------------------------------------------------------

AIR, LUNG, FAT, WATER, CSF, BRAIN, FLUID, MUSCLE = -1000.0, -855.0, -102.0, 0.0, 9.0, 36.0, 18.0, 56.0
SKIN, GLAND, BOWEL, MYOCARDIUM, THYROID, CARTILAGE, DISC = 25.0, -8.0, 48.0, 92.0, 112.0, 120.0, 85.0
LIVER, SPLEEN, CORTEX_OF_KIDNEY, MEDULLA, PANCREAS, BLOOD, VEIN = 110.0, 120.0, 172.0, 125.0, 88.0, 152.0, 130.0
CORTEX, SKULL_TABLE, DIPLOE, MARROW, TOOTH = 640.0, 1050.0, 520.0, 220.0, 1700.0

NOISE_HU = 12.0
CORTEX_MM = 2.2
SIDES = ((1.0, "right"), (-1.0, "left"))  # x is positive on the patient's right
EXTENTS_MM = {"torso": (-315.0, 425.0), "head_neck": (100.0, 425.0), "chest": (-130.0, 175.0), "abdomen": (-315.0, -30.0)}
FIELD_MM = ((-225.0, 225.0), (-112.0, 185.0))  # x, y

# --- anatomy, as tables --------------------------------------------------------------------------------------------

# z, half width, front y, back y of the skin of trunk and neck
TRUNK = (
    (-330, 178, 112, -102), (-300, 174, 116, -98), (-260, 160, 122, -84), (-215, 146, 128, -72), (-170, 145, 134, -68),
    (-120, 153, 142, -68), (-70, 161, 149, -70), (-20, 166, 153, -75), (30, 167, 149, -80), (75, 165, 137, -84),
    (110, 158, 122, -82), (135, 138, 110, -72), (155, 104, 106, -56), (172, 76, 106, -38), (190, 63, 114, -24),
    (215, 59, 117, -18), (245, 60, 114, -20), (275, 60, 100, -24), (300, 56, 90, -20),
)  # fmt: skip
# the same for the inside of the ribs and of the abdominal wall
CAVITY = (
    (-330, 112, 88, 0), (-290, 118, 95, -4), (-240, 116, 101, -9), (-200, 117, 106, -15), (-150, 125, 115, -26),
    (-110, 134, 124, -38), (-80, 137, 129, -43), (-30, 138, 131, -46), (20, 134, 126, -47), (70, 120, 110, -46),
    (105, 100, 92, -38), (130, 78, 76, -20), (146, 58, 66, -2), (156, 36, 58, 14), (160, 18, 52, 26),
)  # fmt: skip
# z, thickness of the fat under the skin
FAT_MM = ((-330, 24), (-240, 15), (-150, 11), (-60, 10), (60, 9), (140, 8), (190, 4), (260, 4), (430, 2.5))
# z, y of the centre of the vertebral body, half width, half depth, height, spinous length, its drop, transverse reach
VERTEBRAE = (
    (259, 52, 11, 7, 10, 10, 0, 34), (241, 53, 9, 8, 15, 24, 5, 25), (224, 54, 10, 8, 11, 22, 4, 24),
    (209, 55, 10, 8, 11, 22, 4, 25), (194, 54, 11, 8, 11, 24, 5, 26), (179, 50, 12, 9, 12, 28, 6, 28),
    (162, 44, 13, 9, 13, 36, 9, 33), (145, 36, 14, 10, 14, 38, 14, 36), (127, 28, 14, 11, 15, 38, 18, 34),
    (108, 20, 14, 12, 16, 38, 22, 32), (88, 14, 14, 13, 17, 38, 26, 32), (67, 10, 14, 14, 18, 38, 28, 32),
    (45, 7, 15, 14, 19, 38, 28, 31), (23, 6, 15, 15, 19, 38, 28, 31), (0, 6, 16, 15, 20, 38, 27, 31),
    (-25, 7, 16, 15, 21, 38, 24, 30), (-51, 9, 17, 16, 22, 36, 19, 28), (-78, 13, 18, 16, 23, 36, 13, 25),
    (-106, 18, 20, 17, 24, 36, 10, 24), (-136, 24, 21, 17, 25, 38, 8, 36), (-168, 30, 22, 18, 26, 40, 7, 41),
    (-201, 34, 23, 18, 26, 40, 7, 45), (-234, 34, 25, 18, 26, 40, 7, 43), (-266, 28, 26, 18, 25, 36, 7, 44),
)  # fmt: skip
FIRST_THORACIC = 7  # its row in VERTEBRAE
# drop of the front end below the vertebra, angle of the front end from the back (degrees), does cartilage reach the sternum
RIBS = (
    (42, 152, True), (66, 150, True), (84, 148, True), (98, 146, True), (108, 143, True), (112, 138, True), (112, 132, True),
    (106, 124, False), (98, 116, False), (86, 106, False), (64, 88, False), (42, 66, False),
)  # fmt: skip
STERNUM = ((0, 99, 112, 24), (0, 109, 84, 22), (0, 118, 52, 15), (0, 128, 12, 17), (0, 132, -22, 13), (0, 130, -42, 6))


# --- public --------------------------------------------------------------------------------------------------------


def phantom(
    *, spacing_mm: Spacing = (2.5, 2.5, 3.0), seed: int = 0, extent: str = "torso"
) -> tuple[Volume, Masks]:
    """A synthetic CT of a torso (int16 HU, RAS+) and its true boolean masks by structure name.

    `extent` is 'torso' (top of the head to the upper pelvis), 'head_neck',
    'chest' or 'abdomen'; masks hold only the structures that it contains.
    `body` and `skeleton` enclose others (`skeleton` contains the mandible); the
    rest do not overlap.  `seed` sets noise, lung vessels and bowel: the same
    seed gives the same bytes.

    Raises UnknownName for another extent, InputError when a voxel edge is not
    within 0.5 … 20 mm.
    """
    if extent not in EXTENTS_MM:
        raise UnknownName("extent of the phantom", extent, tuple(EXTENTS_MM))
    if len(spacing_mm) != 3 or not all(0.5 <= s <= 20 for s in spacing_mm):
        raise InputError(f"The phantom needs three voxel edges of 0.5 to 20 mm, given: {spacing_mm}.")
    canvas = _Canvas.over((*FIELD_MM, EXTENTS_MM[extent]), spacing_mm, seed)
    for part in (_body, _trunk, _lungs, _head, _face, _abdomen, _mediastinum, _neck, _spine, _ribcage, _shoulders, _pelvis):
        part(canvas)
    return canvas.finish()


def small_phantom(seed: int = 0) -> tuple[Volume, Masks]:
    """A tiny CT (40 × 32 × 48 voxels of 6 mm): an elliptic body with two lungs, a spine and a liver.

    Masks: body, lung_left, lung_right, skeleton, liver.
    """
    canvas = _Canvas.over(((-120.0, 120.0), (-96.0, 96.0), (-144.0, 144.0)), (6.0, 6.0, 6.0), seed)
    canvas.body = _ellipsoid((0, 0, 0), (105, 78, 900)).distance(*canvas.axes)
    canvas.fill(canvas.body, MUSCLE)
    canvas.paint(_ellipsoid((45, 5, -70), (50, 55, 50)), LIVER, "liver")
    for side, name in SIDES:
        canvas.paint(_ellipsoid((side * 48, 5, 60), (36, 55, 70)), LUNG, f"lung_{name}")
    canvas.paint(_ellipsoid((0, -45, 0), (17, 17, 900)), CORTEX, "skeleton")
    return canvas.finish()


# --- the canvas ----------------------------------------------------------------------------------------------------

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
KEEP = "keep"  # painting that leaves every mask as it is
CLEAR = ""  # painting that takes the voxels out of every mask


@dataclass(frozen=True)
class _Shape:
    """A signed distance in mm (negative inside) and the box, corner to corner, outside of which it is positive."""

    low: Point
    high: Point
    distance: Distance

    def grown(self, mm: float) -> _Shape:
        """The same shape with its surface moved outwards by `mm` (inwards when negative)."""
        low, high = (tuple(c + sign * mm for c in corner) for sign, corner in ((-1, self.low), (1, self.high)))
        return _Shape(low, high, lambda x, y, z: self.distance(x, y, z) - mm)

    def within(self, *others: Distance) -> _Shape:
        """What lies inside this shape and inside all `others`."""
        return _Shape(self.low, self.high, lambda x, y, z: _all_of(self.distance(x, y, z), *(o(x, y, z) for o in others)))


@dataclass
class _Canvas:
    """The CT being painted, the owner of every voxel, and how deep it lies under the skin (all of shape (x, y, z))."""

    axes: tuple[np.ndarray, np.ndarray, np.ndarray]  # world mm: (x, 1, 1), (1, y, 1), (1, 1, z)
    spacing_mm: Spacing
    random: np.random.Generator
    hu: np.ndarray  # float32
    owner: np.ndarray  # uint8: index into `names` + 1, or 0
    body: np.ndarray  # float32: signed distance to the skin
    names: list[str] = field(default_factory=list)

    @classmethod
    def over(cls, limits_mm: Sequence[tuple[float, float]], spacing_mm: Spacing, seed: int) -> _Canvas:
        counts = [max(2, round((high - low) / s)) for (low, high), s in zip(limits_mm, spacing_mm, strict=True)]
        lines = [
            (low + s * (np.arange(n) + 0.5)).astype(np.float32) for (low, _), s, n in zip(limits_mm, spacing_mm, counts, strict=True)
        ]
        axes = (lines[0][:, None, None], lines[1][None, :, None], lines[2][None, None, :])
        air = np.full(counts, AIR, np.float32)
        return cls(axes, spacing_mm, np.random.default_rng(seed), air, np.zeros(counts, np.uint8), np.full_like(air, 1e3))

    def box(self, low: Point, high: Point) -> tuple[slice, slice, slice] | None:
        """The voxels within two corners (mm), or None when the grid holds none of them."""
        ends = [
            (int(np.searchsorted(a.ravel(), lo - s)), int(np.searchsorted(a.ravel(), hi + s)))
            for a, lo, hi, s in zip(self.axes, low, high, self.spacing_mm, strict=True)
        ]
        return None if any(b <= a for a, b in ends) else tuple(slice(a, b) for a, b in ends)  # type: ignore[return-value]

    def within(self, box: tuple[slice, slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y, z = self.axes
        return x[box[0]], y[:, box[1]], z[:, :, box[2]]

    def paint(self, shapes: _Shape | Iterable[_Shape], hu: float | np.ndarray, name: str = KEEP, *, only: str = "") -> None:
        """Paint shapes with an HU value (or an array of the grid's shape), handing their voxels to the mask `name`.

        With `only`, voxels of other masks than that one stay untouched.
        """
        for shape in [shapes] if isinstance(shapes, _Shape) else shapes:
            box = self.box(shape.low, shape.high)
            if box is None:
                continue
            axes = self.within(box)
            distance = np.broadcast_to(shape.distance(*axes), self.hu[box].shape)
            if only:
                distance = np.where(self.owner[box] == self._index(only), distance, np.float32(1e3))
            self._blend(box, distance, hu[box] if isinstance(hu, np.ndarray) else hu)
            if name != KEEP:
                self.owner[box][distance < 0] = self._index(name)

    def fill(self, distance: np.ndarray, hu: float | np.ndarray) -> None:
        """Paint the whole grid where `distance` is negative."""
        self._blend((slice(None),) * 3, distance, hu)

    def bone(self, shapes: _Shape | Iterable[_Shape], name: str = "skeleton", *, rim: float = CORTEX, core: float = MARROW) -> None:
        """Paint bone: a dense rim around marrow."""
        shapes = [shapes] if isinstance(shapes, _Shape) else list(shapes)
        self.paint(shapes, rim, name)
        self.paint([s.grown(-CORTEX_MM) for s in shapes], core, name)

    def texture(self, scale_mm: Point) -> np.ndarray:
        """Smooth random values over the grid, about normal(0, 1), with bumps of `scale_mm`."""
        field_ = self.random.standard_normal([int(np.ptp(a) / s) + 4 for a, s in zip(self.axes, scale_mm, strict=True)]).astype(np.float32)
        for axis, (line, s) in enumerate(zip(self.axes, scale_mm, strict=True)):
            place = (line.ravel() - line.min()) / s + 1.5
            weight = np.exp(-((place[:, None] - np.arange(field_.shape[axis])) ** 2) / 0.72).astype(np.float32)
            weight /= np.sqrt((weight**2).sum(1, keepdims=True))
            field_ = np.moveaxis(np.tensordot(weight, field_, axes=(1, axis)), 0, axis)
        return field_

    def finish(self) -> tuple[Volume, Masks]:
        """Add the scanner's blur and noise; return the CT and the masks that are not empty."""
        from scipy.ndimage import gaussian_filter, gaussian_filter1d

        sigma, impulse = 0.5, np.zeros(9)
        impulse[4] = 1
        kept = np.sqrt((gaussian_filter1d(impulse, sigma) ** 2).sum()) ** 3  # sd of white noise after the blur
        self.hu += self.random.standard_normal(self.hu.shape, dtype=np.float32) * np.float32(NOISE_HU / kept)
        hu = gaussian_filter(self.hu, sigma, mode="nearest", truncate=3)
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = [a.ravel()[0] for a in self.axes]
        return Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), affine), self._masks()

    def _masks(self) -> Masks:
        """True masks; the skeleton contains the mandible, the body everything inside the skin."""
        masks = {name: self.owner == index for index, name in enumerate(self.names, start=1)}
        if "mandible" in masks:
            masks["skeleton"] = masks["skeleton"] | masks["mandible"]
        return {name: mask for name, mask in {"body": self.body < 0, **masks}.items() if mask.any()}

    def _index(self, name: str) -> int:
        if name and name not in self.names:
            self.names.append(name)
        return self.names.index(name) + 1 if name else 0

    def _blend(self, box: tuple[slice, slice, slice], distance: np.ndarray, hu: float | np.ndarray) -> None:
        share = np.clip(0.5 - distance / np.float32(np.mean(self.spacing_mm)), 0, 1)  # of the voxel that the shape fills
        self.hu[box] += share * (hu - self.hu[box])


# --- shapes --------------------------------------------------------------------------------------------------------


def _ellipsoid(centre: Point, radii: Point, turn: Point = (0, 0, 0)) -> _Shape:
    """An ellipsoid, turned by degrees about x, y and z."""
    reach = max(radii) if any(turn) else None
    rotation = _rotation(turn)

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = [x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2])]
        if any(turn):
            p = [sum(np.float32(rotation[i, j]) * p[i] for i in range(3)) for j in range(3)]
        unit = np.sqrt(sum((q / np.float32(r)) ** 2 for q, r in zip(p, radii, strict=True)))
        slope = np.sqrt(sum((q / np.float32(r * r)) ** 2 for q, r in zip(p, radii, strict=True))) + np.float32(1e-6)
        return unit * (unit - 1) / slope

    low, high = (tuple(c + sign * (reach or r) for c, r in zip(centre, radii, strict=True)) for sign in (-1, 1))
    return _Shape(low, high, distance)


def _rotation(degrees: Point) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        matrix = step @ matrix
    return matrix


def _tube(points: Sequence[Sequence[float]], radius: float | Sequence[float], squash: Point = (1, 1, 1)) -> list[_Shape]:
    """Round-ended cones along a line of points; `squash` multiplies the radius along x, y, z."""
    radii = np.broadcast_to(np.asarray(radius, float), len(points))
    pairs = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    return [_capsule(tuple(a), tuple(b), ra, rb, squash) for a, b, ra, rb in pairs]


def _capsule(start: Point, end: Point, r0: float, r1: float, squash: Point) -> _Shape:
    scale = 1 / np.asarray(squash, np.float32)
    a, along = np.asarray(start, np.float32) * scale, (np.asarray(end) - start).astype(np.float32) * scale
    length2 = float(along @ along) + 1e-6

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = [q * s - c for q, s, c in zip((x, y, z), scale, a, strict=True)]
        t = np.clip(sum(q * np.float32(v / length2) for q, v in zip(p, along, strict=True)), 0, 1)
        gap = np.sqrt(sum((q - t * v) ** 2 for q, v in zip(p, along, strict=True)))
        return (gap - (np.float32(r0) + t * np.float32(r1 - r0))) * np.float32(min(squash))

    reach = max(r0, r1) * np.asarray(squash)
    return _Shape(tuple(np.minimum(start, end) - reach), tuple(np.maximum(start, end) + reach), distance)


def _plate(a: Point, b: Point, c: Point, thickness: float) -> _Shape:
    """A flat triangle with rounded-off thickness (mm)."""
    corners = np.asarray([a, b, c], float)
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    normal /= np.linalg.norm(normal)
    sides = []
    for i in range(3):
        outward = np.cross(corners[(i + 1) % 3] - corners[i], normal)
        sides.append((outward / np.linalg.norm(outward), corners[i]))

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        faces = [_plane(n, p)(x, y, z) for n, p in sides]
        return _all_of(np.abs(_plane(normal, corners[0])(x, y, z)) - np.float32(thickness / 2), *faces)

    half = thickness / 2
    return _Shape(tuple(corners.min(0) - half), tuple(corners.max(0) + half), distance)


def _plane(outward: Sequence[float], point: Sequence[float]) -> Distance:
    """The half space behind a plane through `point`."""
    n = (np.asarray(outward, float) / np.linalg.norm(outward)).astype(np.float32)
    offset = np.float32(np.dot(n, point))
    return lambda x, y, z: n[0] * x + n[1] * y + n[2] * z - offset


def _block(centre: Point, half_width: float, half_depth: float, height: float) -> _Shape:
    """An upright elliptic cylinder, such as a vertebral body."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        ellipse = np.sqrt(((x - np.float32(centre[0])) / half_width) ** 2 + ((y - np.float32(centre[1])) / half_depth) ** 2)
        return _all_of((ellipse - 1) * np.float32(half_depth), np.abs(z - np.float32(centre[2])) - np.float32(height / 2))

    reach = np.array([half_width, half_depth, height / 2])
    return _Shape(tuple(np.subtract(centre, reach)), tuple(np.add(centre, reach)), distance)


def _profile(rows: Sequence[Sequence[float]]) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth function of z through the rows of a table (z first); the result has one more, leading axis."""
    from scipy.interpolate import PchipInterpolator

    table = np.asarray(sorted(rows), float)
    curve = PchipInterpolator(table[:, 0], table[:, 1:])
    return lambda z: np.moveaxis(curve(np.clip(z, table[0, 0], table[-1, 0])), -1, 0).astype(np.float32)


def _barrel(rows: Sequence[Sequence[float]], power: float) -> _Shape:
    """A stack of rounded rectangles: z, half width, front y, back y."""
    curve = _profile(rows)

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        width, front, back = curve(z)
        middle, depth = (front + back) / 2, (front - back) / 2
        u, v = np.abs(x) / width, np.abs(y - middle) / depth
        size = (u**power + v**power) ** np.float32(1 / power)
        slope = np.sqrt((u / width) ** 2 + (v / depth) ** 2) + np.float32(1e-6)
        return size * (size - 1) / slope

    table = np.asarray(rows, float)
    low = (-table[:, 1].max(), table[:, 3].min(), table[:, 0].min())
    return _Shape(low, (table[:, 1].max(), table[:, 2].max(), table[:, 0].max()), distance)


def _all_of(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    for other in others:
        first = np.maximum(first, other)
    return first


def _mirror(points: Sequence[Sequence[float]], side: float) -> list[Point]:
    return [(side * p[0], p[1], p[2]) for p in points]


def _dome(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height of the diaphragm (z in mm): two domes, the right one higher, falling to the back and the sides."""
    across = (np.abs(x) - 68) / 70
    across = np.where(across < 0, 0.35, 1.0) * across**2
    behind = (y - 62) / 78
    return (-47 + 5 * np.tanh(x / 30) - 34 * (across + behind**2)).astype(np.float32)


def _behind_the_spine(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Negative where the long muscles of the back lie, a wedge from the vertebrae to the angles of the ribs."""
    table = np.asarray(VERTEBRAE[::-1], np.float32)
    column = np.interp(z.ravel(), table[:, 0], table[:, 1]).astype(np.float32)
    return (y - column + 18 + np.clip(np.abs(x) - 18, 0, None) * np.float32(0.62)) * np.float32(0.85)


def _spine_point(z: float) -> tuple[float, float]:
    """y of the centre of the vertebral column and of the spinal canal at a height."""
    table = np.asarray(VERTEBRAE[::-1], float)
    body = float(np.interp(z, table[:, 0], table[:, 1]))
    return body, body - float(np.interp(z, table[:, 0], table[:, 3])) - 9.5


# --- the body ------------------------------------------------------------------------------------------------------


def _body(canvas: _Canvas) -> None:
    """The outline of the patient: trunk, neck, head and shoulders, joined smoothly; arms leave the field of view."""
    head = _ellipsoid((0, 52, 334), (78.5, 98, 84))
    face = [_ellipsoid((0, 90, 306), (71, 72, 48)), _ellipsoid((0, 101, 264), (66, 61, 38)), _ellipsoid((0, 141, 246), (36, 20, 21))]
    nose = [_ellipsoid((0, 165, 300), (11, 14, 12)), _ellipsoid((0, 158, 316), (8, 11, 18))]
    ears = [_ellipsoid((side * 79, 46, 302), (6, 13, 24), (0, 0, side * 20)) for side, _ in SIDES]
    _join(canvas, [_barrel(TRUNK, 2.35)], 0)
    _join(canvas, [head], 16)
    _join(canvas, [*face, *nose], 9)
    _join(canvas, [_ellipsoid((side * 48, 68, 270), (28, 36, 38)) for side, _ in SIDES], 12)
    _join(canvas, ears, 3)
    for side, _ in SIDES:
        _join(canvas, _tube(_mirror([(60, 10, 150), (120, 14, 136), (166, 16, 112)], side), (24, 36, 47)), 30)
        _join(canvas, _tube(_mirror([(168, 16, 110), (285, 20, -60)], side), (47, 40)), 14)


def _join(canvas: _Canvas, shapes: Iterable[_Shape], softness_mm: float) -> None:
    for shape in shapes:
        box = canvas.box(*(getattr(shape.grown(softness_mm + 12), corner) for corner in ("low", "high")))
        if box is None:
            continue
        new, old = shape.distance(*canvas.within(box)), canvas.body[box]
        near = np.clip(1 - np.abs(new - old) / max(softness_mm, 1e-3), 0, 1)
        canvas.body[box] = np.minimum(new, old) - near**2 * np.float32(softness_mm / 4)


def _trunk(canvas: _Canvas) -> None:
    """Skin, fat under it, and muscle with thin sheets of fat in the rest."""
    x, y, z = canvas.axes
    depth = -canvas.body
    groove = 7 * np.exp(-((x / 13) ** 2)) * (y < 40) * ((z < 200) & (z > -260))  # over the spine
    canvas.body += groove.astype(np.float32)
    (fat,) = _profile(FAT_MM)(z)
    sheets = np.exp(-((canvas.texture((15, 13, 40)) / 0.13) ** 2))
    muscle = MUSCLE - 75 * sheets
    under = np.clip((depth - fat - 2.5) / 3 + 0.5, 0, 1)  # 0 in the fat, 1 in the muscle
    tissue = (FAT + 8 * canvas.texture((12, 12, 12))) * (1 - under) + muscle * under
    skin = np.clip((3.6 - depth) / 2.5, 0, 1)
    canvas.fill(canvas.body, tissue + skin * (SKIN - tissue))


# --- head and neck -------------------------------------------------------------------------------------------------


def _vault(bone_mm: float = 0.0, base_mm: float = 0.0) -> _Shape:
    """The inside of the skull, grown by the thickness of the bone: thick in the vault, thin below the brain."""
    rise = _plane((0, 0.52, -1), (0, 48, 284))  # to the front, over the orbits

    def bowl(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (277 + 20 * ((x / 60) ** 2 + ((y - 26) / 62) ** 2) - z) * np.float32(0.85) - np.float32(base_mm)

    return _ellipsoid((0, 52, 334), (68, 87, 73)).grown(bone_mm).within(bowl, lambda x, y, z: rise(x, y, z) - np.float32(base_mm))


def _head(canvas: _Canvas) -> None:
    vault = _vault()
    canvas.paint(_vault(7.5, 4.5), SKULL_TABLE, "skeleton")
    canvas.paint(_vault(5.0, 3.0), DIPLOE)
    canvas.paint(_vault(2.2, 1.6), SKULL_TABLE)
    canvas.paint(vault, CSF, CLEAR)
    for side, _ in SIDES:  # petrous bones and mastoid cells
        canvas.bone(_tube(_mirror([(24, 62, 300), (56, 40, 294)], side), (7, 13)), core=620)
    _brain(canvas, vault)
    canvas.paint(_ellipsoid((0, 36, 277), (16, 17, 9)), CSF, CLEAR)  # foramen magnum
    for side, _ in SIDES:
        for centre in ((57, 34, 291), (60, 40, 284), (54, 44, 298), (63, 32, 281), (62, 52, 296)):
            canvas.paint(_ellipsoid((side * centre[0], *centre[1:]), (3.6, 4.2, 4.2)), AIR + 250)
        canvas.paint(_tube(_mirror([(82, 50, 302), (64, 52, 300)], side), 3.2), AIR, CLEAR)  # ear canal
    _brainstem(canvas)


def _brain(canvas: _Canvas, vault: _Shape) -> None:
    """Two hemispheres and the cerebellum with sulci, ventricles and cisterns around the brain stem."""
    texture = canvas.texture((6, 6, 6))
    box = canvas.box(vault.low, vault.high)
    if box is None:
        return
    inner = vault.distance(*canvas.within(box))
    sulci = np.where(inner > -16, 5 * np.clip(texture[box] - 0.7, 0, None), 0)  # folds reach 16 mm deep

    def halves(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(inner + 2 + sulci, 1.6 - np.abs(x))

    canvas.paint(_Shape(vault.low, vault.high, halves), BRAIN + 3 * texture)
    for side, _ in SIDES:
        canvas.paint(_tube(_mirror([(7, 92, 352), (9, 70, 362), (14, 35, 358), (24, 20, 344)], side), (5, 5, 6, 4)), CSF)
    canvas.paint(_ellipsoid((0, 62, 345), (2.5, 12, 8)), CSF)
    canvas.paint(_ellipsoid((0, 22, 306), (3.5, 5, 9)), CSF)


def _brainstem(canvas: _Canvas) -> None:
    parts = [
        *_tube([(0, 62, 334), (0, 55, 312), (0, 43, 288), (0, 37, 268)], (12, 12, 10, 6.5), (1.15, 1, 1)),
        _ellipsoid((0, 58, 311), (17, 13, 14)),
    ]
    canvas.paint([p.grown(3.5) for p in parts], CSF)
    canvas.paint(parts, BRAIN, "brainstem")
    canvas.paint(_ellipsoid((0, 24, 298), (16, 15, 13)), BRAIN - 2)  # vermis


def _face(canvas: _Canvas) -> None:
    """Facial bones around air: nose, sinuses, mouth and throat; the eyes; mandible, teeth and parotids."""
    bones = [
        _ellipsoid((0, 112, 302), (25, 38, 26)), _ellipsoid((0, 142, 291), (26, 13, 12)),
        *_tube([(0, 52, 284), (0, 76, 304)], 8),
    ]  # fmt: skip
    canvas.bone(bones, rim=520, core=60)
    canvas.bone(_tube([(0, 150, 318), (0, 156, 306)], (5, 3)))
    for side, _ in SIDES:
        canvas.bone(_ellipsoid((side * 30, 118, 293), (19, 21, 20)), rim=560, core=150)
        arch = [(46, 132, 306), (60, 118, 301), (69, 92, 300), (71, 66, 300)]
        canvas.bone(_tube(_mirror(arch, side), (6, 4.5, 3.2, 3.2)))
        canvas.bone(_ellipsoid((side * 33, 122, 322), (22, 26, 20)), rim=560, core=300)
        _eye(canvas, side)
    _airspaces(canvas)
    _mandible(canvas)
    _parotids(canvas)


def _eye(canvas: _Canvas, side: float) -> None:
    canvas.paint(_ellipsoid((side * 33, 126, 321), (18, 30, 17)), FAT + 20, CLEAR)
    canvas.paint(_tube(_mirror([(26, 96, 318), (33, 126, 320)], side), 2.4), MUSCLE - 15)
    for shift in ((9, 0), (-9, 0), (0, 9), (0, -9)):
        line = [(25, 95, 318), (33 + shift[0], 118, 321 + shift[1])]
        canvas.paint(_tube(_mirror(line, side), 2.2), MUSCLE)
    canvas.paint(_ellipsoid((side * 33, 133, 321), (13.5, 13.5, 13.5)), SKIN + 15)
    canvas.paint(_ellipsoid((side * 33, 133, 321), (11.5, 11.5, 11.5)), WATER + 8)
    canvas.paint(_ellipsoid((side * 33, 142, 321), (4.5, 2.4, 4.5)), 85)


def _airspaces(canvas: _Canvas) -> None:
    for side, _ in SIDES:
        canvas.paint(_ellipsoid((side * 30, 117, 293), (15, 17, 16)), AIR, CLEAR)  # maxillary sinus
        canvas.paint(_ellipsoid((side * 7, 118, 298), (5.5, 37, 16)), AIR, CLEAR)  # nasal cavity
        for height in (290, 300):
            canvas.paint(_ellipsoid((side * 8.5, 118, height), (2.4, 24, 4)), MUSCLE)  # turbinates
        for y in (98, 110, 122, 134):
            canvas.paint(_ellipsoid((side * 6, y, 319), (4.2, 4.8, 7)), AIR, CLEAR)  # ethmoid cells
        canvas.paint(_ellipsoid((side * 8, 84, 309), (7, 10, 8)), AIR, CLEAR)  # sphenoid sinus
        canvas.bone(_ellipsoid((side * 9, 142, 331), (12, 6.5, 12)))
        canvas.paint(_ellipsoid((side * 9, 142, 331), (8, 3.5, 8)), AIR, CLEAR)  # frontal sinus
        canvas.paint(_ellipsoid((side * 6, 167, 292), (3, 7, 4)), AIR)  # nostrils
    canvas.bone(_ellipsoid((0, 126, 279), (24, 26, 4)), rim=600, core=400)  # hard palate
    canvas.paint(_tube([(0, 84, 300), (0, 84, 282)], (9, 8), (1.2, 1, 1)), AIR, CLEAR)  # nasopharynx
    canvas.paint(_tube([(0, 84, 282), (0, 82, 262), (0, 84, 238), (0, 88, 222)], (6.5, 7, 8, 7), (1.5, 0.8, 1)), AIR, CLEAR)
    canvas.paint(_ellipsoid((0, 94, 274), (5, 12, 10)), MUSCLE)  # soft palate
    canvas.paint(_ellipsoid((0, 118, 258), (24, 27, 17)), MUSCLE + 4)  # tongue
    canvas.paint(_tube([(0, 98, 272), (0, 118, 275.5), (0, 134, 272)], 2.2, (5, 1, 1)), AIR + 150)  # mouth


def _mandible(canvas: _Canvas) -> None:
    arch = [(0, 149, 241), (15, 145, 242), (28, 128, 246), (38, 106, 250), (46, 86, 254)]
    teeth = [(3, 149), (9, 147), (15, 142), (20, 135), (25, 127), (29, 118), (33, 108)]
    for side, _ in SIDES:
        canvas.bone(_tube(_mirror(arch, side), (8.5, 8.5, 8, 8, 9), (0.72, 0.78, 1.6)), "mandible", rim=1150, core=750)
        canvas.bone(_tube(_mirror([(47, 83, 254), (50, 80, 276)], side), 14, (0.42, 1, 1)), "mandible", rim=1150, core=800)
        canvas.bone(_tube(_mirror([(50, 76, 274), (52, 68, 294)], side), (5.5, 6)), "mandible", rim=1150, core=800)
        canvas.bone(_tube(_mirror([(49, 88, 274), (48, 94, 292)], side), (5, 3), (0.7, 1, 1)), "mandible", rim=1150, core=800)
        for x, y in teeth:
            canvas.paint(_tube([(side * x, y - 2, 252), (side * x, y - 1, 260)], 3.4), TOOTH, CLEAR)
            canvas.paint(_tube([(side * x, y - 1, 265), (side * x, y - 2, 275)], 3.4), TOOTH, "skeleton")
        muscle = [(56, 96, 258), (58, 104, 292)]
        canvas.paint(_tube(_mirror(muscle, side), 10, (0.55, 1.3, 1)), MUSCLE + 5)  # masseter
        canvas.paint(_tube(_mirror([(38, 84, 262), (28, 94, 290)], side), 8, (0.8, 1.2, 1)), MUSCLE + 5)  # pterygoids
        canvas.paint(_tube(_mirror([(52, 92, 296), (66, 88, 330)], side), (7, 5), (0.6, 2.2, 1)), MUSCLE)  # temporalis


def _parotids(canvas: _Canvas) -> None:
    lobules = GLAND + 16 * canvas.texture((5, 5, 7))
    for side, name in SIDES:
        lobes = [_ellipsoid((side * 61, 66, 270), (11, 19, 25)), _ellipsoid((side * 63, 84, 276), (5.5, 15, 16))]
        canvas.paint(lobes, lobules, f"parotid_gland_{name}")
        canvas.paint(_tube([(side * 56, 70, 290), (side * 54, 70, 252)], 2.6), VEIN)  # retromandibular vein
        canvas.paint(_tube([(side * 26, 122, 244), (side * 38, 96, 240)], 7), 45)  # submandibular gland


def _neck(canvas: _Canvas) -> None:
    """Fat between the muscles, vessels, hyoid, larynx, thyroid, trachea and oesophagus."""
    for side, _ in SIDES:
        canvas.paint(_tube(_mirror([(34, 74, 250), (36, 70, 210), (33, 72, 155)], side), (9, 12, 13), (1, 1.3, 1)), FAT + 35)
        canvas.paint(_tube(_mirror([(46, 50, 245), (46, 50, 190), (70, 58, 148)], side), (7, 10, 13), (0.7, 1.7, 1)), FAT + 30)
        strap = [(58, 44, 280), (46, 72, 225), (18, 104, 130)]
        canvas.paint(_tube(_mirror(strap, side), (8, 10, 8), (0.8, 1, 1)), MUSCLE + 6)
        canvas.paint(_tube(_mirror([(28, 70, 262), (25, 72, 200), (22, 72, 120)], side), (3.2, 3.6, 4)), BLOOD)
        canvas.paint(_tube(_mirror([(35, 64, 262), (35, 70, 200), (28, 78, 125)], side), (4.5, 6.2, 6.5)), VEIN)
        canvas.paint(_ellipsoid((side * 19, 87, 172), (9, 9, 22)), THYROID)
        canvas.bone(_tube(_mirror([(2, 112, 226), (14, 106, 227), (24, 90, 231)], side), (3.4, 3, 2.2)))  # hyoid
    canvas.paint(_ellipsoid((0, 97, 162), (14, 4, 7)), THYROID)
    _larynx(canvas)
    _airway(canvas)
    gullet = [(0, 70, 182), (-5, 62, 150), (-6, 54, 110), (-5, 44, 75), (-7, 41, 20), (-12, 44, -20)]
    gullet += [(-24, 55, -52), (-36, 62, -66)]  # through the diaphragm to the stomach
    canvas.paint(_tube(gullet, 6.6, (1.15, 0.85, 1)), MUSCLE - 14, "esophagus")
    canvas.paint(_tube(gullet[1:6], 1.9, (1.6, 0.8, 1)), AIR + 300)


def _larynx(canvas: _Canvas) -> None:
    canvas.paint(_block((0, 88, 201), 21, 20, 44), MUSCLE - 18, "larynx")
    for side, _ in SIDES:  # thyroid cartilage: two leaves that meet in front
        leaf = _plate((0, 109, 212), (side * 21, 84, 216), (side * 19, 84, 190), 4.5)
        canvas.paint([leaf, _plate((0, 109, 212), (side * 19, 84, 190), (0, 105, 190), 4.5)], 260)
    for angle in np.radians(np.arange(0, 360, 24)):  # cricoid
        canvas.paint(_ellipsoid((13 * np.sin(angle), 89 + 12 * np.cos(angle), 185), (3, 3, 5)), 230)
    canvas.paint(_tube([(0, 88, 226), (0, 92, 206), (0, 91, 198)], (8, 5.5, 3), (0.9, 1.2, 1)), AIR)
    canvas.paint(_tube([(0, 91, 198), (0, 90, 176)], (3, 8.5), (0.9, 1.1, 1)), AIR)
    canvas.paint(_ellipsoid((0, 98, 222), (9, 2, 10)), MUSCLE)  # epiglottis


def _airway(canvas: _Canvas) -> None:
    trachea = [(0, 90, 178), (0, 83, 150), (2, 70, 105), (5, 59, 64)]
    bronchi = [[(5, 59, 64), (26, 53, 44), (44, 48, 22)], [(5, 59, 64), (-28, 51, 38), (-46, 46, 18)]]
    lines = [(trachea, (8.6, 8.8, 9, 9)), (bronchi[0], (7.5, 7, 5)), (bronchi[1], (7, 6.5, 5))]
    for line, radii in lines:
        canvas.paint(_tube(line, np.add(radii, 2.0)), MUSCLE, CLEAR)
    for line, radii in lines:
        canvas.paint(_tube(line, radii), AIR + 5, "trachea")


# --- chest ---------------------------------------------------------------------------------------------------------


def _lungs(canvas: _Canvas) -> None:
    """The space inside ribs and abdominal wall, filled with fat, and in it the lungs with their vessels."""
    cavity = _barrel(CAVITY, 2.3)
    canvas.paint(cavity.grown(2), FAT)
    canvas.paint(cavity.grown(2).within(_behind_the_spine), MUSCLE)
    air = LUNG + 22 * canvas.texture((7, 7, 9)) - np.float32(0.45) * (canvas.axes[1] - 40)  # denser at the back
    for side, name in SIDES:
        canvas.paint(cavity.within(_beside_the_heart(side), _above_the_diaphragm), air, f"lung_{name}")
        canvas.paint(_vessel_tree(canvas.random, side), BLOOD - 40, only=f"lung_{name}")


def _beside_the_heart(side: float) -> Distance:
    """One side of the mediastinum, which is wide at the spine and narrow behind the sternum."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        half_width = (17 - np.clip((y - 60) * 0.14, 0, 9)).astype(np.float32)
        return np.maximum(half_width - np.float32(side) * x, 3 - _behind_the_spine(x, y, z))

    return distance


def _above_the_diaphragm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _dome(x, y) - z


def _below_the_diaphragm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return z - _dome(x, y) + 3


def _vessel_tree(random: np.random.Generator, side: float) -> list[_Shape]:
    """Branches from the hilum into the lung, each thinner and shorter than its parent."""
    hilum, shapes = np.array([side * 40.0, 52.0, 25.0]), []
    directions = [(1, 0.5, 1.4), (1, -0.8, 0.9), (1, 0.9, 0.2), (1, -0.6, -1.2)]
    directions += [(0.6, 0.5, -1.5), (1, -1.2, -0.3), (0.7, 1.2, 0.9)]
    front = [(hilum, np.array([side * d[0], d[1], d[2]]), 5.0, 34.0) for d in directions]
    while front:
        start, direction, radius, length = front.pop()
        direction = direction / np.linalg.norm(direction)
        end = start + direction * length
        shapes += _tube([start, end], (radius, radius * 0.7))
        if radius > 1.2:
            for _ in range(2):
                turned = direction + random.normal(0, 0.55, 3)
                front.append((end, turned, radius * 0.73, length * 0.78))
    return shapes


def _mediastinum(canvas: _Canvas) -> None:
    """Heart with four chambers in its fat, aorta, cavae and pulmonary arteries."""
    heart, turn = (-20, 84, -6), (0, 28, -32)
    canvas.paint(_ellipsoid(heart, (64, 48, 50), turn), FAT + 10, CLEAR)
    canvas.paint(_ellipsoid(heart, (60, 44, 46), turn), MYOCARDIUM, CLEAR)
    chambers = [((-44, 82, -14), (30, 22, 24)), ((-10, 110, -14), (32, 15, 24)),
                ((-12, 56, 10), (27, 15, 20)), ((28, 84, 2), (17, 25, 26))]  # fmt: skip
    for centre, radii in chambers:
        canvas.paint(_ellipsoid(centre, radii, turn), BLOOD)
    canvas.paint(_ellipsoid((0, 100, 40), (28, 26, 45)), FAT + 15, CLEAR)
    canvas.paint(_tube([(20, 74, 15), (20, 76, 110)], 13), FAT + 15, CLEAR)  # beside the superior vena cava
    arch = [(2, 84, 12), (14, 86, 55), (10, 80, 82), (-6, 62, 95), (-19, 42, 84), (-22, 32, 62)]
    descending = [(-22, 32, 62), (-22, 30, 0), (-16, 34, -60), (-7, 46, -110), (-6, 56, -170), (-5, 60, -228)]
    vessels = [
        (_tube(arch, (14, 15, 14, 13, 12.5, 12)), BLOOD),
        (_tube(descending, (12, 11.5, 11, 10.5, 9, 8)), BLOOD),
        (_tube([(28, 78, 10), (30, 76, 60), (27, 80, 105)], (10, 9, 8)), VEIN),  # superior vena cava
        (_tube([(-26, 96, 105), (8, 96, 100), (27, 82, 92)], (6, 6.5, 7)), VEIN),
        (_tube([(-12, 102, 22), (-16, 88, 52), (-34, 62, 42)], (13, 13, 9)), BLOOD),  # pulmonary arteries
        (_tube([(-14, 80, 48), (14, 62, 40), (42, 52, 30)], (11, 10, 8)), BLOOD),
        (_tube([(4, 82, 92), (22, 76, 122)], 6), BLOOD),
        (_tube([(-6, 74, 98), (-20, 74, 125)], 4), BLOOD),
    ]
    for shapes, hu in vessels:
        canvas.paint(shapes, hu, CLEAR)


# --- skeleton ------------------------------------------------------------------------------------------------------


def _spine(canvas: _Canvas) -> None:
    """Vertebrae with arches, discs, canal and cord; long muscles in front of them below the ribs."""
    column = [(0.0, float(row[1]), float(row[0])) for row in VERTEBRAE]
    canvas.paint(_tube(column, [row[2] - 2 for row in VERTEBRAE], (1, 0.8, 1)), DISC, CLEAR)
    for row in VERTEBRAE:
        _vertebra(canvas, *row)
    canvas.bone(_tube([(0, 54, 241), (0, 57, 266)], (6, 5)))  # dens
    for side, _ in SIDES:
        canvas.bone(_ellipsoid((side * 20, 46, 262), (9, 9, 10)), core=420)  # atlas
        canvas.bone(_ellipsoid((side * 15, 48, 275), (7, 8, 6)), core=420)  # occipital condyle
    canal = [(0.0, _spine_point(z)[1], z) for z in np.arange(-290.0, 268.0, 9.0)]
    canvas.paint(_tube(canal, 8.2, (1.15, 0.95, 1)), CSF, CLEAR)
    cord = [p for p in canal if p[2] > -146]
    thickness = np.interp([p[2] for p in cord], (-146, -100, 120, 190, 262), (2.5, 5, 5, 6, 6))
    canvas.paint(_tube(cord, thickness, (1.2, 0.95, 1)), BRAIN, "spinal_cord")
    canvas.paint(_tube([p for p in canal if p[2] < -136], 5), FLUID + 12)  # cauda equina


def _vertebra(
    canvas: _Canvas, z: float, y: float, width: float, depth: float, height: float, spinous: float, drop: float, reach: float
) -> None:
    canal = y - depth - 9.5
    root = (0, canal - 10, z - 0.25 * height)
    body = _block((0, y, z), width, depth, height - 4)
    canvas.bone(body, rim=400, core=MARROW - 40)
    canvas.bone(_tube([root, (0, root[1] - spinous + 14, root[2] - drop)], (5, 4), (0.75, 1, 1.5)))
    for side, _ in SIDES:
        arch = [(0.62 * width, y - 0.6 * depth, z + 0.15 * height), (12, canal + 1, z), (10, canal - 7, z - 0.1 * height), root]
        canvas.bone(_tube(_mirror(arch, side), (4.5, 4.5, 4, 4), (0.9, 0.9, 1.3)), core=330)
        joint = [(13, canal - 2, z + 0.52 * height), (14, canal - 4, z - 0.62 * height)]
        canvas.bone(_tube(_mirror(joint, side), 4.6), core=420)
        canvas.bone(_tube(_mirror([(12, canal, z), (reach, canal - 6, z + 2)], side), (4.6, 3.6)), core=300)


def _ribcage(canvas: _Canvas) -> None:
    """Twelve ribs a side running round the chest and down to the front, their cartilage, and the sternum."""
    wall = _profile(CAVITY)
    for number, (drop, end, joined) in enumerate(RIBS):
        vertebra = VERTEBRAE[FIRST_THORACIC + number]
        line = _rib_line(wall, vertebra, drop, end)
        for side, _ in SIDES:
            canvas.bone(_tube(_mirror(line, side), 4.8, (0.85, 0.85, 1.25)), core=260)
            sternal = STERNUM[min(number // 2 + (number > 0), 4)]
            if joined:
                tip = (sternal[3] * 0.85, sternal[1], max(sternal[2] - 6 * (number % 2), -22))
                canvas.paint(_tube(_mirror([line[-1], _between(line[-1], tip), tip], side), 5), CARTILAGE)
            elif number < 10:
                margin = (58 + 12 * (number - 7), 116 - 9 * (number - 7), -70 - 13 * (number - 7))
                canvas.paint(_tube(_mirror([line[-1], margin], side), 4.5), CARTILAGE)
    for upper, lower in itertools.pairwise(STERNUM):
        canvas.bone(_tube([upper[:3], lower[:3]], (upper[3], lower[3]), (1, 0.33, 0.5)), core=190)


def _rib_line(wall: Callable[[np.ndarray], np.ndarray], vertebra: Sequence[float], drop: float, end: float) -> list[Point]:
    """From the vertebra round the inside of the chest wall, on the right side."""
    z0, y0 = vertebra[0] + 5, vertebra[1]
    points = [(16.0, y0 - 9, z0), (0.8 * vertebra[7] + 4, y0 - vertebra[3] - 14, z0 - 2)]
    for angle in np.linspace(27, end, 18):
        share = (angle - 27) / (end - 27)
        z = z0 - 4 - drop * share**0.9
        width, front, back = (float(v) for v in wall(np.array(z)))
        a, middle, b = width + 6, (front + back) / 2, (front - back) / 2 + 6
        sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        points.append((a * sine ** (2 / 2.3), middle - b * np.sign(cosine) * abs(cosine) ** (2 / 2.3), z))
    return points


def _between(a: Point, b: Point) -> Point:
    """A point between two, nearer to the second in depth and lower in height: cartilage hangs."""
    return ((a[0] + b[0]) / 2, max(a[1], b[1]) - 2, (2 * a[2] + b[2]) / 3 - 4)


def _shoulders(canvas: _Canvas) -> None:
    """Clavicles, scapulae and the upper ends of the arms."""
    for side, _ in SIDES:
        _shoulder(canvas, lambda *points, side=side: _mirror(points, side))


def _shoulder(canvas: _Canvas, at: Callable[..., list[Point]]) -> None:
    canvas.bone(_tube(at((20, 102, 116), (55, 96, 128), (95, 66, 142), (150, 40, 148)), (7.5, 5.5, 5, 5)))
    blade = at((62, -50, 98), (82, -66, -2), (142, 4, 108))
    canvas.bone(_plate(*blade, 6.5), core=420)
    canvas.bone(_plate(blade[0], blade[2], at((80, -44, 118))[0], 6), core=420)
    canvas.bone(_tube(at((64, -56, 94), (110, -42, 122), (156, 8, 146)), (4.5, 5, 6)))  # spine and acromion
    canvas.bone(_tube(at((140, 10, 114), (146, 14, 112)), 13, (0.6, 1, 1.3)))  # glenoid
    canvas.bone(_tube(at((136, 20, 128), (134, 46, 132)), 5.5))  # coracoid
    canvas.bone(_ellipsoid(at((170, 18, 112))[0], (23, 24, 24)), core=200)
    canvas.bone(_tube(at((176, 18, 100), (285, 20, -60)), (14, 11)), core=120, rim=1100)
    for fat in (at((112, 30, 122), (130, 34, 84)), at((133, -4, 60), (134, 10, 90))):  # of the axilla
        canvas.paint(_tube(fat, (11, 8)), FAT + 10)


def _pelvis(canvas: _Canvas) -> None:
    """Upper sacrum and the wings of the ilium."""
    canvas.bone(_tube([(0, 18, -292), (0, -6, -330)], (25, 24), (1.1, 0.8, 1)))
    canvas.paint(_tube([(0, -4, -290), (0, -26, -330)], 7), FLUID)
    for side, _ in SIDES:
        canvas.bone(_ellipsoid((side * 36, 4, -300), (26, 19, 20), (15, 0, 0)), core=200)
        back, top, front, low = _mirror([(46, -44, -288), (112, 12, -243), (124, 84, -276), (82, 30, -352)], side)
        canvas.bone([_plate(back, top, low, 9), _plate(top, front, low, 9)], core=300)
        canvas.bone(_tube([back, top, front], (7, 7, 6)), core=280)  # crest


# --- abdomen -------------------------------------------------------------------------------------------------------


def _abdomen(canvas: _Canvas) -> None:
    cavity = _barrel(CAVITY, 2.3).grown(-3).distance
    for side, _ in SIDES:
        psoas = [(26, 20, -140), (36, 24, -200), (46, 30, -260), (56, 44, -330)]
        canvas.paint(_tube(_mirror(psoas, side), (10, 17, 21, 21)), MUSCLE + 3)
        canvas.paint(_tube(_mirror([(20, 14, -70), (14, 34, -110), (8, 40, -150)], side), (6, 6, 5)), MUSCLE)  # crura
        canvas.paint(_tube(_mirror([(58, -16, -130), (70, -10, -240)], side), 13, (1.5, 0.7, 1)), MUSCLE)
    canvas.paint(_tube([(22, 62, -30), (22, 58, -100), (20, 56, -220)], (12, 12, 10)), VEIN, CLEAR)  # inferior vena cava
    _bowel(canvas, cavity)
    _stomach(canvas)
    _liver(canvas, cavity, _below_the_diaphragm)
    spleen = _ellipsoid((-101, 10, -95), (31, 50, 50), (0, 15, -25)).within(cavity, _below_the_diaphragm)
    canvas.paint(spleen, SPLEEN, "spleen")
    pancreas = [(46, 74, -152), (12, 76, -136), (-36, 66, -124), (-78, 44, -108)]
    canvas.paint(_tube(pancreas, (13, 9, 9, 9)), PANCREAS)
    canvas.paint(_tube([(30, 96, -145), (56, 80, -150), (54, 68, -195), (0, 66, -200)], 11), BOWEL)  # duodenum
    _kidneys(canvas)


def _liver(canvas: _Canvas, *limits: Distance) -> None:
    lower = _plane((-0.42, -0.1, -0.9), (60, 55, -142))
    right = _ellipsoid((66, 52, -98), (96, 92, 92)).within(lower, *limits)
    left = _ellipsoid((-4, 98, -86), (68, 34, 40), (0, -14, 0)).within(*limits)
    canvas.paint([right, left], LIVER, "liver")
    portal = [(18, 66, -128), (34, 66, -112), (60, 62, -104), (88, 52, -92)]
    veins = [portal, [portal[1], (22, 88, -92), (-8, 100, -84)], [portal[2], (78, 82, -118), (96, 92, -124)],
             [(24, 50, -72), (58, 44, -76), (94, 44, -92)], [(24, 52, -72), (44, 76, -78), (60, 98, -90)]]  # fmt: skip
    for line in veins:
        canvas.paint(_tube(line, np.linspace(5.5, 2, len(line))), BLOOD - 2, only="liver")
    canvas.paint(_tube([(22, 60, -60), (22, 56, -112)], 11), VEIN, CLEAR)  # inferior vena cava again, behind the liver
    canvas.paint(_ellipsoid((50, 100, -140), (13, 22, 19), (30, 0, 0)), WATER + 8, CLEAR)  # gallbladder


def _stomach(canvas: _Canvas) -> None:
    line, radii = [(-58, 56, -78), (-70, 80, -122), (-30, 100, -152), (14, 100, -148)], (42, 34, 21, 14)
    canvas.paint([s.within(_below_the_diaphragm) for s in _tube(line, radii)], BOWEL, CLEAR)
    inner = [s.grown(-5).within(_below_the_diaphragm) for s in _tube(line, radii)]
    canvas.paint(inner, FLUID)
    canvas.paint([s.within(_plane((0, -1, 0), (0, 94, 0))) for s in inner], AIR)  # gas rises to the front


def _kidneys(canvas: _Canvas) -> None:
    for (side, name), centre in zip(SIDES, ((66, 14, -164), (64, 18, -140)), strict=True):
        place = (side * centre[0], *centre[1:])
        turn = (0, -side * 12, side * 30)
        canvas.paint(_ellipsoid(place, (33, 30, 57), turn), FAT, CLEAR)
        canvas.paint(_ellipsoid(place, (27, 24, 52), turn), CORTEX_OF_KIDNEY, f"kidney_{name}")
        canvas.paint(_ellipsoid((place[0] - side * 3, *place[1:]), (18, 15, 41), turn), MEDULLA)
        hilum = (place[0] - side * 18, place[1] + 7, place[2])
        canvas.paint(_ellipsoid(hilum, (19, 10, 24), turn), FAT, CLEAR)
        canvas.paint(_tube([(place[0] - side * 8, place[1] + 4, place[2]), (side * 12, 48, place[2] + 6)], 4.5), VEIN)


def _bowel(canvas: _Canvas, cavity: Distance) -> None:
    """Colon round the abdomen with stool and gas, coils of small bowel in the middle."""
    right = [(98, 40, -280), (104, 38, -240), (104, 44, -196), (88, 70, -178)]
    across = [(88, 82, -180), (50, 98, -190), (0, 102, -196), (-52, 96, -182), (-92, 66, -150)]
    left = [(-98, 48, -140), (-106, 30, -180), (-108, 30, -230), (-100, 44, -285), (-70, 56, -325)]
    lumps = canvas.texture((5, 5, 5))
    stool = np.where(lumps > 0.75, np.float32(AIR + 150), 10 + 30 * lumps)
    for line, radius in ((right, 21), (across, 17), (left, 17)):
        tube = [s.within(cavity) for s in _tube(line, radius)]
        canvas.paint(tube, BOWEL, CLEAR)
        canvas.paint([s.grown(-4) for s in tube], stool)
    for _ in range(34):
        _coil(canvas, cavity)


def _coil(canvas: _Canvas, cavity: Distance) -> None:
    """A short bent piece of small bowel at a random place; one in five holds gas."""
    random = canvas.random
    start = random.uniform((-72, 62, -325), (72, 104, -196))
    steps = np.cumsum(random.normal(0, 1, (3, 3)) * (22, 9, 14), axis=0)
    line = [tuple(start), *(tuple(start + s) for s in steps)]
    radius = random.uniform(9, 13)
    canvas.paint([s.within(cavity) for s in _tube(line, radius)], BOWEL + 20)
    filling = AIR + 100 if random.random() < 0.2 else FLUID
    canvas.paint([s.within(cavity) for s in _tube(line, radius - 3.5)], filling)
