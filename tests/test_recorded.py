"""Facts about the places that a recorded step reads its batches from; that a GPU replays the step is in test_gpu.py."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from clseg.training import loop
from clseg.training.examples import IGNORE
from clseg.training.loop import learner
from clseg.training.network import fresh
from clseg.training.recorded import Recorded, Slots
from tests.test_loop import patch, recipe

BATCHES = {
    "both decoders, both patches": [patch(0.1, "dense", "pair"), patch(0.9, "dense", "pair")],
    "one each": [patch(0.3, "dense"), patch(-0.5, "pair")],
    "one decoder alone": [patch(0.2, "pair"), patch(0.7, "pair")],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_every_decoder_on_every_patch_has_the_losses_and_gradients_of_a_plain_step(kind: str) -> None:
    """Decoders that a patch does not teach see it, too: their loss is 0, and all losses and gradients are as without it (float32)."""
    plan, batch = recipe(), BATCHES[kind]
    plain, recorded = fresh(plan), fresh(plan)
    expected = plain(batch, plan.optim)
    sum(expected.values()).backward()
    slots = Slots(recorded, 2, (8, 8, 8), "cpu")
    slots.fill(batch)
    found = recorded.losses(slots.images, slots.lessons, plan.optim)
    sum(found.values()).backward()
    for name, loss in found.items():
        assert loss.item() == pytest.approx(expected[name].item() if name in expected else 0.0, abs=1e-5)
    for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, torch.zeros_like(one) if other.grad is None else other.grad, atol=1e-5, rtol=1e-4)


def test_nothing_of_an_earlier_batch_is_left() -> None:
    """After a batch that teaches both decoders comes one that teaches `pair` alone: all is unknown to `dense`."""
    network = fresh(recipe())
    slots = Slots(network, 2, (8, 8, 8), "cpu")
    slots.fill(BATCHES["both decoders, both patches"])
    assert slots.lessons["dense"].annotated.all()
    slots.fill(BATCHES["one decoder alone"])
    assert (slots.lessons["dense"].target == IGNORE).all()
    assert not slots.lessons["dense"].annotated.any()
    assert torch.equal(slots.images[1], BATCHES["one decoder alone"][1].image)


def replayed(self: Recorded) -> None:
    """Stands in for a CUDA graph: what is replayed writes losses and gradients to the same places as when it was recorded."""
    self.network.zero_grad(set_to_none=True)
    self._run()
    places = {parameter: parameter.grad for parameter in self.network.parameters()}

    def replay() -> None:
        for parameter, place in places.items():
            parameter.grad = place.zero_()
        self._run()

    self.graph = SimpleNamespace(replay=replay)


def test_a_decoder_that_is_not_taught_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine recorded steps, of which three teach `pair` alone and three each decoder by a patch of its own, end where nine plain ones do, judged by the losses of a batch."""
    monkeypatch.setattr(Recorded, "_capture", replayed)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    plan, ends = recipe(), []
    for record in (False, True):
        student = learner(fresh(plan), plan.optim)
        gradients = Recorded(student.network, plan.optim, "cpu") if record else loop._gradients(student, plan.optim)
        for iteration in range(9):
            batch = list(BATCHES.values())[iteration % 3]
            names, losses = gradients(batch)
            assert set(names) == {name for one in batch for name in one.targets}
            loop._descend(student, names, losses, plan.optim, iteration + 1)
        ends.append({name: loss.item() for name, loss in student.network(BATCHES["both decoders, both patches"], plan.optim).items()})
    assert ends[1] == pytest.approx(ends[0], rel=1e-3)


def test_weights_that_have_moved_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording reads the memory where the weights lay; after an encoder has been elsewhere and back it is made again."""
    made = []
    monkeypatch.setattr(Recorded, "_capture", lambda self: (made.append(1), replayed(self)))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    recorded = Recorded(fresh(recipe()), recipe().optim, "cpu")
    for _ in range(2):
        recorded(BATCHES["one each"])
    assert len(made) == 1
    for parameter in recorded.network.encoder.parameters():
        parameter.data = parameter.data.clone()
    recorded(BATCHES["one each"])
    assert len(made) == 2
