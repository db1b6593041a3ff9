"""Stamps: a short mark of every case, by which a run that goes on knows whether its cases are still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from clseg.recipe import DatasetRecipe
from clseg.recipe.commands import Common
from clseg.training.cases.case import Case
from clseg.training.cases.find import list_cases, usable


def stamps(recipe: Common) -> dict[str, str]:
    """`dataset/case` → mark, of every case of a recipe that can be used; no file is read.

    It is made of split, names, sizes and times of files: copies that keep their times have
    the same wherever they lie.  RecipeError when a dataset is not there.
    """
    datasets: Sequence[DatasetRecipe] = [*recipe.dataset, *getattr(recipe, "old", ())]
    listed = [case for dataset in datasets for case in list_cases(dataset, recipe.folder) if usable(case)]
    return {f"{case.dataset.name}/{case.name}": _stamp(case) for case in listed}


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which cases are others than `before`, in a few words; empty when none is."""
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    kinds = {"changed": changed, "new": sorted(set(now) - set(before)), "gone": sorted(set(before) - set(now))}
    return ", ".join(f"{len(names)} {kind} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})" for kind, names in kinds.items() if names)


def _stamp(case: Case) -> str:
    there = [(file.name, file.stat()) for file in case.files() if file.exists()]
    files = sorted([name, stat.st_size, stat.st_mtime_ns] for name, stat in there)
    return hashlib.sha256(json.dumps([case.split, files, case.rules()]).encode()).hexdigest()[:16]
