"""Where the body is: the box that is worth computing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clseg.volume import Spacing

Box = tuple[slice, slice, slice]

BODY_HU = -300  # fat is about -100 HU, the couch's foam below -500
LIMB_SHARE = 0.1  # parts of this share of the largest belong to the body: the other leg, an arm beside the trunk


def body_box(hu: np.ndarray, spacing: Spacing, *, margin_mm: float = 15.0, probe_mm: float = 4.0) -> Box:
    """Box around the large connected parts above -300 HU, with a margin.

    `hu` has shape (x, y, z); it is looked at on a coarse lattice of about
    `probe_mm`, where couch tops and wires are too thin to survive an opening.
    The whole array is returned when nothing in it is dense enough.
    """
    from scipy import ndimage

    steps = tuple(max(1, round(probe_mm / s)) for s in spacing)
    coarse = hu[:: steps[0], :: steps[1], :: steps[2]] > BODY_HU
    core = ndimage.binary_opening(coarse, iterations=1)
    parts, count = ndimage.label(core if core.any() else coarse)
    if count == 0:
        return tuple(slice(0, n) for n in hu.shape)  # type: ignore[return-value]
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    large = [found for found, n in zip(ndimage.find_objects(parts), sizes[1:], strict=True) if n >= LIMB_SHARE * sizes.max()]
    box = []
    for axis, (step, size, s) in enumerate(zip(steps, hu.shape, spacing, strict=True)):
        margin = int(np.ceil(margin_mm / s)) + step
        first, last = min(part[axis].start for part in large), max(part[axis].stop for part in large)
        box.append(slice(max(0, first * step - margin), min(size, last * step + margin)))
    return tuple(box)  # type: ignore[return-value]


def filled_slices(hu: np.ndarray) -> slice:
    """The slices (x, y, z) between the outermost in which not all voxels have one value; all of them where there is none."""
    first, last = 0, hu.shape[2]
    while first < last and hu[:, :, first].min() == hu[:, :, first].max():
        first += 1
    while last > first and hu[:, :, last - 1].min() == hu[:, :, last - 1].max():
        last -= 1
    return slice(first, last) if first < last else slice(0, hu.shape[2])


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box around one or more."""
    i, j, k = (slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*boxes, strict=True))
    return i, j, k
