"""Extents: which slices can hold the organs of a decoder.

A decoder's checkpoint may carry the range of body-part scores (0 = bottom of the
pelvis, 1 = top of the head) in which its organs live; a bound of None is open: nobody
knows where these organs end there.  With a score per slice the decoder runs and
paints only there; without range or scores it runs everywhere.
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
        low, high = wanted
        values = np.asarray(scores, float)
        inside = np.ones(len(values), bool)
        if low is not None:
            inside &= values >= low
        if high is not None:
            inside &= values <= high
        rows = np.flatnonzero(inside)
        found[name] = (int(rows[0]), int(rows[-1]) + 1) if rows.size else None
    return found
