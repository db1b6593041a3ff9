"""Stage: one stretch of training with a rule of its own, saved while it runs, resumed where it stopped."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from clseg.errors import TrainingError
from clseg.recipe import OptimRecipe, Recipe
from clseg.training.board import Board
from clseg.training.distributed import Share
from clseg.training.examples import Example
from clseg.training.loop import Learner, Step, train
from clseg.training.patches import Patches
from clseg.training.run import STATE, Keeper, Metrics, Reports


def patches_for(examples: Sequence[Example], plan: Recipe, stage: str, decoders: Iterable[str], device: str = "cpu") -> Patches:
    """Patches, made on `device`, that teach these decoders, and are this stage's own: another stage draws others from the same seed.

    Datasets without a case for them are not drawn from.
    """
    names = set(decoders)
    useful = [one for one in (_only(example, names) for example in examples) if one.targets]
    taught = {example.dataset for example in useful}
    datasets = tuple(dataset for dataset in plan.dataset if dataset.name in taught)
    if not any(dataset.weight > 0 for dataset in datasets):
        raise TrainingError(f"No case to learn from annotates a structure of the decoder {' or '.join(sorted(names))}.")
    seed = (plan.seed + zlib.crc32(stage.encode())) % 2**31
    return Patches(useful, replace(plan, seed=seed, dataset=datasets), device)


def _only(example: Example, names: set[str]) -> Example:
    """The example as these decoders see it."""
    parts = {key: {n: v for n, v in getattr(example, key).items() if n in names} for key in ("targets", "annotated", "points")}
    return replace(example, **parts)


def run_stage(
    stage: str,
    learner: Learner,
    patches: Patches,
    rule: OptimRecipe,
    *,
    run: Path,
    reports: Reports,
    resume: bool,
    callbacks: Sequence[Callable[[Step], None]] = (),
) -> int:
    """Train from the stage's saved state, if `resume` finds one, to its end; returns the iterations done.

    Raises KeyboardInterrupt, with the state saved, when `reports.stop()` says so.
    """
    keeper = Keeper(run / STATE, learner, rule.checkpoint_every, rule.iterations, stage)
    if resume:
        keeper.restore()
    first = learner.here.first
    notes = [Metrics(run / "metrics.csv", list(learner.network.decoders), keeper.done, stage), Board(run, stage)] if first else []
    watchers = [keeper, *notes, *([reports.step] if first else []), *callbacks, _stopper(learner, reports.stop)]
    if first:
        reports.stage(stage, rule.iterations)
    try:
        train(learner, Share(patches, learner.here), rule, start=keeper.done, callbacks=watchers)
    except KeyboardInterrupt:
        keeper.save_if_settled()
        raise
    finally:
        for note in notes:
            note.close()
    return keeper.done


def _stopper(learner: Learner, stop: Callable[[], bool]) -> Callable[[Step], None]:
    """Callback: ends the run when asked to; of several processes the first decides for all."""

    def ask(step: Step) -> None:
        if learner.here.shared(float(stop())):
            raise KeyboardInterrupt

    return ask
