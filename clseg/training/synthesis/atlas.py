"""Atlas: a label map completed with what synthesis needs to know about every place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from clseg.errors import InputError
from clseg.spatial.orient import to_orientation
from clseg.spatial.resample import axis_weights, covering_shape, interpolate
from clseg.training.synthesis.tables import structure
from clseg.volume import Spacing, Volume

SPACING_MM = 2.0  # an atlas is no finer, and no finer than its label map
MARGIN_MM = 60.0  # room for fat and skin around a label map that does not show the body
HALF_MM = 2  # depth is kept in halves of a mm
DISC = "disc"  # what lies between vertebrae, no structure of the catalogue
DISC_MM = 6.0  # half the thickest disc
MOST = 250  # structures; ids must fit uint8 with room for 255
HULL_STEP_MM = 4.0
HULL_SMOOTH_MM = 8.0


@dataclass(frozen=True)
class Maps:
    """What an atlas knows of every voxel, as tensors on one device: see `Atlas`."""

    near: torch.Tensor
    depth: torch.Tensor
    hull: torch.Tensor
    surface: torch.Tensor | None


@dataclass(frozen=True)
class Atlas:
    """A label map on a grid of `spacing_mm` whose axes point as `orientation` says.

    `names[i]` is the structure with id i + 1.  `near` uint8: id of the nearest
    structure, at every voxel.  `depth` int8, halves of a mm: distance to the
    structure's border, positive inside, negative in no structure.  `hull` int8, mm:
    distance to the outline around all structures, positive outside.  `surface` the
    same to the skin, where the case shows it.  All (x, y, z).  `on_device` is what `maps` has brought to devices.
    """

    names: tuple[str, ...]
    near: np.ndarray
    depth: np.ndarray
    hull: np.ndarray
    surface: np.ndarray | None
    spacing_mm: float
    orientation: str
    on_device: dict[str, Maps] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "on_device": {}}  # another process brings the maps to its own

    def maps(self, device: str) -> Maps:
        """The arrays as tensors on a device, brought there once."""
        if device not in self.on_device:
            parts = (self.near, self.depth, self.hull, self.surface)
            self.on_device[device] = Maps(*(None if part is None else torch.from_numpy(part).to(device) for part in parts))
        return self.on_device[device]

    @cached_property
    def back_mm(self) -> float:
        """How far behind the middle the skin, or the outline where there is none, reaches, mm (negative)."""
        axis, sign = axis_along(self.orientation, "A")
        outline = self.hull if self.surface is None else self.surface
        rows = np.flatnonzero((outline < 0).any(axis=tuple(a for a in range(3) if a != axis))[::sign])
        return float((rows[0] - (self.shape[axis] - 1) / 2) * self.spacing_mm) if rows.size else 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.near.shape  # type: ignore[return-value]

    @property
    def ids(self) -> np.ndarray:
        """Structure ids, uint8, 0 where no structure is."""
        return np.where(self.depth > 0, self.near, 0).astype(np.uint8)

    def lookup(self, labels: Sequence[str]) -> np.ndarray:
        """Structure id → 1 + its place in `labels`, 0 for all others, 255 for 255; uint8 (256,)."""
        table = np.zeros(256, np.uint8)
        table[255] = 255
        for id, name in enumerate(self.names, start=1):
            if name in labels:
                table[id] = 1 + list(labels).index(name)
        return table


def axis_along(orientation: str, letter: str) -> tuple[int, int]:
    """The axis that lies along a direction of the patient, and whether it points there (1) or away (-1)."""
    opposite = {"R": "L", "A": "P", "S": "I"}[letter]
    axis = next(i for i, code in enumerate(orientation) if code in (letter, opposite))
    return axis, 1 if orientation[axis] == letter else -1


def build_atlas(
    labels: Volume, names: Sequence[str], body: np.ndarray | None = None, orientation: str = "RAS"
) -> Atlas:
    """The atlas of a label map whose voxels hold 1 + the place of their structure in `names`, 0 for none.

    `body` is the body's mask (bool) on the same grid, if there is one.  The atlas is
    concentric with the label map, with a margin to the sides where there is none.
    Raises InputError for an empty map and for more structures than fit.
    """
    if not 0 < len(names) <= MOST or not labels.array.any():
        raise InputError(
            f"Synthesis needs a label map with voxels of 1 to {MOST} structures, given {len(names)} names."
        )
    ras = to_orientation(labels, "RAS")
    values = np.asarray(ras.array, np.uint8)
    if body is None:
        values = _with_margin(values, ras.spacing)
    names, values = _with_discs(tuple(names), values, ras.spacing)

    spacing_mm = max(SPACING_MM, min(ras.spacing))
    grid = (spacing_mm,) * 3
    shape = covering_shape(values.shape, ras.spacing, grid)
    ids = resampled(values, ras.spacing, grid)
    weights = [axis_weights(n, s, m, spacing_mm) for n, s, m in zip(values.shape, ras.spacing, shape, strict=True)]
    fields = {
        "near": _grown(ids),
        "depth": _to_int8(interpolate(_depth(values, ras.spacing), weights).numpy() * HALF_MM),
        "hull": _to_int8(_hull(ids > 0, spacing_mm)),
    }
    if body is not None:
        outline = resampled(to_orientation(labels.like(body), "RAS").array, ras.spacing, grid)
        fields["surface"] = _to_int8(_outside_mm(outline, spacing_mm))
    turned = {name: _turned(array, orientation) for name, array in fields.items()}
    return Atlas(names, **{"surface": None, **turned}, spacing_mm=spacing_mm, orientation=orientation)


def resampled(values: np.ndarray, spacing: Spacing, target: Spacing) -> np.ndarray:
    """The concentric grid of `target` mm that covers an array of `spacing` mm, each voxel the nearest of the array."""
    pick = []
    shape = covering_shape(values.shape, spacing, target)  # type: ignore[arg-type]
    for n, s, m, t in zip(values.shape, spacing, shape, target, strict=True):
        place = (np.arange(m) - (m - 1) / 2) * t / s + (n - 1) / 2
        pick.append(np.clip(np.floor(place + 0.5).astype(int), 0, n - 1))
    return values[np.ix_(*pick)]


def _with_margin(values: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Room to the sides; above and below the scan simply ends."""
    x, y = (int(np.ceil(MARGIN_MM / s)) for s in spacing[:2])
    return np.pad(values, ((x, x), (y, y), (0, 0)))


def _with_discs(names: tuple[str, ...], values: np.ndarray, spacing: Spacing) -> tuple[tuple[str, ...], np.ndarray]:
    """What a closing of all vertebrae adds becomes a structure of its own."""
    spine = [id for id, name in enumerate(names, start=1) if structure(name).core == "spongiosa_spine"]
    bones = np.isin(values, spine)
    if len(spine) < 2 or not bones.any():
        return names, values
    box = _box(bones, [int(np.ceil(2 * DISC_MM / s)) for s in spacing])
    grown = _away(~bones[box], spacing) <= DISC_MM
    closed = _away(grown, spacing) > DISC_MM
    out = values.copy()
    out[box][closed & (values[box] == 0)] = len(names) + 1
    return (*names, DISC), out


def _away(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Distance in mm of every True voxel to the nearest False one."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(mask, sampling=spacing)


def _box(mask: np.ndarray, margin: Sequence[int]) -> tuple[slice, ...]:
    parts = []
    for axis, extra in enumerate(margin):
        rows = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        parts.append(slice(max(0, rows[0] - extra), rows[-1] + 1 + extra))
    return tuple(parts)


def _depth(values: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Distance in mm to the border of a voxel's own structure, negative where there is none; float32."""
    edge = np.zeros(values.shape, bool)
    for axis in range(3):
        low, high = ([slice(None)] * 3 for _ in range(2))
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        differs = values[tuple(low)] != values[tuple(high)]
        edge[tuple(low)] |= differs
        edge[tuple(high)] |= differs
    distance = (_away(~edge, spacing) + min(spacing) / 2).astype(np.float32)
    return np.where(values > 0, distance, -distance)


def _grown(ids: np.ndarray) -> np.ndarray:
    """Every voxel's nearest id."""
    from scipy import ndimage

    places = ndimage.distance_transform_edt(ids == 0, return_distances=False, return_indices=True)
    return ids[tuple(places)]


def _hull(filled: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Distance in mm to the convex outline of every axial slice, smoothed, positive outside; float32."""
    from scipy import ndimage
    from skimage.morphology import convex_hull_image

    step = max(1, round(HULL_STEP_MM / spacing_mm))
    coarse_mm = step * spacing_mm
    coarse = filled[::step, ::step, ::step]
    rows = [z for z in range(coarse.shape[2]) if np.count_nonzero(coarse[:, :, z]) > 3]
    solid = np.zeros_like(coarse)
    for z in range(coarse.shape[2]):
        nearest = min(rows, key=lambda row: abs(row - z), default=None)
        if nearest is not None:
            solid[:, :, z] = convex_hull_image(coarse[:, :, nearest])
    distance = ndimage.gaussian_filter(_outside_mm(solid, coarse_mm), HULL_SMOOTH_MM / coarse_mm, mode="nearest")
    fine = torch.nn.functional.interpolate(torch.from_numpy(distance)[None, None], scale_factor=step, mode="trilinear")[
        0, 0
    ].numpy()
    return fine[tuple(slice(0, n) for n in filled.shape)]


def _outside_mm(mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Signed distance in mm to a mask's border, positive outside; float32."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, -127.0 if mask.all() else 127.0, np.float32)
    mask = mask.astype(bool)
    out, inside = (_away(m, (spacing_mm,) * 3) for m in (~mask, mask))
    return (np.where(mask, -inside + spacing_mm / 2, out - spacing_mm / 2)).astype(np.float32)


def _to_int8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def _turned(array: np.ndarray, orientation: str) -> np.ndarray:
    """From RAS to another order of axes."""
    return np.ascontiguousarray(to_orientation(Volume(array), orientation).array)
