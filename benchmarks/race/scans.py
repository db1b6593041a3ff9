"""Scans: CTs of given sizes, made from real ones where there are some, else from the synthetic torso.

A scan is resampled to the voxels asked for; where it is too small it goes on as its mirror image, so that there are no seams.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clseg.io.files import read
from clseg.io.nifti import write_volume
from clseg.phantom import phantom
from clseg.spatial.orient import to_orientation
from clseg.spatial.resample import covering_shape, resample
from clseg.volume import Shape, Spacing, Volume

AIR_HU = -1000
CHEST = "lidc_idri/LIDC-IDRI-0314/ct.nii.gz"
STACK = ("acrin_flt_breast/ACRIN-FLT-Breast_AITest_05941/ct.nii.gz", CHEST, "openkbp/pt_101/ct.nii.gz")  # from the feet up


@dataclass(frozen=True)
class Size:
    """A scan to be made: its voxels and their edges in mm; `whole_body` has abdomen, chest, neck and head."""

    shape: Shape
    spacing: Spacing
    whole_body: bool = False

    @property
    def voxels(self) -> int:
        return int(np.prod(self.shape))


SIZES = {
    "tiny": Size((60, 50, 56), (6.0, 6.0, 6.0)),
    "tiny_long": Size((60, 50, 112), (6.0, 6.0, 6.0)),
    "tiny_body": Size((60, 60, 120), (6.0, 6.0, 6.0), whole_body=True),
    "small": Size((122, 101, 112), (3.0, 3.0, 3.0)),
    "medium": Size((512, 512, 150), (0.8, 0.8, 2.0)),
    "long": Size((512, 512, 600), (0.8, 0.8, 1.5)),
    "body": Size((512, 512, 600), (0.8, 0.8, 1.5), whole_body=True),
    "slices300": Size((512, 512, 300), (0.8, 0.8, 1.0)),
    "slices1200": Size((512, 512, 1200), (0.8, 0.8, 1.0)),
}


def make_scan(name: str, folder: Path, data: Path) -> Path:
    """The file of a scan of SIZES, made when it is not there yet, from the CTs in `data` if there are any."""
    path = folder / f"{name}.nii.gz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        size = SIZES[name]
        write_volume(path, fitted(_stacked(data) if size.whole_body else _chest(data), size))
    return path


def fitted(scan: Volume, size: Size) -> Volume:
    """The scan with the voxels of `size`: resampled, cut around its middle where it is too large, mirrored on where too small."""
    import torch

    shape = covering_shape(scan.shape, scan.spacing, size.spacing)
    values = resample(torch.from_numpy(scan.array.astype(np.float32)), scan.spacing, shape, size.spacing).round().numpy().astype(np.int16)
    for axis, wanted in enumerate(size.shape):
        values = _along(values, axis, wanted)
    return Volume(np.asfortranarray(values), np.diag([*size.spacing, 1.0]))


def _along(values: np.ndarray, axis: int, wanted: int) -> np.ndarray:
    """`wanted` rows of an axis."""
    there = values.shape[axis]
    if there >= wanted:
        return values.take(range((there - wanted) // 2, (there - wanted) // 2 + wanted), axis)
    before = (wanted - there) // 2 if axis < 2 else 0
    pad = [(0, 0)] * 3
    pad[axis] = (before, wanted - there - before)
    return np.pad(values, pad, mode="symmetric")


def _chest(data: Path) -> Volume:
    path = data / CHEST
    return to_orientation(read(path), "RAS") if path.is_file() else phantom()[0]


def _stacked(data: Path) -> Volume:
    """Abdomen, chest, neck and head of different patients on top of each other; the synthetic torso where they are not there."""
    if not all((data / part).is_file() for part in STACK):
        return phantom()[0]
    import torch

    grid, pieces = (3.0, 3.0, 3.0), []
    for part in STACK:
        scan = to_orientation(read(data / part), "RAS")
        shape = covering_shape(scan.shape, scan.spacing, grid)
        pieces.append(resample(torch.from_numpy(scan.array.astype(np.float32)), scan.spacing, shape, grid).numpy())
    plane = [max(piece.shape[axis] for piece in pieces) for axis in range(2)]
    centred = [np.pad(piece, [*(_around(n, w) for n, w in zip(piece.shape, plane, strict=False)), (0, 0)], constant_values=AIR_HU) for piece in pieces]
    return Volume(np.concatenate(centred, axis=2).round().astype(np.int16), np.diag([*grid, 1.0]))


def _around(there: int, wanted: int) -> tuple[int, int]:
    return (wanted - there) // 2, wanted - there - (wanted - there) // 2
