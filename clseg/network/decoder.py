"""A decoder: one organ family, one softmax, on the features of the frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from clseg.errors import WeightsError
from clseg.network.blocks import Blocks, ConvNormAct, PointConv, Up, folded, joined_in_slabs
from clseg.network.fold import fold
from clseg.network.slabs import LAST, Joined
from clseg.network.spec import DecoderSpec, EncoderSpec, Stage, joins, reached
from clseg.network.support import SupportHead
from clseg.network.upsample import upsampled

Supports = Sequence[Sequence[torch.Tensor]]  # per supporter its logits, finest first


class Decoder(nn.Module):
    """Expanding path of CL-Net: per stage a transposed convolution, concat(x, skip), convolutions, logits.

    `forward` maps the encoder's features to logits (batch, labels + 1, x, y, z) at
    the resolution of the level where its last stage ends; channel 0 is background.
    `forward_deep` returns the logits of every stage, finest first, for deep
    supervision.

    A decoder with supporters needs their logits: `supports[i]` are those of supporter
    i, finest first, at all its stages.  WeightsError when it
    gets another number of supporters than its spec names.
    """

    def __init__(self, spec: DecoderSpec, encoder: EncoderSpec) -> None:
        super().__init__()
        wiring = joins(spec, encoder)
        self.spec = spec
        self.ups = nn.ModuleList(
            Up(join.below, stage.up, join.stride, bias=spec.bias)
            for join, stage in zip(wiring, spec.stages, strict=True)
        )
        self.skips = nn.ModuleList(
            Channels(stage.skip, level.width) for stage, level in zip(spec.stages, reached(spec, encoder), strict=True)
        )
        self.convs = nn.ModuleList(
            _convolutions(stage.up + join.skip, stage, spec.last_activation)
            for stage, join in zip(spec.stages, wiring, strict=True)
        )
        outputs = len(spec.labels) + 1
        self.heads = nn.ModuleList(PointConv(stage.convs[-1], outputs, bias=spec.bias) for stage in spec.stages)
        others = sum(len(supporter.labels) + 1 for supporter in spec.supporters)
        self.support = nn.ModuleList(SupportHead(outputs, others, spec.support_bias) for _ in spec.stages if others)

    def forward(self, features: Sequence[torch.Tensor], supports: Supports = ()) -> torch.Tensor:
        return self.forward_deep(features, 1, supports)[0]

    def forward_deep(
        self, features: Sequence[torch.Tensor], depth: int, supports: Supports = (), *, spend: bool = False
    ) -> list[torch.Tensor]:
        """Logits of the `depth` finest stages, finest first.

        With `spend` the list `features` is used up: what is read is let go and may be written over.
        """
        if len(supports) != len(self.spec.supporters):
            names = ", ".join(supporter.name for supporter in self.spec.supporters) or "none"
            raise WeightsError(f"This decoder needs the logits of its supporters ({names}), given those of {len(supports)}.")
        left = features if spend and isinstance(features, list) else list(features)
        x, logits = left.pop(), []
        for stage in range(len(self.ups)):
            x = self._step(stage, x, left.pop(), spend)
            if stage >= len(self.ups) - depth:
                logits.append(self._logits(stage, x, supports))
        return logits[::-1]

    def _step(self, stage: int, x: torch.Tensor, skip: torch.Tensor, spend: bool) -> torch.Tensor:
        first = self.convs[stage][0]
        whole, *others = (partial(block, spent=True) for block in self.convs[stage])
        joined = Joined(x, self.ups[stage], skip, self.skips[stage], first.conv.in_channels)
        del x, skip
        if folded(first, joined):
            met, steps = fold(first.conv, joined), [first.finished, *others]
        elif joined_in_slabs(first, joined):
            met, steps = first(joined, spent=spend), others
        else:
            met, steps = self._put_together(joined), [whole, *others]
        del joined  # and with it the skip, which nobody else may need
        for step in steps:
            met = step(met)
        return met

    def _put_together(self, joined: Joined) -> torch.Tensor:
        """What the convolutions of a stage read."""
        return torch.cat(_meeting(joined.up(joined.below), joined.chosen(joined.skip), self.spec.mismatch), dim=1)

    def _logits(self, stage: int, x: torch.Tensor, supports: Supports) -> torch.Tensor:
        logits = self.heads[stage](x)
        if not supports:
            return logits
        return self.support[stage](logits, [_alike(support, logits) for support in supports])


def _alike(support: Sequence[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """A supporter's logits at the level of `logits`; those of a supporter that ends at a coarser level are upsampled."""
    size = logits.shape[2:]
    return upsampled(next((level for level in support if level.shape[2:] == size), support[0]), size)


def _meeting(x: torch.Tensor, skip: torch.Tensor, mismatch: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` from below and the skip, of one size, by the rule `mismatch` of the decoder's spec."""
    if not mismatch or x.shape[2:] == skip.shape[2:]:
        return x, skip
    if mismatch == "resize":
        return nn.functional.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True), skip
    shared = tuple(map(min, x.shape[2:], skip.shape[2:]))
    return _centre(x, shared), _centre(skip, shared)


def _centre(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The middle of the last three axes, one voxel nearer to the beginning where halves do not come out."""
    first = [(n - wanted) // 2 for n, wanted in zip(x.shape[2:], shape, strict=True)]
    return x[(..., *(slice(start, start + wanted) for start, wanted in zip(first, shape, strict=True)))]


class Channels(nn.Module):
    """The channels `wanted` of a feature map with `width` channels; all of them cost nothing."""

    def __init__(self, wanted: tuple[int, ...] | None, width: int) -> None:
        super().__init__()
        every = wanted is None or len(wanted) == width
        self.register_buffer("index", None if every else torch.tensor(wanted, dtype=torch.long, device="cpu"), persistent=False)

    def spread(self, weight: torch.Tensor, width: int) -> torch.Tensor:
        """`weight` (outputs, wanted) as (outputs, width), 0 for channels that are not wanted."""
        if self.index is None:
            return weight
        return weight.new_zeros(len(weight), width).index_copy_(1, self.index, weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.index is None:
            return x
        if x.is_contiguous(memory_format=LAST) and not x.is_contiguous():  # index_select takes seven times as long there
            return x.permute(0, 2, 3, 4, 1)[..., self.index].permute(0, 4, 1, 2, 3)
        return x.index_select(1, self.index)


def _convolutions(inputs: int, stage: Stage, last_activation: bool) -> Blocks:
    widths = [inputs, *stage.convs]
    last = len(stage.convs) - 1
    return Blocks(
        *(
            ConvNormAct(widths[i], widths[i + 1], stage.kernel, act=last_activation or i < last or last == 0)
            for i in range(len(stage.convs))
        )
    )
