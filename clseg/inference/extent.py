"""Extents: which slices can hold the organs of a decoder.

A decoder's checkpoint may carry the range of body-part scores (0 = bottom of the
pelvis, 1 = top of the head) in which its organs live.  With a score per slice
the decoder runs and paints only there; without range or scores it runs everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clseg.network.model import Model

Extent = tuple[int, int]  # first slice and one past the last, on the model's grid


def extents(model: Model, slices: int, scores: Sequence[float] | None = None) -> Mapping[str, Extent | None]:
    """First and past-the-last slice of every decoder among `slices`; None where no slice is in its range."""
    found: dict[str, Extent | None] = {}
    for name, wanted in model.slices.items():
        if wanted is None or scores is None:
            found[name] = (0, slices)
            continue
        inside = np.flatnonzero((np.asarray(scores) >= wanted[0]) & (np.asarray(scores) <= wanted[1]))
        found[name] = (int(inside[0]), int(inside[-1]) + 1) if inside.size else None
    return found
