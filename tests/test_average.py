"""Facts about the moving average of weights."""

from __future__ import annotations

from math import factorial

import pytest
import torch
from torch import nn

from clseg.training.average import Average


def constant(value: float) -> nn.Module:
    network = nn.Linear(2, 1)
    for p in network.parameters():
        nn.init.constant_(p, value)
    return network


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_constant_is_approached_geometrically(steps: int) -> None:
    """With α ≤ 1/10 there is no warm-up: from 0 towards a constant 1, 1 − αⁿ is reached after n steps."""
    average = Average(constant(0.0), decay=0.1)
    for step in range(steps):
        average.update(constant(1.0), step)
    assert average.tensors["weight"].flatten().tolist() == pytest.approx([1 - 0.1**steps] * 2, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_start_is_forgotten_fast(steps: int) -> None:
    """With α near 1 the share of the start left after n steps is Π (1+t)/(10+t) = n!·9!/(n+9)!."""
    average = Average(constant(1.0), decay=0.999)
    for step in range(steps):
        average.update(constant(0.0), step)
    assert float(average.tensors["bias"]) == pytest.approx(factorial(steps) * factorial(9) / factorial(steps + 9), rel=1e-5)


def test_after_the_warm_up_the_decay_is_the_recipes() -> None:
    """At step 10⁶ one update with α = 0.75 moves the average a quarter of the way."""
    average = Average(constant(0.0), decay=0.75)
    average.update(constant(8.0), 10**6)
    assert average.tensors["weight"].flatten().tolist() == [2.0, 2.0]


def test_network_and_average_are_apart() -> None:
    """Changing the network in place does not change the average, and updating does not change the network."""
    network = constant(3.0)
    average = Average(network, decay=0.5)
    with torch.no_grad():
        network.weight.fill_(5.0)
    assert average.tensors["weight"].flatten().tolist() == [3.0, 3.0]
    average.update(network, 0)
    assert network.weight.flatten().tolist() == [5.0, 5.0]
    assert not average.tensors["weight"].requires_grad
