"""NRRD: masks and label maps with their place in the patient, for 3D Slicer, ITK and whoever reads NRRD; compressed slab by slab."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from clseg.catalogue import Anatomy
from clseg.io.files import writing
from clseg.io.segments import Segments
from clseg.io.voxels import Piece, as_ids, gzipped, id_type, slabs, slabs_of, structure_slabs
from clseg.volume import Volume

_TYPES = {1: "unsigned char", 2: "unsigned short"}
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def write_nrrd_map(path: Path, segments: Segments) -> None:
    """One label map of catalogue ids (part hides whole) as NRRD; uint16 when an id above 255 was looked for, else uint8."""
    dtype = id_type(max((a.id for a in segments.wanted), default=0))
    write_nrrd(path, slabs_of((part for _, part in segments.flat_slices()), dtype), dtype, segments.scan)


def write_nrrd_mask(path: Path, segments: Segments, anatomy: Anatomy) -> None:
    """The mask of one structure as NRRD, uint8 of 0 and 1; of a structure on one layer only its own slices are looked at."""
    holding = list(segments.pieces(anatomy))
    if len(holding) == 1:
        layer, box = holding[0]
        voxels = structure_slabs(layer, anatomy.id, box)
    else:
        voxels = slabs(as_ids(segments.mask(anatomy)))
    write_nrrd(path, voxels, np.dtype(np.uint8), segments.scan)


def write_nrrd(path: Path, voxels: Iterable[Piece], dtype: np.dtype, like: Volume, *, layers: int = 1, facts: Mapping[str, str] | None = None) -> None:
    """Write `voxels` (uint8 or little-endian uint16, in file order) on the grid of `like` as a gzip NRRD, whole or not at all.

    Several `layers` lie on a list axis in front of the three of space, that is, voxel by voxel side by side.  `facts` are
    keys and values of the header.  The same input gives the same bytes.  Raises OutputError when it cannot be written.
    """
    header = _header(dtype, like, layers, facts or {})
    with writing(path) as stream:
        for piece in chain([header], gzipped(voxels)):
            stream.write(piece)


def _header(dtype: np.dtype, like: Volume, layers: int, facts: Mapping[str, str]) -> bytes:
    affine = _RAS_TO_LPS @ like.affine[:3] + 0.0  # no negative zeros
    several = layers > 1
    fields = {
        "type": _TYPES[dtype.itemsize],
        "dimension": "4" if several else "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, [layers, *like.shape] if several else like.shape)),
        "space directions": " ".join(["none"] * several + [_vector(affine[:, axis]) for axis in range(3)]),
        "kinds": " ".join(["list"] * several + ["domain"] * 3),
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(affine[:, 3]),
    }
    lines = ["NRRD0004", *(f"{key}: {value}" for key, value in fields.items()), *(f"{key}:={value}" for key, value in facts.items())]
    return ("\n".join(lines) + "\n\n").encode()


def _vector(numbers: np.ndarray) -> str:
    """`(1.5,0.0,-2.25)`: every number with all of its digits."""
    return f"({','.join(repr(float(number)) for number in numbers)})"
