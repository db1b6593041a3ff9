"""Feature-level supporting: easy decoders help a hard one, level by level (CL-Net, arXiv 2503.12698)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clseg.network.blocks import ConvNormAct, PointConv


class SupportHead(nn.Module):
    """logits + gate · Conv1x1(LeakyReLU(IN(Conv3x3x3(concat(logits, supports))))), hidden width twice the input's.

    Maps `logits` (batch, `own`, x, y, z) and the supporters' logits of the same level
    (together `others` channels) to logits (batch, `own`, x, y, z).  No gradient
    reaches the supporters.  A gate of 0 gives `logits` back untouched.  `bias` is that
    of the Conv1x1, which the authors' own networks have.
    """

    def __init__(self, own: int, others: int, bias: bool = False) -> None:
        super().__init__()
        hidden = 2 * (own + others)
        self.mix = ConvNormAct(own + others, hidden, (3, 3, 3))
        self.head = PointConv(hidden, own, bias=bias)
        self.gate = nn.Parameter(torch.tensor(0.5))

    def forward(self, logits: torch.Tensor, supports: Sequence[torch.Tensor]) -> torch.Tensor:
        learning = torch.is_grad_enabled() and self.gate.requires_grad  # a gate at 0 may open again
        if not learning and float(self.gate) == 0:
            return logits
        joined = torch.cat([logits, *(support.detach() for support in supports)], dim=1)
        return logits + self.gate * self.head(self.mix(joined))
