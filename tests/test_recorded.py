"""Facts about the places that a recorded step reads its batches from; that a GPU replays the step is in test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from clseg.training.examples import IGNORE
from clseg.training.network import fresh
from clseg.training.recorded import Slots
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
