"""Pretrain: one general encoder and its decoders, jointly, from partially labelled datasets."""

from __future__ import annotations

from pathlib import Path

from clseg.errors import RecipeError
from clseg.inference.engine import choose_device
from clseg.recipe import Recipe
from clseg.training.begin import begin
from clseg.training.cases import find_cases
from clseg.training.distributed import world
from clseg.training.examples import Example, load_example
from clseg.training.export import export
from clseg.training.inspect import believe
from clseg.training.loop import learner
from clseg.training.patches import Patches
from clseg.training.run import Reports, alone, draw_curves, note_recipe, quicken
from clseg.training.stage import run_stage


def pretrain(recipe: Recipe, run: Path, *, resume: bool = False, reports: Reports | None = None) -> dict[str, Path]:
    """Train and export; returns the weights files by part name (`encoder`, then the decoders).

    With `start` training goes on from the weights of an earlier run, with `frozen` that of its decoders alone.

    `run` receives what `clseg.training.run` lists.  With `resume` the run goes on from
    its last state and draws the same patches as if it had never stopped.  Raises
    KeyboardInterrupt when stopped, TrainingError when another process trains in the
    same folder.
    """
    reports = reports or Reports()
    device = choose_device(recipe.device)
    if recipe.bodypart and not (recipe.folder / recipe.bodypart).is_file():
        told = f"There is no body-part regressor at {recipe.folder / recipe.bodypart}."
        raise RecipeError(told, tip="Train it first: clseg bodypart train recipes/bodypart.toml, or leave `bodypart` empty.")
    network = begin(recipe)
    with world(device) as here, alone(run, first=here.first):
        if here.first:
            note_recipe(recipe, run, resume=resume, tell=reports.note)
            if not resume:
                believe(recipe, reports.note)
        here.wait()
        quicken(recipe.threads)
        examples = load_examples(recipe, run.parent / "cache", reports)
        student = learner(network, recipe.optim, device, here, warm=not recipe.start)
        done = run_stage("train", student, Patches(examples, recipe, device), recipe.optim, run=run, reports=reports, resume=resume)
        files = export(recipe, student.average, run / "weights", done=done) if here.first else {}
        if here.first:
            draw_curves(run)
        here.wait()
        return files


def load_examples(recipe: Recipe, cache: Path, reports: Reports, split: str | None = None) -> list[Example]:
    """Every case of the recipe (of `split`: default the recipe's) as an Example, through the cache.

    Raises KeyboardInterrupt between two cases when `reports.stop()` says so.
    """
    cases = find_cases(recipe, split)
    examples = []
    for index, case in enumerate(cases):
        examples.append(load_example(case, recipe, cache))
        reports.case(index + 1, len(cases), case.name)
        if reports.stop():
            raise KeyboardInterrupt
    return examples
