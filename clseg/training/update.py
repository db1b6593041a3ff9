"""Update: an existing decoder learns from new cases of its organs, without losing what it knew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clseg.errors import RecipeError, TrainingError, WeightsError
from clseg.inference.engine import choose_device
from clseg.io.files import write_csv
from clseg.manifest import Asset
from clseg.network.checkpoint import Checkpoint, build_decoder, load, read_header
from clseg.network.decoder import Decoder
from clseg.network.finer import finer
from clseg.network.model import Model, assemble
from clseg.network.spec import DecoderSpec
from clseg.network.widen import widened
from clseg.recipe import DecoderRecipe, Recipe, UpdateRecipe
from clseg.training.average import decay_for
from clseg.training.balance import balanced
from clseg.training.base import Base
from clseg.training.cases.held_out import check_held_out
from clseg.training.course import Course
from clseg.training.distributed import world
from clseg.training.examples import open_labels
from clseg.training.inspect import believe
from clseg.training.pretrain import load_examples
from clseg.training.proof import Proof
from clseg.training.publish import Result, card_of, publish, renewed, witnessed, write_decoder
from clseg.training.ranges import DecoderRange, learned_ranges
from clseg.training.run import Reports, alone, draw_curves, note_recipe, quicken
from clseg.training.score import DiceByLabel, spread
from clseg.training.ticket import Ticket, sparsity
from clseg.training.validation import means

MUCH = 0.05  # Dice of one structure that is worth a word
HEADER = ["cases", "structure", "n", "before", "after", "change"]
Row = list[Any]


class UpdateRefused(TrainingError):
    """The update would lose too much; `rows` (under HEADER) is the table that shows it."""

    def __init__(self, message: str, rows: list[Row], *, tip: str) -> None:
        super().__init__(message, tip=tip)
        self.rows = rows


@dataclass(frozen=True)
class Updated:
    """The new file, Dice before and after on old and new held-out cases (rows under HEADER), and the proof."""

    result: Result
    rows: list[Row]
    proof: Proof | None


def update(recipe: UpdateRecipe, run: Path, *, resume: bool = False, reports: Reports | None = None) -> Updated:
    """Train on the new cases; the result is the moving average, in which old weights weigh `keep`.

    With `widths` the decoder has more channels from the start, which say next to nothing at first;
    with `finer` a further stage, which says at first about what the last one said.
    With `balance` the biases of its last layer are then moved to where Dice on training
    cases is highest; with no iterations nothing else is done.
    The encoder, the mask of pruned weights and all other decoders stay as they are.  The
    new decoder replaces the old one in the user's manifest, unless the mean Dice of the
    `old` held-out cases falls by more than `allowed_loss`, or that of the new ones falls
    at all: then UpdateRefused, and nothing is listed.
    """
    reports = reports or Reports()
    check_held_out(recipe)
    device = choose_device(recipe.device)
    with world(device) as here, alone(run, first=here.first):
        base = Base.open(recipe.model, run)
        asset = base.decoder(recipe.decoder)
        helpers, checkpoint = open_decoder(asset, base)
        student = _student(checkpoint, base, recipe)
        trained = replace(recipe, optim=replace(recipe.optim, iterations=max(1, recipe.optim.iterations)))  # a plan has steps, taken or not
        plan = base.plan(trained, (decoder_recipe(base.short_name(asset.name), checkpoint, recipe.open_ends, base.structures),))
        if here.first:
            note_recipe(recipe, run, resume=resume, weights=base.weights([recipe.decoder]), tell=reports.note)
            if not resume:
                believe(replace(plan, dataset=(*recipe.dataset, *recipe.old)), reports.note)
        here.wait()
        quicken(recipe.threads)
        before = witnessed(base, recipe, run, without=asset.labels) if here.first else None
        cache, split = run.parent / "cache", recipe.validation.split
        examples = load_examples(plan, cache, reports)
        new = load_examples(plan, cache, reports, split)
        old = load_examples(replace(plan, dataset=recipe.old), cache, reports, split) if recipe.old else []
        course = Course(base, plan, run, examples, new, reports, device, here, resume)

        name = plan.decoder[0].name
        if recipe.old and not any(one.points.get(name) for one in old):
            raise TrainingError(f"No case of [[old]] in split '{split}' shows a structure of the decoder '{name}', so its loss cannot be measured.")
        if not recipe.old and here.first:
            reports.note("warning: no [[old]] cases are given, so nobody measures what the decoder forgets")
        rule = replace(plan.optim, average=decay_for(recipe.keep, plan.optim.iterations))
        if recipe.optim.iterations and not course.file("update", name).is_file():
            course.train("update", {name: student}, rule, helpers=helpers, ticket=True, warm=False)
        final = course.finished("update", name) if recipe.optim.iterations else student
        then = build_decoder(checkpoint, base.spec)
        if not here.first or before is None:
            return Updated(Result("", Path(), (), (), (), {}), [], None)

        final, lower = _balanced(final, name, course, recipe.balance)
        rows, scores = [], {}
        for kind, cases in (("old", old), ("new", new)):
            course.held_out = cases
            was, now = (course.dice({name: one}, helpers, every=True) for one in (then, final))
            rows += compared(kind, was, now)
            scores[kind] = now
        write_csv(run / "update.csv", HEADER, rows)
        tell_losses(rows, reports)
        refuse_loss(rows, recipe.allowed_loss)
        file = run / "weights" / f"{name}.safetensors"
        if not (resume and file.is_file()):
            card = renewed(checkpoint.card, card_of(recipe, plan, base, final, final if recipe.grows else then, scores["new"]))
            table = [dict(zip(HEADER, row, strict=True)) for row in rows]
            card |= {"update_of": asset.sha256, "kept": recipe.keep, "dice_before_and_after": table} | ({"balance": lower} if lower else {})
            card |= _size(final, card) if recipe.grows else {}
            write_decoder(final, file, base, card, _joined_range(checkpoint, plan, base))
        card = read_header(file)["card"]
        result = Result(next_name(asset), file, asset.labels, asset.requires or (base.encoder.name,), (asset.name, *asset.replaces), card)
        draw_curves(run)
        proof = publish(base, recipe.model, recipe, {name: result}, before, run)
        return Updated(result, rows, proof)


def _student(checkpoint: Checkpoint, base: Base, recipe: UpdateRecipe) -> Decoder:
    """The decoder that goes on learning, with more channels or a further stage if the recipe says so."""
    decoder = build_decoder(checkpoint, base.spec)
    try:
        if recipe.widths:
            decoder = widened(decoder, recipe.widths, base.spec, recipe.seed)
        return finer(decoder, recipe.finer, base.spec, recipe.seed) if recipe.finer else decoder
    except WeightsError as error:
        raise RecipeError(f"Decoder '{recipe.decoder}' cannot grow so: {error.message}", tip=error.tip) from error


def _size(grown: Decoder, card: dict[str, Any]) -> dict[str, Any]:
    """What a card says of a decoder that has grown: its own dense form is what it is compared with from now on."""
    return {
        "widths": [stage.convs[-1] for stage in grown.spec.stages],
        "parameters_dense": card["parameters"],
        "flops_per_window_dense": card["flops_per_window"],
        "pruning_rate": round(sparsity(Ticket.of(grown)), 4),
    }


def _balanced(decoder: Decoder, name: str, course: Course, most: int) -> tuple[Decoder, dict[str, float]]:
    """The decoder balanced on at most so many training cases, and by how much labels were lowered; as it is for 0."""
    if not most:
        return decoder, {}
    shown = spread([one for one in course.examples if one.points.get(name)], most)
    found, lower = balanced(course.encoder, decoder, shown, device=course.device, open_labels=open_labels(course.plan)[name])
    course.reports.note(f"balanced on {len(shown)} cases: {', '.join(f'{label} {0 - by:+g}' for label, by in lower.items())}")
    return found, lower


def _joined_range(checkpoint: Checkpoint, plan: Recipe, base: Base) -> DecoderRange:
    """The body-part range of the decoder, and of its labels, widened by what the new cases show; what they cannot tell stays."""
    known, scorer = DecoderRange.of(checkpoint), base.scorer()
    if known.whole is None or scorer is None:
        return known
    return known.joined(learned_ranges(plan, scorer)[plan.decoder[0].name].completed(known))


def open_decoder(asset: Asset, base: Base) -> tuple[Model | None, Checkpoint]:
    """The decoder's checkpoint, and a model of its supporters under the names in its spec, if it has any."""
    files = base.files([asset])
    checkpoint = load(files[asset.name])
    if checkpoint.encoder != base.key:
        told = f"Decoder '{asset.name}' belongs to another encoder than the model '{base.model}' has today, so it cannot be trained on."
        raise TrainingError(told, tip="Learn its structures anew with `clseg learn`.")
    spec: DecoderSpec = checkpoint.spec  # type: ignore[assignment]
    if spec.plan is not None:
        told = f"Decoder '{asset.name}' was imported and is run as the program does that trained it, so it cannot be trained on here."
        raise TrainingError(told, tip="Learn its structures anew with `clseg learn`, into a model of its own.")
    if not spec.supporters:
        return None, checkpoint
    parts = {one.name: load(files[one.name]) for one in base.closure([asset]) if one.kind == "decoder"}
    bound = assemble(base.checkpoint, parts.items())
    names = dict(zip((s.name for s in spec.supporters), bound.supporters_of(asset.name), strict=True))
    aliases = {alias: bound.decoders[name] for alias, name in names.items()}
    wiring = {**bound.supporters, **{alias: bound.supporters_of(name) for alias, name in names.items()}}
    return replace(bound, decoders={**bound.decoders, **aliases}, supporters=wiring), checkpoint


def decoder_recipe(name: str, checkpoint: Checkpoint, open_ends: Mapping[str, str], known: Collection[str]) -> DecoderRecipe:
    """An existing decoder as a recipe names one, `name`, so that its examples can be made.

    Of `open_ends` those of its own labels are taken, so that one recipe serves several
    decoders of a model; RecipeError for names that are not `known` to the model.
    """
    spec: DecoderSpec = checkpoint.spec  # type: ignore[assignment]
    if unknown := sorted(set(open_ends) - {*known, *spec.labels}):
        raise RecipeError(f"open_ends names '{unknown[0]}', which the model does not segment.", tip=f"This decoder has {', '.join(spec.labels)}.")
    stages = spec.stages
    return DecoderRecipe(
        name=name,
        labels=spec.labels,
        widths=tuple(stage.convs[-1] for stage in stages),
        kernels=tuple(max(stage.kernel) for stage in stages),
        convs=tuple(len(stage.convs) for stage in stages),
        open_ends={label: end for label, end in open_ends.items() if label in spec.labels},
    )


def compared(kind: str, before: DiceByLabel, after: DiceByLabel) -> list[Row]:
    """Mean Dice per structure before and after, as rows under HEADER."""
    was, now = means(before), means(after)
    return [[kind, name, len(before[name]), round(was[name], 4), round(now[name], 4), round(now[name] - was[name], 4)] for name in was]


def tell_losses(rows: list[Row], reports: Reports) -> None:
    """A warning for every structure that loses MUCH or more, which a mean over structures may hide."""
    for kind, structure, _, was, now, change in rows:
        if change <= -MUCH:
            reports.note(f"warning: {structure} loses Dice on the {kind} cases, {was:.3f} → {now:.3f}, whatever the others gain")


def refuse_loss(rows: list[Row], allowed: float) -> None:
    """Raise UpdateRefused when the mean change on old cases is a loss above `allowed`, or on new cases any loss."""
    for kind, most in (("old", allowed), ("new", 0.0)):
        changes = [row[-1] for row in rows if row[0] == kind]
        loss = -sum(changes) / len(changes) if changes else 0.0
        if loss > most:
            raise UpdateRefused(
                f"The update loses {loss:.4f} Dice on the {kind} cases, allowed are {most:g}; nothing was changed.",
                rows,
                tip="Raise keep, lower optim.rate or change optim.iterations, or add old cases to the new ones.",
            )


def next_name(asset: Asset) -> str:
    """`starter-lungs` → `starter-lungs.2` → `starter-lungs.3` …"""
    stem, _, number = asset.name.rpartition(".")
    return f"{stem}.{int(number) + 1}" if stem and number.isdigit() else f"{asset.name}.2"
