"""Split: which cases are held out where a dataset does not say."""

from __future__ import annotations

import csv
from hashlib import sha256
from pathlib import Path

from clseg.errors import RecipeError


def by_name(name: str, val_share: float) -> str:
    """`val` for about this share of all names, `train` for the rest.

    It depends on the name alone: other cases, runs and seeds never move a case, and a
    patient of the same name in two datasets is on the same side in both.
    """
    return "val" if int(sha256(name.encode()).hexdigest()[:8], 16) < val_share * 2**32 else "train"


def read_table(path: Path, needed: set[str], what: str, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV with a header; RecipeError, beginning with `what`, when it is not there or lacks a column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            rows = [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader]
            columns = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"{what} cannot be read: {error}.") from error
    if not needed <= set(columns):
        raise RecipeError(f"{what} needs the columns {' and '.join(map(repr, sorted(needed)))}, it has {', '.join(columns) or 'none'}.")
    return rows
