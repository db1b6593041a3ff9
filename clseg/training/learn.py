"""Learn: new decoders on the frozen encoder of a model; nothing that it knew changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path

from clseg.errors import RecipeError, TrainingError, UnknownName
from clseg.inference.engine import choose_device
from clseg.network.checkpoint import fingerprint, load, read_header
from clseg.network.decoder import Decoder
from clseg.network.model import Model, assemble
from clseg.network.spec import Supporter
from clseg.recipe import DecoderRecipe, LearnRecipe
from clseg.training.base import Base
from clseg.training.cases.held_out import check_held_out
from clseg.training.course import Course
from clseg.training.distributed import world
from clseg.training.examples import Example
from clseg.training.inspect import believe
from clseg.training.network import decoder_spec
from clseg.training.pretrain import load_examples
from clseg.training.proof import Proof
from clseg.training.prune import climb
from clseg.training.publish import Result, card_of, publish, witnessed, write_decoder
from clseg.training.ranges import DecoderRange, learned_ranges
from clseg.training.run import Reports, alone, draw_curves, note_recipe, quicken
from clseg.training.validation import append


@dataclass(frozen=True)
class Learned:
    """What a run made: weight files by decoder, what is known about each, and the proof that nothing else changed."""

    files: dict[str, Path]
    results: dict[str, Result]
    proof: Proof | None


def learn(recipe: LearnRecipe, run: Path, *, resume: bool = False, reports: Reports | None = None) -> Learned:
    """Train the recipe's decoders, list them in the user's manifest, prove that earlier results are the same.

    Raises RecipeError when a decoder or structure exists already or a supporter does
    not, TrainingError when another process trains in the same folder, KeyboardInterrupt
    when stopped.
    """
    reports = reports or Reports()
    check_held_out(recipe)
    device = choose_device(recipe.device)
    with world(device) as here, alone(run, first=here.first):
        base = Base.open(recipe.model, run)
        order = check_fit(recipe, base)
        plan = base.plan(recipe, recipe.decoder)
        if here.first:
            outer = {s for d in recipe.decoder for s in d.supporters} - {d.name for d in recipe.decoder}
            note_recipe(recipe, run, resume=resume, weights=base.weights(sorted(outer)), tell=reports.note)
            if not resume:
                believe(plan, reports.note)
        here.wait()
        quicken(recipe.threads)
        before = witnessed(base, recipe, run) if here.first else None
        examples = load_examples(plan, run.parent / "cache", reports)
        held_out = load_examples(plan, run.parent / "cache", reports, recipe.validation.split)
        course = Course(base, plan, run, examples, held_out, reports, device, here, resume)
        _refuse_unjudged(recipe, held_out)

        dense = course.dense({d.name: decoder_spec(d) for d in recipe.decoder})
        results: dict[str, Result] = {}
        for decoder in order:
            results[decoder.name] = _finish(decoder, dense[decoder.name], recipe, course, results)
        files = {name: result.file for name, result in results.items()}
        if not here.first or before is None:
            return Learned(files, results, None)
        draw_curves(run)
        check_fit(recipe, Base.open(recipe.model, run))  # another run may have taken a name meanwhile
        proof = publish(base, recipe.into or recipe.model, recipe, results, before, run)
        return Learned(files, results, proof)


def check_fit(recipe: LearnRecipe, base: Base) -> list[DecoderRecipe]:
    """The decoders in an order in which each comes after its supporters.

    Raises RecipeError for names or structures that the model has already, and for
    supporters that neither the recipe nor the model has.
    """
    mine = {decoder.name: decoder for decoder in recipe.decoder}
    seen: dict[str, str] = {}
    for decoder in recipe.decoder:
        base.refuse_taken(recipe.into or base.model, decoder.name, decoder.listed, decoder.experimental)
        for label in decoder.labels:
            if label in seen:
                raise RecipeError(f"Structure '{label}' is painted by two decoders of the recipe, '{seen[label]}' and '{decoder.name}'.")
            seen[label] = decoder.name
        for supporter in decoder.supporters:
            if supporter not in mine:
                try:
                    base.decoder(supporter)
                except UnknownName as error:
                    told = f"Decoder '{decoder.name}' wants the supporter '{supporter}', which neither the recipe nor the model has."
                    raise RecipeError(told, tip=error.tip) from error
    order = TopologicalSorter({d.name: [s for s in d.supporters if s in mine] for d in recipe.decoder}).static_order()
    return [mine[name] for name in order]


def _refuse_unjudged(recipe: LearnRecipe, held_out: Sequence[Example]) -> None:
    """TrainingError, before any training, when a ladder is to be climbed and no held-out case can judge a decoder."""
    if not recipe.ladder.climbs:
        return
    for decoder in recipe.decoder:
        if not any(one.points.get(decoder.name) for one in held_out):
            told = f"No case of the split '{recipe.validation.split}' shows a structure of decoder '{decoder.name}', so pruning it cannot be judged."
            raise TrainingError(told, tip="Hold cases back ([validation] split, or a dataset's val_share), or leave the ladder empty.")


def _finish(
    decoder: DecoderRecipe, dense: Decoder, recipe: LearnRecipe, course: Course, results: Mapping[str, Result]
) -> Result:
    """One decoder from dense to exported: support, prune, recover, score, write."""
    name, base = decoder.name, course.base
    named, helpers = supporters_of(decoder, base, results)
    student = dense
    if named:
        rule = course.rule(recipe.support.iterations, recipe.support.rate)
        student = course.supported(name, dense, replace(dense.spec, supporters=named), rule, helpers)
    final = climb(name, student, helpers, recipe.ladder, course)

    file = course.run / "weights" / f"{name}.safetensors"
    if course.here.first and not (course.resume and file.is_file()):
        scores = course.dice({name: final}, helpers, every=True)
        append(course.run / "validation.csv", f"final-{name}", 0, scores)
        card = card_of(recipe, course.plan, base, final, student, scores)
        scorer = base.scorer()
        where = learned_ranges(replace(course.plan, decoder=(decoder,)), scorer)[name] if scorer else DecoderRange()
        write_decoder(final, file, base, {**card, "pathological": decoder.pathological}, where)
    course.here.wait()
    requires = (base.encoder.name, *(one.name for one in named))
    return Result(f"{recipe.into or recipe.model}-{name}", file, decoder.listed, requires, (), read_header(file)["card"], decoder.experimental)


def supporters_of(
    decoder: DecoderRecipe, base: Base, results: Mapping[str, Result]
) -> tuple[tuple[Supporter, ...], Model | None]:
    """The supporters as the spec names them, and a model that holds them and all that supports them in turn."""
    if not decoder.supporters:
        return (), None
    files: dict[str, Path] = {}
    direct: list[str] = []
    waiting = list(decoder.supporters)
    for name in waiting:
        if name in files:
            continue
        if name in results:
            asset, file, requires = results[name].asset, results[name].file, results[name].requires
        else:
            known = base.decoder(name) if name in decoder.supporters else base.listing.asset(name)
            asset, file, requires = known.name, base.files([known])[known.name], known.requires
        if asset not in direct and name in decoder.supporters:
            direct.append(asset)
        files[asset] = file
        mine = {result.asset: key for key, result in results.items()}
        waiting += [mine.get(one, one) for one in requires if one not in files and (one in mine or base.listing.asset(one).kind == "decoder")]
    parts = {name: load(file) for name, file in files.items()}
    named = tuple(Supporter(n, parts[n].spec.labels, fingerprint(parts[n].tensors, parts[n].spec)) for n in direct)
    return named, assemble(base.checkpoint, parts.items())
