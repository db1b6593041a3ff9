"""Reprune: the ladder for a decoder that exists already; `clseg prune MODEL DECODER`."""

from __future__ import annotations

from pathlib import Path

from clseg.errors import TrainingError
from clseg.inference.engine import choose_device
from clseg.network.checkpoint import build_decoder, read_header
from clseg.recipe import PruneRecipe
from clseg.training.base import Base
from clseg.training.cases.held_out import check_held_out
from clseg.training.course import Course
from clseg.training.distributed import world
from clseg.training.inspect import believe
from clseg.training.learn import Learned
from clseg.training.pretrain import load_examples
from clseg.training.prune import climb
from clseg.training.publish import Result, card_of, publish, renewed, witnessed, write_decoder
from clseg.training.ranges import DecoderRange
from clseg.training.run import Reports, alone, draw_curves, note_recipe, quicken
from clseg.training.update import decoder_recipe, next_name, open_decoder


def reprune(
    model: str, decoder: str, recipe: PruneRecipe, run: Path, *, resume: bool = False, reports: Reports | None = None
) -> Learned:
    """Prune one decoder of a model; the result takes its place in the user's manifest, or goes into `recipe.into`."""
    reports = reports or Reports()
    check_held_out(recipe)
    device = choose_device(recipe.device)
    with world(device) as here, alone(run, first=here.first):
        base = Base.open(model, run)
        asset = base.decoder(decoder)
        helpers, checkpoint = open_decoder(asset, base)
        plan = base.plan(recipe, (decoder_recipe(base.short_name(asset.name), checkpoint, recipe.open_ends, base.structures),))
        if recipe.into:
            base.refuse_taken(recipe.into, plan.decoder[0].name, asset.labels)
        if here.first:
            note_recipe(recipe, run, resume=resume, weights=base.weights([decoder]), tell=reports.note)
            if not resume:
                believe(plan, reports.note)
        here.wait()
        quicken(recipe.threads)
        without = () if recipe.into else asset.labels
        before = witnessed(base, recipe, run, without=without) if here.first else None
        cache = run.parent / "cache"
        examples = load_examples(plan, cache, reports)
        held_out = load_examples(plan, cache, reports, recipe.validation.split)
        course = Course(base, plan, run, examples, held_out, reports, device, here, resume)

        name = plan.decoder[0].name
        dense = build_decoder(checkpoint, base.spec)
        final = climb(name, dense, helpers, recipe.ladder, course)
        if final is dense:
            told = f"No rung of the ladder made '{name}' smaller and kept its Dice within {recipe.ladder.allowed_loss}; nothing was changed."
            raise TrainingError(told, tip="Begin with smaller rungs, train longer on each (ladder.iterations), or allow more loss.")
        if not here.first or before is None:
            return Learned({}, {}, None)
        file = run / "weights" / f"{name}.safetensors"
        if not (resume and file.is_file()):
            scores = course.dice({name: final}, helpers, every=True)
            card = renewed(checkpoint.card, card_of(recipe, plan, base, final, dense, scores))
            write_decoder(final, file, base, {**card, "pruned_from": asset.sha256}, DecoderRange.of(checkpoint))
        card = read_header(file)["card"]
        target = recipe.into or model
        named, replaces = (f"{target}-{name}", ()) if recipe.into else (next_name(asset), (asset.name, *asset.replaces))
        result = Result(named, file, asset.labels, asset.requires or (base.encoder.name,), replaces, card)
        draw_curves(run)
        proof = publish(base, target, recipe, {name: result}, before, run)
        return Learned({name: file}, {name: result}, proof)
