"""How much faster and smaller a pruned decoder is than the dense one, side by side in one run.

    python benchmarks/pruning.py ENCODER DENSE PRUNED [--threads 2] [--repeats 15]

The three files are what `clseg` stores (safetensors).  Both decoders run on the same features of one random window,
in turns, so that whatever else the machine does meets both; the ratio of each pair is taken, and the median of all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from clseg.network.checkpoint import Checkpoint, build_decoder, build_encoder, load, stored
from clseg.network.cost import cost
from clseg.network.spec import Triple
from clseg.network.upsample import upsampled
from clseg.training.ticket import nonzero, tau


def seconds(decoder: torch.nn.Module, features: list[torch.Tensor], patch: Triple) -> float:
    """One pass over one window, to logits on its voxels."""
    started = time.perf_counter()
    upsampled(decoder(features), patch)
    return time.perf_counter() - started


def plain_bytes(checkpoint: Checkpoint) -> int:
    """Of a file without its card, which says nothing about the network."""
    return len(stored(Checkpoint(checkpoint.kind, checkpoint.spec, checkpoint.tensors, encoder=checkpoint.encoder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("encoder", "dense", "pruned"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    root, dense, pruned = (load(getattr(given, name)) for name in ("encoder", "dense", "pruned"))
    encoder, patch = build_encoder(root), root.spec.grid.patch
    first, second = (build_decoder(part, root.spec) for part in (dense, pruned))
    window = torch.randn(1, root.spec.channels, *patch, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = encoder(window)
        for decoder in (first, second):
            seconds(decoder, features, patch)
        pairs = [(seconds(first, features, patch), seconds(second, features, patch)) for _ in range(given.repeats)]
    ratios = [a / b for a, b in pairs]
    flops = [cost(part.spec, root.spec, patch).flops for part in (dense, pruned)]
    sizes = [plain_bytes(part) for part in (dense, pruned)]
    print(f"torch {torch.__version__}, {given.threads} threads, window {patch}, {given.repeats} pairs")
    print(f"dense {1000 * statistics.median(a for a, _ in pairs):.1f} ms, pruned {1000 * statistics.median(b for _, b in pairs):.1f} ms (medians)")
    print(f"faster by {statistics.median(ratios):.2f} (median of pairs; {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"FLOPs fewer by {flops[0] / flops[1]:.2f}; file smaller by {sizes[0] / sizes[1]:.2f} ({sizes[0]} to {sizes[1]} bytes)")
    print(f"pruning rate tau {tau(nonzero(first), nonzero(second)):.4f}")


if __name__ == "__main__":
    main()
