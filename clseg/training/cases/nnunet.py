"""nnU-Net: a folder `DatasetXXX_Name` of version 2, as its documentation describes it.

    dataset.json           channel_names, labels, file_ending (and dataset, where files lie elsewhere)
    imagesTr/a_0000.nii.gz labelsTr/a.nii.gz
    imagesTs/…             labelsTs/…           the split "test"
    splits_final.json      [{"train": […], "val": […]}, …], here or in nnUNet_preprocessed
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clseg.errors import InputError, RecipeError
from clseg.recipe import DatasetRecipe
from clseg.training.cases.case import ENDINGS, Case, LabelMap
from clseg.training.cases.names import checked
from clseg.training.cases.split import by_name

SPLITS = "splits_final.json"


def cases(dataset: DatasetRecipe, base: Path) -> list[Case]:
    """The labelled cases by name: training cases split by `fold` or by share, then test cases.

    Cases that the fold names and that are not there come last, without any file.
    Raises RecipeError when the folder is no dataset of version 2 with one CT channel
    and one id per label.
    """
    root = (base / dataset.path).resolve()
    facts = _facts(root, dataset)
    names = _labels(facts, dataset)
    splits = _splits(root, dataset)
    found = []
    for name, (image, label) in _files(root, facts, "Tr", dataset).items():
        split = by_name(name, dataset.val_share) if splits is None else splits.get(name, "")
        found.append(Case(name, split, dataset, root, image, (LabelMap(label, names),)))
    for name, (image, label) in _files(root, facts, "Ts", dataset).items():
        found.append(Case(name, "test", dataset, root, image, (LabelMap(label, names),)))
    there = {case.name for case in found}
    return [*found, *(Case(name, split, dataset, root, None) for name, split in (splits or {}).items() if name not in there)]


def _facts(root: Path, dataset: DatasetRecipe) -> dict[str, Any]:
    """dataset.json, if it is what this module can read."""
    if not root.is_dir():
        raise RecipeError(f"Dataset '{dataset.name}' is not at {root}, expected a folder DatasetXXX_Name of nnU-Net there.")
    facts = _json(root / "dataset.json", dataset)
    what = f"dataset.json of '{dataset.name}'"
    if not isinstance(facts, dict) or not isinstance(facts.get("labels"), dict) or "channel_names" not in facts:
        raise RecipeError(
            f"{what} ({root}) lacks labels or channel_names, expected the format of nnU-Net v2.",
            tip="nnUNetv2_convert_old_nnUNet_dataset converts a dataset of nnU-Net v1.",
        )
    channels = facts["channel_names"]
    if not isinstance(channels, dict) or [str(channel).strip().upper() for channel in channels.values()] != ["CT"]:
        raise RecipeError(f"{what} has the channels {channels}, expected one CT.")
    if facts.get("file_ending") not in ENDINGS:
        raise RecipeError(f"{what} has the file_ending {facts.get('file_ending')!r}, expected one of {', '.join(ENDINGS)}.")
    return facts


def _labels(facts: dict[str, Any], dataset: DatasetRecipe) -> dict[str, int]:
    what = f"The labels in dataset.json of '{dataset.name}'"
    regions = [name for name, id in facts["labels"].items() if isinstance(id, list)]
    if regions:
        raise RecipeError(
            f"{what} are regions ('{regions[0]}' is {facts['labels'][regions[0]]}), expected one id per structure.",
            tip="Give every id a name, and join them with rename, e.g. rename = { tumour = \"liver\", liver_rest = \"liver\" }.",
        )
    try:
        return checked(facts["labels"], what)
    except InputError as error:
        raise RecipeError(error.message) from error


def _files(root: Path, facts: dict[str, Any], part: str, dataset: DatasetRecipe) -> dict[str, tuple[Path | None, Path]]:
    """Case → (image, label) by name, for all that has a label; `part` is Tr or Ts."""
    ending = facts["file_ending"]
    if part == "Tr" and "dataset" in facts:
        return _listed(root, facts["dataset"], dataset)
    labels = root / f"labels{part}"
    if not labels.is_dir():
        if part == "Tr":
            raise RecipeError(f"Dataset '{dataset.name}' has no folder {labels}.")
        return {}
    names = sorted(file.name.removesuffix(ending) for file in labels.iterdir() if file.name.endswith(ending) and not file.name.startswith("."))
    found: dict[str, tuple[Path | None, Path]] = {}
    for name in names:
        image = root / f"images{part}" / f"{name}_0000{ending}"
        found[name] = (None if dataset.synthetic and not image.exists() else image, labels / f"{name}{ending}")
    return found


def _listed(root: Path, table: Any, dataset: DatasetRecipe) -> dict[str, tuple[Path | None, Path]]:
    """The files that dataset.json lists by case; paths are relative to the dataset."""
    try:
        return {name: (root / str(files["images"][0]), root / str(files["label"])) for name, files in sorted(table.items())}
    except (AttributeError, LookupError, TypeError) as error:
        raise RecipeError(f"'dataset' in dataset.json of '{dataset.name}' must give every case its images and its label, given {str(table)[:80]}.") from error


def _splits(root: Path, dataset: DatasetRecipe) -> dict[str, str] | None:
    """Case → split as splits_final.json says (a case it does not list has none); None where there is no such file."""
    places = (root / SPLITS, root.parent.parent / "nnUNet_preprocessed" / root.name / SPLITS)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return None
    folds = _json(file, dataset)
    if not isinstance(folds, list) or not all(map(_is_fold, folds)):
        raise RecipeError(f"{file} must be a list of folds, each with the names of its cases in train and val.")
    if dataset.fold >= len(folds):
        raise RecipeError(f"Dataset '{dataset.name}' asks for fold {dataset.fold}, {file} has {len(folds)} folds, from 0.")
    fold = folds[dataset.fold]
    if both := sorted(set(fold["train"]) & set(fold["val"])):
        raise RecipeError(f"{file} has the case '{both[0]}' in both train and val of fold {dataset.fold}.")
    return {name: split for split in ("train", "val") for name in fold[split]}


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, dict) and all(isinstance(fold.get(part), list) and all(isinstance(name, str) for name in fold[part]) for part in ("train", "val"))


def _json(path: Path, dataset: DatasetRecipe) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"Dataset '{dataset.name}' has no {path.name} at {path}.") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} of dataset '{dataset.name}' cannot be read: {error}.") from error
