"""Held out: whether there are cases in the split that a recipe wants its decoders judged on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clseg.errors import RecipeError
from clseg.recipe import DatasetRecipe, LearnRecipe, PruneRecipe, UpdateRecipe
from clseg.recipe.parts import ValidationRecipe
from clseg.training.cases.find import list_cases, usable

TIP = "Name one of those, or hold cases back where the dataset says which (its index, or val_share)."


def check_held_out(recipe: LearnRecipe | UpdateRecipe | PruneRecipe) -> None:
    """RecipeError when no case is in the split of [validation]; no case is read for it.

    What an update may make a decoder forget is judged on the cases of [[old]].  Where nothing is pruned and
    nothing old is given, nobody has to be judged: then the usual split may be without a case, one that was
    chosen may not.
    """
    key, split = "[validation] split", recipe.validation.split
    if isinstance(recipe, UpdateRecipe) and recipe.old:
        refuse_lost_split(key, split, recipe.old, recipe.folder, needed=True, who="case of [[old]]")
    else:
        refuse_lost_split(key, split, recipe.dataset, recipe.folder, needed=isinstance(recipe, (LearnRecipe, PruneRecipe)) and recipe.ladder.climbs)


def refuse_lost_split(
    key: str, split: str, datasets: Sequence[DatasetRecipe], folder: Path, *, needed: bool = False, who: str = "case"
) -> None:
    """RecipeError when no usable case of the datasets is in `split`, unless it is the usual one and not `needed`."""
    if split == ValidationRecipe().split and not needed:
        return
    there = Counter(case.split for dataset in datasets for case in list_cases(dataset, folder) if case.split and usable(case))
    if split not in there:
        cases = ", ".join(f"{name} ({count} case{'' if count == 1 else 's'})" for name, count in sorted(there.items()))
        raise RecipeError(f"No {who} is in {key} '{split}'; the splits there are: {cases or 'none'}.", tip=TIP)
