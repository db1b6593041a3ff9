"""Summary: what is known of all cases: failures.csv, and of their statistics summary.csv, summary_wide.csv and summary_radiomics.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clseg.batch.case import SUMMARIES
from clseg.batch.job import FAILED, Outcome
from clseg.errors import InputError, OutputError
from clseg.io.files import write_csv

LONG, WIDE, RADIOMICS, FAILURES = SUMMARIES
Row = dict[str, Any]

_FAMILY = "family"  # the `kind` of rows that others are counted in
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

    Families have rows in the first, after the structures of their case (`kind` tells them apart), and no volumes in the
    second, where who adds up a row would count their members twice.  Where the cases have radiomics, it gets a table of
    its own with a row per case and structure.  All are read from the folders of the cases, so that it does not matter which run has filled them.
    """
    columns: dict[str, None] = {}
    volumes: dict[str, dict[str, Any]] = {}
    for name in names:
        rows = statistics_in(output / name)
        volumes[name] = {row["structure"]: _volume_ml(row) for row in rows if row.get("kind") != _FAMILY}
        columns |= dict.fromkeys(column for row in rows for column in row)
    structures = list(dict.fromkeys(structure for case in volumes.values() for structure in case))
    write_csv(output / LONG, ["case", *columns], _long(names, list(columns), lambda name: statistics_in(output / name)))
    wide = ([name, *(volumes[name].get(structure) for structure in structures)] for name in names)
    write_csv(output / WIDE, ["case", *(f"{structure}_ml" for structure in structures)], wide)
    return [output / LONG, output / WIDE, *_write_radiomics(output, names)]


def statistics_in(folder: Path) -> list[Row]:
    """The statistics of a case, a row per structure; from statistics.csv, or from statistics.json where there is no table.

    InputError when neither is there.
    """
    try:
        table = folder / "statistics.csv"
        if table.is_file():
            return _table(table)
        values = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        return [{"structure": name, **one} for name, one in values.items()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"The statistics in '{folder}' cannot be read: {error}.", tip="Run the same command again.") from error


def _write_radiomics(output: Path, names: Sequence[str]) -> list[Path]:
    """The radiomics of the cases in one table; no file where none has any."""
    def rows(name: str) -> list[Row]:
        return _table(output / name / "radiomics.csv") if name in there else []

    there = {name for name in names if (output / name / "radiomics.csv").is_file()}
    if not there:
        return []
    columns = list(dict.fromkeys(column for name in names for row in rows(name)[:1] for column in row))
    write_csv(output / RADIOMICS, ["case", *columns], _long(names, columns, rows))
    return [output / RADIOMICS]


def _table(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _long(names: Sequence[str], columns: Sequence[str], rows: Callable[[str], list[Row]]) -> Iterator[list[Any]]:
    for name in names:
        for row in rows(name):
            yield [name, *(row.get(column) for column in columns)]


def _volume_ml(row: Row) -> Any:
    """The volume as it is written in the case's table, or in mL where that has another unit; None without one."""
    for column, unit in _VOLUMES.items():
        if row.get(column) not in (None, ""):
            return row[column] if unit == 1.0 else float(row[column]) * unit
    return None
