"""Biases of a finished decoder move to where Dice is highest, and nothing else moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clseg.errors import RecipeError, TrainingError
from clseg.network.checkpoint import load
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, Supporter
from clseg.training.balance import balanced
from clseg.training.examples import IGNORE, OPEN, Example
from clseg.training.score import dice_of
from clseg.training.update import update
from tests.test_update import run, short

pytestmark = pytest.mark.usefixtures("without_plots")

LABELS = ("parotid_gland_left", "parotid_gland_right", "mandible")
GRID = Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16))


class Ramp(Decoder):
    """Logits that depend on the place alone: of the first two labels x − 8 and y − 8 half steps, of the third −20."""

    def forward_deep(self, features, depth, supports=(), **_):
        x, y = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        planes = [torch.zeros(16, 16), (x - 8) / 2, torch.where(x < 4, (y - 8) / 2, torch.tensor(-30.0)), torch.full((16, 16), -20.0)]
        logits = torch.stack(planes)[None, ..., None].expand(1, 4, 16, 16, 16)
        return [logits + self.heads[-1].bias[None, :, None, None, None]]


@pytest.fixture
def network() -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec((Level(4, (1, 1, 1), (3, 3, 3), 1), Level(4, (2, 2, 2), (3, 3, 3), 1)), GRID, Intensity(-1000, 1000, 0, 500))).eval()
    decoder = Ramp(DecoderSpec((Stage(4, (4,), (3, 3, 3)),), LABELS, bias=True), encoder.spec).eval()
    with torch.no_grad():
        decoder.heads[-1].bias[:] = 0
    return encoder, decoder


def example(target: np.ndarray, name: str = "case", annotated: tuple[bool, ...] = (True, True, True)) -> Example:
    points = tuple(np.argwhere(target == n) for n in (1, 2, 3))
    return Example(name, "set", np.zeros((16, 16, 16), np.int16), {"glands": target}, {"glands": annotated}, {"glands": points})


def half_space(first: int) -> np.ndarray:
    """The first label from plane x = `first` on."""
    target = np.zeros((16, 16, 16), np.uint8)
    target[first:] = 1
    return target


def test_what_is_painted_too_large_shrinks_to_the_reference(network) -> None:
    """Painted is where x > 8, the reference begins at 11: logits of 1 to 1.25 less do it, and Dice is 1 then; the partner moves with it."""
    encoder, decoder = network
    case = example(half_space(11))
    moved, lower = balanced(encoder, decoder, [case])
    assert lower == {"parotid_gland_left": 1.0, "parotid_gland_right": 1.0, "mandible": 0.0}
    assert moved.heads[-1].bias.tolist() == [0, -1.0, -1.0, 0]
    assert decoder.heads[-1].bias.tolist() == [0, 0, 0, 0]
    assert dice_of(encoder, {"glands": moved}, [case])["parotid_gland_left"]["case"] == 1


def test_what_is_painted_too_small_grows(network) -> None:
    """The reference begins at 6: a logit of 1 more is needed at x − 8 = −2 half steps, and a little more for it to win."""
    encoder, decoder = network
    _, lower = balanced(encoder, decoder, [example(half_space(6))])
    assert lower["parotid_gland_left"] == -1.25


def test_what_is_right_stays(network) -> None:
    """The reference begins where the paint does; and a structure that no case shows stays too."""
    encoder, decoder = network
    moved, lower = balanced(encoder, decoder, [example(half_space(9))])
    assert set(lower.values()) == {0.0}
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, moved.state_dict()[name])


def test_cases_that_do_not_annotate_it_say_nothing(network) -> None:
    """The same target as too large a paint, but not annotated: nothing moves."""
    encoder, decoder = network
    assert set(balanced(encoder, decoder, [example(half_space(11), annotated=(False, True, True))])[1].values()) == {0.0}


@pytest.mark.parametrize(("code", "open_labels", "expected"), [(IGNORE, (), 0.0), (OPEN, (True, False, False), 0.0), (OPEN, (False, True, False), 1.0)])
def test_what_is_not_known_does_not_count(network, code, open_labels, expected) -> None:
    """Paint beyond the reference where nothing is known, or beyond the open end of its own contour, is no fault; beyond another's it is."""
    encoder, decoder = network
    target = half_space(11)
    target[9:11] = code
    assert balanced(encoder, decoder, [example(target)], open_labels=open_labels)[1]["parotid_gland_left"] == expected


def test_decoders_that_take_others_logits_are_refused(network) -> None:
    """A TrainingError that says what to do."""
    encoder, decoder = network
    decoder.spec = replace(decoder.spec, supporters=(Supporter("body", ("body",), "0" * 64),))
    with pytest.raises(TrainingError, match="cannot be balanced"):
        balanced(encoder, decoder, [])


def test_an_update_without_a_step_only_balances(workplace: Path) -> None:
    """All weights but the biases of the last layer are the old ones, and the card says by how much labels were lowered."""
    from tests.test_update import old_file

    recipe = short(workplace)
    recipe = replace(recipe, balance=2, optim=replace(recipe.optim, iterations=0))
    before = load(old_file())
    done = update(recipe, run(workplace))
    after = load(done.result.file)
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    assert any(after.card["balance"].values())
    for name in after.tensors.keys() - before.tensors.keys():
        assert name.endswith("bias")
        assert bool(after.tensors[name].any()) == (name == f"heads.{len(before.spec.stages) - 1}.bias")
    assert set(after.card["balance"]) == set(before.spec.labels)


def test_no_steps_and_no_balance_is_refused(workplace: Path) -> None:
    """There would be nothing to do; and a balance below 0 means nothing."""
    recipe = short(workplace)
    with pytest.raises(RecipeError, match="iterations"):
        replace(recipe, optim=replace(recipe.optim, iterations=0))
    with pytest.raises(RecipeError, match="balance"):
        replace(recipe, balance=-1)
