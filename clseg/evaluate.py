"""Evaluate: masks of a prediction against masks of a reference, structure by structure."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from clseg.errors import InputError
from clseg.io.files import existing
from clseg.io.mask_files import Masks, find_masks, structure_called, structures_of
from clseg.metrics import Scores, bootstrap_interval, score
from clseg.progress import SILENT, Progress
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume

HEADER = ["structure", "dice", "surface_dice_3mm", "hd95_mm", "reference_ml", "predicted_ml"]


def evaluate(
    prediction: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    tolerance_mm: float = 3.0,
    report: Progress = SILENT,
) -> dict[str, Scores]:
    """Scores of every structure of the reference that the prediction was asked for, in the reference's order.

    Each side is a folder of masks called like their structures (names are understood as in `clseg --roi`), one label map with
    embedded names or a `.labels.json`/`labels.json` beside it, or a `.seg.nrrd`.  A label map names
    what it was asked for, and so does the `run.json` of a folder; a structure that
    was asked for and has no mask counts as predicted empty.  A folder without
    run.json may have been asked for anything.  `report` is told which structures of
    the reference were never asked for.  Masks whose axes have another order or
    direction are turned.  Raises InputError when grids differ or nothing is in common.
    """
    theirs, ours = MaskSource.at(reference), MaskSource.at(prediction)
    names = [name for name in theirs.names if ours.asked_for(name)]
    if not names:
        raise InputError(f"{prediction} and {reference} have no structure in common.")
    if left_out := [name for name in theirs.names if name not in names]:
        report.warn(f"Not scored, as the prediction was never asked for them: {', '.join(left_out)}.")
    scores = {}
    for name in names:
        expected = theirs.mask(name)
        found = to_orientation(ours.mask(name), expected.orientation) if name in ours.names else expected.like(np.zeros(expected.shape, bool))
        if not found.same_grid(expected, tolerance_mm=0.1):
            raise InputError(
                f"'{name}' lies on different grids: {_grid(found)} predicted, {_grid(expected)} in the reference.",
                tip="Segment the very scan that the reference was drawn on.",
            )
        scores[name] = score(found.array, expected.array, expected.spacing, tolerance_mm=tolerance_mm)
    return scores


def _grid(volume: Volume) -> str:
    """Voxels, their size and where the first one lies, in words."""
    size, spacing, first = ((f"{value:.4g}" for value in values) for values in (volume.shape, volume.spacing, volume.affine[:3, 3]))
    return f"{' × '.join(size)} voxels of {' × '.join(spacing)} mm from ({', '.join(first)})"


def evaluate_cases(table: str | os.PathLike[str], *, report: Progress = SILENT) -> dict[str, dict[str, Scores]]:
    """Scores by case for every row of a CSV with the columns `prediction` and `reference`, paths relative to it.

    The column `case` names a case; without it the prediction does.  Raises InputError when the table is not
    there, lacks a column, has no row or names a case twice.
    """
    import csv

    place = existing(table)
    with place.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    lost = {"prediction", "reference"} - set(rows[0] if rows else ())
    if lost:
        raise InputError(f"{place} needs rows with the columns prediction and reference, it lacks {', '.join(sorted(lost))}.")
    names = [row.get("case") or row["prediction"] for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{place} names the case '{twice}' twice.")
    found = {}
    with report.stage("Evaluating", len(rows)) as advance:
        for name, row in zip(names, rows, strict=True):
            found[name] = evaluate(place.parent / row["prediction"], place.parent / row["reference"], report=report)
            advance(1)
    return found


class MaskSource:
    """Masks by structure name, read when asked for; `names` are those that there are masks of."""

    def __init__(self, masks: Masks) -> None:
        self._own = structures_of(masks)
        self.names = tuple(name for name, own in self._own.items() if own not in masks.empty)
        self._masks = masks
        self._asked = frozenset(self._own) if masks.maps else _asked(masks.path)

    def asked_for(self, name: str) -> bool:
        """Whether this source says something about the structure, be it that there is none."""
        return self._asked is None or name in self._asked

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> MaskSource:
        """The masks in a folder or a label map, see `clseg.io.mask_files.find_masks`."""
        return cls(find_masks(path))

    def mask(self, name: str) -> Volume:
        """The boolean mask of one structure."""
        own = self._own[name]
        for one in self._masks.maps:
            if own in one.ids:
                return one.volume.like(one.volume.array == one.ids[own])
        return self._masks.mask(own)


def _asked(folder: Path) -> frozenset[str] | None:
    """What the run was asked for that filled the folder; None where no run.json of ours says so."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return frozenset(map(structure_called, [*run["structures"], *run["empty"]]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def to_rows(scores: Mapping[str, Scores]) -> list[list[object]]:
    """One row per structure under HEADER; None where a number has no meaning."""
    return [
        [name, s.dice, s.surface_dice, s.hd95_mm, s.reference_ml, s.predicted_ml] for name, s in scores.items()
    ]


def summarise(cases: Iterable[Mapping[str, Scores]]) -> dict[str, dict[str, object]]:
    """Per structure over many cases, None where there is nothing to average.

    | key             | meaning |
    |-----------------|---------|
    | `cases`         | cases with a Dice: the structure is in the prediction, the reference or both |
    | `missed`        | those of them where one side is empty: Dice and surface Dice are 0, and there is no HD95 |
    | `dice`          | mean over `cases`; `dice_interval` its 95 % bootstrap interval |
    | `surface_dice`  | mean over `cases` |
    | `hd95_mm`       | mean over the cases that were not missed |
    """
    collected: dict[str, list[Scores]] = {}
    for case in cases:
        for name, scores in case.items():
            collected.setdefault(name, []).append(scores)
    return {name: _summary(scores) for name, scores in collected.items()}


def _summary(scores: list[Scores]) -> dict[str, object]:
    dice = [s.dice for s in scores if s.dice is not None]
    return {
        "cases": len(dice),
        "missed": sum(s.dice is not None and s.hd95_mm is None for s in scores),
        "dice": _mean(dice),
        "dice_interval": bootstrap_interval(dice) if dice else None,
        "surface_dice": _mean([s.surface_dice for s in scores if s.surface_dice is not None]),
        "hd95_mm": _mean([s.hd95_mm for s in scores if s.hd95_mm is not None]),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
