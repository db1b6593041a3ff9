"""Ranges: where structures live, each by itself and those of a decoder together, from the cases that it learnt from:
between which body-part scores, and how far from the middle of the body.

clnet's rule, over the cases that annotate a structure (scores of the slices that show it): P_lo and P_hi are the means of the 0.5
and 99.5 percentiles, M the mean extent.  Organs: [P_lo − 0.25·M, P_hi + 0.25·M]; lesions (tumours, lymph nodes): [min − SD, max + SD].
Three things are ours, for a range that is too narrow loses organs:

* an end that the scan cuts, or that contours reach only in part (`open_ends`), says nothing: when no case
  shows an end, the range is open there (None);
* no case that was learnt from is left out, with the regressor's own error (SLACK) to spare;
* a structure whose end only one or two cases show gets FEW times the margin.

How far to the sides: the outermost of the 0.5 and 99.5 percentiles, with the same share of the mean extent and ASIDE_MM to
spare, for decoders all of whose structures were seen in CASES_ASIDE scans or more; wider than WIDE_MM it would spare
nothing, and is not kept (ours).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clseg.catalogue import Catalogue
from clseg.inference.bodypart import score_scan
from clseg.inference.sideways import middles
from clseg.io.check import check
from clseg.network.bodypart import SliceScorer
from clseg.network.checkpoint import Checkpoint, Sideways
from clseg.recipe import DecoderRecipe, Recipe
from clseg.spatial.orient import to_orientation
from clseg.training.cases import Case, find_cases, read_grid, read_masks
from clseg.volume import Volume

Range = tuple[float | None, float | None]

SHARE = 0.25  # of the mean extent, clnet
SLACK = 0.02  # about 18 mm, what the regressor errs
FEW_CASES, FEW = 2, 2.0
CASES_ASIDE, ASIDE_MM, WIDE_MM = 3, 15.0, 200.0
MOST = 25  # cases of a dataset that are looked at


@dataclass(frozen=True)
class DecoderRange:
    """Where a decoder looks, where each of its labels lives, and how far to the sides; None: everywhere."""

    whole: Range | None = None
    labels: Mapping[str, Range | None] = field(default_factory=dict)
    sideways: Sideways | None = None

    @staticmethod
    def of(checkpoint: Checkpoint) -> DecoderRange:
        """What the checkpoint of a decoder says."""
        return DecoderRange(checkpoint.slices, checkpoint.label_slices, checkpoint.sideways)

    def within(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint of a decoder that says this."""
        return replace(checkpoint, slices=self.whole, label_slices=self.apart, sideways=self.sideways)

    @property
    def apart(self) -> Mapping[str, Range | None]:
        """The labels' ranges when one of them differs from the decoder's, which says it all otherwise."""
        return self.labels if any(one != self.whole for one in self.labels.values()) else {}

    def joined(self, other: DecoderRange) -> DecoderRange:
        """What both cover; a label that one of them does not name has no range of its own."""
        labels = {label: wider(mine, other.labels[label]) for label, mine in self.labels.items() if label in other.labels}
        return DecoderRange(wider(self.whole, other.whole), labels, _narrow(_widest([self.sideways, other.sideways])))

    def completed(self, known: DecoderRange) -> DecoderRange:
        """This, with the bounds that are known where these are open: contours that stop early do not tell that a structure goes on for ever."""
        labels = {label: _completed(mine, known.labels.get(label)) for label, mine in self.labels.items()}
        return DecoderRange(_completed(self.whole, known.whole), labels, self.sideways or known.sideways)


def _completed(one: Range | None, known: Range | None) -> Range | None:
    if one is None or known is None:
        return one or known
    return tuple(there if here is None else here for here, there in zip(one, known, strict=True))  # type: ignore[return-value]


def wider(one: Range | None, other: Range | None) -> Range | None:
    """The range that covers both; a bound that is open in one of them is open."""
    return _together([one, other])


@dataclass(frozen=True)
class View:
    """One case: a score per slice, from the feet up, and per annotated structure the slices (bool) that show it.

    `aside` says of every structure that is there how far from the middle of the body it lies.
    """

    scores: np.ndarray
    present: Mapping[str, np.ndarray]
    aside: Mapping[str, Sideways] = field(default_factory=dict)


def view(case: Case, structures: Collection[str], scorer: SliceScorer) -> View:
    """What `case`, which has a CT, says of these structures."""
    ct = check(read_grid(case)).volume
    upright = to_orientation(ct, "RAS")
    masks = {name: to_orientation(ct.like(mask.astype(np.uint8)), "RAS") for name, mask in read_masks(case, set(structures), ct).items()}
    present = {name: mask.array.any(axis=(0, 1)) for name, mask in masks.items()}
    middle = middles(upright.array, upright.spacing)
    aside = {name: _aside(mask, middle) for name, mask in masks.items()}
    return View(score_scan(ct, scorer).values, present, {name: one for name, one in aside.items() if one is not None})


def _aside(mask: Volume, middle: np.ndarray) -> Sideways | None:
    """Between which distances (mm to the right) of the middle nearly all of a mask in RAS lies; None for an empty one."""
    x, _, z = np.nonzero(mask.array)
    offsets = (x - middle[z])[np.isfinite(middle[z])] * mask.spacing[0]
    return tuple(float(bound) for bound in np.percentile(offsets, [0.5, 99.5])) if offsets.size else None  # type: ignore[return-value]


def ranges(
    views: Sequence[View],
    decoders: Mapping[str, Iterable[str]],
    *,
    open_ends: Mapping[str, str] | None = None,
    lesions: Collection[str] = (),
) -> dict[str, Range | None]:
    """Range of every decoder: what its structures' ranges cover together; None where a structure was never seen.

    `decoders` are their labels by name, `open_ends` as in a recipe ('inferior',
    'superior', 'both' per structure), `lesions` the structures that can lie anywhere.
    """
    return {
        name: _together([range_of(views, label, open_end=(open_ends or {}).get(label, ""), lesion=label in lesions) for label in labels])
        for name, labels in decoders.items()
    }


def learned_ranges(recipe: Recipe, scorer: SliceScorer) -> dict[str, DecoderRange]:
    """Ranges of all decoders of a recipe and their labels, from at most MOST of the real scans of each dataset that it learns from.

    No structure's range is narrower than the recipe's `limits`; an end that no case shows is there, and open without
    them.  A decoder's range covers those of its labels.
    """
    catalogue = Catalogue.builtin()
    labels = {decoder.name: decoder.labels for decoder in recipe.decoder}
    every = {label for mine in labels.values() for label in mine}
    lesions = {name for name in every if name in catalogue and catalogue[name].hosts}
    ends = {label: end for decoder in recipe.decoder for label, end in decoder.open_ends.items()}
    views = [view(case, every, scorer) for case in _some_of_each(find_cases(recipe))]
    each = ranges(views, {label: [label] for label in sorted(every)}, open_ends=ends, lesions=lesions)
    found = {decoder.name: _of_decoder(decoder, each) for decoder in recipe.decoder}
    spans = {decoder.name: _widest([aside(views, label) for label in decoder.labels]) for decoder in recipe.decoder}
    return {name: replace(one, sideways=_narrow(spans[name])) for name, one in found.items()}


def _some_of_each(cases: Sequence[Case]) -> list[Case]:
    """At most MOST cases with a CT of every dataset, evenly spread."""
    by_dataset: dict[str, list[Case]] = {}
    for case in cases:
        if case.ct is not None:
            by_dataset.setdefault(case.dataset.name, []).append(case)
    return [mine[i * len(mine) // min(len(mine), MOST)] for mine in by_dataset.values() for i in range(min(len(mine), MOST))]


def _of_decoder(decoder: DecoderRecipe, each: Mapping[str, Range | None]) -> DecoderRange:
    labels = {label: _limited(each[label], decoder.limits_of(label)) for label in decoder.labels}
    return DecoderRange(_together(list(labels.values())), labels)


def _limited(found: Range | None, limits: tuple[float, ...]) -> Range | None:
    """The range with its open ends closed by `limits` (low, high), if there are any, and never narrower than these."""
    if not limits:
        return found
    low, high = found or (None, None)
    return limits[0] if low is None else min(low, limits[0]), limits[1] if high is None else max(high, limits[1])


def range_of(views: Sequence[View], structure: str, *, open_end: str = "", lesion: bool = False) -> Range | None:
    """Range of one structure; a bound is None where no case shows its end, the whole None where no case shows it."""
    lows, highs, extents, all_scores = [], [], [], []
    for one in views:
        rows = np.flatnonzero(one.present[structure]) if structure in one.present else np.array([], int)
        if not rows.size:
            continue
        scores = one.scores[rows]
        low, high = np.percentile(scores, [0.5, 99.5])
        extents.append(high - low)
        all_scores.append(scores)
        if rows[0] > 0 and open_end not in ("inferior", "both"):
            lows.append(low)
        if rows[-1] < len(one.scores) - 1 and open_end not in ("superior", "both"):
            highs.append(high)
    if not extents:
        return None
    if lesion:
        scores = np.concatenate(all_scores)
        margin = float(scores.std())
        return float(scores.min()) - margin, float(scores.max()) + margin
    extent = float(np.mean(extents))
    return _bound(lows, extent, -1), _bound(highs, extent, 1)


def aside(views: Sequence[View], structure: str) -> Sideways | None:
    """How far from the middle of the body a structure lies, with some to spare; None where too few cases show it."""
    seen = np.array([one.aside[structure] for one in views if structure in one.aside])
    if len(seen) < CASES_ASIDE:
        return None
    margin = SHARE * float(np.mean(seen[:, 1] - seen[:, 0])) + ASIDE_MM
    return float(seen[:, 0].min()) - margin, float(seen[:, 1].max()) + margin


def _narrow(span: Sideways | None) -> Sideways | None:
    return span if span and span[1] - span[0] <= WIDE_MM else None


def _widest(each: Sequence[Sideways | None]) -> Sideways | None:
    """What covers them all; None when one of them is not known."""
    known = [one for one in each if one is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known and len(known) == len(each) else None


def _bound(ends: list[float], extent: float, sign: int) -> float | None:
    """The bound below (`sign` −1) or above (1) the ends that cases show."""
    if not ends:
        return None
    margin = SHARE * extent * (FEW if len(ends) <= FEW_CASES else 1)
    outermost = max(sign * end for end in ends) + SLACK * (FEW if len(ends) <= FEW_CASES else 1)
    return float(sign * max(sign * np.mean(ends) + margin, outermost))


def _together(each: Sequence[Range | None]) -> Range | None:
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None  # a structure that was never seen may be anywhere
    lows, highs = [low for low, _ in known], [high for _, high in known]
    return (None if None in lows else min(lows), None if None in highs else max(highs))  # type: ignore[type-var]
