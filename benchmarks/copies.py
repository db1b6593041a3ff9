"""How much a scan's result changes when the same scan is stored with other voxel sizes.

    python benchmarks/copies.py CT [--factor 0.5 0.5 1] [--least-ml 2]

The copy covers the same box with voxels `factor` times as large (linear interpolation).  Its masks are compared with the
original's own result, brought back from the model's grid to the copy's voxels: so both are drawn on the same voxels, and what
differs is what the network saw.  Masks on voxels of different sizes can not agree better than their stairs: a parotid gland
on 4.7 mm and the same on 2.3 mm voxels have a Dice of 0.93.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import clseg.inference.infer as inferring
from clseg import Segmentation, Volume, segment
from clseg.inference.merge import Layer
from clseg.inference.prepare import Placement
from clseg.io.files import read
from clseg.spatial.orient import to_orientation
from clseg.spatial.runs import LabelRuns

Kept = list[tuple[Layer, Placement]]


def watched(scan: Volume, model: str = "starter") -> tuple[Segmentation, Kept]:
    """The result, and the layers on the model's grid from which it was restored."""
    kept: Kept = []
    real = inferring.restore

    def restore(layer: Layer, placement: Placement, like: Volume, *, smooth: bool = True) -> LabelRuns:
        kept.append((layer, placement))
        return real(layer, placement, like, smooth=smooth)

    inferring.restore = restore
    try:
        return segment(scan, model=model, offline=True), kept
    finally:
        inferring.restore = real


def copied(scan: Volume, factor: Sequence[float]) -> Volume:
    """The same box of the patient in voxels `factor` times as large, linear."""
    from scipy import ndimage

    shape = tuple(round(n / f) for n, f in zip(scan.shape, factor, strict=True))
    steps = np.array(scan.shape) / shape
    affine = scan.affine.copy()
    affine[:3, :3] = scan.affine[:3, :3] * steps
    affine[:3, 3] += scan.affine[:3, :3] @ ((steps - 1) / 2)
    array = ndimage.affine_transform(scan.array.astype(np.float32), np.diag(steps), (steps - 1) / 2, shape, order=1, mode="nearest")
    return Volume(np.rint(array).astype(np.int16), affine)


def agreement(scan: Volume, copy: Volume, model: str = "starter", *, least_ml: float = 0.0) -> dict[str, float]:
    """Dice per structure, of those of at least `least_ml`, between the copy's masks and the original's result on the copy's voxels."""
    first, kept = watched(scan, model)
    second, there = watched(copy, model)
    maps = [np.asarray(inferring.restore(layer, placement, copy)) for (layer, _), (_, placement) in zip(kept, there, strict=True)]
    found = {}
    for anatomy in first.present:
        mask = np.any([ids == anatomy.id for ids in maps], axis=0)
        if mask.sum() * np.prod(copy.spacing) / 1000 >= least_ml:
            found[anatomy.name] = dice(mask, second.mask(anatomy.name))
    return found


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * int((first & second).sum()) / max(1, int(first.sum()) + int(second.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct", type=Path)
    parser.add_argument("--factor", type=float, nargs=3, default=(0.5, 0.5, 1.0))
    parser.add_argument("--least-ml", type=float, default=0.0, help="leave out what is smaller: scraps are no measure")
    given = parser.parse_args()
    scan = to_orientation(read(given.ct), "RAS")
    copy = copied(scan, given.factor)
    print(f"{given.ct}: voxels of {np.round(scan.spacing, 2)} mm → {np.round(copy.spacing, 2)} mm")
    found = agreement(scan, copy, least_ml=given.least_ml)
    for name, value in sorted(found.items(), key=lambda pair: -pair[1]):
        print(f"{name:24s} {value:.3f}")
    print(f"{'mean':24s} {np.mean(list(found.values())):.3f}")


if __name__ == "__main__":
    main()
