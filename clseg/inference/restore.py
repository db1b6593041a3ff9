"""Restore: labels back to the scanner's grid, with smooth borders.

A label map taken back by nearest neighbour has stairs as high as the model's
voxels.  The winners' probabilities say where between two voxels a border lies:
per structure the field "its probability where it won, what the winner left over
elsewhere" is interpolated linearly, and the structure is where that is largest.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from clseg.inference.merge import FULL, Layer
from clseg.inference.prepare import Placement
from clseg.spatial.orient import undo_orientation
from clseg.volume import Volume

ROWS = 48  # slices of the scanner's grid at a time, which bounds memory


def restore(layer: Layer, placement: Placement, like: Volume) -> np.ndarray:
    """The layer's ids on the grid of `like`, uint16, in Fortran order as NIfTI files are."""
    return np.asfortranarray(undo_orientation(_onto_scan(layer, placement), like, placement.orientation))


def _onto_scan(layer: Layer, placement: Placement) -> np.ndarray:
    """Ids on the scan's voxels, in the model's orientation."""
    from scipy import ndimage

    out = np.zeros(placement.scan_shape, np.uint16)
    boxes = {i + 1: box for i, box in enumerate(ndimage.find_objects(layer.labels)) if box is not None}
    if not boxes:
        return out
    weights = placement.outward
    reach = [math.ceil(max(1.0, s / t)) for s, t in zip(placement.scan_spacing, placement.spacing, strict=True)]
    boxes = {label: _grown(box, placement.shape, reach) for label, box in boxes.items()}
    union = _hull(list(boxes.values()))
    for first in range(0, placement.scan_shape[2], ROWS):
        rows = slice(first, min(first + ROWS, placement.scan_shape[2]))
        _fill_rows(out, layer, boxes, union, weights, rows)
    return out


def _fill_rows(
    out: np.ndarray,
    layer: Layer,
    boxes: dict[int, tuple[slice, ...]],
    union: tuple[slice, ...],
    weights: list[np.ndarray],
    rows: slice,
) -> None:
    """One group of slices: foreground where any structure is likelier than none, then the likeliest structure."""
    slab_weights = [weights[0], weights[1], weights[2][rows]]
    place = _interpolate(layer, union, slab_weights, None)
    if place is None:
        return
    region, foreground = place
    ids = np.zeros(foreground.shape, np.uint16)
    inside = foreground > 0.5
    if len(boxes) == 1:
        ids[inside] = next(iter(boxes))
    else:
        best = np.zeros(foreground.shape, np.float32)
        for label, box in boxes.items():
            found = _interpolate(layer, box, slab_weights, label)
            if found is None:
                continue
            where, field = found
            local = tuple(slice(w.start - r.start, w.stop - r.start) for w, r in zip(where, region, strict=True))
            stronger = field > best[local]
            best[local][stronger] = field[stronger]
            ids[local][stronger] = label
        ids[~inside] = 0
    out[region[0], region[1], slice(rows.start + region[2].start, rows.start + region[2].stop)] = ids


def _interpolate(
    layer: Layer, box: tuple[slice, ...], weights: list[np.ndarray], label: int | None
) -> tuple[tuple[slice, ...], np.ndarray] | None:
    """The probability field of `label` (None: of any) in `box` of the model's grid, on the finer lattice.

    Returns where it lies there and the field, float32; None when it does not reach these slices.
    """
    parts, region = [], []
    for weight, part in zip(weights, box, strict=True):
        touched = np.flatnonzero(weight[:, part].sum(axis=1) > 0.999)
        if touched.size == 0:
            return None
        region.append(slice(int(touched[0]), int(touched[-1]) + 1))
        parts.append(weight[region[-1], part])
    used = np.flatnonzero(parts[2].any(axis=0))  # only the model's slices that these rows look at
    z = slice(box[2].start + int(used[0]), box[2].start + int(used[-1]) + 1)
    parts[2] = parts[2][:, used[0] : used[-1] + 1]
    labels, score = layer.labels[box[0], box[1], z], layer.score[box[0], box[1], z]
    won = labels > 0 if label is None else labels == label
    half = FULL // 2  # the winner of three may hold less than half; its border is still halfway
    field = np.where(won, np.maximum(score, half + 1), np.minimum(FULL - score, half)).astype(np.float32) / FULL
    wx, wy, wz = (torch.from_numpy(np.ascontiguousarray(p)) for p in parts)
    up = torch.from_numpy(field) @ wz.T
    up = wy @ up
    up = (wx @ up.reshape(up.shape[0], -1)).reshape(-1, *up.shape[1:])
    return tuple(region), up.numpy()


def _hull(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3))


def _grown(box: tuple[slice, ...], shape: tuple[int, ...], reach: list[int]) -> tuple[slice, ...]:
    """The box with `reach` voxels around it, so that the interpolated field falls to the background inside."""
    return tuple(slice(max(0, b.start - r), min(n, b.stop + r)) for b, n, r in zip(box, shape, reach, strict=True))
