"""Restore: labels back to the scanner's grid, with smooth borders.

A label map taken back by nearest neighbour has stairs as high as the model's
voxels.  Probabilities say where between two voxels a border lies: of every
structure the field "its probability where it won, what is left of it elsewhere" is
interpolated linearly, and the structure is where that is above a half.  Where three
meet none may have a half: then the largest has the voxel, provided that the winners
together have a half.

The field of a structure is made of its own probabilities alone, so that its mask
does not depend on what else was asked for, except where the two touch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from clseg.inference.merge import FULL, HALF, Faint, Layer
from clseg.inference.prepare import Placement
from clseg.spatial.crop import Box
from clseg.spatial.orient import axis_order, to_orientation
from clseg.spatial.runs import LabelRuns
from clseg.volume import Shape, Volume

TILE = (64, 64, 32)  # voxels of the scanner's grid at a time: small enough for the cache, and for products that wake no threads
BORDER = FULL / 2  # between HALF, the most of what did not win, and the least of what did


def restore(layer: Layer, placement: Placement, like: Volume, *, smooth: bool = True) -> LabelRuns:
    """The layer's ids on the grid of `like`.

    Without `smooth` every voxel has the id of the nearest one on the model's grid.
    """
    fill = (_Smooth if smooth else _Nearest)(layer, placement).fill
    runs = LabelRuns(like.shape)
    for sheet in _sheets(like, placement.orientation):
        fill(sheet.turned, sheet.rows)
        runs.put(sheet.first, sheet.array)
    return runs


@dataclass(frozen=True)
class _Sheet:
    """Slices of the scan from `first` on, empty at first; `turned` is a view in the model's axes, where they are `rows` of the third."""

    first: int
    array: np.ndarray
    turned: np.ndarray
    rows: slice


def _sheets(like: Volume, code: str) -> Iterator[_Sheet]:
    """The scan, one sheet after the other; one sheet is all of it where its slices are not those of the model."""
    length, axial = like.shape[2], axis_order(like, code)[2] == 2
    for part in _parts(length, TILE[2] if axial else length):
        array = np.zeros((*like.shape[:2], part.stop - part.start), np.uint16, order="F")
        turned = to_orientation(Volume(array, like.affine), code).array
        first = 0 if not axial else part.start if like.orientation[2] == code[2] else length - part.stop
        yield _Sheet(part.start, array, turned, slice(first, first + turned.shape[2]))


class _Nearest:
    """Every voxel has the id of the nearest one on the model's grid."""

    def __init__(self, layer: Layer, placement: Placement) -> None:
        self.layer, self.axes = layer, [_nearest(weights) for weights in placement.outward]

    def fill(self, turned: np.ndarray, rows: slice) -> None:
        (x, from_x), (y, from_y), (z, from_z) = self.axes
        first, last = max(rows.start, z.start), min(rows.stop, z.stop)
        for part in _parts(max(0, last - first), TILE[2]):
            these = slice(first + part.start, first + part.stop)
            ids = self.layer.labels.T[np.ix_(from_z[_within(these, z)], from_y, from_x)]  # (z, y, x), as files are
            turned[x, y, _within(these, rows)] = ids.T


def _nearest(weights: np.ndarray) -> tuple[slice, np.ndarray]:
    """Which voxels of the scan's axis lie in the box, and the nearest one of the model's for each of them."""
    there = np.flatnonzero(weights.sum(axis=1) > 0.5)  # with less, the nearest lies beyond the box
    inside = slice(int(there[0]), int(there[-1]) + 1) if there.size else slice(0, 0)
    return inside, weights[inside].argmax(axis=1)


class _Smooth:
    """Every voxel has the structure whose interpolated field is largest there."""

    def __init__(self, layer: Layer, placement: Placement) -> None:
        self.layer, self.weights = layer, placement.outward
        self.structures, self.desk = _structures(layer, placement), _Desk()
        self.tiles = [[_Tile(weights[part]) for part in _parts(len(weights), size)] for weights, size in zip(self.weights[:2], TILE[:2], strict=True)]

    def fill(self, turned: np.ndarray, rows: slice) -> None:
        wz = self.weights[2]
        across = [(x, y, self.tiles[0][n], self.tiles[1][m]) for (n, x), (m, y) in product(*map(enumerate, map(_parts, turned.shape[:2], TILE[:2])))]
        for part in _parts(turned.shape[2], TILE[2]):
            weights = wz[rows.start + part.start : rows.start + part.stop]
            bands = [band for one in self.structures if (band := _band(self.layer, one, weights))]
            for x, y, tile_x, tile_y in across:
                _fill(turned[x, y, part].T, bands, tile_x, tile_y, self.desk)


def _parts(length: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


@dataclass(frozen=True)
class _Structure:
    """One structure on the model's grid: a box around what it won and may reach, and where it is faint in there.

    `place` are voxels (3, n) of the grid, `value` their probability × 255.
    """

    id: int
    box: Box
    place: np.ndarray
    value: np.ndarray


def _structures(layer: Layer, placement: Placement) -> list[_Structure]:
    from scipy import ndimage

    reach = [math.ceil(max(1.0, s / t)) for s, t in zip(placement.scan_spacing, placement.spacing, strict=True)]
    found = []
    for id, box in enumerate(ndimage.find_objects(layer.labels), 1):
        if box is not None:
            grown = tuple(slice(max(0, b.start - r), min(n, b.stop + r)) for b, n, r in zip(box, placement.shape, reach, strict=True))
            found.append(_Structure(id, grown, *_faint(layer, id, grown)))  # type: ignore[arg-type]
    return found


def _faint(layer: Layer, id: int, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (3, n) in the box where the structure is faint, and how much."""
    found = [_inside(piece, layer.labels.shape, box) for piece in layer.faint.get(id, [])]
    if not found:
        return np.zeros((3, 0), np.int32), np.zeros(0, np.uint8)
    return np.concatenate([place for place, _ in found], axis=1), np.concatenate([value for _, value in found])


def _inside(piece: Faint, shape: Shape, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The voxels (3, n) of one piece that lie in the box, and their values."""
    place = np.stack([axis.astype(np.int32) for axis in np.unravel_index(piece.index, shape)])
    inside = np.all([(axis >= part.start) & (axis < part.stop) for axis, part in zip(place, box, strict=True)], axis=0)
    return place[:, inside], piece.value[inside]


@dataclass(frozen=True)
class _Band:
    """A structure in some of the scanner's slices: brought to `rows` along z, still on the model's grid in `x` and `y`.

    `own` is its field and `together` that of all winners (None where there are no others): float32 (z, y, x), 0 … 255.
    """

    id: int
    x: slice
    y: slice
    rows: slice
    own: np.ndarray
    together: np.ndarray | None


def _band(layer: Layer, one: _Structure, weights: np.ndarray) -> _Band | None:
    """The structure in the slices that these weights (scan slices, model slices) make; None when it does not reach them."""
    place = _reached(weights, one.box[2])
    if place is None:
        return None
    rows, z = place
    own, together = _fields(layer, one, (*one.box[:2], z))
    weight = np.ascontiguousarray(weights[rows, z])
    return _Band(one.id, *one.box[:2], rows, _along_z(own, weight), None if together is None else _along_z(together, weight))


def _reached(weights: np.ndarray, part: slice) -> tuple[slice, slice] | None:
    """Which rows of the weights (scan voxels, model voxels) a part of the model's axis fills, and what of it they look at."""
    touched = np.flatnonzero(weights[:, part].sum(axis=1) > 0.999)
    if touched.size == 0:
        return None
    rows = slice(int(touched[0]), int(touched[-1]) + 1)
    used = np.flatnonzero(weights[rows, part].any(axis=0))
    return rows, slice(part.start + int(used[0]), part.start + int(used[-1]) + 1)


class _Tile:
    """Some voxels of an axis of the scan: their `weights` (scan voxels, model voxels), and what parts of the model's axis fill of them."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights
        self._known: dict[tuple[int, int], tuple[slice, slice] | None] = {}

    def reached(self, part: slice) -> tuple[slice, slice] | None:
        """As `_reached`; structures ask the same of every slice."""
        key = (part.start, part.stop)
        if key not in self._known:
            self._known[key] = _reached(self.weights, part)
        return self._known[key]


def _fields(layer: Layer, one: _Structure, box: Box) -> tuple[np.ndarray, np.ndarray | None]:
    """The structure's field in a box of the model's grid, and the same with the other winners' (None without others)."""
    labels, score = layer.labels[box], layer.score[box]
    won = np.maximum(score, HALF + 1).astype(np.float32)  # the winner of three may hold less than half; its border is still halfway
    mine = labels == one.id
    own = np.where(mine, won, np.float32(0))
    near = (one.place[2] >= box[2].start) & (one.place[2] < box[2].stop)
    x, y, z = (axis[near] - part.start for axis, part in zip(one.place, box, strict=True))
    own[x, y, z] = np.where(mine[x, y, z], own[x, y, z], one.value[near])
    others = (labels > 0) & ~mine
    return own, np.where(others, won, own) if others.any() else None


def _along_z(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A field (x, y, z) with other slices, as (z, y, x): x fastest, as in files."""
    turned = np.ascontiguousarray(values.T).swapaxes(0, 1)  # (y, z, x): many small products
    return np.matmul(weight, turned).swapaxes(0, 1)


class _Desk:
    """Arrays that every tile uses again: to get new memory from the system takes longer than what is computed in it."""

    def __init__(self) -> None:
        self._flat: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        """An array with whatever was in it."""
        size = math.prod(shape)
        if name not in self._flat or self._flat[name].size < size:
            self._flat[name] = np.empty(size, dtype)
        return self._flat[name][:size].reshape(shape)


def _fill(out: np.ndarray, bands: Sequence[_Band], tile_x: _Tile, tile_y: _Tile, desk: _Desk) -> None:
    """One tile (z, y, x) of the scan: every voxel to the structure with the largest field among those that reach it.

    Arithmetic instead of masked assignments, which are some ten times as slow in numpy.
    """
    ids, best = desk.array("ids", out.shape, np.uint16), desk.array("best", out.shape)
    ids[...], best[...] = 0, 0
    for one in bands:
        if found := _in_tile(one, tile_x, tile_y, desk):
            region, own, together = found
            inside = np.greater(together, BORDER, out=desk.array("inside", own.shape, bool))
            own *= inside
            wins = np.greater(own, best[region], out=inside)
            change = np.bitwise_xor(ids[region], np.uint16(one.id), out=desk.array("change", own.shape, np.uint16))
            change *= wins
            ids[region] ^= change  # the id where the field is larger, else what was there
            np.maximum(best[region], own, out=best[region])
    if ids.any():
        out[...] = ids


def _in_tile(one: _Band, tile_x: _Tile, tile_y: _Tile, desk: _Desk) -> tuple[Box, np.ndarray, np.ndarray] | None:
    """The part (z, y, x) of the tile that the structure's box fills, its field there and that of all winners; None where it has none."""
    across, along = tile_x.reached(one.x), tile_y.reached(one.y)
    if across is None or along is None:
        return None
    (x, from_x), (y, from_y) = across, along
    there = (slice(None), _within(from_y, one.y), _within(from_x, one.x))
    if not one.own[there].any():
        return None
    weights = tile_x.weights[x, from_x], tile_y.weights[y, from_y]
    own = _across(one.own[there], *weights, desk, "own")
    return (one.rows, y, x), own, own if one.together is None else _across(one.together[there], *weights, desk, "together")


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _across(values: np.ndarray, wx: np.ndarray, wy: np.ndarray, desk: _Desk, name: str) -> np.ndarray:
    """A band's field (z, y, x) on the scanner's x and y."""
    rows = np.matmul(wy, values, out=desk.array("rows", (len(values), len(wy), values.shape[2])))
    return np.matmul(rows, wx.T, out=desk.array(name, (*rows.shape[:2], len(wx))))
