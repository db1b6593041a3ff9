"""How much the convolutions of `clseg.network.blocks` save against torch's own on a CPU, layer by layer.

    python benchmarks/convolution.py [--threads 2] [--repeats 15]

Layers are those of the starter on one window of 80³ voxels; then large ones, as nnU-Net's, by oneDNN alone and by
Winograd's algorithm over it, both with channels last.  Both ways run in turns on the same input, so that whatever else
the machine does meets both; times are medians, the ratio is that of the pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from clseg.network import winograd
from clseg.network.blocks import convolution
from clseg.network.upsample import upsampled

LAYERS = (  # channels in, channels out, kernel, stride, voxels along an edge
    (1, 8, 3, 1, 80),
    (8, 32, 3, 2, 80),
    (32, 32, 3, 1, 40),
    (48, 16, 3, 1, 40),
    (96, 32, 3, 1, 20),
    (32, 32, 3, 1, 20),
    (192, 64, 3, 1, 10),
    (64, 64, 3, 1, 10),
    (16, 8, 1, 1, 80),
    (8, 3, 1, 1, 80),
)
LARGE = ((32, 32, 112), (64, 32, 112), (64, 64, 56), (128, 64, 56), (128, 128, 28), (256, 128, 28), (256, 256, 14), (512, 256, 14))  # channels, edge


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compared(title: str, plain: Callable[[], object], ours: Callable[[], object], repeats: int) -> None:
    for run in (plain, ours):
        run()
    pairs = [(seconds(plain), seconds(ours)) for _ in range(repeats)]
    torch_ms, our_ms = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{title:34s} torch {torch_ms:8.2f} ms   clseg {our_ms:8.2f} ms   {ratio:6.1f} times as fast")


def onednn(layer: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.mkldnn_convolution(x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups)


def by_winograd(layer: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty((1, layer.out_channels, *x.shape[2:]), memory_format=torch.channels_last_3d)
    winograd.convolved(layer, x, out)
    return out


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, {given.repeats} pairs, batch 1")
    for inputs, outputs, kernel, stride, edge in LAYERS:
        layer = convolution(inputs, outputs, (kernel,) * 3, (stride,) * 3)
        x = torch.randn(1, inputs, edge, edge, edge)

        def plain(layer: torch.nn.Conv3d = layer, x: torch.Tensor = x) -> torch.Tensor:
            return torch.nn.functional.conv3d(x, layer.weight, layer.bias, layer.stride, layer.padding)

        compared(f"{inputs:3d} → {outputs:2d}, {kernel}×{kernel}×{kernel}, step {stride}, {edge}³", plain, lambda layer=layer, x=x: layer(x), given.repeats)
    for inputs, outputs, edge in LARGE:
        large = convolution(inputs, outputs, (3, 3, 3))
        x = torch.randn(1, inputs, edge, edge, edge).contiguous(memory_format=torch.channels_last_3d)
        compared(f"{inputs:3d} → {outputs:3d}, 3×3×3, {edge}³, Winograd", partial(onednn, large, x), partial(by_winograd, large, x), given.repeats)
    coarse, fine = torch.randn(1, 3, 40, 40, 40), (80, 80, 80)
    compared("3 channels, 40³ → 80³, trilinear", lambda: torch.nn.functional.interpolate(coarse, fine, mode="trilinear"), lambda: upsampled(coarse, fine), given.repeats)


if __name__ == "__main__":
    main()
