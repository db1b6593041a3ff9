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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clseg.inference.merge import FULL, HALF, Layer
from clseg.inference.prepare import Placement
from clseg.spatial.crop import Box
from clseg.spatial.orient import undo_orientation
from clseg.volume import Volume

ROWS = 48  # slices of the scanner's grid at a time, which bounds memory
BORDER = FULL / 2  # between HALF, the most of what did not win, and the least of what did


def restore(layer: Layer, placement: Placement, like: Volume) -> np.ndarray:
    """The layer's ids on the grid of `like`, uint16, in Fortran order as NIfTI files are."""
    return np.asfortranarray(undo_orientation(_onto_scan(layer, placement), like, placement.orientation))


def _onto_scan(layer: Layer, placement: Placement) -> np.ndarray:
    """Ids on the scan's voxels, in the model's orientation."""
    out = np.zeros(placement.scan_shape, np.uint16)
    structures, weights = _structures(layer, placement), placement.outward
    for first in range(0, placement.scan_shape[2], ROWS):
        rows = slice(first, min(first + ROWS, placement.scan_shape[2]))
        _fill_rows(out[:, :, rows], layer, structures, [weights[0], weights[1], weights[2][rows]])
    return out


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
    pieces = layer.faint.get(id, [])
    if not pieces:
        return np.zeros((3, 0), np.intp), np.zeros(0, np.uint8)
    index = np.concatenate([piece.index for piece in pieces])
    place = np.stack(np.unravel_index(index, layer.labels.shape))
    inside = np.all([(axis >= part.start) & (axis < part.stop) for axis, part in zip(place, box, strict=True)], axis=0)
    return place[:, inside], np.concatenate([piece.value for piece in pieces])[inside]


def _fill_rows(out: np.ndarray, layer: Layer, structures: Sequence[_Structure], weights: Sequence[np.ndarray]) -> None:
    """One group of slices of `out`: every voxel to the structure with the largest field among those that reach it."""
    best: np.ndarray | None = None
    for one in structures:
        found = _reached(layer, one, weights)
        if found is None:
            continue
        region, own, together = found
        inside = together > BORDER
        if len(structures) > 1:
            best = np.zeros(out.shape, np.float32) if best is None else best
            inside &= own > best[region]
            best[region][inside] = own[inside]
        out[region][inside] = one.id


def _reached(layer: Layer, one: _Structure, weights: Sequence[np.ndarray]) -> tuple[Box, np.ndarray, np.ndarray] | None:
    """Where the structure's box lies on the finer lattice, and there its field and that of all winners together.

    Both float32, 0 … 255.  None when the box does not reach these slices.
    """
    parts, region = [], []
    for weight, part in zip(weights, one.box, strict=True):
        touched = np.flatnonzero(weight[:, part].sum(axis=1) > 0.999)
        if touched.size == 0:
            return None
        region.append(slice(int(touched[0]), int(touched[-1]) + 1))
        parts.append(weight[region[-1], part])
    used = np.flatnonzero(parts[2].any(axis=0))  # only the model's slices that these rows look at
    z = slice(one.box[2].start + int(used[0]), one.box[2].start + int(used[-1]) + 1)
    parts[2] = parts[2][:, used[0] : used[-1] + 1]
    own, together = _fields(layer, one, (one.box[0], one.box[1], z))
    finer = _interpolate(own, parts)
    return tuple(region), finer, finer if together is None else _interpolate(together, parts)  # type: ignore[return-value]


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


def _interpolate(values: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """`values` (x, y, z) on the finer lattice, float32."""
    wx, wy, wz = (torch.from_numpy(np.ascontiguousarray(weight)) for weight in weights)
    up = torch.from_numpy(values) @ wz.T
    up = wy @ up
    return (wx @ up.reshape(up.shape[0], -1)).reshape(-1, *up.shape[1:]).numpy()
