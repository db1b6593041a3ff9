"""Facts about the training loop on a task that can be learned in a second."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from clseg.errors import TrainingError, UsageError
from clseg.recipe import AugmentRecipe, DatasetRecipe, DecoderRecipe, EncoderRecipe, GridRecipe, OptimRecipe, Recipe
from clseg.training.average import Average
from clseg.training.examples import Example
from clseg.training.loop import Step, learner, make_optimiser, rate_at, train
from clseg.training.network import Trainee, fresh
from clseg.training.patches import Patch, Patches

RULE = OptimRecipe(iterations=100, rate=0.01, warmup=10, power=0.9)


def decoder(name: str, *labels: str, stages: int = 1) -> DecoderRecipe:
    return DecoderRecipe(name, labels, widths=(8,) * stages, kernels=(3,) * stages, convs=(1,) * stages)


def recipe(levels: int = 2, **optim: object) -> Recipe:
    """Patches of 8³ voxels; `dense` is one label, `pair` are two."""
    return Recipe(
        name="t",
        decoder=(decoder("dense", "bone", stages=levels - 1), decoder("pair", "left", "right", stages=levels - 1)),
        dataset=(DatasetRecipe("one", index="i.csv"),),
        grid=GridRecipe(patch=(8, 8, 8)),
        encoder=EncoderRecipe((8, 16, 16)[:levels], (1, 2, 2)[:levels], (3,) * levels, (1,) * levels),
        augment=AugmentRecipe(shift_hu=0.0),
        optim=OptimRecipe(**{"iterations": 40, "batch": 2, "rate": 0.02, "warmup": 5, "precision": "float32", **optim}),
    )


def example() -> Example:
    """Bone is bright; left and right are soft tissue below and above the middle of x."""
    bone = np.zeros((16, 16, 16), np.uint8)
    bone[4:12, 4:12, 4:12] = 1
    pair = 1 + (np.indices((16, 16, 16))[0] >= 8).astype(np.uint8)
    hu = np.where(bone, 800, 40).astype(np.int16)
    points = (np.argwhere(bone).astype(np.int16),)
    return Example("case", "one", hu, {"dense": bone, "pair": pair}, {"dense": (True,), "pair": (True, True)}, {"dense": points, "pair": points * 2})


def run(plan: Recipe) -> tuple[Trainee, Average, list[Step]]:
    student, steps = learner(fresh(plan), plan.optim), []
    train(student, Patches([example()], plan), plan.optim, callbacks=(steps.append,))
    return student.network, student.average, steps


def patch(image: float = 0.0, *decoders: str) -> Patch:
    """A flat patch with one labelled corner for each of the decoders."""
    target = torch.zeros(8, 8, 8, dtype=torch.uint8)
    target[:4, :4, :4] = 1
    known = {"dense": (True,), "pair": (True, True)}
    values = torch.full((1, 8, 8, 8), image) + torch.arange(8.0)
    return Patch(values, dict.fromkeys(decoders, target), {name: known[name] for name in decoders})


def test_the_loss_goes_down() -> None:
    """Bright bone on a grey ground is learned in 40 steps: the loss falls below a third of where it began."""
    _, _, steps = run(recipe())
    dense = [step.losses["dense"] for step in steps]
    assert np.mean(dense[-5:]) < np.mean(dense[:3]) / 3
    assert [step.iteration for step in steps] == list(range(1, 41))
    assert all(step.seconds > 0 for step in steps)


def test_workers_cut_the_very_same_patches() -> None:
    """Two processes that cut patches give the same weights, to the bit, as the thread does, also from the middle of a run."""
    plan = recipe(iterations=6)
    alone = run(plan)[1].tensors
    rule = replace(plan.optim, workers=2)
    student, steps = learner(fresh(plan), rule), []
    train(student, Patches([example()], plan), replace(rule, iterations=6), callbacks=(steps.append,))
    assert [step.iteration for step in steps] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(alone[name], tensor) for name, tensor in student.average.tensors.items())

    numbers = []
    train(student, Patches([example()], plan), rule, start=4, callbacks=(lambda step: numbers.append(step.iteration),))
    assert numbers == [5, 6]


def test_a_daemonic_process_is_told_that_it_may_not_have_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence and what to say instead, not an assertion of Python's; without workers it trains there."""
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {**multiprocessing.current_process()._config, "daemon": True})
    plan = recipe(iterations=2)
    rule = replace(plan.optim, workers=2)
    with pytest.raises(UsageError, match="optim.workers starts processes") as refused:
        train(learner(fresh(plan), rule), Patches([example()], plan), rule)
    assert "workers = 0" in refused.value.tip
    assert len(run(plan)[2]) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_trains_the_same_weights(precision: str) -> None:
    """Two runs give the same bits whatever torch's global seed, in either precision; another seed gives others."""
    plan = recipe(iterations=3, precision=precision)
    torch.manual_seed(1)
    first = run(plan)[1].tensors
    torch.manual_seed(2)
    second = run(plan)[1].tensors
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run(replace(plan, seed=1))[1].tensors
    assert not torch.equal(first["encoder.levels.0.0.conv.weight"], other["encoder.levels.0.0.conv.weight"])


def test_the_rate_warms_up_and_decays_to_zero() -> None:
    """First step 1/10 of the rate, after warm-up rate · (1 − 9/100)^0.9, at the end 0, falling in between."""
    assert rate_at(0, RULE) == pytest.approx(0.001)
    assert rate_at(9, RULE) == pytest.approx(0.01 * 0.91**0.9)
    assert rate_at(50, RULE) == pytest.approx(0.01 * 0.5**0.9)
    assert rate_at(100, RULE) == 0
    rates = [rate_at(i, RULE) for i in range(9, 101)]
    assert rates == sorted(rates, reverse=True)
    assert rate_at(0, replace(RULE, warmup=0)) == 0.01


def test_steps_are_reported_with_their_rate() -> None:
    """What the callback sees is the rate that was used, and a loss for every decoder that learned."""
    plan = recipe(iterations=3)
    _, _, steps = run(plan)
    assert [step.rate for step in steps] == [rate_at(i, plan.optim) for i in range(3)]
    assert all(set(step.losses) <= {"dense", "pair"} for step in steps)


def test_a_decoder_learns_only_from_patches_that_annotate_it() -> None:
    """The loss of `pair` in a mixed batch is that of its own patch alone; a decoder without a patch has no loss."""
    plan = recipe()
    network = fresh(plan)
    mixed = network([patch(0.0, "dense"), patch(1.0, "pair", "dense")], plan.optim)
    alone = network([patch(1.0, "pair")], plan.optim)
    assert set(alone) == {"pair"}
    assert mixed["pair"].item() == pytest.approx(alone["pair"].item(), rel=1e-5)


def test_gradient_reaches_every_tensor_that_is_trained() -> None:
    """One step of two patches moves every weight, and gives every tensor a gradient."""
    plan = recipe(levels=3, deep_supervision=2)
    network = fresh(plan)
    losses = network([patch(0.0, "dense", "pair"), patch(1.0, "dense", "pair")], plan.optim)
    sum(losses.values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    # a bias before an instance norm is taken away again, its gradient is rounding noise
    flat = [n for n, p in network.named_parameters() if not p.grad.abs().max() > 0 and not n.endswith("conv.bias")]
    assert flat == []


def test_heads_beyond_the_deep_supervision_stay_as_they_are() -> None:
    """With deep_supervision 1 the coarse head is not trained, everything else is."""
    plan = recipe(levels=3, deep_supervision=1)
    network = fresh(plan)
    sum(network([patch(0.0, "dense", "pair")], plan.optim).values()).backward()
    untouched = {name for name, p in network.named_parameters() if p.grad is None}
    assert untouched == {"decoders.dense.heads.0.weight", "decoders.pair.heads.0.weight"}


def test_only_weights_decay() -> None:
    """Biases and normalisation are in the group without weight decay; every parameter is in one group."""
    network = fresh(recipe())
    decayed, free = make_optimiser(network, OptimRecipe(weight_decay=0.5)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
    assert all(p.ndim == 5 for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))


def test_the_average_follows_the_network() -> None:
    """After the first step of warm-up α is 1/10: the average is 0.1 · start + 0.9 · weights."""
    plan = recipe(iterations=1)
    before = fresh(plan)
    network, average, _ = run(plan)
    name = "encoder.levels.1.0.conv.weight"
    expected = 0.1 * before.state_dict()[name] + 0.9 * network.state_dict()[name]
    assert torch.allclose(average.tensors[name], expected, atol=1e-7)
    assert not torch.equal(before.state_dict()[name], network.state_dict()[name])


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    """NaN weights are an error that names decoder and iteration, before anything is averaged or reported."""
    plan = recipe(iterations=2)
    network = fresh(plan)
    student, steps = learner(network, plan.optim), []
    before = {name: tensor.clone() for name, tensor in student.average.tensors.items()}
    torch.nn.init.constant_(network.decoders["dense"].heads[0].weight, float("nan"))
    with pytest.raises(TrainingError, match="'dense' is nan at iteration 1"):
        train(student, Patches([example()], plan), plan.optim, callbacks=(steps.append,))
    assert steps == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.average.tensors.items())
