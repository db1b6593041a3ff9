"""Meshes: the skin of a structure as STL, OBJ or PLY, in LPS+ millimetres as 3D Slicer takes them, and their header says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from clseg.catalogue import Anatomy
from clseg.io.files import writing
from clseg.io.segments import Segments
from clseg.spatial.crop import around
from clseg.spatial.surface import Surface, surface_of

SPACE = "SPACE=LPS"  # what 3D Slicer looks for in headers and comments
_RAS_TO_LPS = (-1.0, -1.0, 1.0)


def skin(segments: Segments, anatomy: Anatomy) -> Surface:
    """The closed surface of a structure that was found, in RAS+ mm; UsageError without the extra `mesh`."""
    holding = list(segments.pieces(anatomy))
    if len(holding) == 1:
        layer, box = holding[0]
        return surface_of(layer, anatomy.id, box, segments.scan.affine)
    return surface_of(segments.mask(anatomy), 1, around([box for _, box in holding]), segments.scan.affine)


def write_stl(path: Path, surface: Surface, anatomy: Anatomy) -> None:
    """Binary STL; its header names structure and space."""
    facets = np.zeros(len(surface.triangles), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("extra", "<u2")])
    lengths = np.linalg.norm(surface.normals, axis=1, keepdims=True)
    facets["normal"] = surface.normals / np.where(lengths > 0, lengths, 1) * _RAS_TO_LPS
    facets["corners"] = (surface.points * _RAS_TO_LPS)[surface.triangles]
    header = f"clseg {anatomy.name[:50]} {SPACE}".encode("ascii", "replace")  # never `solid`, which would mean text
    with writing(path) as stream:
        stream.write(header[:80].ljust(80))
        stream.write(len(facets).to_bytes(4, "little"))
        stream.write(facets.tobytes())


def write_obj(path: Path, surface: Surface, anatomy: Anatomy) -> None:
    """Wavefront OBJ (text, a tenth of a micrometre); a comment names the space."""
    with writing(path, "w") as stream:
        stream.write(f"# clseg {SPACE}\no {anatomy.name}\n")
        for point in (surface.points * _RAS_TO_LPS).tolist():
            stream.write("v {:.4f} {:.4f} {:.4f}\n".format(*point))
        for triangle in (surface.triangles + 1).tolist():
            stream.write("f {} {} {}\n".format(*triangle))


def write_ply(path: Path, surface: Surface, anatomy: Anatomy) -> None:
    """Binary PLY with the structure's colour at every point; comments name structure and space."""
    points = np.zeros(len(surface.points), [("at", "<f4", 3), ("colour", "u1", 3)])
    points["at"], points["colour"] = surface.points * _RAS_TO_LPS, anatomy.colour
    faces = np.zeros(len(surface.triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, surface.triangles
    head = ["ply", "format binary_little_endian 1.0", f"comment clseg {anatomy.name}", f"comment {SPACE}", f"element vertex {len(points)}"]
    head += [*(f"property float {axis}" for axis in "xyz"), *(f"property uchar {colour}" for colour in ("red", "green", "blue"))]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    with writing(path) as stream:
        stream.write(("\n".join(head) + "\n").encode())
        stream.write(points.tobytes())
        stream.write(faces.tobytes())


MESH_WRITERS: Mapping[str, Callable[[Path, Surface, Anatomy], None]] = {"stl": write_stl, "obj": write_obj, "ply": write_ply}
