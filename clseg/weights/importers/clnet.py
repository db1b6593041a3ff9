"""CL-Net: the networks in the release of its authors → checkpoints of clseg, tensor by tensor.

A task's file holds the whole network: `encoder.`, per head H `decoder_dict.H.`, maybe its
moving average `ema_dict.H.` and its support `supporting_dict.H.`.  Which code trained a
file cannot be told from it: that of May 2025 leaves out the activation after the last
convolution of a stage and crops where sizes differ, that of January has it and resizes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from math import prod
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clseg.errors import UnknownName, UsageError, WeightsError
from clseg.io.files import sha256_of
from clseg.network.checkpoint import Checkpoint, build_decoder, build_encoder, fingerprint, supporter
from clseg.network.plan import Plan, Resampling, Scheme
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage
from clseg.weights.importers.clnet_release import CONFIGS, Head, Plans, Release, Task, Triple, find_release
from clseg.weights.importers.clnet_tensors import below, blocks, folded, is_trained, sparsity, state_of, support_tensors
from clseg.weights.importers.folder import structure_name
from clseg.weights.importers.install import Part
from clseg.weights.importers.pickles import load_torch

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
    Warn = Callable[[str], None]

PROGRAM = "CL-Net, the release of its authors"
ACTIVATIONS = {"may": "crop", "jan": "resize"}  # and what each does where sizes differ
STORED = "LPS"  # how their scans lie in the file
NAMES = "clnet_names.csv"


@dataclass(frozen=True)
class Imported:
    """The general encoder and the heads by name, supporters before those that they support.

    `helpers` are decoders that only support: those that were not asked for, and what a
    head that is supported itself says on its own (`<head>-alone`), for those that it
    supports.
    """

    encoder: Checkpoint
    decoders: Mapping[str, Checkpoint]
    helpers: Mapping[str, Checkpoint]


def read_clnet(
    path: Path,
    *,
    config: Path | None = None,
    activation: str = "may",
    heads: Collection[str] = (),
    without: Collection[str] = (),
    warn: Warn = lambda sentence: None,
) -> Imported:
    """The model in a release; see `find_release` for `path` and `config`.

    `heads` are those wanted (none: all), but for those `without`; their supporters come
    along.  `warn` hears what a user should know.  Raises WeightsError when something is
    missing, damaged or unknown, UnknownName for a head that the configuration does not
    list.
    """
    if activation not in ACTIVATIONS:
        raise UsageError(f"The activation is one of {', '.join(ACTIVATIONS)}, given '{activation}'.")
    release = find_release(path, config)
    asked = [name for name in heads or release.heads if name not in without]
    wanted = wanted_heads(release, asked, without)
    encoder = _general_encoder(release)
    plain, supports = _read_heads(release, wanted, encoder, activation, warn)
    whole, alone = _wired(plain, supports, release.heads)
    decoders = {name: part for name, part in whole.items() if name in asked}
    helping = {one.name for part in decoders.values() for one in part.spec.supporters} - set(decoders)
    helpers = {name: part for name, part in (whole | alone).items() if name in helping}
    for part in (*helpers.values(), *decoders.values()):
        build_decoder(part, encoder.spec)  # all shapes and names fit, or it says what does not
    return Imported(encoder, decoders, helpers)


def parts_of(imported: Imported) -> list[Part]:
    """The weights files to be: the encoder and a part per head, called as the authors call it."""
    parts = [Part("encoder", imported.encoder)]
    for decoders, answers in ((imported.helpers, False), (imported.decoders, True)):
        for name, checkpoint in decoders.items():
            helpers = tuple(part_name(one.name) for one in checkpoint.spec.supporters)
            parts.append(Part(part_name(name), checkpoint, ("encoder", *helpers), answers))
    return parts


def part_name(head: str) -> str:
    """A head's name as that of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", head).strip("-.") or "head"


def is_needed(name: str) -> bool:
    """Whether a file of this name can matter to an import."""
    return name in ("plans.json", "plans.pkl", "bpr_scores.json") or fnmatch(name, CONFIGS) or name.endswith((".model", ".model.pkl"))


def encoder_of(tensors: Tensors, plans: Plans, strides: Sequence[Triple], *, card: Mapping[str, Any]) -> Checkpoint:
    """The encoder's checkpoint; `tensors` without the prefix `encoder.`.

    Grid and intensity are those of its plans, for decoders that are learned on it later.
    """
    found, rest = blocks(tensors, "conv_blocks_context.")
    if rest:
        raise WeightsError(f"The encoder holds '{min(rest)}', which no encoder of CL-Net's release has.")
    if len(found) != len(strides) + 1:
        raise WeightsError(f"The encoder has {len(found)} levels, its strides are for {len(strides) + 1}.")
    levels = tuple(_level(level, stride) for level, stride in zip(found, ((1, 1, 1), *strides), strict=True))
    patch = tuple(-(-p // prod(s)) * prod(s) for p, s in zip(plans.patch, zip(*strides, strict=True), strict=True))
    letters = "".join(STORED[::-1][axis] for axis in plans.transpose)
    grid = Grid(letters, plans.spacing_mm, patch)  # type: ignore[arg-type]
    spec = EncoderSpec(levels, grid, Intensity(plans.low, plans.high, plans.mean, plans.sd), int(found[0][0]["conv.weight"].shape[1]))
    if spec.channels != 1:
        raise WeightsError(f"The encoder reads {spec.channels} channels, expected one: CT.")
    named = {f"levels.{d}.{i}.{name}": t for d, level in enumerate(found) for i, conv in enumerate(level) for name, t in conv.items()}
    return Checkpoint("encoder", spec, named, card=dict(card))


def decoder_of(
    tensors: Tensors, head: Head, task: Task, *, encoder: EncoderSpec, activation: str, card: Mapping[str, Any]
) -> Checkpoint:
    """A head's checkpoint as it is without supporters; `tensors` without the prefix of the head."""
    tensors = folded(tensors)
    convs, rest = blocks(tensors, "conv_blocks_localization.")
    named = {f"convs.{u}.{i}.{name}": t for u, stage in enumerate(convs) for i, conv in enumerate(stage) for name, t in conv.items()}
    for name, tensor in rest.items():
        role, _, place = name.partition(".")
        if role not in ("tu", "seg_outputs"):
            raise WeightsError(f"Head '{head.name}' holds '{name}', which no decoder of CL-Net's release has.")
        named[f"{'ups' if role == 'tu' else 'heads'}.{place}"] = tensor
    if len(convs) != len(encoder.levels) - 1:
        raise WeightsError(f"Head '{head.name}' has {len(convs)} stages, its encoder has {len(encoder.levels)} levels.")
    last = named.get(f"heads.{len(convs) - 1}.weight")
    if last is None or last.shape[0] != len(head.labels) + 1:
        given = "no output" if last is None else f"{last.shape[0]} outputs"
        raise WeightsError(f"Head '{head.name}' has {given}, the configuration lists {len(head.labels)} labels and there is the background.")
    spec = DecoderSpec(
        stages=tuple(_stage(u, stage, named, head.name) for u, stage in enumerate(convs)),
        labels=tuple(structure(task.organs[label]) for label in head.labels),
        last_activation=activation == "jan",
        mismatch=ACTIVATIONS[activation],
        plan=plan_of(head, task.plans),
    )
    return Checkpoint("decoder", spec, named, card={**card, "sparsity": round(sparsity(named), 4)})


def plan_of(head: Head, plans: Plans) -> Plan:
    """What the authors' program does around a head; but probabilities, not labels, go back to the scan's grid."""
    return Plan(
        kind="clnet",
        spacing_mm=plans.spacing_mm,
        patch=head.patch or plans.patch,
        scheme=Scheme("ct", plans.low, plans.high, plans.mean, plans.sd),
        orientation=STORED,
        transpose=plans.transpose,
        crop="body",
        normalise_first=False,
        image=Resampling(order=3),
        answer=Resampling(order=1),
        averaged="probabilities",
        room=plans.patch if head.patch else None,
        score_range=head.score_range,
    )


def structure(organ: str) -> str:
    """What clseg calls an organ of the release; one that it does not know keeps its name, made fit for a file's."""
    return _names().get(organ) or structure_name(organ)


# ---- which heads ------------------------------------------------------------------------------------------------------


def wanted_heads(release: Release, asked: Collection[str], without: Collection[str] = ()) -> tuple[str, ...]:
    """`asked` and all heads that support them, supporters first."""
    known = release.heads
    for name in (*asked, *without):
        if name not in known:
            raise UnknownName("head", name, tip=f"The configuration lists {', '.join(known)}.")
    found: dict[str, None] = {}
    for name in asked:
        _add_with_supporters(name, known, found, ())
    for lost in set(found) & set(without):
        helped = next(name for name in found if lost in known[name][1].supporters)
        raise UsageError(f"Head '{helped}' is supported by '{lost}', which is to be left out.", tip=f"Leave '{helped}' out too.")
    if not found:
        raise UsageError(f"No head is left of the {len(known)} in {release.config}.")
    return tuple(found)


def _add_with_supporters(name: str, known: Mapping[str, tuple[Task, Head]], found: dict[str, None], path: tuple[str, ...]) -> None:
    if name in path:
        raise WeightsError(f"Heads support each other in a circle: {' ← '.join((*path, name))}.")
    if name not in known:
        raise WeightsError(f"Head '{path[-1]}' is supported by '{name}', which the configuration does not list.")
    for helper in known[name][1].supporters:
        _add_with_supporters(helper, known, found, (*path, name))
    found[name] = None


# ---- reading a task's file --------------------------------------------------------------------------------------------


def _general_encoder(release: Release) -> Checkpoint:
    task = release.encoder
    state = state_of(load_torch(task.checkpoint), _described(task))
    encoder = encoder_of(_required(state, "encoder.", task), task.plans, task.strides or task.plans.strides, card=_card(task))
    build_encoder(encoder)
    return encoder


def _read_heads(
    release: Release, wanted: Sequence[str], encoder: Checkpoint, activation: str, warn: Warn
) -> tuple[dict[str, Checkpoint], dict[str, Tensors]]:
    """The heads `wanted` in their order, without supporters, and the tensors of the supports by head."""
    key = fingerprint(encoder.tensors, encoder.spec)
    found, supports = {}, {}
    for task in release.tasks:
        mine = [head for head in task.heads if head.name in wanted]
        for head, part, support in _read_task(task, mine, encoder, activation, warn) if mine else ():
            found[head.name] = replace(part, encoder=key)
            if support:
                supports[head.name] = support
    return {name: found[name] for name in wanted}, supports


def _read_task(
    task: Task, heads: Sequence[Head], encoder: Checkpoint, activation: str, warn: Warn
) -> list[tuple[Head, Checkpoint, Tensors | None]]:
    """Every one of `heads` without supporters, and the tensors of its support."""
    content = load_torch(task.checkpoint)
    state = state_of(content, _described(task))
    _compare_encoders(encoder, state, task, warn)
    card, parts = _card(task), []
    for head in heads:
        tensors, average = _own_or_average(head, state, task, warn)
        facts = {"head": head.name, "moving_average": average, "activation": activation, **_pruning_rate(content, head)}
        part = decoder_of(tensors, head, task, encoder=encoder.spec, activation=activation, card=card | facts)
        parts.append((head, part, _support(head, state, task, activation, warn) if head.supporters else None))
    return parts


def _pruning_rate(content: Mapping[str, Any], head: Head) -> dict[str, float]:
    """The sparsity that pruning reached, where the file's bookkeeping says it as a number."""
    known: Any = content.get("prune_stuff")
    for key in ("prune_ratios_final_for_each_decoder", head.name):
        known = known.get(key) if isinstance(known, Mapping) else None
    return {"pruning_rate": float(known)} if isinstance(known, Real) else {}


def _required(state: Tensors, prefix: str, task: Task) -> Tensors:
    found = below(state, prefix)
    if not found:
        raise WeightsError(f"{_described(task)} holds no '{prefix}…'.")
    return found


def _described(task: Task) -> str:
    return f"The checkpoint of task '{task.key}', {task.checkpoint},"


def _compare_encoders(encoder: Checkpoint, state: Tensors, task: Task, warn: Warn) -> None:
    """A task's file repeats the encoder; where it is another one, only a task that fine-tuned it would use it."""
    import torch

    theirs = below(state, "encoder.")
    if not theirs:
        return
    strides = tuple(level.stride for level in encoder.spec.levels[1:])
    copy = encoder_of(theirs, task.plans, strides, card={}).tensors
    if copy.keys() == encoder.tensors.keys() and all(torch.equal(copy[name], tensor) for name, tensor in encoder.tensors.items()):
        return
    if task.own_encoder:
        heads = " ".join(f"--without {head.name}" for head in task.heads)
        raise WeightsError(f"Task '{task.key}' has fine-tuned an encoder of its own, which is not supported.", tip=f"Leave its heads out: {heads}.")
    warn(f"The file of task '{task.key}' holds another encoder than the general one; as in the authors' program it is not used.")


def _own_or_average(head: Head, state: Tensors, task: Task, warn: Warn) -> tuple[Tensors, bool]:
    """The head's tensors, its moving average's where that one answers, and which it was."""
    twin = below(state, f"ema_dict.{head.name}.")
    if head.average and is_trained(twin):
        return twin, True
    if head.average:
        why = "was never updated" if twin else "is not in its file"
        warn(f"The moving average of head '{head.name}' {why}: its own weights are used, as in the authors' program.")
    return _required(state, f"decoder_dict.{head.name}.", task), False


def _support(head: Head, state: Tensors, task: Task, activation: str, warn: Warn) -> Tensors | None:
    """The tensors of the head's support; the file repeats whole decoders among them, which are left out."""
    mine = below(state, f"supporting_dict.{head.name}.")
    leave_out = " ".join(f"--without {one.name}" for one in task.heads if one.supporters)
    if any(name.startswith("support_dict.") for name in mine):
        raise WeightsError(f"The support of head '{head.name}' is that of January 2025, which is not known.", tip=f"Leave it out: {leave_out}.")
    tensors = {name: tensor for name, tensor in mine.items() if name.startswith(("to_support.", "support_gate"))}
    if not tensors:
        warn(f"Head '{head.name}' is to be supported by {', '.join(head.supporters)}, but its file holds no support: it answers alone.")
        return None
    if activation == "jan":
        told = f"The support of head '{head.name}' is that of May 2025, so its file is not from January."
        raise WeightsError(told, tip=f"Import with --activation may, or leave it out: {leave_out}.")
    return tensors


def _card(task: Task) -> dict[str, Any]:
    source = f"{task.checkpoint.parents[2].name}/{task.checkpoint.parent.name}/{task.checkpoint.name}"
    return {"program": PROGRAM, "task": task.key, "source": source, "source_sha256": sha256_of(task.checkpoint)}


# ---- from their names to ours -----------------------------------------------------------------------------------------


def _level(convs: list[Tensors], stride: Triple) -> Level:
    weight = convs[0]["conv.weight"]
    return Level(int(weight.shape[0]), tuple(stride), _kernel(weight), len(convs))


def _stage(index: int, convs: list[Tensors], named: Tensors, head: str) -> Stage:
    up = named.get(f"ups.{index}.weight")
    if up is None:
        raise WeightsError(f"Head '{head}' has no transposed convolution 'tu.{index}'.")
    widths = tuple(int(conv["conv.weight"].shape[0]) for conv in convs)
    return Stage(int(up.shape[1]), widths, _kernel(convs[0]["conv.weight"]))


def _kernel(weight: torch.Tensor) -> Triple:
    if weight.ndim != 5:
        raise WeightsError(f"A convolution must have three spatial axes, given weights of shape {tuple(weight.shape)}.")
    return tuple(map(int, weight.shape[2:]))  # type: ignore[return-value]


# ---- supporters -------------------------------------------------------------------------------------------------------


def _wired(
    plain: Mapping[str, Checkpoint], supports: Mapping[str, Tensors], heads: Mapping[str, tuple[Task, Head]]
) -> tuple[dict[str, Checkpoint], dict[str, Checkpoint]]:
    """The heads with their supports, and those heads alone that are supported and support others themselves."""
    whole, alone = {}, {}
    for name, part in plain.items():
        if name not in supports:
            whole[name] = part
            continue
        helpers = heads[name][1].supporters
        alone |= {helper: plain[helper] for helper in helpers if helper in supports}
        spec = replace(part.spec, supporters=tuple(supporter(_alone(helper, supports), plain[helper]) for helper in helpers), support_bias=True)
        whole[name] = replace(part, spec=spec, tensors={**part.tensors, **support_tensors(supports[name], name, len(part.spec.stages))})
    return whole, {_alone(name, supports): part for name, part in alone.items()}


def _alone(name: str, supports: Mapping[str, Tensors]) -> str:
    return f"{name}-alone" if name in supports else name


@cache
def _names() -> Mapping[str, str]:
    with files(__package__).joinpath(NAMES).open(encoding="utf-8", newline="") as file:
        return {row["organ"]: row["structure"] for row in csv.DictReader(file)}
