"""Facts about widening: a wider decoder says at first what the narrow one said, keeps its ticket, and learns on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.errors import RecipeError, WeightsError
from clseg.network.checkpoint import load
from clseg.network.decoder import Decoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, Supporter
from clseg.network.widen import widened
from clseg.training.ticket import Ticket
from clseg.training.update import update
from clseg.weights.cache import fetch, manifest
from tests.conftest import random_decoder
from tests.small_dataset import update_recipe

THREE, ONE = (3, 3, 3), (1, 1, 1)
ENCODER = EncoderSpec(
    tuple(Level(width, stride, THREE, 1) for width, stride in ((8, (1, 1, 1)), (16, (2, 2, 2)), (24, (2, 2, 1)))),
    Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)
SPEC = DecoderSpec((Stage(12, (12, 12), THREE), Stage(4, (4,), ONE)), ("liver", "spleen"))


def decoder(spec: DecoderSpec = SPEC) -> Decoder:
    return random_decoder(spec, ENCODER)


def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, *shape, generator=generator) for shape in ((8, 16, 16, 16), (16, 8, 8, 8), (24, 4, 4, 8))]


@settings(max_examples=20, deadline=None)
@given(more=st.tuples(st.integers(0, 20), st.integers(0, 20)), seed=st.integers(0, 5))
def test_it_says_what_it_said(more: tuple[int, int], seed: int) -> None:
    """Logits of every stage, to a thousandth of their spread, whatever the widths and the new weights."""
    narrow = decoder()
    wide = widened(narrow, (12 + more[0], 4 + more[1]), ENCODER, seed)
    assert [stage.convs[-1] for stage in wide.spec.stages] == [12 + more[0], 4 + more[1]]
    with torch.no_grad():
        for before, after in zip(narrow.forward_deep(features(), 2), wide.forward_deep(features(), 2), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=5e-3 * float(before.std()))


def test_as_wide_as_it_was_it_is_the_same() -> None:
    """Bit for bit, and the decoder that was given is not touched."""
    narrow = decoder()
    before = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    for name, tensor in widened(narrow, (12, 4), ENCODER).state_dict().items():
        assert torch.equal(tensor, before[name])
    widened(narrow, (16, 8), ENCODER)
    assert all(torch.equal(tensor, before[name]) for name, tensor in narrow.state_dict().items())


def test_new_channels_differ_and_are_read() -> None:
    """New channels are no copies of each other, and nothing that is new is zero: a ticket would hold it there."""
    wide = widened(decoder(), (20, 8), ENCODER)
    first = wide.convs[0][0].conv.weight
    assert not torch.allclose(first[12], first[13])
    for name, weight in wide.state_dict().items():
        if weight.ndim > 1:
            assert (weight != 0).all(), name


def test_the_seed_decides_and_the_random_state_stays() -> None:
    """The same seed gives the same wide decoder, another seed another; drawing goes on as if nothing had happened."""
    fixed = decoder()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one, same, other = (widened(narrow, (16, 8), ENCODER, seed).ups[0].weight for narrow, seed in ((fixed, 1), (fixed, 1), (fixed, 2)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_pruned_decoder_keeps_its_ticket() -> None:
    """What was zero is zero in the wide decoder; all that is new lives."""
    narrow = decoder()
    with torch.no_grad():
        narrow.convs[0][0].conv.weight[:, ::2] = 0
    wide = widened(narrow, (16, 4), ENCODER)
    weight = wide.convs[0][0].conv.weight
    assert weight.shape == (16, 16 + 16, 3, 3, 3)
    assert (weight[:12, :12:2] == 0).all()
    assert (weight[:12, 16::2] == 0).all()
    dead = {name: int((~mask).sum()) for name, mask in Ticket.of(wide).masks.items()}
    assert sum(dead.values()) == int((narrow.convs[0][0].conv.weight == 0).sum())


def test_supporters_and_chosen_skips_stay() -> None:
    """A decoder that listens to another one, and reads but some of a skip's channels, does so when it is wider."""
    spec = replace(SPEC, stages=(replace(SPEC.stages[0], skip=(1, 5, 6)), SPEC.stages[1]), supporters=(Supporter("lungs", ("lung_left",), "0" * 64),))
    narrow = decoder(spec)
    wide = widened(narrow, (20, 8), ENCODER)
    assert wide.spec.supporters == spec.supporters
    assert wide.spec.stages[0].skip == (1, 5, 6)
    support = [[torch.randn(1, 2, 16, 16, 16), torch.randn(1, 2, 8, 8, 8)]]
    with torch.no_grad():
        before, after = narrow(features(), support), wide(features(), support)
    torch.testing.assert_close(after, before, rtol=0, atol=5e-3 * float(before.std()))


@pytest.mark.parametrize(("widths", "told"), [((12,), "has 2 stages, given are 1"), ((12, 3), "may only grow: a stage has 4"), ((8, 4), "may only grow: a stage has 12"), ((12, 100_000), "at most 1024 channels")])
def test_widths_that_do_not_fit_are_refused(widths: tuple[int, ...], told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        widened(decoder(), widths, ENCODER)


def test_an_update_makes_a_decoder_wider(workplace: Path, without_plots: None) -> None:
    """The decoder listed in the old one's place has the recipe's widths, its old channels are near where they were, and its card says so."""
    recipe = update_recipe(workplace)
    old = load(fetch([manifest().asset("tiny-lungs")])["tiny-lungs"])
    widths = tuple(stage.convs[-1] + 4 for stage in old.spec.stages)
    recipe = replace(recipe, widths=widths, optim=replace(recipe.optim, iterations=3, rate=1e-4, warmup=0), validation=replace(recipe.validation, split="val"))
    done = update(recipe, workplace / "runs" / "wide")
    new = load(done.result.file)
    assert tuple(stage.convs[-1] for stage in new.spec.stages) == widths
    assert new.card["widths"] == list(widths)
    assert new.card["parameters_dense"] == new.card["parameters"] > old.card.get("parameters", 0)
    assert new.card["pruning_rate"] == 0
    assert manifest().labels_of("tiny")["lung_left"] == ("tiny-lungs.2",)
    weight, was = new.tensors["heads.0.weight"].float(), old.tensors["heads.0.weight"].float()
    torch.testing.assert_close(weight[:, : was.shape[1]], was, atol=2e-3, rtol=0)


def test_an_update_does_not_make_a_decoder_narrower(workplace: Path, without_plots: None) -> None:
    """The recipe is at fault, and says so before any case is read."""
    with pytest.raises(RecipeError, match="'lungs' cannot grow so: Widths may only grow"):
        update(replace(update_recipe(workplace), widths=(1,) * len(load(fetch([manifest().asset("tiny-lungs")])["tiny-lungs"]).spec.stages)), workplace / "runs" / "narrow")
