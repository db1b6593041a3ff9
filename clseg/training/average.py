"""Average: the exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """θ_ema ← α·θ_ema + (1−α)·θ after every step.

    With `warm` α rises as min(α, (1+t)/(10+t)), so that random start weights are soon
    forgotten; without, what the average starts from weighs α^steps in the end.
    """

    def __init__(self, network: nn.Module, decay: float, *, warm: bool = True) -> None:
        self.decay = decay
        self.warm = warm
        self.tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        alpha = min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay
        present = network.state_dict()
        get_ema_multi_avg_fn(alpha)([self.tensors[name] for name in present], list(present.values()), None)


def decay_for(keep: float, steps: int) -> float:
    """α such that what the average starts from weighs `keep` after `steps` steps: keep^(1/steps)."""
    return keep ** (1 / max(1, steps))
