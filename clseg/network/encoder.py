"""The general encoder: trained once, then frozen."""

from __future__ import annotations

import torch
from torch import nn

from clseg.network.blocks import ConvNormAct
from clseg.network.spec import EncoderSpec, Level


class Encoder(nn.Module):
    """Contracting path of a plain U-Net.

    Maps (batch, channels, x, y, z) to one feature map per level, full
    resolution first, bottleneck last.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        inputs = [spec.channels, *(level.width for level in spec.levels[:-1])]
        self.levels = nn.ModuleList(_level(i, level) for i, level in zip(inputs, spec.levels, strict=True))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def _level(inputs: int, level: Level) -> nn.Sequential:
    first = ConvNormAct(inputs, level.width, level.kernel, level.stride)
    rest = (ConvNormAct(level.width, level.width, level.kernel) for _ in range(level.convs - 1))
    return nn.Sequential(first, *rest)
