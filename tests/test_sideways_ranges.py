"""How far to the sides a decoder's organs lie is learnt from its cases, kept when it is trained on, and never narrower than what was seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg.inference.sideways import middles
from clseg.recipe import DecoderRecipe
from clseg.training import ranges as module
from clseg.training.ranges import DecoderRange, View, aside
from clseg.volume import Volume
from tests.small_dataset import tiny_recipe

SCORES = np.linspace(0.0, 1.0, 11)


def lying(*spans: tuple[float, float], name: str = "trachea") -> list[View]:
    """Cases in which a structure lies so far from the middle of the body."""
    return [View(SCORES, {}, {name: span}) for span in spans]


def test_a_range_to_the_sides_covers_every_case_and_more() -> None:
    """The outermost of all, a quarter of the mean width and 15 mm."""
    assert aside(lying((-10.0, 10.0), (-20.0, 10.0), (-10.0, 20.0)), "trachea") == (pytest.approx(-20 - 80 / 12 - 15), pytest.approx(20 + 80 / 12 + 15))


def test_too_few_cases_tell_nothing_of_the_sides() -> None:
    """Two cases are not enough, and those that do not show the structure do not count."""
    assert aside([*lying((-10.0, 10.0), (-10.0, 10.0)), *lying((0.0, 1.0), name="larynx")], "trachea") is None


def test_a_decoder_goes_as_far_as_its_widest_label_and_a_wide_one_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The neck to all that either of its organs needs; with a label that nobody saw nothing is known; lungs from side to side spare nothing."""
    spans = {"larynx": (-10.0, 10.0), "esophagus": (-5.0, 30.0), "trachea": (-5.0, 5.0), "lung_left": (-140.0, 0.0), "lung_right": (0.0, 140.0)}
    cases = iter([View(SCORES, {}, spans)] * 4)
    monkeypatch.setattr(module, "find_cases", lambda recipe: [])
    monkeypatch.setattr(module, "_some_of_each", lambda found: range(4))
    monkeypatch.setattr(module, "view", lambda *_: next(cases))
    labels = {"neck": ("larynx", "esophagus"), "chest": ("lung_left", "lung_right"), "air": ("trachea", "glottis")}
    recipe = replace(tiny_recipe(tmp_path), decoder=tuple(DecoderRecipe(name, mine, widths=(8,), kernels=(3,), convs=(1,)) for name, mine in labels.items()))
    found = module.learned_ranges(recipe, None)  # type: ignore[arg-type]
    assert found["neck"].sideways == pytest.approx((-10 - 5 - 15, 30 + 35 / 4 + 15))
    assert (found["chest"].sideways, found["air"].sideways) == (None, None)


def test_how_far_to_the_sides_is_joined_and_completed() -> None:
    """The wider of both; where the new cases know nothing the old range stays, where the old one was not known it stays unknown."""
    old, new = DecoderRange(sideways=(-30.0, 40.0)), DecoderRange(sideways=(-50.0, 20.0))
    assert old.joined(new.completed(old)).sideways == (-50.0, 40.0)
    assert old.joined(DecoderRange().completed(old)).sideways == (-30.0, 40.0)
    assert DecoderRange().joined(new.completed(DecoderRange())).sideways is None
    assert old.joined(DecoderRange(sideways=(-400.0, 20.0))).sideways is None


def test_a_case_says_how_far_its_organ_lies_from_the_middle() -> None:
    """A body from 20 to 60, an organ from 50 to 54 of 2 mm: 22 to 28 mm to the right, however the scan is stored."""
    hu = np.full((80, 40, 4), -1000, np.int16)
    hu[20:60, 5:35] = 40
    mask = np.zeros(hu.shape, np.uint8)
    mask[50:54, 10:20, 1:3] = 1
    scan = Volume(mask, np.diag([2.0, 2.0, 5.0, 1.0]))
    middle = middles(hu, (2.0, 2.0, 5.0))
    assert module._aside(scan, middle) == pytest.approx((22, 28), abs=2)
    assert module._aside(scan.like(np.zeros_like(mask)), middle) is None
