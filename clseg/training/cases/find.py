"""Find: the cases of all datasets of a recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from clseg.errors import InputError, RecipeError
from clseg.recipe import DatasetRecipe
from clseg.recipe.commands import Common
from clseg.training.cases import folders, nnunet, results, table, totalsegmentator
from clseg.training.cases.case import Case

FORMATS: dict[str, Callable[[DatasetRecipe, Path], list[Case]]] = {
    "folders": folders.cases,
    "csv": table.cases,
    "nnunet": nnunet.cases,
    "totalsegmentator": totalsegmentator.cases,
    "results": results.cases,
}


def find_cases(recipe: Common, split: str | None = None) -> list[Case]:
    """All cases of `split` (default: the recipe's) that can be used, in the order of the datasets and of each dataset.

    A case without a CT is left out, unless its dataset is `synthetic`.  clseg's own results of which none is
    held out are looked for in the split `train` only.  Raises
    RecipeError when a dataset is not there, does not make sense or has no case, and
    InputError when a case lacks a file.
    """
    found: list[Case] = []
    for dataset in recipe.dataset:
        if only_teaches(dataset) and (split or recipe.split) != "train":
            continue
        mine = [case for case in list_cases(dataset, recipe.folder) if case.split == (split or recipe.split) and usable(case)]
        if not mine and split is None and dataset.weight > 0:
            what = "label map" if dataset.synthetic else "CT"
            raise RecipeError(f"Dataset '{dataset.name}' has no case with a {what} that matches {list(dataset.cases)} in the split '{recipe.split}'.")
        for case in mine:
            if lost := case.missing():
                raise InputError(f"The {case} lacks {lost[0]}, expected a file there.", tip="`clseg cases RECIPE --kind learn` (or train, update, prune) lists all faults at once.")
        found += mine
    return _told_apart(found)


def _told_apart(cases: list[Case]) -> list[Case]:
    """Different scans of one name, in several datasets, get the dataset's before it: scores are kept by name."""
    scans: dict[str, set[Path | None]] = {}
    for case in cases:
        scans.setdefault(case.name, set()).add(case.ct or case.folder)
    return [replace(case, name=f"{case.dataset.name}.{case.name}") if len(scans[case.name]) > 1 else case for case in cases]


def list_cases(dataset: DatasetRecipe, folder: Path) -> list[Case]:
    """Every case that a dataset lists and `cases` chooses, of all splits, whether its files are there or not.

    Relative paths start at `folder`.  Raises RecipeError when the dataset is not there
    or two cases have one name.
    """
    listed = FORMATS[dataset.format](dataset, folder)
    chosen = [case for case in listed if any(fnmatch.fnmatch(case.name, pattern) for pattern in dataset.cases)]
    _refuse_twins(chosen, dataset)
    return chosen


def only_teaches(dataset: DatasetRecipe) -> bool:
    """Whether a dataset is clseg's own results, none of them held out: they need not be there for a finished model to be judged."""
    return dataset.format == "results" and dataset.val_share == 0


def usable(case: Case) -> bool:
    """Whether there is a CT, or one can be synthesised."""
    return case.ct is not None or (case.dataset.synthetic and bool(case.maps))


def _refuse_twins(cases: Sequence[Case], dataset: DatasetRecipe) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise RecipeError(f"Dataset '{dataset.name}' lists the case '{case.name}' twice, expected a name of its own for each.")
        seen.add(case.name)
