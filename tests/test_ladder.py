"""Facts about the climb: what is tried next, when it ends, and that a kill changes nothing."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import RecipeError, TrainingError
from clseg.training.ladder import Attempt, Ladder, Rung, Verdict, trimmed_mean

S25, S50, U80, U90 = Rung("structured", 0.25), Rung("structured", 0.5), Rung("unstructured", 0.8), Rung("unstructured", 0.9)
FOUR = (S25, S50, U80, U90)
PAPERS = (
    *(Rung("structured", p) for p in (0.25, 0.5, 0.65, 0.75, 0.8, 0.85, 0.9)),
    *(Rung("unstructured", p / 1000) for p in (*range(800, 981, 20), 990, 992, 994, 996, 998)),
)  # channels first, then the paper's 80, 82 … 98, 99, 99.2 … 99.8 %
GOOD, BAD = 0.9, 0.5


def climbed(ladder: Ladder, dice: list[float]) -> list[tuple[Rung, str]]:
    """Report values in turn; which rung each was for, and the verdict."""
    told = []
    for value in dice:
        rung = ladder.next()
        assert rung is not None
        told.append((rung, ladder.report(value).value))
    return told


def test_accepted_rungs_follow_each_other() -> None:
    """All good: every rung once, then nothing is left."""
    ladder = Ladder(FOUR, reference=0.9)
    assert climbed(ladder, [GOOD] * 4) == [(rung, "accepted") for rung in FOUR]
    assert ladder.next() is None
    assert [attempt.rung for attempt in ladder.accepted] == list(FOUR)


def test_a_loss_of_exactly_the_allowed_amount_is_accepted() -> None:
    """0.90 − 0.88 is more than 0.02 in binary, and allowed all the same; 0.8799 is not."""
    assert 0.90 - 0.88 > 0.02
    assert Ladder(FOUR, reference=0.90).report(0.88) is Verdict.ACCEPTED
    assert Ladder(FOUR, reference=0.90).report(0.8799) is Verdict.AGAIN


def test_a_rung_is_retried_as_often_as_allowed() -> None:
    """With 8 retries the ninth failure is the last; a success on the way is kept."""
    ladder = Ladder((U80, U90), reference=0.9)
    assert [verdict for _, verdict in climbed(ladder, [BAD] * 9)] == ["again"] * 8 + ["stop"]
    ladder = Ladder((U80, U90), reference=0.9)
    assert [verdict for _, verdict in climbed(ladder, [BAD] * 8 + [GOOD])] == ["again"] * 8 + ["accepted"]
    assert (ladder.next(), ladder.tries) == (U90, 0)
    assert [attempt.number for attempt in ladder.attempts] == list(range(1, 10))


def test_after_the_last_structured_failure_the_unstructured_ladder_begins() -> None:
    """A structured rung refused for good leaves out the wider ones, not the weights."""
    ladder = Ladder(FOUR, reference=0.9, retries=1)
    assert climbed(ladder, [BAD, BAD, GOOD]) == [(S25, "again"), (S25, "stop"), (U80, "accepted")]
    assert ladder.next() == U90


def test_after_the_last_unstructured_failure_all_ends() -> None:
    """An unstructured rung refused for good is the end, though rungs are left."""
    ladder = Ladder(FOUR, reference=0.9, retries=0)
    assert climbed(ladder, [GOOD, GOOD, BAD])[-1] == (U80, "stop")
    assert ladder.next() is None
    with pytest.raises(TrainingError, match="at its end"):
        ladder.report(GOOD)


def test_what_is_not_a_number_is_a_failure() -> None:
    """NaN is neither accepted nor lost when the ladder is saved."""
    ladder = Ladder(FOUR, reference=0.9)
    assert ladder.report(math.nan) is Verdict.AGAIN
    again = Ladder.from_dict(json.loads(json.dumps(ladder.to_dict(), allow_nan=False)))
    assert math.isnan(again.attempts[0].dice)


def test_a_rung_that_would_remove_nothing_is_left_out() -> None:
    """Skipping moves on to the next rung, with its tries at the beginning, and counts as no attempt."""
    ladder = Ladder(FOUR, reference=0.9)
    ladder.report(BAD)
    ladder.skip()
    assert (ladder.next(), ladder.tries, len(ladder.attempts)) == (S50, 0, 1)


@given(dice=st.lists(st.sampled_from([GOOD, BAD, 0.885]), max_size=60), cut=st.integers(0, 60), retries=st.integers(0, 3))
def test_a_climb_that_was_killed_goes_on_the_same(dice: list[float], cut: int, retries: int) -> None:
    """Saved as JSON and read back after any number of reports, the rest of the climb is that of one never killed."""
    whole, part = (Ladder(PAPERS, reference=0.9, retries=retries) for _ in range(2))
    for number, value in enumerate(dice):
        if number == cut:
            part = Ladder.from_dict(json.loads(json.dumps(part.to_dict())))
        assert part.next() == whole.next()
        if whole.next() is None:
            break
        assert part.report(value) == whole.report(value)
    assert part == whole


@given(st.lists(st.booleans(), min_size=300, max_size=300), st.integers(0, 8))
def test_every_climb_ends_and_never_goes_down(good: list[bool], retries: int) -> None:
    """At most rungs × (retries + 1) tries; accepted targets rise within each kind."""
    ladder = Ladder(PAPERS, reference=0.9, retries=retries)
    answers = iter(good)
    while ladder.next() is not None:
        ladder.report(GOOD if next(answers) else BAD)
    assert len(ladder.attempts) <= len(ladder.rungs) * (retries + 1)
    for kind in ("structured", "unstructured"):
        targets = [attempt.rung.target for attempt in ladder.accepted if attempt.rung.kind == kind]
        assert targets == sorted(set(targets))


def test_stages_go_before_channels_and_weights() -> None:
    """A stage that cannot go leaves the other kinds their turn."""
    ladder = Ladder((Rung("coarser", 1), Rung("coarser", 2), *FOUR), reference=0.9, retries=0)
    assert climbed(ladder, [BAD, GOOD]) == [(Rung("coarser", 1), "stop"), (S25, "accepted")]


@pytest.mark.parametrize("rungs", [(U80, S25), (U90, U80), (S25, S25), (S25, Rung("coarser", 1))])
def test_rungs_must_rise(rungs: tuple[Rung, ...]) -> None:
    """Structured first, then rising, none twice."""
    with pytest.raises(RecipeError, match="rise"):
        Ladder(rungs, reference=0.9)


def test_settings_that_make_no_sense_are_refused() -> None:
    """An unknown kind, a target of 1, negative numbers, a reference that is not a number."""
    for kind, target in (("magic", 0.5), ("structured", 1.0), ("unstructured", 0.0), ("coarser", 0), ("coarser", 1.5), ("magic", 1)):
        with pytest.raises(RecipeError, match="target between"):
            Rung(kind, target)
    with pytest.raises(RecipeError, match="at least 0"):
        Ladder(FOUR, reference=0.9, retries=-1)
    with pytest.raises(RecipeError, match="at least 0"):
        Ladder(FOUR, reference=0.9, allowed_loss=math.nan)
    with pytest.raises(TrainingError, match="reference Dice"):
        Ladder(FOUR, reference=math.nan)


def test_a_damaged_ladder_is_refused() -> None:
    """A missing field, an unknown one and an unknown verdict are errors of ours."""
    data = Ladder(FOUR, reference=0.9, attempts=[Attempt(S25, 1, 0.9, Verdict.ACCEPTED)]).to_dict()
    broken = [
        {k: v for k, v in data.items() if k != "attempts"},
        {**data, "colour": "red"},
        {**data, "attempts": [{**data["attempts"][0], "verdict": "perhaps"}]},
    ]
    for one in broken:
        with pytest.raises(TrainingError, match="not usable"):
            Ladder.from_dict(one)


def test_a_trimmed_mean_leaves_out_both_ends() -> None:
    """Of ten values the best and the worst go; of nine, none; shares that leave nothing are refused."""
    assert trimmed_mean([0.0, *[0.5] * 8, 1.0]) == 0.5
    assert trimmed_mean([0.0, *[0.9] * 8]) == pytest.approx(0.8)
    assert trimmed_mean([3.0, 1.0, 2.0, 100.0], 0.25) == 2.5
    assert math.isnan(trimmed_mean([0.5, math.nan]))
    for values, share in (([], 0.1), ([0.5], 0.5)):
        with pytest.raises(TrainingError, match="trimmed"):
            trimmed_mean(values, share)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 0.49))
def test_a_trimmed_mean_does_not_depend_on_the_order(values: list[float], share: float) -> None:
    """Backwards is the same, and the mean lies between the extremes."""
    mean = trimmed_mean(values, share)
    assert trimmed_mean(values[::-1], share) == mean
    assert min(values) - 1e-12 <= mean <= max(values) + 1e-12
