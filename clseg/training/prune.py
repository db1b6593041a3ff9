"""Prune: a decoder climbs the ladder: finest stages, then channels, then single weights, then recovery with what is left.

The state of the climb is one file, `stages/prune/<decoder>.safetensors`: the last accepted
decoder, with the ladder and the cuts that led to it in its card.  The trained weights to
which survivors are rewound are the dense decoder's, cut likewise.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clseg.errors import TrainingError
from clseg.network.checkpoint import Checkpoint, build_decoder, load, save, stored
from clseg.network.cost import cost
from clseg.network.decoder import Decoder
from clseg.network.model import Model
from clseg.recipe.parts import LadderRecipe
from clseg.training.base import Base
from clseg.training.course import Course, averaged, held
from clseg.training.ladder import Ladder, Rung, Verdict
from clseg.training.prune_report import Size, plot_pruning, rows, write_table
from clseg.training.slim import Keep, StageKeep, channels, plan_widths, slim
from clseg.training.stage import patches_for, run_stage
from clseg.training.ticket import Ticket, global_l1, nonzero, sparsity, tau
from clseg.training.ticket import ladder as amounts


@dataclass
class Climb:
    """What the climb has come to: ladder, accepted decoder, the dense one cut to its shape, cuts so far, size at every try."""

    ladder: Ladder
    accepted: Decoder
    trained: Decoder
    cuts: list[Keep]
    sizes: list[Size]


def climb(name: str, dense: Decoder, helpers: Model | None, rule: LadderRecipe, course: Course) -> Decoder:
    """The pruned and recovered decoder; `dense` itself when the recipe has no rungs or none was accepted.

    Where recovery itself lost something, the decoder is what it was before.
    """
    if not rule.climbs:
        return dense
    path = course.file("prune", name)
    state = _restored(path, dense, rule, course) or _begun(name, dense, helpers, rule, course)
    while (rung := state.ladder.next()) is not None:
        _try(rung, name, dense, helpers, rule, course, state)
        _save(path, state, course)
    if not state.ladder.accepted:
        why = "no rung was accepted" if state.ladder.attempts else "it is smaller already than every rung would make it"
        course.reports.note(f"{name}: {why}; the decoder stays as it is")
        return dense
    final = course.recovered(name, deepcopy(state.accepted), rule, helpers)
    dice = course.mean({name: final}, helpers)
    _report(name, dense, final, dice, state, course)
    before = state.ladder.accepted[-1].dice
    if not dice >= before:
        course.reports.note(f"{name}: recovery ended at Dice {dice:.3f}, {before:.3f} before, and was taken back")
        return state.accepted
    return final


def size_of(decoder: Decoder, dense: Decoder, base: Base) -> Size:
    """τ against the dense decoder, parameters that are not zero, FLOPs per window, bytes in half precision without a card."""
    tensors = {name: tensor.half() for name, tensor in decoder.state_dict().items()}
    flops = cost(decoder.spec, base.spec, base.spec.grid.patch).flops
    file_bytes = len(stored(Checkpoint("decoder", decoder.spec, tensors, encoder=base.key)))
    parameters = sum(int(tensor.count_nonzero()) for tensor in tensors.values())
    return Size(round(tau(nonzero(dense), nonzero(decoder)), 6), parameters, flops, file_bytes)


def _report(name: str, dense: Decoder, final: Decoder, dice: float, state: Climb, course: Course) -> None:
    """`pruning-<decoder>.csv` and `.png`: what every rung cost and saved."""
    ladder, base = state.ladder, course.base
    tries = zip(ladder.attempts, state.sizes, strict=True)
    table = rows(ladder.reference, size_of(dense, dense, base), tries, recovered=(dice, size_of(final, dense, base)))
    if course.here.first:
        write_table(course.run / f"pruning-{name}.csv", table)
        plot_pruning(course.run / f"pruning-{name}.png", table, allowed_loss=ladder.allowed_loss, title=name)


def _begun(name: str, dense: Decoder, helpers: Model | None, rule: LadderRecipe, course: Course) -> Climb:
    rungs = [Rung("coarser", n) for n in range(1, rule.coarser + 1)]
    rungs += [Rung("structured", p) for p in rule.structured] + [Rung("unstructured", p) for p in rule.unstructured]
    reference = course.mean({name: dense}, helpers)
    if reference == 0:
        told = f"Decoder '{name}' finds nothing in the cases of the split '{course.plan.validation.split}', so pruning cannot be judged."
        raise TrainingError(told, tip="Train it longer, add held-out cases that show its structures, or leave the ladder empty.")
    return Climb(Ladder(tuple(rungs), reference, rule.allowed_loss, rule.retries), dense, dense, [], [])


def _try(
    rung: Rung, name: str, dense: Decoder, helpers: Model | None, rule: LadderRecipe, course: Course, state: Climb
) -> None:
    """One rung: cut or mask, rewind, train, measure, keep or restore."""
    made = _masked(rung, state) if rung.kind == "unstructured" else _cut(rung, dense, rule, course, state)
    if made is None:  # this rung would remove nothing
        state.ladder.skip()
        return
    student, trained, cuts = made
    number = state.ladder.tries + 1
    stage = f"prune-{name}-{rung.kind}-{rung.target:g}-{number}"
    steps = course.rule(rule.iterations, rule.rate)
    learner = course.student({name: student}, steps, helpers)
    with held(learner):
        patches = patches_for(course.examples, course.plan, stage, [name], course.device)
        run_stage(stage, learner, patches, steps, run=course.run, reports=course.reports, resume=course.resume)
    result = averaged(learner)[name]
    dice = course.mean({name: result}, helpers)
    verdict = state.ladder.report(dice)
    size = size_of(result, dense, course.base)
    state.sizes.append(size)
    if course.here.first:
        course.reports.note(
            f"{name}: {rung.kind} {rung.target:g}, try {number}: Dice {dice:.3f} (dense {state.ladder.reference:.3f}), "
            f"τ {size.tau:.3f}, {verdict.value}"
        )
    if verdict is Verdict.ACCEPTED:
        state.accepted, state.trained, state.cuts = result, trained, cuts


def _cut(rung: Rung, dense: Decoder, rule: LadderRecipe, course: Course, state: Climb) -> tuple[Decoder, Decoder, list[Keep]] | None:
    """The finest stage or whole channels away: the trained weights of what stays."""
    spec = course.base.spec
    keep = Keep.all(state.accepted.spec, spec)
    if rung.kind == "coarser":
        keep = keep.coarser()
    else:
        multiple = rule.multiple[: len(keep.stages)] if len(rule.multiple) > 1 else rule.multiple[0]
        keep = plan_widths(state.accepted, spec, rung.target, multiple, dense_channels=channels(dense.spec, spec), save=rule.save)
    if not keep.stages or keep.channels == channels(state.accepted.spec, spec):
        return None
    trained = slim(state.trained, spec, keep)
    return deepcopy(trained), trained, [*state.cuts, keep]


def _masked(rung: Rung, state: Climb) -> tuple[Decoder, Decoder, list[Keep]] | None:
    """Single weights away: the smallest of the accepted decoder; survivors start from the trained weights."""
    ticket = Ticket.of(state.accepted)
    dead = sparsity(ticket)
    if rung.target <= dead:
        return None
    amount = amounts((dead, rung.target) if dead else (rung.target,))[-1]
    ticket = global_l1(state.accepted, ticket, amount)
    student = deepcopy(state.trained)
    ticket.apply_(student)
    return student, state.trained, state.cuts


def _save(path: Path, state: Climb, course: Course) -> None:
    """Ladder and weights in one step."""
    card = {"ladder": state.ladder.to_dict(), "cuts": [asdict(cut) for cut in state.cuts], "sizes": [asdict(size) for size in state.sizes]}
    if course.here.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = state.accepted.state_dict()
        save(path, Checkpoint("decoder", state.accepted.spec, tensors, encoder=course.base.key, card=card))
    course.here.wait()


def _restored(path: Path, dense: Decoder, rule: LadderRecipe, course: Course) -> Climb | None:
    if not path.is_file():
        return None
    checkpoint = load(path)
    cuts = [_keep(cut) for cut in checkpoint.card["cuts"]]
    trained = dense
    for cut in cuts:
        trained = slim(trained, course.base.spec, cut)
    ladder = replace(Ladder.from_dict(checkpoint.card["ladder"]), allowed_loss=rule.allowed_loss, retries=rule.retries)
    return Climb(ladder, build_decoder(checkpoint, course.base.spec), trained, cuts, [Size(**size) for size in checkpoint.card["sizes"]])


def _keep(data: dict[str, Any]) -> Keep:
    return Keep(
        tuple(StageKeep(tuple(s["up"]), tuple(s["skip"]), tuple(map(tuple, s["convs"]))) for s in data["stages"])
    )
