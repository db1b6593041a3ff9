"""Statistics in files: clseg's own JSON and CSV, or TotalSegmentator's JSON; radiomics as a table beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clseg import measure, radiomics, review
from clseg.errors import UsageError
from clseg.io.files import write_csv, write_json
from clseg.measure import FamilyStatistics, Statistics
from clseg.output import Output
from clseg.radiomics import Features
from clseg.review import Review

CLSEG, TOTALSEGMENTATOR = "clseg", "totalsegmentator"
FORMATS = (CLSEG, TOTALSEGMENTATOR)


@dataclass(frozen=True)
class Measured:
    """All that was measured of a scan, and the judgement on it; `radiomics` is empty where it was not asked for."""

    structures: Mapping[str, Statistics]
    families: Mapping[str, FamilyStatistics] = field(default_factory=dict)
    radiomics: Mapping[str, Features] = field(default_factory=dict)
    reviews: Mapping[str, Review] = field(default_factory=dict)


def check_format(format: str) -> None:
    """UsageError for a format that nobody knows."""
    if format not in FORMATS:
        raise UsageError(f"Unknown format of statistics '{format}', expected {' or '.join(FORMATS)}.")


def save_statistics(place: Output, measured: Measured, *, format: str = CLSEG) -> list[Path]:
    """Write `statistics.json`, for clseg's format `statistics.csv`, and `radiomics.csv` where there is radiomics; return the files."""
    files = [place.beside("statistics.json")]
    write_json(files[0], to_json(measured, format=format))
    if format == CLSEG:
        files.append(place.beside("statistics.csv"))
        write_csv(files[-1], *to_rows(measured))
    if measured.radiomics:
        files.append(place.beside("radiomics.csv"))
        write_csv(files[-1], *radiomics.to_rows(measured.radiomics))
    return files


def to_json(measured: Measured, *, format: str = CLSEG) -> dict[str, Any]:
    """What `statistics.json` holds in either format."""
    check_format(format)
    if format == TOTALSEGMENTATOR:
        return {name: _as_totalsegmentator(one) for name, one in measured.structures.items()}
    plain = measure.to_json(measured.structures, measured.families)
    for name, judgement in review.to_json(measured.reviews).items():
        plain[name] = {**plain[name], **judgement}
    for name, features in measured.radiomics.items():
        there = any(value is not None for value in features.values())
        plain[name] = {**plain[name], "radiomics": features if there else None}
    return plain


def to_rows(measured: Measured) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of `statistics.csv`: structures, then families, which are not judged."""
    header, rows = measure.to_rows(measured.structures, measured.families)
    more, judgements = review.to_rows(measured.reviews)
    blank = [""] * len(more)
    filled = [*judgements, *[blank] * (len(rows) - len(judgements))] if judgements else [[]] * len(rows)
    return [*header, *(more if judgements else [])], [[*row, *judgement] for row, judgement in zip(rows, filled, strict=True)]


def _as_totalsegmentator(one: Statistics) -> dict[str, float | None]:
    """Volume in mm³ and mean HU, rounded as there; what was not found is 0 in both, as there.

    Without a CT there is no intensity, and none is made up: None.
    """
    if not one.voxels:
        return {"volume": 0.0, "intensity": 0.0}
    return {"volume": one.volume_mm3, "intensity": None if one.hu_mean is None else round(one.hu_mean, 5)}
