"""Body: the box in which CL-Net looks for a decoder's organs: the body, in the slices that can hold them, with room for a window.

All arrays and boxes are in (z, y, x) of a scan turned to LPS, z from the feet up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clseg.network.plan import Plan
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume

Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""per axis the first voxel and one past the last"""

BODY_HU = -200.0  # denser than this is body
ROUNDS = 3  # of opening with 3 × 3 voxels: away goes what is thinner than 7
EYES = 0.88  # how far up from the seat (our score 0) to the top of the head (1) the eyes (their 100) end, sitting adults


@dataclass(frozen=True)
class Body:
    """A scan's body, found once for all decoders, and the score of every slice, 0 pelvis … 100 eyes (None: unknown)."""

    scan: Volume
    scores: Sequence[float] | None = None

    @cached_property
    def mask(self) -> np.ndarray:
        return body_mask(to_orientation(self.scan, "LPS").array.transpose(2, 1, 0))

    def bounds(self, plan: Plan) -> Bounds | None:
        """Where a decoder with this plan looks, in the network's axes; None where no slice can hold its organs."""
        slices = slices_between(self.scores, plan.score_range, len(self.mask))
        if slices is None:
            return None
        box = body_bounds(self.mask, slices, room_of(plan))
        return tuple(box[axis] for axis in plan.transpose)  # type: ignore[return-value]


def body_mask(hu: np.ndarray) -> np.ndarray:
    """The body in every axial slice by itself: dense, opened, its largest piece (4-connected), holes filled."""
    from scipy import ndimage

    mask = np.zeros(hu.shape, bool)
    for number, one in enumerate(hu):
        opened = ndimage.binary_opening(one > BODY_HU, np.ones((3, 3)), iterations=ROUNDS)
        pieces, count = ndimage.label(opened)
        if count:
            largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
            mask[number] = ndimage.binary_fill_holes(pieces == largest)
    return mask


def their_scores(ours: np.ndarray) -> np.ndarray:
    """Our body-part scores (0 bottom of the pelvis … 1 top of the head) on the scale of CL-Net's authors (0 … 100 eyes)."""
    return ours / EYES * 100


def slices_between(scores: Sequence[float] | None, score_range: tuple[float | None, float | None] | None, count: int) -> tuple[int, int] | None:
    """The first slice whose score is in the range and, as they have it, one past the one after the last; None where none is.

    Without scores or range these are all `count` slices.
    """
    if scores is None or score_range is None:
        return 0, count
    low, high = score_range
    values = np.asarray(scores, float)
    inside = np.flatnonzero((values >= (-np.inf if low is None else low)) & (values <= (np.inf if high is None else high)))
    return (int(inside[0]), min(int(inside[-1]) + 2, count)) if inside.size else None


def body_bounds(mask: np.ndarray, slices: tuple[int, int], room: tuple[int, int, int]) -> Bounds:
    """The box of the body in these slices (of the slices where none is), at least `room` voxels wide, and a quarter of that around it."""
    inside = mask[slice(*slices)]
    inside = inside if inside.any() else np.ones_like(inside)
    found = []
    for axis, (size, least) in enumerate(zip(mask.shape, room, strict=True)):
        rows = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        first = slices[0] if axis == 0 else 0
        low, high = _grown(int(rows[0]) + first, int(rows[-1]) + 1 + first, least, size)
        found.append((max(0, low - least // 4), min(size, high + least // 4)))
    return tuple(found)  # type: ignore[return-value]


def room_of(plan: Plan) -> tuple[int, int, int]:
    """What the box has room for, in (z, y, x): voxels of the network's grid, but counted as the scan's, as they do."""
    room = plan.room or plan.patch
    return tuple(room[plan.transpose.index(axis)] for axis in range(3))  # type: ignore[return-value]


def _grown(low: int, high: int, least: int, size: int) -> tuple[int, int]:
    """At least `least` voxels around the middle, inside an axis of `size` where it is long enough."""
    if high - low >= least:
        return low, high
    first = (low + high) // 2 - least // 2
    first = max(0, min(first, size - least))
    return first, min(size, first + least)
