"""Facts about tickets: what is pruned is counted exactly, and stays zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clseg.errors import RecipeError, TrainingError
from clseg.network.decoder import Decoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, Supporter
from clseg.training.average import Average
from clseg.training.ticket import Ticket, global_l1, ladder, nonzero, prunable, sparsity, tau

ENCODER = EncoderSpec(
    (Level(4, (1, 1, 1), (3, 3, 3), 1), Level(6, (2, 2, 2), (3, 3, 3), 1)),
    Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)

PAPERS = tuple(p / 1000 for p in (*range(800, 981, 20), 990, 992, 994, 996, 998))  # arXiv 2503.12698


def decoder(seed: int = 0, supporters: tuple[Supporter, ...] = ()) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(DecoderSpec((Stage(4, (4, 2), (3, 3, 3)),), ("liver",), supporters=supporters), ENCODER)


class Row(nn.Module):
    """Two layers whose weights are given: a hand-made network."""

    def __init__(self, first: list[float], second: list[float]) -> None:
        super().__init__()
        self.a = nn.Conv3d(1, len(first), 1)
        self.b = nn.ConvTranspose3d(len(second), 1, 1)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor(first).view(-1, 1, 1, 1, 1))
            self.b.weight.copy_(torch.tensor(second).view(-1, 1, 1, 1, 1))


def kept(ticket: Ticket) -> list[list[bool]]:
    return [mask.flatten().tolist() for mask in ticket.masks.values()]


def test_only_convolution_weights_are_prunable() -> None:
    """Up, convolutions, heads and the convolutions of support heads; no bias, no norm, no gate."""
    names = list(prunable(decoder(supporters=(Supporter("lungs", ("lung_left",), "ab"),))))
    assert names == [
        "ups.0.weight", "convs.0.0.conv.weight", "convs.0.1.conv.weight", "heads.0.weight", "support.0.mix.conv.weight", "support.0.head.weight",
    ]  # fmt: skip


def test_the_smallest_of_all_layers_together_go() -> None:
    """Half of six weights is three: 0.1, -0.2 and 0.3, wherever they are; signs do not matter."""
    network = Row([0.1, -5.0, 0.3], [-0.2, 4.0, 0.5])
    ticket = global_l1(network, Ticket.dense(network), 0.5)
    assert kept(ticket) == [[False, True, False], [False, True, True]]
    ticket.apply_(network)
    assert network.a.weight.flatten().tolist() == [0.0, -5.0, 0.0]
    assert network.b.weight.flatten().tolist() == [0.0, 4.0, 0.5]


def test_of_equal_weights_the_first_goes() -> None:
    """Four equal weights, two to go: always the two of the first layer."""
    network = Row([1.0, 1.0], [-1.0, 1.0])
    assert kept(global_l1(network, Ticket.dense(network), 0.5)) == [[False, False], [True, True]]


def test_the_dead_stay_dead_and_are_not_counted() -> None:
    """Half of the three survivors, rounded, is two; a dead weight that has grown large does not come back."""
    network = Row([9.0, 1.0], [2.0, 3.0])
    first = Ticket({"a.weight": torch.tensor([False, True]).view(2, 1, 1, 1, 1), "b.weight": torch.ones(2, 1, 1, 1, 1, dtype=torch.bool)})
    assert kept(global_l1(network, first, 0.5)) == [[False, False], [False, True]]


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=12))
def test_the_amounts_lead_to_the_targets(steps: list[float]) -> None:
    """Π (1 − aᵢ) up to every rung is 1 − pᵢ."""
    left, targets = 1.0, []
    for step in steps:
        left *= 1 - step
        targets.append(1 - left)
    alive = 1.0
    for amount, target in zip(ladder(targets), targets, strict=True):
        alive *= 1 - amount
        assert 1 - alive == pytest.approx(target, abs=1e-9)


def test_amounts_by_hand() -> None:
    """From 80 to 90 % half of what lives goes, from 90 to 95 % half again."""
    assert ladder((0.8, 0.9, 0.95)) == pytest.approx((0.8, 0.5, 0.5))


@pytest.mark.parametrize("targets", [(0.8, 0.8), (0.9, 0.8), (0.0,), (0.5, 1.0), (float("nan"),)])
def test_targets_that_do_not_rise_are_refused(targets: tuple[float, ...]) -> None:
    """Equal, falling, zero, one and not a number are recipe errors."""
    with pytest.raises(RecipeError, match="rise"):
        ladder(targets)


def test_the_ladder_ends_at_exact_counts() -> None:
    """Down the paper's ladder the share alive is 1 − p to within one weight a rung, and tickets only shrink."""
    network = decoder()
    ticket = Ticket.dense(network)
    for number, (target, amount) in enumerate(zip(PAPERS, ladder(PAPERS), strict=True)):
        before = ticket
        ticket = global_l1(network, ticket, amount)
        assert ticket.alive == before.alive - round(amount * before.alive)
        assert ticket.alive == pytest.approx((1 - target) * ticket.total, abs=1 + number)
        assert all(bool((before.masks[name] | ~mask).all()) for name, mask in ticket.masks.items())
        assert sparsity(ticket) == pytest.approx(target, abs=(1 + number) / ticket.total)


@given(amount=st.floats(0, 1), seed=st.integers(0, 5))
def test_counts_are_exact_for_any_amount(amount: float, seed: int) -> None:
    """The number that goes is the amount of those alive, rounded; none that stays is smaller than one that goes."""
    network = decoder(seed)
    ticket = global_l1(network, Ticket.dense(network), amount)
    sizes = torch.cat([w.detach().abs().flatten() for w in prunable(network).values()])
    alive = torch.cat([m.flatten() for m in ticket.masks.values()])
    assert int((~alive).sum()) == round(amount * len(sizes))
    if alive.any() and not alive.all():
        assert sizes[alive].min() >= sizes[~alive].max()


def test_amounts_and_weights_that_make_no_sense_are_refused() -> None:
    """More than everything cannot go; what is not a number cannot be ranked."""
    network = decoder()
    with pytest.raises(RecipeError, match=r"1\.5"):
        global_l1(network, Ticket.dense(network), 1.5)
    with torch.no_grad():
        network.heads[0].weight[0] = float("nan")
    with pytest.raises(TrainingError, match="not a number"):
        global_l1(network, Ticket.dense(network), 0.5)


def test_a_ticket_of_another_network_is_refused() -> None:
    """Another shape and a missing weight are told by name, and nothing is changed."""
    network, other = Row([1.0, 2.0], [3.0]), Row([1.0], [3.0])
    with pytest.raises(TrainingError, match=r"a\.weight"):
        Ticket.dense(other).apply_(network)
    with pytest.raises(TrainingError, match=r"b\.weight"):
        Ticket.dense(network).apply_to({"a.weight": network.a.weight})


def descend(network: Decoder, optimiser: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        features = [torch.randn(1, 4, 4, 4, 4, generator=generator), torch.randn(1, 6, 2, 2, 2, generator=generator)]
        network(features).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def test_pruned_weights_stay_exactly_zero_under_adamw() -> None:
    """With moments from dense training, weight decay and momentum: zero after every step, and survivors move."""
    network = decoder()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    descend(network, optimiser, 3)  # the moments of what will be pruned are not zero now
    ticket = global_l1(network, Ticket.dense(network), 0.7)
    before = {name: weight.detach().clone() for name, weight in prunable(network).items()}
    with ticket.held(network, optimiser):
        for _ in range(4):
            descend(network, optimiser, 1)
            for name, weight in prunable(network).items():
                mask = ticket.masks[name]
                assert bool((weight[~mask] == 0).all())
                moments = [optimiser.state[weight][k] for k in ("exp_avg", "exp_avg_sq")]
                assert all(bool((moment[~mask] == 0).all()) for moment in moments)
    moved = [bool((weight != before[name])[ticket.masks[name]].any()) for name, weight in prunable(network).items()]
    assert all(moved)
    assert nonzero(network) == ticket.alive


def test_after_the_block_everything_may_move_again() -> None:
    """Hooks end with the block: a step afterwards brings pruned weights back to life."""
    network = decoder()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
    ticket = global_l1(network, Ticket.dense(network), 0.5)
    with ticket.held(network, optimiser):
        descend(network, optimiser, 1)
    descend(network, optimiser, 1)
    assert nonzero(network) > ticket.alive


def test_the_dead_have_no_part_in_the_gradient() -> None:
    """Inside the block gradients of pruned weights are zero before clipping looks at them."""
    network = decoder()
    ticket = global_l1(network, Ticket.dense(network), 0.9)
    with ticket.held(network, torch.optim.AdamW(network.parameters())):
        network([torch.ones(1, 4, 4, 4, 4), torch.ones(1, 6, 2, 2, 2)]).sum().backward()
        for name, weight in prunable(network).items():
            assert bool((weight.grad[~ticket.masks[name]] == 0).all())


def test_an_average_is_masked_under_its_own_names() -> None:
    """With a prefix the tensors of a whole network's average are found; others are left alone."""
    network = nn.ModuleDict({"decoders": nn.ModuleDict({"liver": decoder(0), "lungs": decoder(1)})})
    average = Average(network, 0.9)
    others = {k: v.clone() for k, v in average.tensors.items() if "lungs" in k or "norm" in k}
    ticket = global_l1(network["decoders"]["liver"], Ticket.dense(decoder()), 0.6)
    ticket.apply_to(average.tensors, prefix="decoders.liver.")
    alive = sum(int(average.tensors["decoders.liver." + name].count_nonzero()) for name in ticket.masks)
    assert alive == ticket.alive
    assert all(torch.equal(average.tensors[k], v) for k, v in others.items())


def test_a_pruned_network_carries_its_ticket() -> None:
    """What is zero in the weights is dead in the ticket read from them."""
    network = decoder()
    ticket = global_l1(network, Ticket.dense(network), 0.8)
    ticket.apply_(network)
    found = Ticket.of(network)
    assert all(torch.equal(found.masks[name], mask) for name, mask in ticket.masks.items())


def test_infinite_weights_are_set_to_zero_too() -> None:
    """A dead weight is zero whatever it was: infinity times zero would not be."""
    network = Row([float("inf"), 1.0], [-2.0])
    Ticket({"a.weight": torch.tensor([False, True]).view(2, 1, 1, 1, 1), "b.weight": torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool)}).apply_(network)
    assert network.a.weight.flatten().tolist() == [0.0, 1.0]
    assert not torch.signbit(network.b.weight).any()


def test_tau_is_the_share_of_dense_weights_gone() -> None:
    """10 of 200 left is τ 0.95; more than there were, or none to begin with, is an error."""
    assert tau(200, 10) == pytest.approx(0.95)
    for dense, now in ((10, 11), (0, 0), (10, -1)):
        with pytest.raises(TrainingError, match="at most"):
            tau(dense, now)
