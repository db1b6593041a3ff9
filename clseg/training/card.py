"""Card: what every weights file says about where it comes from."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any, Protocol

import clseg
from clseg.recipe import DatasetRecipe


class Described(Protocol):
    """What a card is taken from: any recipe."""

    name: str
    description: str
    licence: str
    seed: int


def origin(recipe: Described, datasets: Iterable[DatasetRecipe]) -> dict[str, Any]:
    """Name, licence, program, date, seed and data, the same in every card."""
    return {
        "name": recipe.name,
        "description": recipe.description,
        "licence": recipe.licence,
        "trained_with": f"clseg {clseg.__version__}",
        "date": datetime.date.today().isoformat(),
        "seed": recipe.seed,
        "datasets": [{"name": d.name, "kind": d.kind, "licence": d.licence} for d in datasets],
    }
