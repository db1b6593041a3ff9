"""Average: the exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


class Average:
    """θ_ema ← α·θ_ema + (1−α)·θ, with α warmed up as min(α, (1+t)/(10+t)) so that the start is forgotten."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        alpha = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            self.tensors[name].lerp_(tensor, 1 - alpha)
