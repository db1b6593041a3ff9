"""Extents: which slices can hold the organs of a decoder, and of each of its labels (how far to the sides: `sideways`).

A decoder's checkpoint may carry the range of body-part scores (0 = bottom of the
pelvis, 1 = top of the head) in which its organs live; a bound of None is open: nobody
knows where these organs end there.  With a score per slice the decoder runs and
paints only there; without range or scores it runs everywhere.  Labels may have ranges
of their own: a larynx that shares its decoder with the oesophagus is not looked for in
the belly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clseg.network.checkpoint import Range
from clseg.network.model import Model

Extent = tuple[int, int]  # first slice and one past the last, on the model's grid
LabelExtents = Mapping[str, Mapping[str, Extent | None]]
"""decoder → label → the slices that can hold it (None: none of them), for labels that have a range of their own"""


@dataclass(frozen=True)
class Reach:
    """Which slices every decoder may paint, and those of its labels that have a range of their own; None: no slice.

    `bands` says between which voxels along x (2, slices) a decoder's organs lie, where that is known.
    """

    decoders: Mapping[str, Extent | None]
    labels: LabelExtents = field(default_factory=dict)
    bands: Mapping[str, np.ndarray] = field(default_factory=dict)

    def reached(self, decoder: str, labels: Iterable[str]) -> set[str]:
        """Which of the decoder's labels have a slice to be in."""
        whole = self.decoders.get(decoder)
        own = self.labels.get(decoder, {})
        return {label for label in labels if whole is not None and own.get(label, whole) is not None}


def extents(
    model: Model, slices: int, scores: Sequence[float] | None = None, wanted: Collection[str] | None = None, labels: Mapping[str, Sequence[str]] | None = None
) -> Mapping[str, Extent | None]:
    """First and past-the-last slice of every decoder among `slices`; None where no slice is in its range.

    A decoder is not asked beyond the ranges of those of its labels that are `wanted` (None:
    all), where all of these have one of their own.  `labels[decoder]` are those that it
    speaks of (None: all that it knows).
    """
    within = label_extents(model, slices, scores)
    found: dict[str, Extent | None] = {}
    for name, span in model.slices.items():
        whole = _extent(span, slices, scores)
        if name in within:
            known = model.decoders[name].spec.labels if labels is None else filter(None, labels[name])
            mine = [label for label in known if wanted is None or label in wanted]
            if mine and set(mine) <= set(within[name]):
                whole = _common(whole, _hull(within[name][label] for label in mine))
        found[name] = whole
    return found


def label_extents(model: Model, slices: int, scores: Sequence[float] | None = None) -> LabelExtents:
    """The same for labels that have a range of their own, of the decoders that answer; without scores nothing is known."""
    if scores is None:
        return {}
    return {
        name: {label: _extent(wanted, slices, scores) for label, wanted in model.label_slices[name].items()}
        for name in model.slices
        if name in model.label_slices
    }


def _extent(wanted: Range | None, slices: int, scores: Sequence[float] | None) -> Extent | None:
    if wanted is None or scores is None:
        return 0, slices
    low, high = wanted
    values = np.asarray(scores, float)
    inside = np.ones(len(values), bool)
    if low is not None:
        inside &= values >= low
    if high is not None:
        inside &= values <= high
    rows = np.flatnonzero(inside)
    return (int(rows[0]), int(rows[-1]) + 1) if rows.size else None


def _hull(each: Iterable[Extent | None]) -> Extent | None:
    """From the first to the last slice of them all."""
    known = [one for one in each if one is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _common(one: Extent | None, other: Extent | None) -> Extent | None:
    """The slices of both."""
    if one is None or other is None:
        return None
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low, high) if low < high else None
