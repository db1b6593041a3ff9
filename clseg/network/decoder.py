"""A decoder: one organ family, one softmax, on the features of the frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clseg.errors import WeightsError
from clseg.network.blocks import ConvNormAct
from clseg.network.spec import DecoderSpec, EncoderSpec, Stage


class Decoder(nn.Module):
    """Expanding path of CL-Net: per stage a transposed convolution, concat(x, skip), convolutions, logits.

    `forward` maps the encoder's features to logits (batch, labels + 1, x, y, z) at
    the resolution of the encoder's first level; channel 0 is background.
    `forward_deep` returns the logits of every stage, finest first, for deep
    supervision.
    """

    def __init__(self, spec: DecoderSpec, encoder: EncoderSpec) -> None:
        super().__init__()
        if len(spec.stages) != len(encoder.levels) - 1:
            raise WeightsError(
                f"A decoder for this encoder has {len(encoder.levels) - 1} stages, this spec has {len(spec.stages)}."
            )
        self.spec = spec
        skips = encoder.levels[-2::-1]
        strides = [level.stride for level in encoder.levels[:0:-1]]
        inputs = [encoder.levels[-1].width, *(stage.convs[-1] for stage in spec.stages[:-1])]
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(i, stage.up, stride, stride, bias=False)
            for i, stage, stride in zip(inputs, spec.stages, strides, strict=True)
        )
        self.convs = nn.ModuleList(
            _convolutions(stage.up + skip.width, stage, spec.last_activation)
            for stage, skip in zip(spec.stages, skips, strict=True)
        )
        outputs = len(spec.labels) + 1
        self.heads = nn.ModuleList(nn.Conv3d(stage.convs[-1], outputs, 1, bias=False) for stage in spec.stages)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        x = features[-1]
        for stage in range(len(self.ups)):
            x = self._step(stage, x, features)
        return self.heads[-1](x)

    def forward_deep(self, features: Sequence[torch.Tensor], depth: int) -> list[torch.Tensor]:
        """Logits of the `depth` finest stages, finest first."""
        x, logits = features[-1], []
        for stage in range(len(self.ups)):
            x = self._step(stage, x, features)
            if stage >= len(self.ups) - depth:
                logits.append(self.heads[stage](x))
        return logits[::-1]

    def _step(self, stage: int, x: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        skip = features[-2 - stage]
        return self.convs[stage](torch.cat([self.ups[stage](x), skip], dim=1))


def _convolutions(inputs: int, stage: Stage, last_activation: bool) -> nn.Sequential:
    widths = [inputs, *stage.convs]
    last = len(stage.convs) - 1
    return nn.Sequential(
        *(
            ConvNormAct(widths[i], widths[i + 1], stage.kernel, act=last_activation or i < last or last == 0)
            for i in range(len(stage.convs))
        )
    )
