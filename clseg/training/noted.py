"""Noted: what a run has written down in its folder, read again: recipe.json and the tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from clseg.errors import TrainingError

RECIPE = "recipe.json"
METRICS = ("stage", "iteration", "rate", "seconds")  # and a column per decoder
VALIDATION = ("stage", "iteration", "structure", "cases", "dice")


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
    parts = {key: told.get(key, {}) for key in ("recipe", "weights", "cases")} if isinstance(told, dict) else {}
    if not parts.get("recipe") or not all(isinstance(part, dict) for part in parts.values()):
        raise _damaged(file, "does not hold what a training notes there")
    return told


def table(file: Path, columns: tuple[str, ...]) -> list[list[str]]:
    """The rows of metrics.csv or validation.csv, whose header begins with `columns`; none where the file is not there.

    Raises TrainingError when it is damaged; a row that a kill has torn is no damage.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged_table(file, f"cannot be read ({error})") from error
    if rows and tuple(rows[0][: len(columns)]) != columns:
        raise _damaged_table(file, f"begins with {','.join(rows[0])[:40]!r}, expected the columns {', '.join(columns)}")
    return rows


def _damaged(file: Path, what: str) -> TrainingError:
    return TrainingError(f"{file} {what}, so nobody knows what this run trains.", tip="Put back a copy of it, or train in a new folder with --run.")


def _damaged_table(file: Path, what: str) -> TrainingError:
    return TrainingError(f"{file} {what}.", tip="Move it away and go on with --resume: the weights do not depend on it, its curves begin anew.")
