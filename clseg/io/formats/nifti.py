"""NIfTI: masks and label maps of results; `clseg.io.nifti` knows the format itself."""

from __future__ import annotations

from pathlib import Path

from clseg.catalogue import Anatomy
from clseg.io.nifti import write_label_map, write_mask, write_structure
from clseg.io.segments import Segments


def write_nifti_map(path: Path, segments: Segments) -> None:
    """One label map of catalogue ids (part hides whole), names and colours of all structures looked for embedded."""
    labels = {a.id: (a.name, a.colour) for a in segments.wanted}
    write_label_map(path, (part for _, part in segments.flat_slices()), segments.scan, labels)


def write_nifti_mask(path: Path, segments: Segments, anatomy: Anatomy) -> None:
    """The mask of one structure, straight from the only layer that holds it where that is so."""
    holding = list(segments.pieces(anatomy))
    if len(holding) == 1:
        layer, box = holding[0]
        write_structure(path, layer, anatomy.id, box, segments.scan)
    else:
        write_mask(path, segments.mask(anatomy), segments.scan)
