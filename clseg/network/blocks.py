"""The blocks that encoder and decoders are built of."""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from clseg.network import slabs, winograd
from clseg.network.slabs import FEW, LAST, Joined
from clseg.network.spec import Triple

POINT: Triple = (1, 1, 1)
MULTIPLIED = 32 << 20  # bytes that come up; more are as fast with torch, and are there only once


class PointConv(nn.Conv3d):
    """A 1×1×1 convolution as the matrix product that it is: (batch, inputs, x, y, z) → (batch, outputs, x, y, z).

    Weights, names and result are those of `nn.Conv3d`; on a CPU it is 4 to 20 times as
    fast with the few channels of a decoder (`benchmarks/convolution.py`).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _last_on_gpu(x):
            return super().forward(x)
        flat = x.flatten(2)
        weight = self.weight.flatten(1).expand(len(x), -1, -1)  # (batch, outputs, inputs)
        product = torch.bmm(weight, flat) if self.bias is None else torch.baddbmm(self.bias[None, :, None], weight, flat)
        return product.view(len(x), -1, *x.shape[2:])


class Conv(nn.Conv3d):
    """`nn.Conv3d`; without a gradient on a CPU it goes to oneDNN whatever the size of its input.

    Left to itself torch takes single windows with few channels to a path that is up to six
    times as slow (`benchmarks/convolution.py`).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _straight_to_onednn(x):
            return super().forward(x)
        if self.in_channels >= FEW:
            x = channels_last(x)
        elif self.in_channels == 1 and self.out_channels >= FEW:
            x = _last_already(x)
        if torch.is_inference_mode_enabled() and winograd.pays(self, x.shape):
            out = torch.empty((1, self.out_channels, *x.shape[2:]), memory_format=LAST)
            winograd.convolved(self, x, out)
            return out
        return torch.ops.aten.mkldnn_convolution(x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)


class Up(nn.ConvTranspose3d):
    """A transposed convolution whose kernel is its stride: (batch, inputs, x, y, z) → (batch, outputs, x·stride, y·stride, z·stride).

    On a CPU without a gradient up to five times as fast as torch's where little comes up at a time (LOG.md, 2026-11-26).
    """

    def __init__(self, inputs: int, outputs: int, stride: Triple, bias: bool = True) -> None:
        super().__init__(inputs, outputs, stride, stride, bias=bias)

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        x = channels_last(x)
        if _in_inference(x) and len(x) == 1 and 4 * x[0, 0].numel() * self.weight[0].numel() <= MULTIPLIED:
            return self._multiplied(x)
        return channels_last(super().forward(x, output_size))

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        """The same as one matrix product, whose columns are put in their places: what comes up from a voxel meets nothing else."""
        (inputs, outputs, *stride), size = self.weight.shape, x.shape[2:]
        flat, matrix = x.permute(0, 2, 3, 4, 1).reshape(-1, inputs), self.weight.permute(0, 2, 3, 4, 1).reshape(inputs, -1)
        product = flat @ matrix if self.bias is None else torch.addmm(self.bias.repeat(prod(stride)), flat, matrix)
        placed = product.view(*size, *stride, outputs).permute(0, 3, 1, 4, 2, 5, 6)
        return placed.reshape(1, *(n * s for n, s in zip(size, stride, strict=True)), outputs).permute(0, 4, 1, 2, 3)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """`x` with its channels last in memory where that is faster: in inference on a CPU, not in training (LOG.md, 2026-11-26)."""
    return x.contiguous(memory_format=LAST) if _in_inference(x) else x


def order_on(device: str) -> torch.memory_format:
    """How feature maps lie in the memory of a device, those that begin and all that is made of them: on a GPU with their channels last (LOG.md, 2026-11-27)."""
    return LAST if device.startswith("cuda") else torch.contiguous_format


def _last_on_gpu(x: torch.Tensor) -> bool:
    """Whether this is a feature map in the order of inference on a GPU."""
    return torch.is_inference_mode_enabled() and x.is_cuda and x.is_contiguous(memory_format=LAST) and not x.is_contiguous()


def _last_already(x: torch.Tensor) -> torch.Tensor:
    """`x` of one channel, whose channels come last as well as first, marked so that what is made of it has them last."""
    if not _in_inference(x):
        return x
    x, (*_, height, width) = x.contiguous(), x.shape
    return x.as_strided(x.shape, (x[0].numel(), 1, height * width, width, 1))


def _in_inference(x: torch.Tensor) -> bool:
    return torch.is_inference_mode_enabled() and _plain_on_cpu(x)


def _straight_to_onednn(x: torch.Tensor) -> bool:
    return _plain_on_cpu(x) and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


def _plain_on_cpu(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def convolution(inputs: int, outputs: int, kernel: Triple, stride: Triple = POINT, bias: bool = True) -> nn.Conv3d:
    """A convolution that keeps the size, divided by `stride`."""
    if kernel == POINT and stride == POINT:
        return PointConv(inputs, outputs, bias)
    return Conv(inputs, outputs, kernel, stride, padding=tuple(k // 2 for k in kernel), bias=bias)


class ConvNormAct(nn.Module):
    """Conv3d → InstanceNorm3d (eps 1e-5, affine) → LeakyReLU 0.01 (optional).

    Maps (batch, `inputs`, x, y, z) to (batch, `outputs`, x/stride, y/stride, z/stride).
    What is `spent` nobody needs afterwards: in inference the result may be written over it.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Triple, stride: Triple = POINT, act: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel, stride, bias)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.act = nn.LeakyReLU(0.01, inplace=True) if act else nn.Identity()

    def forward(self, x: torch.Tensor | Joined, spent: bool = False) -> torch.Tensor:
        return self.finished(_convolved(self.conv, x, spent))

    def finished(self, x: torch.Tensor) -> torch.Tensor:
        """What has been convolved, normalised and activated, written over it where that can be."""
        return self.act(_normalised(x, self.norm))


class Blocks(nn.Sequential):
    """Blocks in turn; what goes from one to the next is spent."""

    def forward(self, x: torch.Tensor, spent: bool = False) -> torch.Tensor:
        for number, block in enumerate(self):
            x = block(x, spent=spent or number > 0)
        return x


def joined_in_slabs(block: ConvNormAct, joined: Joined) -> bool:
    """Whether what the first block of a decoder's stage reads need not be put together first."""
    return _meets(block, joined) and _in_slabs(block.conv, joined.skip, joined.shape)


def folded(block: ConvNormAct, joined: Joined) -> bool:
    """Whether the first block of a decoder's stage reads both parts in turn (`clseg.network.fold`)."""
    point = isinstance(block.conv, PointConv) and isinstance(joined.up, Up) and not _hooked(block.conv)
    return point and _meets(block, joined) and len(joined.below) == 1 and _in_inference(joined.below) and _in_inference(joined.skip)


def _meets(block: ConvNormAct, joined: Joined) -> bool:
    """Whether what comes up has the size of the skip, and nobody listens."""
    grown = tuple(n * s for n, s in zip(joined.below.shape[2:], joined.up.stride, strict=True))
    return grown == tuple(joined.skip.shape[2:]) and not _hooked(block, joined.up, joined.chosen)


def _in_slabs(conv: nn.Conv3d, x: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether `conv` of something of `shape`, of which `x` is a part, is computed slab by slab."""
    fits = isinstance(conv, Conv) and set((*conv.stride, *conv.dilation, conv.groups, len(x))) == {1} and not _hooked(conv)
    return fits and _in_inference(x) and _straight_to_onednn(x) and slabs.are_worthwhile(shape[1], prod(shape[2:]))


def _hooked(*modules: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def _convolved(conv: nn.Conv3d, x: torch.Tensor | Joined, spent: bool) -> torch.Tensor:
    """`conv` of `x`, in slabs where that saves memory: nothing is joined, or the result lies where `x` was."""
    if isinstance(x, Joined):
        return slabs.convolved(conv, x, x.skip if spent and _may_lie_there(conv, x.skip) else None)
    if spent and _may_lie_there(conv, x) and _in_slabs(conv, x, tuple(x.shape)):
        return slabs.convolved(conv, slabs.Whole(x), x)
    return conv(x)


def _may_lie_there(conv: nn.Conv3d, x: torch.Tensor) -> bool:
    return x.shape[1] == conv.out_channels and x.is_contiguous(memory_format=LAST)


def _normalised(x: torch.Tensor, norm: nn.InstanceNorm3d) -> torch.Tensor:
    """`norm(x)`, written over `x`, which nobody else has, where torch's own kernel can do so.

    It spares a feature map of memory and the third of the time that the system takes to
    hand that out.  Of one window the statistics of an instance are those of the batch, so
    that channels may stay last, an order that `norm` gives up.
    """
    if _last_on_gpu(x) and x[0, 0].numel() > 1 and not norm._forward_hooks:
        for window in x.split(1):
            _normalise_as_batch(window, norm.weight, norm.bias, norm.eps)
        return x
    last = len(x) == 1 and x.is_contiguous(memory_format=LAST)
    if not _straight_to_onednn(x) or not (last or x.is_contiguous()) or x[0, 0].numel() == 1 or norm._forward_hooks:
        return norm(x)
    weight, bias = norm.weight.repeat(len(x)), norm.bias.repeat(len(x))
    _normalise_as_batch(x if last else x.view(1, -1, *x.shape[2:]), weight, bias, norm.eps)
    return x


def _normalise_as_batch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
    """Every channel normalised over all voxels, in place."""
    mean, inverse_sd = torch.empty_like(weight), torch.empty_like(weight)
    torch.ops.aten.native_batch_norm.out(x, weight, bias, None, None, True, 0.0, eps, out=x, save_mean=mean, save_invstd=inverse_sd)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, as in the residual encoders of nnU-Net: LeakyReLU(second(first(x)) + skip(x)).

    The shortcut averages over `stride` where that is not 1, and is projected (1×1×1 without
    bias, normalised) where the width changes.
    Maps (batch, `inputs`, x, y, z) to (batch, `outputs`, x/stride, y/stride, z/stride).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = POINT) -> None:
        super().__init__()
        self.first = ConvNormAct(inputs, outputs, kernel, stride)
        self.second = ConvNormAct(outputs, outputs, kernel, act=False)
        self.pool = nn.AvgPool3d(stride, stride) if stride != POINT else nn.Identity()
        self.skip = ConvNormAct(inputs, outputs, POINT, act=False, bias=False) if inputs != outputs else nn.Identity()
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: torch.Tensor, spent: bool = False) -> torch.Tensor:
        long, short = self.second(self.first(x), spent=True), self.skip(self.pool(x))
        return self.act(long.add_(short) if _in_inference(long) else long + short)
