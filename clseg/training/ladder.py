"""Ladder: how far to prune.  Pure decisions, no weights: what to try next, and whether it was good enough.

    ladder = Ladder(rungs, reference=dense_dice)
    while (rung := ladder.next()) is not None:
        ...                                   # prune to `rung`, rewind, train one epoch, measure
        match ladder.report(dice):
            case Verdict.ACCEPTED: ...        # what is now is the last accepted state
            case Verdict.AGAIN:    ...        # restore the last accepted state; the same rung comes again
            case Verdict.STOP:     ...        # restore; `next()` says what follows, if anything
        ...                                   # save: ladder and weights in one step

What the caller keeps for late rewinding: `trained`, the dense weights at the end
of training (after a structured rung: those of the channels that were kept), from
which survivors restart at every try; and the last accepted state, that is spec,
weights and ticket.  A try depends on nothing but these two and its number
(`tries`, the seed of its patches).  So a run that is killed anywhere, and goes on
from what was saved after the last report, ends as if it had never been killed.

Ladder, stop rule and retries: arXiv 2503.12698; coarser and structured rungs are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any

from clseg.errors import RecipeError, TrainingError

KINDS = ("coarser", "structured", "unstructured")  # in the order in which they are climbed

_ROUNDING = 1e-9  # 0.90 − 0.88 is a little more than 0.02 in binary


class Verdict(str, Enum):
    """What became of a try: kept; to be done again; or refused for good, with all that is left of its kind."""

    ACCEPTED = "accepted"
    AGAIN = "again"
    STOP = "stop"


@dataclass(frozen=True)
class Rung:
    """One step: `target` is how many of the finest stages ("coarser"), or which share of the channels ("structured") or
    of the weights left in them ("unstructured"), are to be gone.
    """

    kind: str
    target: float

    def __post_init__(self) -> None:
        whole = self.kind == "coarser" and self.target >= 1 and self.target == int(self.target)
        if not (whole or (self.kind in KINDS[1:] and 0 < self.target < 1)):
            told = f"A rung is structured or unstructured with a target between 0 and 1, or coarser by whole stages, given {self.kind} {self.target}."
            raise RecipeError(told)


@dataclass(frozen=True)
class Attempt:
    """A try that was reported: the `number` of the try at this rung (from 1), the validation Dice after it, the verdict."""

    rung: Rung
    number: int
    dice: float
    verdict: Verdict


@dataclass
class Ladder:
    """The climb as far as it has come; `to_dict` is all that is needed to go on.

    A rung is accepted when `reference` − Dice ≤ `allowed_loss`; it is tried once and
    then `retries` times more.  When a rung is refused for good those of the
    next kind follow; when an unstructured one is, nothing does.
    """

    rungs: tuple[Rung, ...]
    reference: float
    allowed_loss: float = 0.02
    retries: int = 8
    position: int = 0
    tries: int = 0
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rungs = tuple(self.rungs)
        places = [(KINDS.index(rung.kind), rung.target) for rung in self.rungs]
        if any(a >= b for a, b in pairwise(places)):
            raise RecipeError("The rungs of a ladder rise, coarser ones first, then structured ones, given " + ", ".join(f"{r.kind} {r.target}" for r in self.rungs) + ".")
        if not math.isfinite(self.reference):
            raise TrainingError(f"The reference Dice of a ladder is a number, given {self.reference}.")
        if not (self.allowed_loss >= 0 and self.retries >= 0):
            raise RecipeError(f"Allowed loss and retries are at least 0, given {self.allowed_loss} and {self.retries}.")

    def next(self) -> Rung | None:
        """What to try now, or None at the end; asking changes nothing."""
        return self.rungs[self.position] if self.position < len(self.rungs) else None

    def report(self, dice: float) -> Verdict:
        """Take note of the Dice after the try of `next()`, and judge it; what is not a number is refused."""
        rung = self._current()
        number = self.tries + 1
        if self.reference - dice <= self.allowed_loss + _ROUNDING:
            verdict = Verdict.ACCEPTED
        else:
            verdict = Verdict.AGAIN if number <= self.retries else Verdict.STOP
        self.attempts.append(Attempt(rung, number, float(dice), verdict))
        self._move(rung, verdict)
        return verdict

    def skip(self) -> None:
        """Leave out `next()` untried, where it would remove nothing: fewer channels cannot be had."""
        self._current()
        self.position, self.tries = self.position + 1, 0

    @property
    def accepted(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.verdict is Verdict.ACCEPTED]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; a Dice that is not a number becomes null."""
        data = asdict(self)
        for attempt in data["attempts"]:
            attempt["verdict"] = attempt["verdict"].value
            attempt["dice"] = attempt["dice"] if math.isfinite(attempt["dice"]) else None
        return {**data, "rungs": list(data["rungs"])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ladder:
        """Inverse of `to_dict`; raises TrainingError when a field is missing or unknown."""
        try:
            attempts = [
                Attempt(Rung(**a["rung"]), a["number"], math.nan if a["dice"] is None else a["dice"], Verdict(a["verdict"]))
                for a in data["attempts"]
            ]
            return cls(**{**data, "rungs": tuple(Rung(**rung) for rung in data["rungs"]), "attempts": attempts})
        except (TypeError, KeyError, ValueError) as error:
            raise TrainingError(f"The saved ladder is not usable: {error}.", tip="Prune again in a new folder.") from error

    def _current(self) -> Rung:
        rung = self.next()
        if rung is None:
            raise TrainingError("The ladder is at its end; there is no rung to report on.")
        return rung

    def _move(self, rung: Rung, verdict: Verdict) -> None:
        if verdict is Verdict.AGAIN:
            self.tries += 1
            return
        self.position, self.tries = self.position + 1, 0
        if verdict is Verdict.STOP:
            while self.position < len(self.rungs) and self.rungs[self.position].kind == rung.kind:
                self.position += 1


def trimmed_mean(values: Sequence[float], share: float = 0.1) -> float:
    """Mean without the `share` of lowest and the `share` of highest values (each rounded down to whole values)."""
    if not values or not 0 <= share < 0.5:
        raise TrainingError(f"A trimmed mean needs values and a share from 0 to below 0.5, given {len(values)} values and {share}.")
    if any(math.isnan(value) for value in values):
        return math.nan
    cut = math.floor(share * len(values) + _ROUNDING)
    kept = sorted(values)[cut : len(values) - cut]
    return math.fsum(kept) / len(kept)
