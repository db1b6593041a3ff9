"""The one block that encoder and decoders are built of."""

from __future__ import annotations

import torch
from torch import nn

from clseg.network.spec import Triple


class ConvNormAct(nn.Module):
    """Conv3d (with bias) → InstanceNorm3d (eps 1e-5, affine) → LeakyReLU 0.01 (optional).

    Maps (batch, `inputs`, x, y, z) to (batch, `outputs`, x/stride, y/stride, z/stride).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1), act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=tuple(k // 2 for k in kernel))
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.act = nn.LeakyReLU(0.01, inplace=True) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))
