"""Slicer segmentation (.seg.nrrd): one file that 3D Slicer opens with the names, colours and terms of all structures, overlaps and all.

The format: https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clseg.catalogue import Anatomy
from clseg.io.formats.nrrd import write_nrrd
from clseg.io.segments import Segments
from clseg.io.terminology import SCHEME, Code, terms_of
from clseg.io.voxels import Piece, fortran, id_type, slabs
from clseg.spatial.crop import Box, around
from clseg.spatial.runs import LabelRuns, slices_of
from clseg.volume import Shape, Volume

_SLAB_VOXELS = 1 << 22
_TYPES_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGIONS_CONTEXT = "Anatomic codes - DICOM master list"


def write_seg_nrrd(path: Path, segments: Segments) -> None:
    """Write the structures that were found as one segmentation of 3D Slicer, whole or not at all; OutputError when it cannot be.

    Where structures overlap they lie on several layers, and the file has a list axis in front of the three of space;
    otherwise it has three axes.  Label values are the ids of the catalogue.  The same result gives the same bytes.
    """
    layers = _layers(segments)
    top = max((a.id for layer in layers for a in layer.holds), default=0)
    dtype = id_type(top)
    write_nrrd(path, _voxels(layers, dtype, segments.scan.shape), dtype, segments.scan, layers=max(1, len(layers)), facts=_facts(layers, segments.scan))


@dataclass(frozen=True)
class _Layer:
    """A label map, the structures that it alone holds, and the box around all of them."""

    array: np.ndarray | LabelRuns
    holds: tuple[Anatomy, ...]
    box: Box


# ---- layers -----------------------------------------------------------------------------------------------------------


def _layers(segments: Segments) -> list[_Layer]:
    """The layers of the result that hold something; a structure that lies on several gets one of its own."""
    split = [a for a in segments.present if sum(a.id in there for there in segments.regions) > 1]
    found = []
    for array, there in zip(segments.layers, segments.regions, strict=True):
        holds = tuple(a for a in segments.present if a.id in there and a not in split)
        if holds:
            named = _without(array, [a.id for a in split if a.id in there])
            found.append(_Layer(named, holds, around([there[a.id].box for a in holds])))
    for anatomy in split:
        boxes = [box for _, box in segments.pieces(anatomy)]
        found.append(_Layer(segments.mask(anatomy) * np.uint16(anatomy.id), (anatomy,), around(boxes)))
    return found


def _without(array: np.ndarray | LabelRuns, ids: list[int]) -> np.ndarray | LabelRuns:
    if not ids:
        return array
    kept = LabelRuns(array.shape)
    for rows, labels in slices_of(array):
        kept.put(rows.start, np.where(np.isin(labels, ids), 0, labels))
    return kept


def _voxels(layers: list[_Layer], dtype: np.dtype, shape: Shape) -> Iterator[Piece]:
    """The numbers of the file: for every voxel its labels on all layers, side by side; a few slices are put together at a time."""
    arrays = [layer.array for layer in layers] or [LabelRuns(shape)]
    for rows, labels in slices_of(arrays[0], _SLAB_VOXELS // len(arrays)):
        rest = [array[:, :, rows] for array in arrays[1:]]
        yield from slabs(np.asfortranarray(np.stack([labels, *rest]), dtype) if rest else fortran(labels, dtype))  # (layer, i, j, k)


# ---- what the header says ---------------------------------------------------------------------------------------------


def _facts(layers: list[_Layer], scan: Volume) -> dict[str, str]:
    """Keys and values of the header: of every segment, then of all."""
    facts: dict[str, str] = {}
    numbered = [(anatomy, number) for number, layer in enumerate(layers) for anatomy in layer.holds]
    numbered.sort(key=lambda one: one[0].id)
    for index, (anatomy, number) in enumerate(numbered):
        facts |= {f"Segment{index}_{key}": value for key, value in _segment(anatomy, number, layers[number].box).items()}
    return facts | {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": f"Reference image geometry|{_geometry(scan)}|The grid of the scan.&",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "Segmentation_SourceRepresentation": "Binary labelmap",  # what newer versions call the master
    }


def _segment(anatomy: Anatomy, layer: int, box: Box) -> dict[str, str]:
    """What 3D Slicer is told of one structure.

    The extent is that of the whole layer: 3D Slicer cuts a layer to the extent of the first of its segments.
    """
    return {
        "Color": " ".join(f"{part / 255:.6g}" for part in anatomy.colour),
        "ColorAutoGenerated": "0",
        "Extent": " ".join(f"{side.start} {side.stop - 1}" for side in box),
        "ID": anatomy.name,
        "LabelValue": str(anatomy.id),
        "Layer": str(layer),
        "Name": anatomy.name,
        "NameAutoGenerated": "0",
        "Tags": f"TerminologyEntry:{terminology_entry(anatomy)}|",
    }


def terminology_entry(anatomy: Anatomy) -> str:
    """The terms of a structure as 3D Slicer writes them: category~type~modifier in one context, region~modifier in another."""
    terms = terms_of(anatomy)
    types = "~".join(map(_triplet, (terms.kind, terms.type, terms.side)))
    return f"{_TYPES_CONTEXT}~{types}~{_REGIONS_CONTEXT}~{_triplet(terms.region)}~{_triplet(terms.region_side)}"


def _triplet(code: Code | None) -> str:
    return f"{SCHEME}^{code.value}^{code.meaning}" if code else "^^"


def _geometry(scan: Volume) -> str:
    """The grid as 3D Slicer spells it: the matrix from voxels to RAS row by row, then first and last index of every axis."""
    extent = [bound for length in scan.shape for bound in (0, length - 1)]
    return "".join(f"{number!r};" for number in [*(float(n) + 0.0 for n in scan.affine.ravel()), *extent])
