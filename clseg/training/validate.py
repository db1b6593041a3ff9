"""Validate: run a finished model over the held-out cases of a recipe and score it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from clseg.errors import UsageError
from clseg.metrics import Scores, score
from clseg.pipeline import segment
from clseg.progress import SILENT, Progress
from clseg.recipe import Recipe
from clseg.spatial.orient import to_orientation
from clseg.training.cases import Case, find_cases, list_cases, only_teaches, read_masks
from clseg.volume import Volume


def validate(
    recipe: Recipe,
    *,
    split: str = "val",
    model: str = "starter",
    device: str = "auto",
    only: Collection[str] = (),
    absent: bool = False,
    report: Progress = SILENT,
) -> dict[str, dict[str, Scores]]:
    """Scores by case and structure, through the whole chain as a user runs it.

    Only structures that a case annotates are scored there: what is not labelled is
    unknown, not background.  For the same reason a structure with open ends (contoured
    only in part along z, see `DecoderRecipe.open_ends`) is not scored beyond the slices at
    those ends where its contours stop.  `only` are the names of some cases, where not all
    are wanted.  With `absent` those structures are scored too that the dataset says cannot be
    in view: their reference is empty.  Raises UsageError when the split has no case, none of a name in `only`, or
    none that can be scored.
    """
    cases = [case for case in find_cases(recipe, split) if case.ct is not None]  # a synthetic scan proves nothing
    if not cases:
        there = sorted({case.split for dataset in recipe.dataset if not only_teaches(dataset) for case in list_cases(dataset, recipe.folder) if case.split})
        raise UsageError(
            f"There is no case with a CT in the split '{split}' of recipe '{recipe.name}', the splits there are: {', '.join(there) or 'none'}."
        )
    if unknown := sorted(set(only) - {case.name for case in cases}):
        raise UsageError(f"The split '{split}' of recipe '{recipe.name}' has no case '{unknown[0]}'.", tip=f"It has {', '.join(case.name for case in cases[:5])} …")
    cases = [case for case in cases if not only or case.name in only]
    results: dict[str, dict[str, Scores]] = {}
    with report.stage(f"Evaluating {split}", len(cases)) as advance:
        for case in cases:
            results.setdefault(case.name, {}).update(_score(case, recipe, model, device, absent))
            advance(1)
    scored = {name: scores for name, scores in results.items() if scores}
    if not scored:
        raise UsageError(
            f"No case of the split '{split}' annotates a structure that recipe '{recipe.name}' names and model '{model}' segments, so there is nothing to score.",
            tip="`clseg cases RECIPE` shows what the cases annotate, `clseg rois --model NAME` what the model segments.",
        )
    return scored


def _score(case: Case, recipe: Recipe, model: str, device: str, absent: bool) -> dict[str, Scores]:
    result = segment(case.ct, model=model, device=device, offline=True)
    held = {label for decoder in recipe.decoder for label in decoder.labels} & set(result.names)
    references = read_masks(case, held, result.scan)
    for name in set(result.names) & set(case.dataset.absent if absent else ()) - set(references):
        references[name] = np.zeros(result.scan.shape, bool)
    ends = {label: end for decoder in recipe.decoder for label, end in decoder.open_ends.items()}
    return {
        name: _compared(result.mask(name), references[name], result.scan, ends.get(name))
        for name in result.names
        if name in references
    }


def _compared(predicted: np.ndarray, reference: np.ndarray, scan: Volume, open_end: str | None) -> Scores:
    """The scores of one structure where its reference is known."""
    if open_end is None or not reference.any():
        return score(predicted, reference, scan.spacing)
    found, true = (to_orientation(scan.like(mask), "RAS") for mask in (predicted, reference))
    rows = np.flatnonzero(true.array.any(axis=(0, 1)))
    low = int(rows[0]) if open_end in ("inferior", "both") else 0
    high = int(rows[-1]) + 1 if open_end in ("superior", "both") else true.shape[2]
    return score(found.array[:, :, low:high], true.array[:, :, low:high], true.spacing)
