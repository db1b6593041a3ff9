"""Clean: specks go, and single organs are one piece."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clseg.catalogue import SPECK_ML, Anatomy
from clseg.inference.merge import Layer

_MANY = 1 << 20  # voxels that are counted at a time; numpy counts 64-bit copies


def clean(layer: Layer, anatomies: Iterable[Anatomy], voxel_mm3: float) -> None:
    """Remove pieces in place: all but the largest of single-component structures, of the others those below `min_piece_ml`.

    The largest piece stays however small, for a thin scan may show no more of it,
    unless it is a speck.  Pieces are 26-connected.
    """
    from scipy import ndimage

    boxes = ndimage.find_objects(layer.labels)
    for anatomy in anatomies:
        if anatomy.id <= len(boxes) and boxes[anatomy.id - 1] is not None:
            box = boxes[anatomy.id - 1]
            mask = layer.labels[box] == anatomy.id
            dropped = mask & ~_kept(mask, anatomy, voxel_mm3)
            layer.labels[box][dropped] = 0
            layer.score[box][dropped] = 0


def _kept(mask: np.ndarray, anatomy: Anatomy, voxel_mm3: float) -> np.ndarray:
    import cc3d

    pieces, count = cc3d.connected_components(mask.view(np.uint8), connectivity=26, return_N=True)
    sizes = sum(np.bincount(part.ravel(), minlength=count + 1) for part in np.array_split(pieces, 1 + pieces.size // _MANY))
    sizes[0] = 0
    largest = np.arange(count + 1) == sizes.argmax()  # of equally large ones the first
    others = np.zeros(count + 1, bool) if anatomy.single_component else sizes * voxel_mm3 >= anatomy.min_piece_ml * 1000
    return ((largest | others) & (sizes * voxel_mm3 >= SPECK_ML * 1000))[pieces]
