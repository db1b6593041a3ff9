"""Course: the stages through which new decoders go on a frozen encoder.

    dense      all decoders of the recipe together
    support    per decoder with supporters: heads that read the supporters' logits
    prune      per decoder: the lottery-ticket ladder
    recover    per decoder: the final mask fixed, the average on

A finished stage leaves `stages/<stage>/<decoder>.safetensors` in single precision, and the
next starts from that file: what is on disk is all there is, so a killed run goes on
exactly as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from clseg.network.checkpoint import Checkpoint, build_decoder, build_encoder, load, save
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.network.spec import DecoderSpec
from clseg.recipe import OptimRecipe, Recipe
from clseg.recipe.parts import LadderRecipe
from clseg.training.average import decay_for
from clseg.training.base import Base
from clseg.training.distributed import World
from clseg.training.examples import Example, open_labels
from clseg.training.loop import Learner, Step, learner
from clseg.training.network import Trainee, start_weights
from clseg.training.run import Reports
from clseg.training.score import DiceByLabel, dice_of, mean_dice, spread
from clseg.training.stage import patches_for, run_stage
from clseg.training.ticket import Ticket
from clseg.training.validation import Validation


@dataclass
class Course:
    """What all stages share: base model, plan, cases to learn from and held-out cases, folder, device."""

    base: Base
    plan: Recipe
    run: Path
    examples: Sequence[Example]
    held_out: Sequence[Example]
    reports: Reports
    device: str = "cpu"
    here: World = field(default_factory=World)
    resume: bool = False

    def __post_init__(self) -> None:
        self.encoder: Encoder = build_encoder(self.base.checkpoint)

    def dense(self, specs: Mapping[str, DecoderSpec]) -> dict[str, Decoder]:
        """Train all decoders together from random weights."""
        if not all(self.file("dense", name).is_file() for name in specs):
            decoders = {name: Decoder(spec, self.base.spec) for name, spec in specs.items()}
            for index, decoder in enumerate(decoders.values()):
                start_weights(decoder, self.plan.seed + index)
            self.train("dense", decoders, self.plan.optim, validate=True)
        return {name: self.finished("dense", name) for name in specs}

    def supported(self, name: str, decoder: Decoder, spec: DecoderSpec, rule: OptimRecipe, helpers: Model) -> Decoder:
        """Add heads that read the supporters' logits, and train them with the decoder."""
        if not self.file("support", name).is_file():
            student = Decoder(spec, self.base.spec)
            start_weights(student.support, self.plan.seed)
            student.load_state_dict(decoder.state_dict(), strict=False)
            self.train("support", {name: student}, rule, helpers=helpers)
        return self.finished("support", name)

    def recovered(self, name: str, decoder: Decoder, ladder: LadderRecipe, helpers: Model | None) -> Decoder:
        """Train with the mask fixed; weights that are zero stay zero."""
        if not self.file("recover", name).is_file():
            rule = self.rule(ladder.recovery, ladder.rate)
            self.train("recover", {name: decoder}, rule, helpers=helpers, ticket=True)
        return self.finished("recover", name)

    def train(
        self,
        stage: str,
        decoders: Mapping[str, Decoder],
        rule: OptimRecipe,
        *,
        helpers: Model | None = None,
        ticket: bool = False,
        validate: bool = False,
        warm: bool = True,
    ) -> None:
        """One stage from its saved state, or its start, to its end; its averages become the stage's files."""
        student = self.student(decoders, rule, helpers, warm=warm)
        name = stage if stage == "dense" else f"{stage}-{next(iter(decoders))}"
        patches = patches_for(self.examples, self.plan, name, decoders, self.device)
        callbacks: list[Callable[[Step], None]] = []
        if validate and self.plan.validation.every and self.here.first:
            callbacks.append(Validation(self, student, name))
        with held(student) if ticket else nullcontext():
            run_stage(name, student, patches, rule, run=self.run, reports=self.reports, resume=self.resume, callbacks=callbacks)
        self.keep(stage, averaged(student))

    def student(
        self, decoders: Mapping[str, Decoder], rule: OptimRecipe, helpers: Model | None = None, *, warm: bool = True
    ) -> Learner:
        """A learner of these decoders alone, on the frozen encoder."""
        for decoder in decoders.values():
            decoder.requires_grad_(True).train()
        network = Trainee(self.encoder, decoders, frozen=True, helpers=helpers, open_labels=open_labels(self.plan))
        return learner(network, rule, self.device, self.here, warm=warm)

    def rule(self, iterations: int, rate: float) -> OptimRecipe:
        """The recipe's rule for a stage of this length; the average looks back over a quarter of it at most."""
        average = min(self.plan.optim.average, decay_for(0.02, max(1, iterations // 4)))
        warmup = min(self.plan.optim.warmup, iterations // 10)
        return replace(self.plan.optim, iterations=iterations, rate=rate, average=average, warmup=warmup)

    def dice(self, decoders: Mapping[str, Decoder], helpers: Model | None = None, *, every: bool = False) -> DiceByLabel:
        """Dice on the held-out cases that are asked often, or on `every` one."""
        cases = [one for one in self.held_out if any(one.points.get(name) for name in decoders)]
        if not every:
            cases = spread(cases, self.plan.validation.cases)
        return dice_of(self.encoder, decoders, cases, helpers=helpers, open_labels=open_labels(self.plan), device=self.device)

    def mean(self, decoders: Mapping[str, Decoder], helpers: Model | None = None) -> float:
        """Mean Dice on the held-out cases, the same in all processes."""
        return self.here.shared(mean_dice(self.dice(decoders, helpers)) if self.here.first else 0.0)

    def file(self, stage: str, name: str) -> Path:
        return self.run / "stages" / stage / f"{name}.safetensors"

    def keep(self, stage: str, decoders: Mapping[str, Decoder]) -> None:
        """Write what a stage made."""
        if self.here.first:
            for name, decoder in decoders.items():
                self.file(stage, name).parent.mkdir(parents=True, exist_ok=True)
                save(self.file(stage, name), Checkpoint("decoder", decoder.spec, decoder.state_dict(), encoder=self.base.key))
        self.here.wait()

    def finished(self, stage: str, name: str) -> Decoder:
        """What a stage made, read from its file."""
        return build_decoder(load(self.file(stage, name)), self.base.spec)


@contextmanager
def held(student: Learner) -> Iterator[None]:
    """Inside, weights that are zero stay zero."""
    with ExitStack() as stack:
        for decoder in student.network.decoders.values():
            stack.enter_context(Ticket.of(decoder).held(decoder, student.optimiser))
        yield


def averaged(student: Learner) -> dict[str, Decoder]:
    """The decoders with the averaged weights, pruned weights being zero."""
    made = {}
    for name, decoder in student.network.decoders.items():
        copy = Decoder(decoder.spec, student.network.encoder.spec)
        prefix = f"decoders.{name}."
        copy.load_state_dict({k.removeprefix(prefix): v.cpu() for k, v in student.average.tensors.items() if k.startswith(prefix)})
        made[name] = copy.eval().requires_grad_(False)
    return made
