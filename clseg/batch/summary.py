"""Summary: what is known of all cases: failures.csv, and of their statistics summary.csv and summary_wide.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clseg.batch.case import SUMMARIES
from clseg.batch.job import FAILED, Outcome
from clseg.errors import InputError, OutputError
from clseg.io.files import write_csv

LONG, WIDE, FAILURES = SUMMARIES
Row = dict[str, Any]

_VOLUMES = {"volume_ml": 1.0, "volume": 0.001}  # column → its unit in mL; TotalSegmentator's are mm³


def clear(output: Path) -> None:
    """Remove the summaries of an earlier run: where they stand, a batch has come to its end.  OutputError when that cannot be."""
    for name in SUMMARIES:
        try:
            (output / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"The summary of an earlier run '{output / name}' cannot be removed: {error.strerror}.") from error


def write_failures(output: Path, outcomes: Iterable[Outcome]) -> Path | None:
    """failures.csv with the cases that failed, in the order given; no file when none has."""
    rows = [[one.case.name, one.case.path, one.error, one.tip] for one in outcomes if one.status == FAILED]
    if not rows:
        return None
    write_csv(output / FAILURES, ["case", "path", "error", "tip"], rows)
    return output / FAILURES


def write_summaries(output: Path, names: Sequence[str]) -> list[Path]:
    """The statistics of these cases as one table with a row per case and structure, and as one of volumes with a row per case.

    They are read from the folders of the cases, so that it does not matter which run has filled them.
    """
    columns: dict[str, None] = {}
    volumes: dict[str, dict[str, Any]] = {}
    for name in names:
        rows = statistics_in(output / name)
        volumes[name] = {row["structure"]: _volume_ml(row) for row in rows}
        columns |= dict.fromkeys(column for row in rows for column in row)
    structures = list(dict.fromkeys(structure for case in volumes.values() for structure in case))
    write_csv(output / LONG, ["case", *columns], _long(output, names, list(columns)))
    wide = ([name, *(volumes[name].get(structure) for structure in structures)] for name in names)
    write_csv(output / WIDE, ["case", *(f"{structure}_ml" for structure in structures)], wide)
    return [output / LONG, output / WIDE]


def statistics_in(folder: Path) -> list[Row]:
    """The statistics of a case, a row per structure; from statistics.csv, or from statistics.json where there is no table.

    InputError when neither is there.
    """
    try:
        table = folder / "statistics.csv"
        if table.is_file():
            with table.open(encoding="utf-8", newline="") as stream:
                return list(csv.DictReader(stream))
        values = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        return [{"structure": name, **one} for name, one in values.items()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"The statistics in '{folder}' cannot be read: {error}.", tip="Run the same command again.") from error


def _long(output: Path, names: Sequence[str], columns: Sequence[str]) -> Iterator[list[Any]]:
    for name in names:
        for row in statistics_in(output / name):
            yield [name, *(row.get(column) for column in columns)]


def _volume_ml(row: Row) -> Any:
    """The volume as it is written in the case's table, or in mL where that has another unit; None without one."""
    for column, unit in _VOLUMES.items():
        if row.get(column) not in (None, ""):
            return row[column] if unit == 1.0 else float(row[column]) * unit
    return None
