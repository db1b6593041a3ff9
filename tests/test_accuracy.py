"""The starter's promise: mean Dice on real scans that it was never trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from clseg.evaluate import summarise
from clseg.recipe import read_recipe
from clseg.training.validate import validate

RECIPE = Path(__file__).parents[1] / "recipes" / "starter.toml"

PROMISED = {
    ("body",): 0.95,
    ("lung_left", "lung_right"): 0.90,
    ("skeleton",): 0.80,
    ("spinal_cord",): 0.70,
    ("mandible",): 0.70,
    ("parotid_gland_left", "parotid_gland_right"): 0.60,
}


@pytest.fixture(scope="module")
def summary() -> dict[str, dict[str, object]]:
    if not (Path(__file__).parents[2] / "shared" / "data" / "index.csv").is_file():
        pytest.skip("the real CTs of ../shared/data are not on this machine")
    return summarise(validate(read_recipe(RECIPE), split="val").values())


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("structures", PROMISED, ids=" ".join)
def test_the_starter_keeps_its_promise(summary: dict[str, dict[str, object]], structures: tuple[str, ...]) -> None:
    """On the held-out cases the mean Dice of the shipped starter (of both sides, where there are two) is at least what was promised."""
    dice = [summary[name]["dice"] for name in structures]
    assert sum(dice) / len(dice) >= PROMISED[structures]
