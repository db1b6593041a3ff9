"""Cases: which structures are annotated where, as the datasets of a recipe say."""

from __future__ import annotations

import csv
import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clseg.errors import InputError, RecipeError
from clseg.io.files import read
from clseg.recipe import DatasetRecipe, Recipe
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume


@dataclass(frozen=True)
class Case:
    """One scan of one dataset, not yet read."""

    name: str
    folder: Path
    dataset: DatasetRecipe

    @property
    def ct(self) -> Path:
        return self.folder / self.dataset.ct


def find_cases(recipe: Recipe, split: str | None = None) -> list[Case]:
    """All cases of `split` (default: the recipe's) that have a CT, in the order of the index.

    Raises RecipeError when an index is missing or a dataset has no case.
    """
    found: list[Case] = []
    for dataset in recipe.dataset:
        index = (recipe.folder / dataset.index).resolve()
        if not index.is_file():
            raise RecipeError(f"Dataset '{dataset.name}' has no index at {index}.")
        with index.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and not {"case", "split"} <= set(rows[0]):
            raise RecipeError(f"The index {index} needs the columns 'case' and 'split', it has {', '.join(map(str, rows[0]))}.")
        mine = [
            Case(row["case"], index.parent / row["case"], dataset)
            for row in rows
            if row["split"] == (split or recipe.split) and any(fnmatch.fnmatch(row["case"], p) for p in dataset.cases)
        ]
        mine = [case for case in mine if case.ct.exists()]
        if not mine and split is None and dataset.weight > 0:
            raise RecipeError(f"Dataset '{dataset.name}' has no case with a CT that matches {list(dataset.cases)}.")
        found += mine
    return found


def read_masks(case: Case, wanted: set[str], ct: Volume) -> dict[str, np.ndarray]:
    """The masks (bool, grid of `ct`) of those wanted structures that this case annotates.

    A name in the label map without a voxel counts as not annotated: in partial
    labels nobody knows whether the organ was absent or skipped.
    """
    masks = {}
    label_map = case.folder / case.dataset.labels
    if label_map.is_file():
        names = _ids(case.folder / (label_map.name.split(".")[0] + ".json"))
        values = _on_grid(label_map, ct)
        for name in wanted & set(names):
            mask = values == names[name]
            if mask.any():
                masks[name] = mask
    for name in wanted & set(case.dataset.masks):
        file, _, value = case.dataset.masks[name].partition(":")
        path = case.folder / file
        if path.is_file():
            values = _on_grid(path, ct)
            masks[name] = values == int(value) if value else values > 0
    return masks


def _ids(path: Path) -> dict[str, int]:
    """Structure name → id in the label map that the JSON file stands beside."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The label map beside {path} needs its names there, as a JSON object of name and id: {error}.") from error


def _on_grid(path: Path, ct: Volume) -> np.ndarray:
    """The label map's voxels in the axes of `ct`; axes may be stored in another order, but the grid must be the CT's."""
    volume = to_orientation(read(path), ct.orientation)
    if not volume.same_grid(ct, tolerance_mm=0.5):
        raise InputError(f"The labels {path} do not lie on the grid of their CT: {volume.shape} against {ct.shape}.")
    return volume.array
