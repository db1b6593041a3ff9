"""Canvas: the CT being painted, and which structure owns each of its voxels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clseg.phantom.shapes import Point, Shape
from clseg.volume import Spacing, Volume

Masks = dict[str, np.ndarray]
Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
Box = tuple[slice, slice, slice]

BLUR_VOXELS = 0.5  # sigma of the scanner's point spread


@dataclass
class Canvas:
    """The CT being painted, the owner of every voxel, and how deep it lies under the skin (all of shape (x, y, z))."""

    axes: Axes  # world mm: (x, 1, 1), (1, y, 1), (1, 1, z)
    spacing_mm: Spacing
    random: np.random.Generator
    hu: np.ndarray  # float32
    owner: np.ndarray  # uint8: index into `names` + 1, or 0
    body: np.ndarray  # float32: signed distance to the skin
    names: list[str] = field(default_factory=list)

    @classmethod
    def over(
        cls, limits_mm: Sequence[Sequence[float]], spacing_mm: Spacing, *, seed: int, air_hu: float
    ) -> Canvas:
        """A canvas full of air between two limits per axis (mm)."""
        counts = [max(2, round((high - low) / s)) for (low, high), s in zip(limits_mm, spacing_mm, strict=True)]
        x, y, z = (
            (low + s * (np.arange(n) + 0.5)).astype(np.float32)
            for (low, _), s, n in zip(limits_mm, spacing_mm, counts, strict=True)
        )
        axes = (x[:, None, None], y[None, :, None], z[None, None, :])
        air = np.full(counts, air_hu, np.float32)
        owner, body = np.zeros(counts, np.uint8), np.full_like(air, 1e3)
        return cls(axes, spacing_mm, np.random.default_rng(seed), air, owner, body)

    def box(self, low: Point, high: Point) -> Box | None:
        """The voxels within two corners (mm), or None when the grid holds none of them."""
        ends = [
            (int(np.searchsorted(a.ravel(), lo - s)), int(np.searchsorted(a.ravel(), hi + s)))
            for a, lo, hi, s in zip(self.axes, low, high, self.spacing_mm, strict=True)
        ]
        (x0, x1), (y0, y1), (z0, z1) = ends
        return None if any(b <= a for a, b in ends) else (slice(x0, x1), slice(y0, y1), slice(z0, z1))

    def within(self, box: Box) -> Axes:
        """The coordinates of the voxels in a box."""
        x, y, z = self.axes
        return x[box[0]], y[:, box[1]], z[:, :, box[2]]

    def paint(
        self, shapes: Shape | Iterable[Shape], hu: float | np.ndarray, name: str | None = None, *, only: str = ""
    ) -> None:
        """Paint shapes with an HU value (or an array of the grid's shape), handing their voxels to the mask `name`.

        An empty `name` takes the voxels out of every mask, None leaves the masks as
        they are.  With `only`, voxels of other masks than that one stay untouched.
        """
        for shape in [shapes] if isinstance(shapes, Shape) else shapes:
            box = self.box(shape.low, shape.high)
            if box is None:
                continue
            distance = np.broadcast_to(shape.distance(*self.within(box)), self.hu[box].shape)
            if only:
                distance = np.where(self.owner[box] == self._index(only), distance, np.float32(1e3))
            self._blend(box, distance, hu[box] if isinstance(hu, np.ndarray) else hu)
            if name is not None:
                self.owner[box][distance < 0] = self._index(name)

    def fill(self, distance: np.ndarray, hu: float | np.ndarray) -> None:
        """Paint the whole grid where `distance` is negative."""
        self._blend((slice(None),) * 3, distance, hu)

    def texture(self, scale_mm: Sequence[float]) -> np.ndarray:
        """Smooth random values over the grid, about normal(0, 1), with bumps of `scale_mm`."""
        counts = [int(np.ptp(a) / s) + 4 for a, s in zip(self.axes, scale_mm, strict=True)]
        bumps = self.random.standard_normal(counts).astype(np.float32)
        for axis, (line, s) in enumerate(zip(self.axes, scale_mm, strict=True)):
            place = (line.ravel() - line.min()) / s + 1.5
            weight = np.exp(-((place[:, None] - np.arange(bumps.shape[axis])) ** 2) / 0.72).astype(np.float32)
            weight /= np.sqrt((weight**2).sum(1, keepdims=True))
            bumps = np.moveaxis(np.tensordot(weight, bumps, axes=(1, axis)), 0, axis)
        return bumps

    def finish(self, *, noise_hu: float) -> tuple[Volume, Masks]:
        """Add the scanner's blur and noise (its standard deviation); return the CT and the masks that are not empty."""
        from scipy.ndimage import gaussian_filter

        white = self.random.standard_normal(self.hu.shape, dtype=np.float32)
        self.hu += white * np.float32(noise_hu / _left_by_blur())
        hu = gaussian_filter(self.hu, BLUR_VOXELS, mode="nearest", truncate=3)
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

    def _blend(self, box: Box, distance: np.ndarray, hu: float | np.ndarray) -> None:
        filled = np.clip(0.5 - distance / np.float32(np.mean(self.spacing_mm)), 0, 1)  # share of the voxel
        self.hu[box] += filled * (hu - self.hu[box])


def _left_by_blur() -> float:
    """The standard deviation of white noise of 1 after the blur in three dimensions."""
    from scipy.ndimage import gaussian_filter1d

    impulse = np.zeros(9)
    impulse[4] = 1
    return np.sqrt((gaussian_filter1d(impulse, BLUR_VOXELS) ** 2).sum()) ** 3
