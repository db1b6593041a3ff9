"""Where the body is: the box that is worth computing."""

from __future__ import annotations

import numpy as np

from clseg.volume import Spacing

Box = tuple[slice, slice, slice]

BODY_HU = -300  # fat is about -100 HU, the couch's foam below -500


def body_box(hu: np.ndarray, spacing: Spacing, *, margin_mm: float = 15.0, probe_mm: float = 4.0) -> Box:
    """Box around the largest connected part above -300 HU, with a margin.

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
    found = ndimage.find_objects(parts)[sizes.argmax() - 1]
    box = []
    for part, step, size, s in zip(found, steps, hu.shape, spacing, strict=True):
        margin = int(np.ceil(margin_mm / s)) + step
        box.append(slice(max(0, part.start * step - margin), min(size, part.stop * step + margin)))
    return tuple(box)  # type: ignore[return-value]
