"""Facts about the stages of a new decoder: nothing but it learns, zeros stay zero, and what is on disk is all there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from clseg.network.checkpoint import build_decoder, load
from clseg.network.decoder import Decoder
from clseg.network.model import Model
from clseg.recipe import LearnRecipe
from clseg.training.average import decay_for
from clseg.training.base import Base
from clseg.training.course import Course, averaged, held
from clseg.training.distributed import World
from clseg.training.learn import supporters_of
from clseg.training.loop import train
from clseg.training.network import decoder_spec
from clseg.training.pretrain import load_examples
from clseg.training.run import Reports
from clseg.training.stage import patches_for
from clseg.training.ticket import Ticket
from tests.small_dataset import SOLID, learn_recipe

Start = Callable[..., Course]
NAME = "solid"


@pytest.fixture
def recipe(workplace: Path) -> LearnRecipe:
    return learn_recipe(workplace, SOLID)


@pytest.fixture
def start(workplace: Path, recipe: LearnRecipe) -> Start:
    """`start(**changes)`: a course of the decoder `solid`, supported by the lungs of the model."""
    base = Base.open("tiny")
    plan = base.plan(recipe, recipe.decoder)
    examples = load_examples(plan, workplace / "runs" / "cache", Reports())
    (workplace / "runs" / "run").mkdir()

    def course(**changes: object) -> Course:
        return replace(Course(base, plan, workplace / "runs" / "run", examples, examples, Reports()), **changes)  # type: ignore[arg-type]

    return course


def specs(recipe: LearnRecipe):
    return {decoder.name: decoder_spec(decoder) for decoder in recipe.decoder}


def helped(course: Course, recipe: LearnRecipe) -> tuple[Decoder, Model]:
    """A decoder with support heads, and its helper."""
    named, helpers = supporters_of(recipe.decoder[0], course.base, {})
    assert helpers is not None
    return Decoder(replace(specs(recipe)[NAME], supporters=named), course.base.spec), helpers


def copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_no_gradient_reaches_what_is_frozen(start: Start, recipe: LearnRecipe) -> None:
    """After a backward pass every tensor of the student has a gradient, none of the encoder and of the supporter has one, and none wants one."""
    course = start()
    decoder, helpers = helped(course, recipe)
    student = course.student({NAME: decoder}, course.rule(3, 1e-3), helpers)
    batch = patches_for(course.examples, course.plan, "support", [NAME]).batch(0)
    sum(student.network(batch, recipe.optim).values()).backward()
    assert [name for name, p in student.network.named_parameters() if p.grad is None] == []
    frozen = [*course.encoder.parameters(), *(p for one in helpers.decoders.values() for p in one.parameters())]
    assert {p.grad for p in frozen} == {None}
    assert not any(p.requires_grad for p in frozen)


def test_what_is_frozen_is_not_in_the_optimiser(start: Start, recipe: LearnRecipe) -> None:
    """The optimiser holds the decoder's own tensors, each once, and no other; weight decay moves nothing that is frozen."""
    course = start()
    decoder, helpers = helped(course, recipe)
    student = course.student({NAME: decoder}, course.rule(3, 1e-3), helpers)
    held_by_it = [id(p) for group in student.optimiser.param_groups for p in group["params"]]
    assert sorted(held_by_it) == sorted(id(p) for p in decoder.parameters())


def test_what_is_frozen_keeps_its_bits(start: Start, recipe: LearnRecipe) -> None:
    """After three steps of a supported decoder encoder and supporter are what they were, bit for bit; the decoder is not."""
    course = start()
    decoder, helpers = helped(course, recipe)
    before = copy(course.encoder), *(copy(one) for one in helpers.decoders.values()), copy(decoder)
    course.train("support", {NAME: decoder}, course.rule(3, 1e-2), helpers=helpers)
    after = copy(course.encoder), *(copy(one) for one in helpers.decoders.values()), copy(decoder)
    assert [same(one, other) for one, other in zip(before, after, strict=True)] == [True, True, False]


def test_what_is_frozen_is_not_in_the_state(start: Start, recipe: LearnRecipe) -> None:
    """The saved state names tensors of the decoder alone: none of the encoder, none of the supporter."""
    course = start()
    decoder, helpers = helped(course, recipe)
    course.train("support", {NAME: decoder}, course.rule(3, 1e-2), helpers=helpers)
    with safe_open(str(course.run / "state.safetensors"), framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith("optimiser.")]  # noqa: SIM118
    assert {name.split(".", 1)[1].removeprefix(f"decoders.{NAME}.") for name in names} == set(decoder.state_dict())
    assert {name.split(".", 1)[0] for name in names} == {"network", "average"}


def test_dense_leaves_a_file_per_decoder(start: Start, recipe: LearnRecipe) -> None:
    """Single precision, bound to the encoder; a finished stage is read, not trained again."""
    course, steps = start(), []
    made = course.dense(specs(recipe))
    checkpoint = load(course.file("dense", NAME))
    assert checkpoint.encoder == course.base.key
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {torch.float32}
    again = start(reports=Reports(step=steps.append)).dense(specs(recipe))
    assert same(copy(made[NAME]), copy(again[NAME]))
    assert steps == []


def test_the_support_stage_begins_with_the_dense_weights(start: Start, recipe: LearnRecipe) -> None:
    """At a learning rate of nearly nothing the decoder beneath the support heads is still the dense one, the gate one half."""
    course = start()
    dense = course.dense(specs(recipe))[NAME]
    decoder, helpers = helped(course, recipe)
    supported = course.supported(NAME, dense, decoder.spec, course.rule(2, 1e-12), helpers)
    for name, tensor in dense.state_dict().items():
        assert torch.allclose(supported.state_dict()[name], tensor, atol=1e-9)
    assert [float(head.gate) for head in supported.support] == [pytest.approx(0.5)]
    assert supported.spec.supporters == decoder.spec.supporters


def test_recovery_never_wakes_a_dead_weight(start: Start, recipe: LearnRecipe) -> None:
    """What is zero before is exactly zero after, in the student and in its average; the others move."""
    course = start()
    decoder = course.dense(specs(recipe))[NAME]
    with torch.no_grad():
        for number, weight in enumerate(p for p in decoder.parameters() if p.ndim == 5):
            weight.view(-1)[number::2] = 0.0
    before, ticket = copy(decoder), Ticket.of(decoder)
    final = build_decoder(load_after_recovery(course, decoder), course.base.spec)
    after = copy(final)
    for name, mask in ticket.masks.items():
        assert bool((after[name][~mask] == 0).all())
        assert bool((after[name][mask] != before[name][mask]).any())
    assert Ticket.of(final).alive == ticket.alive


def load_after_recovery(course: Course, decoder: Decoder):
    from clseg.recipe import LadderRecipe

    course.recovered(NAME, decoder, LadderRecipe(recovery=4, rate=0.01), None)
    return load(course.file("recover", NAME))


def test_held_holds_every_decoder(start: Start, recipe: LearnRecipe) -> None:
    """Inside the block dead weights stay zero, behind it they may live again."""
    course = start()
    decoder = course.dense(specs(recipe))[NAME]
    with torch.no_grad():
        decoder.heads[0].weight[1].zero_()
    student = course.student({NAME: decoder}, course.rule(4, 0.1))
    patches = patches_for(course.examples, course.plan, "x", [NAME])
    with held(student):
        train(student, patches, course.rule(2, 0.1))
        assert not decoder.heads[0].weight[1].any()
    train(student, patches, course.rule(2, 0.1))
    assert decoder.heads[0].weight[1].any()


def test_averaged_gives_the_averages(start: Start, recipe: LearnRecipe) -> None:
    """The decoders it returns hold the average, not the student's present weights, and are frozen."""
    course = start()
    student = course.student(course.dense(specs(recipe)), course.rule(3, 0.1))
    train(student, patches_for(course.examples, course.plan, "x", [NAME]), course.rule(3, 0.1))
    made = averaged(student)[NAME]
    assert all(torch.equal(tensor, student.average.tensors[f"decoders.{NAME}.{name}"]) for name, tensor in made.state_dict().items())
    assert not same(copy(made), copy(student.network.decoders[NAME]))
    assert not any(p.requires_grad for p in made.parameters())


def test_a_short_stage_has_a_short_memory(start: Start) -> None:
    """The average forgets all but 2 % within a quarter of the stage, and no stage looks back further than the recipe says."""
    course = start()
    course.plan = replace(course.plan, optim=replace(course.plan.optim, average=0.99, warmup=50))
    rule = course.rule(40, 0.3)
    assert (rule.iterations, rule.rate, rule.warmup) == (40, 0.3, 4)
    assert rule.average == pytest.approx(decay_for(0.02, 10))
    assert rule.average**10 == pytest.approx(0.02)
    assert course.rule(100_000, 0.3).average == 0.99
    assert course.rule(0, 0.3).iterations == 0


def test_dice_asks_cases_that_show_the_decoder(start: Start, recipe: LearnRecipe) -> None:
    """Of two cases one shows body; few are asked often, all at the end."""
    course = start()
    decoder = course.dense(specs(recipe))
    course.plan = replace(course.plan, validation=replace(course.plan.validation, cases=1))
    assert {case for cases in course.dice(decoder).values() for case in cases} == {"a"}
    assert {case for cases in course.dice(decoder, every=True).values() for case in cases} == {"a", "b"}
    assert 0 <= course.mean(decoder) <= 1


def test_only_the_first_process_writes_stages(start: Start, recipe: LearnRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two waits for the file and writes none."""
    waits: list[int] = []
    monkeypatch.setattr(World, "wait", lambda here: waits.append(here.rank))
    course = start(here=World(1, 2, 1))
    course.keep("dense", {NAME: Decoder(specs(recipe)[NAME], course.base.spec)})
    assert waits == [1]
    assert not course.file("dense", NAME).exists()
