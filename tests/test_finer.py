"""Facts about the finer stage: what is coarser stays as it was, and an update learns what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clseg.errors import RecipeError, WeightsError
from clseg.network.checkpoint import load
from clseg.network.decoder import Decoder
from clseg.network.finer import finer
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, Supporter
from clseg.recipe.parts import ValidationRecipe
from clseg.training.ticket import Ticket
from clseg.training.update import update
from clseg.weights.cache import fetch, manifest
from tests.conftest import random_decoder, write_tiny_model
from tests.small_dataset import update_recipe

THREE = (3, 3, 3)
ENCODER = EncoderSpec(
    tuple(Level(width, stride, THREE, 1) for width, stride in ((8, (1, 1, 1)), (16, (2, 2, 2)), (24, (2, 2, 1)))),
    Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)
COARSE = DecoderSpec((Stage(12, (12, 6), THREE, skip=(1, 4, 5)),), ("liver", "spleen"), bias=True, last_activation=True)


def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, *shape, generator=generator) for shape in ((8, 16, 16, 16), (16, 8, 8, 8), (24, 4, 4, 8))]


@pytest.mark.parametrize("width", [6, 9])
def test_it_says_about_what_it_said(width: int) -> None:
    """The coarser logits are the same to the last bit; on the voxels of the window they are those, nearest neighbours, to a fifth of their spread."""
    coarse = decoder()
    fine = finer(coarse, width, ENCODER)
    assert fine.spec.stages == (*COARSE.stages, Stage(width, (width,), (1, 1, 1)))
    with torch.no_grad():
        logits = fine.forward_deep(features(), 2)
        before = coarse(features())
    assert torch.equal(logits[1], before)
    above = torch.nn.functional.interpolate(before, scale_factor=2, mode="nearest")
    assert float((logits[0] - above).std()) < 0.2 * float(above.std())
    assert float((logits[0].argmax(1) == above.argmax(1)).float().mean()) > 0.9


def test_nothing_that_is_new_is_dead() -> None:
    """A ticket would hold what is zero: of a dense decoder every weight lives, also where the new stage copies channels."""
    for width in (6, 9):
        ticket = Ticket.of(finer(decoder(), width, ENCODER))
        assert ticket.alive == ticket.total


def decoder(spec: DecoderSpec = COARSE) -> Decoder:
    return random_decoder(spec, ENCODER)


def test_supporters_stay() -> None:
    """What listens to another decoder does so at the new stage, too."""
    coarse = Decoder(replace(COARSE, supporters=(Supporter("lungs", ("lung_left",), "0" * 64),)), ENCODER)
    fine = finer(coarse, 6, ENCODER)
    supports = [[torch.randn(1, 2, 16, 16, 16), torch.randn(1, 2, 8, 8, 8)]]
    with torch.no_grad():
        plain, heard = (
            fine.forward_deep(features(), 2, [[one * scale for one in supports[0]]])[0] for scale in (1.0, -3.0)
        )
        before = coarse.forward_deep(features(), 1, [supports[0][1:]])[0]
        assert torch.equal(fine.forward_deep(features(), 2, supports)[1], before)
    assert not torch.equal(plain, heard)


def test_the_seed_decides_and_the_random_state_stays() -> None:
    coarse = Decoder(COARSE, ENCODER)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one, same, other = (finer(coarse, 9, ENCODER, seed).ups[1].weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("width", [0, 5, 5000])
def test_a_width_that_does_not_fit_is_refused(width: int) -> None:
    """There must be room for the channels of the stage before, 6."""
    with pytest.raises(WeightsError, match=f"as the one before, 6, to 1024, given {width}"):
        finer(Decoder(COARSE, ENCODER), width, ENCODER)


def test_there_is_nothing_finer_than_the_finest_level() -> None:
    with pytest.raises(WeightsError, match="ends at the finest level"):
        finer(finer(Decoder(COARSE, ENCODER), 6, ENCODER), 6, ENCODER)


def test_a_recipe_says_how_wide(workplace: Path) -> None:
    recipe = update_recipe(workplace)
    with pytest.raises(RecipeError, match="finer is a number of channels, or 0 for none, given -1"):
        replace(recipe, finer=-1)
    assert not recipe.grows
    assert replace(recipe, finer=4).grows


def test_an_update_adds_a_stage(workplace: Path, own_home: Path, without_plots: None) -> None:
    """The decoder that is listed in the old one's place ends one level finer; below it is near what it was, and its card says how large it is."""
    write_tiny_model(
        own_home, {"lungs": ("lung_left", "lung_right")}, widths=(8, 16, 24), spacing=(12.0, 12.0, 12.0), stages=1
    )
    old = load(fetch([manifest().asset("tiny-lungs")])["tiny-lungs"])
    recipe = replace(
        update_recipe(workplace), finer=16, keep=0.5, allowed_loss=1.0, validation=ValidationRecipe(split="val")
    )
    recipe = replace(recipe, optim=replace(recipe.optim, iterations=3, rate=1e-4, warmup=0))
    done = update(recipe, workplace / "runs" / "fine")
    new = load(done.result.file)
    assert new.spec.stages == (*old.spec.stages, Stage(16, (16,), (1, 1, 1)))
    assert new.card["widths"] == [16, 16]
    assert new.card["pruning_rate"] == 0
    assert (
        new.card["parameters_dense"] == new.card["parameters"] == sum(tensor.numel() for tensor in new.tensors.values())
    )
    assert manifest().labels_of("tiny")["lung_left"] == ("tiny-lungs.2",)
    torch.testing.assert_close(
        new.tensors["heads.0.weight"].float(), old.tensors["heads.0.weight"].float(), atol=2e-3, rtol=0
    )


def test_the_finest_decoder_stays(workplace: Path) -> None:
    """An update refuses to add what the encoder has no level for, before anything is trained."""
    with pytest.raises(RecipeError, match="'lungs' cannot grow so: The decoder ends at the finest level"):
        update(replace(update_recipe(workplace), finer=8), workplace / "runs" / "fine")
