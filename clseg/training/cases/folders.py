"""Folders: an index with the columns case and split, and beside it a folder per case."""

from __future__ import annotations

from pathlib import Path

from clseg.errors import RecipeError
from clseg.recipe import DatasetRecipe
from clseg.training.cases.case import Case, LabelMap, MaskFile
from clseg.training.cases.split import read_table


def cases(dataset: DatasetRecipe, base: Path) -> list[Case]:
    """The rows of the index; label map and masks are optional in every case."""
    index = (base / dataset.index).resolve()
    if not index.is_file():
        raise RecipeError(f"Dataset '{dataset.name}' has no index at {index}.")
    rows = read_table(index, {"case", "split"}, f"The index {index}")
    return [_case(row["case"], row["split"], index.parent / row["case"], dataset) for row in rows]


def _case(name: str, split: str, folder: Path, dataset: DatasetRecipe) -> Case:
    ct, labels = folder / dataset.ct, folder / dataset.labels
    maps = (LabelMap(labels, folder / (labels.name.split(".")[0] + ".json")),) if labels.is_file() else ()
    masks = (_mask(structure, source, folder) for structure, source in dataset.masks.items())
    there = tuple(mask for mask in masks if mask.path.is_file())
    return Case(name, split, dataset, folder, ct if ct.exists() else None, maps, there)


def _mask(structure: str, source: str, folder: Path) -> MaskFile:
    """`file` or `file:value`."""
    file, _, value = source.partition(":")
    return MaskFile(structure, folder / file, int(value) if value else None)
