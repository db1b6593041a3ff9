"""Review: which structures somebody should look at, and why.

    for name, one in segmentation.review().items():
        if one.review:
            print(name, *one.reasons)

Judged are what was measured (`clseg.measure`) and how sure the network was: nobody
needs to have seen the truth.  What is known of bodies is data: the order from head to
feet in `clseg/data/order.csv`, volumes of adults with their sources in
`clseg/data/volumes.csv`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from clseg.catalogue import Anatomy
from clseg.measure import Statistics

UNSURE = "The network was unsure of it."
UNCLEAR = "Its border is unclear."
PIECES = "It is in several pieces, which it is not in a body."
SIDE = "It lies on the wrong side of its partner."
ORDER = "It does not lie where it does in a body, from head to feet."
SMALL = "It is smaller than in adults."
LARGE = "It is larger than in adults."
REASONS = (UNSURE, UNCLEAR, PIECES, SIDE, ORDER, SMALL, LARGE)

LEAST_CONFIDENCE = 0.75  # on eight held-out scans whatever had a Dice above 0.5 had 0.79 and more; a larynx of Dice 0.24 had 0.77
MOST_ENTROPY = 0.6  # there: bodies of Dice 0.92 and 0.93 above it, those of 0.95 and more below
MOST_SCATTERED = 0.05


@dataclass(frozen=True)
class Certainty:
    """How sure the network was of one structure, all numbers 0 … 1; None where nobody knows.

    `probability` is the mean of the structure's own, `margin` the mean distance from it
    to the next best class.  The boundary are its voxels beside another class in their
    slice: `boundary_margin` is the same there, `boundary_entropy` the mean of
    −Σ p log p / log n over the n classes of the decoder, 1 where all are as likely.
    Imported networks keep only the probability of the winner.
    """

    probability: float | None = None
    margin: float | None = None
    boundary_margin: float | None = None
    boundary_entropy: float | None = None


@dataclass(frozen=True)
class Review:
    """The judgement on one structure: how sure the network was, and of REASONS those to look at it.

    `confidence` is the mean margin between the structure and the next best class, for
    imported networks the mean probability of the structure; both numbers are None where
    the structure was not found or no network was asked.
    """

    confidence: float | None = None
    boundary_entropy: float | None = None
    reasons: tuple[str, ...] = ()

    @property
    def review(self) -> bool:
        """Whether somebody should look at it."""
        return bool(self.reasons)


def review(
    statistics: Mapping[str, Statistics],
    anatomies: Sequence[Anatomy],
    certainties: Mapping[str, Certainty] | None = None,
    *,
    apart: Mapping[str, float] | None = None,
) -> dict[str, Review]:
    """A Review of every structure of `statistics`, in its order; `anatomies` says what is known of those names.

    `apart` is what `scattered` says of structures that have several pieces; those it
    does not name are not judged by their pieces.  A structure that was not found has no
    reasons.  Without `certainties` the masks alone are judged.
    """
    known = {a.name: a for a in anatomies}
    there = {name: one for name, one in statistics.items() if one.voxels}
    sure = {name: (certainties or {}).get(name, Certainty()) for name in there}
    displaced = wrong_order(there)
    found = {}
    for name in statistics:
        if name not in there:
            found[name] = Review()
            continue
        reasons = [*_doubts(sure[name]), *_shape((apart or {}).get(name, 0.0), known.get(name)), *_side(name, there, known)]
        reasons += [ORDER] if name in displaced else []
        reasons += _size(there[name], name)
        found[name] = Review(confidence_of(sure[name]), sure[name].boundary_entropy, tuple(reasons))
    return found


def confidence_of(certainty: Certainty) -> float | None:
    """The one number for how sure the network was, 0 … 1."""
    return certainty.probability if certainty.margin is None else certainty.margin


def scattered(mask: np.ndarray) -> float:
    """The share of a mask (i, j, k) that does not belong to its largest 26-connected piece, 0 for an empty one."""
    import cc3d

    sizes = np.bincount(cc3d.connected_components(np.ascontiguousarray(mask).view(np.uint8), connectivity=26).ravel())[1:]
    return 1 - float(sizes.max() / sizes.sum()) if sizes.size else 0.0


def to_json(reviews: Mapping[str, Review]) -> dict[str, dict[str, Any]]:
    """Plain types for a JSON file: structure → confidence, boundary_entropy, review, reasons."""
    return {name: _plain(one) for name, one in reviews.items()}


def to_rows(reviews: Mapping[str, Review]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows for a CSV file, without the structure's name; reasons are separated by blanks."""
    plain = [{**_plain(one), "reasons": " ".join(one.reasons)} for one in reviews.values()]
    return list(_plain(Review())), [["" if value is None else value for value in one.values()] for one in plain]


def wrong_order(statistics: Mapping[str, Statistics]) -> set[str]:
    """The structures that lie above or below others where they cannot: as few as explain it.

    Of a pair that is in the wrong order and agrees with all others, both.
    """
    heights = {name: one.centroid_mm[2] for name, one in statistics.items() if one.centroid_mm}
    wrong = {pair for pair in _ordered_pairs(heights) if heights[pair[0]] <= heights[pair[1]]}
    blamed: set[str] = set()
    while wrong:
        often = {name: sum(name in pair for pair in wrong) for pair in wrong for name in pair}
        worst = {name for name, times in often.items() if times == max(often.values())}
        blamed |= worst
        wrong = {pair for pair in wrong if not worst & set(pair)}
    return blamed


def _plain(one: Review) -> dict[str, Any]:
    answer = "yes" if one.review else "no"
    return {"confidence": one.confidence, "boundary_entropy": one.boundary_entropy, "review": answer, "reasons": list(one.reasons)}


def _ordered_pairs(names: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Which structure lies above which other, of all that are there and in one chain."""
    for levels in _chains().values():
        there = [(level, name) for name, level in levels.items() if name in names]
        yield from ((upper, lower) for high, upper in there for low, lower in there if high < low)


def _doubts(certainty: Certainty) -> list[str]:
    confidence = confidence_of(certainty)
    unsure = confidence is not None and confidence < LEAST_CONFIDENCE
    unclear = certainty.boundary_entropy is not None and certainty.boundary_entropy > MOST_ENTROPY
    return [UNSURE] * unsure + [UNCLEAR] * unclear


def _shape(apart: float, anatomy: Anatomy | None) -> list[str]:
    """Only what is one piece in a body; islands of a few voxels are no pieces."""
    return [PIECES] if anatomy and anatomy.single_component and apart > MOST_SCATTERED else []


def _side(name: str, there: Mapping[str, Statistics], known: Mapping[str, Anatomy]) -> list[str]:
    """Left lies left: its centroid has the smaller x in RAS+ mm."""
    anatomy = known.get(name)
    partner = anatomy and anatomy.partner
    if not anatomy or not partner or partner not in there:
        return []
    mine, other = there[name].centroid_mm, there[partner].centroid_mm
    if mine is None or other is None:
        return []
    away = other[0] - mine[0] if anatomy.side == "left" else mine[0] - other[0]
    return [SIDE] if away <= 0 else []


def _size(one: Statistics, name: str) -> list[str]:
    """Only what was scanned whole can be too small or too large."""
    if name not in _volumes() or one.status != "complete" or one.volume_ml is None:
        return []
    low, high = _volumes()[name]
    return [SMALL] * (one.volume_ml < low) + [LARGE] * (one.volume_ml > high)


@cache
def _chains() -> dict[str, dict[str, int]]:
    """chain → structure → level, 1 the highest; structures of one level may lie in any order."""
    chains: dict[str, dict[str, int]] = {}
    for row in _table("order.csv"):
        chains.setdefault(row["chain"], {})[row["structure"]] = int(row["level"])
    return chains


@cache
def _volumes() -> dict[str, tuple[float, float]]:
    """structure → lowest and highest volume of an adult, ml."""
    return {row["structure"]: (float(row["low_ml"]), float(row["high_ml"])) for row in _table("volumes.csv")}


def _table(name: str) -> list[dict[str, str]]:
    with files("clseg.data").joinpath(name).open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))
