"""Noted: what a run's recipe.json says was trained, on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clseg.errors import TrainingError

RECIPE = "recipe.json"


def noted(run: Path) -> dict[str, Any]:
    """The tables of recipe.json in a run's folder: `recipe`, `folder`, `weights`, `cases` and more; empty when it is not there.

    Raises TrainingError when it is damaged.
    """
    file = run / RECIPE
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(file, f"cannot be read ({error})") from error
    tables = {key: told.get(key, {}) for key in ("recipe", "weights", "cases")} if isinstance(told, dict) else {}
    if not tables.get("recipe") or not all(isinstance(table, dict) for table in tables.values()):
        raise _damaged(file, "does not hold what a training notes there")
    return told


def _damaged(file: Path, what: str) -> TrainingError:
    return TrainingError(f"{file} {what}, so nobody knows what this run trains.", tip="Put back a copy of it, or train in a new folder with --run.")
