"""TotalSegmentator: a folder per subject with a CT and a mask per structure in `segmentations/`, or one label map.

The published dataset (Wasserthal et al. 2023, Zenodo 10047292) has a `meta.csv` with
the columns image_id and split, separated by semicolons.
"""

from __future__ import annotations

from pathlib import Path

from clseg.errors import RecipeError
from clseg.recipe import DatasetRecipe
from clseg.training.cases.case import Case, LabelMap, MaskFile, stem, volumes
from clseg.training.cases.split import by_name, read_table

SEGMENTATIONS = "segmentations"
MULTILABEL = ("segmentation.nii.gz", "segmentations.nii.gz")  # what clseg and TotalSegmentator write with --ml, beside the recipe's `labels`


def cases(dataset: DatasetRecipe, base: Path) -> list[Case]:
    """Every subfolder with a CT or labels; split by meta.csv, else a share by name."""
    root = (base / dataset.path).resolve()
    if not root.is_dir():
        raise RecipeError(f"Dataset '{dataset.name}' is not at {root}, expected a folder of subjects there.")
    subjects = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and _is_subject(folder, dataset)]
    if not subjects:
        raise RecipeError(
            f"Dataset '{dataset.name}' has no subject in {root}, expected folders with {dataset.ct} and {SEGMENTATIONS}/ or {dataset.labels}."
        )
    splits = _splits(root, dataset)
    return [_case(folder, splits.get(folder.name, "") if splits else by_name(folder.name, dataset.val_share), dataset) for folder in subjects]


def _is_subject(folder: Path, dataset: DatasetRecipe) -> bool:
    return (folder / dataset.ct).exists() or (folder / SEGMENTATIONS).is_dir() or bool(_maps(folder, dataset))


def _case(folder: Path, split: str, dataset: DatasetRecipe) -> Case:
    ct = folder / dataset.ct
    masks = folder / SEGMENTATIONS
    files = tuple(MaskFile(stem(file), file) for file in volumes(masks)) if masks.is_dir() else ()
    return Case(folder.name, split, dataset, folder, ct if ct.exists() else None, _maps(folder, dataset), files)


def _maps(folder: Path, dataset: DatasetRecipe) -> tuple[LabelMap, ...]:
    """The first label map that is there; its names stand in `<name>.json` beside it, or are found as those of any label map."""
    for file in (folder / dataset.labels, *(folder / name for name in MULTILABEL)):
        if file.is_file():
            beside = folder / f"{stem(file)}.json"
            return (LabelMap(file, beside if beside.is_file() else None),)
    return ()


def _splits(root: Path, dataset: DatasetRecipe) -> dict[str, str]:
    """Subject → split of meta.csv; empty without it."""
    meta = root / "meta.csv"
    if not meta.is_file():
        return {}
    with meta.open(encoding="utf-8-sig") as file:
        delimiter = ";" if ";" in file.readline() else ","
    rows = read_table(meta, {"image_id"}, f"The table {meta} of dataset '{dataset.name}'", delimiter)
    return {row["image_id"]: row["split"] for row in rows if row.get("split")}
