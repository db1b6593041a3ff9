"""Clean: specks go, and single organs are one piece."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clseg.catalogue import Anatomy
from clseg.inference.merge import FULL, Layer

SPECK_ML = 0.1  # pieces below this are noise on a 3 mm grid (about four voxels)


def clean(layer: Layer, anatomies: Iterable[Anatomy], voxel_mm3: float) -> None:
    """Remove pieces in place: all but the largest of single-component structures, specks of the others.

    A structure that is nothing but specks is removed altogether.  Pieces are
    26-connected.
    """
    from scipy import ndimage

    boxes = ndimage.find_objects(layer.labels)
    for anatomy in anatomies:
        if anatomy.id <= len(boxes) and boxes[anatomy.id - 1] is not None:
            box = boxes[anatomy.id - 1]
            mask = layer.labels[box] == anatomy.id
            dropped = mask & ~_kept(mask, anatomy.single_component, voxel_mm3)
            layer.labels[box][dropped] = 0
            layer.score[box][dropped] = FULL


def _kept(mask: np.ndarray, single: bool, voxel_mm3: float) -> np.ndarray:
    import cc3d

    pieces, count = cc3d.connected_components(mask.view(np.uint8), connectivity=26, return_N=True)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    enough = sizes * voxel_mm3 >= SPECK_ML * 1000
    enough[0] = False
    if single:  # of equally large pieces the first
        enough &= np.arange(count + 1) == sizes.argmax()
    return enough[pieces]
