"""The general encoder: trained once, then frozen."""

from __future__ import annotations

import torch
from torch import nn

from clseg.network.blocks import Blocks, ConvNormAct, ResidualBlock
from clseg.network.spec import EncoderSpec, Level


class Encoder(nn.Module):
    """Contracting path of a U-Net, plain or residual.

    Maps (batch, channels, x, y, z) to one feature map per level, full
    resolution first, bottleneck last.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        first, residual = spec.levels[0], spec.block == "residual"
        self.stem = ConvNormAct(spec.channels, first.width, first.kernel) if residual else nn.Identity()
        inputs = [first.width if residual else spec.channels, *(level.width for level in spec.levels[:-1])]
        build = _residual_level if residual else _plain_level
        self.levels = nn.ModuleList(build(i, level) for i, level in zip(inputs, spec.levels, strict=True))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, features = self.stem(x), []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def _plain_level(inputs: int, level: Level) -> Blocks:
    first = ConvNormAct(inputs, level.width, level.kernel, level.stride)
    rest = (ConvNormAct(level.width, level.width, level.kernel) for _ in range(level.convs - 1))
    return Blocks(first, *rest)


def _residual_level(inputs: int, level: Level) -> Blocks:
    first = ResidualBlock(inputs, level.width, level.kernel, level.stride)
    rest = (ResidualBlock(level.width, level.width, level.kernel) for _ in range(level.convs - 1))
    return Blocks(first, *rest)
