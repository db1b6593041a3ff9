"""Evaluate: masks of a prediction against masks of a reference, structure by structure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from clseg.errors import InputError
from clseg.io.files import existing, read
from clseg.io.labels import read_label_names
from clseg.metrics import Scores, bootstrap_interval, score
from clseg.volume import Volume

HEADER = ["structure", "dice", "surface_dice_3mm", "hd95_mm", "reference_ml", "predicted_ml"]


def evaluate(prediction: str | os.PathLike[str], reference: str | os.PathLike[str], *, tolerance_mm: float = 3.0) -> dict[str, Scores]:
    """Scores of every structure that both sides name, in the reference's order.

    Each side is a folder of `<structure>.nii.gz` masks or one label map with
    embedded names or a `.labels.json`/`labels.json` beside it.  A structure of the
    reference for which a folder of predictions has no file counts as predicted
    empty.  Raises InputError when grids differ or nothing is in common.
    """
    theirs, ours = MaskSource.at(reference), MaskSource.at(prediction)
    names = [name for name in theirs.names if name in ours.names or ours.is_folder]
    if not names:
        raise InputError(f"{prediction} and {reference} have no structure in common.")
    scores = {}
    for name in names:
        expected = theirs.mask(name)
        found = ours.mask(name) if name in ours.names else expected.like(np.zeros(expected.shape, bool))
        if not found.same_grid(expected, tolerance_mm=0.1):
            raise InputError(
                f"'{name}' lies on different grids: {found.shape} predicted, {expected.shape} in the reference.",
                tip="Segment the very scan that the reference was drawn on.",
            )
        scores[name] = score(found.array, expected.array, expected.spacing, tolerance_mm=tolerance_mm)
    return scores


class MaskSource:
    """Masks by structure name, read when asked for: a folder of masks or one label map."""

    def __init__(self, files: Mapping[str, Path], labels: Volume | None, ids: Mapping[str, int], path: Path) -> None:
        self.names = tuple(files) or tuple(ids)
        self.is_folder = labels is None
        self._files, self._labels, self._ids, self._path = files, labels, ids, path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> MaskSource:
        place = existing(path)
        if place.is_dir():
            files = {f.name.split(".nii")[0]: f for f in sorted(place.glob("*.nii*")) if not f.name.startswith(".")}
            if len(files) == 1 and (names := read_label_names(next(iter(files.values())))):
                return cls({}, read(next(iter(files.values()))), {n: i for i, n in names.items()}, place)
            if not files:
                raise InputError(f"There are no .nii.gz masks in {place}.")
            return cls(files, None, {}, place)
        names = read_label_names(place)
        if not names:
            raise InputError(
                f"{place} holds no label names.", tip="Put a .labels.json (name: id) beside it, or give a folder of masks."
            )
        return cls({}, read(place), {n: i for i, n in names.items()}, place)

    def mask(self, name: str) -> Volume:
        """The boolean mask of one structure."""
        if self._labels is not None:
            return self._labels.like(self._labels.array == self._ids[name])
        volume = read(self._files[name])
        return volume.like(volume.array > 0)


def to_rows(scores: Mapping[str, Scores]) -> list[list[object]]:
    """One row per structure under HEADER; None where a number has no meaning."""
    return [
        [name, s.dice, s.surface_dice, s.hd95_mm, s.reference_ml, s.predicted_ml] for name, s in scores.items()
    ]


def summarise(cases: Iterable[Mapping[str, Scores]]) -> dict[str, dict[str, object]]:
    """Per structure over many cases: number of cases, mean Dice with its 95 % bootstrap interval, mean surface Dice and HD95."""
    collected: dict[str, list[Scores]] = {}
    for case in cases:
        for name, scores in case.items():
            collected.setdefault(name, []).append(scores)
    return {name: _summary(scores) for name, scores in collected.items()}


def _summary(scores: list[Scores]) -> dict[str, object]:
    dice = [s.dice for s in scores if s.dice is not None]
    return {
        "cases": len(scores),
        "dice": _mean(dice),
        "dice_interval": bootstrap_interval(dice) if dice else None,
        "surface_dice": _mean([s.surface_dice for s in scores if s.surface_dice is not None]),
        "hd95_mm": _mean([s.hd95_mm for s in scores if s.hd95_mm is not None]),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
