"""Validate: run a finished model over the held-out cases of a recipe and score it."""

from __future__ import annotations

from clseg.errors import UsageError
from clseg.metrics import Scores, score
from clseg.pipeline import segment
from clseg.progress import SILENT, Progress
from clseg.recipe import Recipe
from clseg.training.cases import Case, find_cases, list_cases, read_masks


def validate(
    recipe: Recipe, *, split: str = "val", model: str = "starter", device: str = "auto", report: Progress = SILENT
) -> dict[str, dict[str, Scores]]:
    """Scores by case and structure, through the whole chain as a user runs it.

    Only structures that a case annotates are scored there: what is not labelled is
    unknown, not background.  Raises UsageError when the split has no case.
    """
    cases = [case for case in find_cases(recipe, split) if case.ct is not None]  # a synthetic scan proves nothing
    if not cases:
        there = sorted({case.split for dataset in recipe.dataset for case in list_cases(dataset, recipe.folder) if case.split})
        raise UsageError(
            f"There is no case with a CT in the split '{split}' of recipe '{recipe.name}', the splits there are: {', '.join(there) or 'none'}."
        )
    results: dict[str, dict[str, Scores]] = {}
    with report.stage(f"Evaluating {split}", len(cases)) as advance:
        for case in cases:
            results.setdefault(case.name, {}).update(_score(case, recipe, model, device))
            advance(1)
    return {name: scores for name, scores in results.items() if scores}


def _score(case: Case, recipe: Recipe, model: str, device: str) -> dict[str, Scores]:
    result = segment(case.ct, model=model, device=device, offline=True)
    held = {label for decoder in recipe.decoder for label in decoder.labels} & set(result.names)
    references = read_masks(case, held, result.scan)
    return {
        name: score(result.mask(name), references[name], result.scan.spacing) for name in result.names if name in references
    }
