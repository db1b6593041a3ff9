"""Mesh files hold the surface in LPS millimetres, say so where 3D Slicer looks, and read back as what was written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from clseg.catalogue import Catalogue
from clseg.errors import OutputError
from clseg.io.formats.meshes import MESH_WRITERS, skin
from clseg.io.segments import Segments
from clseg.spatial.surface import Surface, tools_are_there
from clseg.volume import Volume
from tests.test_nrrd import tilted

CATALOGUE = Catalogue.builtin()
LIVER, BODY = CATALOGUE["liver"], CATALOGUE["body"]


def tetrahedron() -> Surface:
    """Corners at the origin and at 3, 4 and 5 mm along the axes: 10 mm³."""
    points = np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 5]], float)
    return Surface(points, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def read_stl(file: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Header, corners (m, 3, 3) and normals (m, 3) of a binary STL, read by its definition."""
    content = file.read_bytes()
    count = int.from_bytes(content[80:84], "little")
    assert len(content) == 84 + 50 * count
    rows = np.frombuffer(content[84:], np.dtype([("numbers", "<f4", 12), ("extra", "<u2")]))
    return content[:80].decode("ascii").rstrip(), rows["numbers"][:, 3:].reshape(-1, 3, 3), rows["numbers"][:, :3]


def read_obj(file: Path) -> tuple[str, np.ndarray]:
    """First line and corners of an OBJ."""
    lines = file.read_text().splitlines()
    points = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    triangles = np.array([line.split()[1:] for line in lines if line.startswith("f ")], int) - 1
    return lines[0], points[triangles]


def read_ply(file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Comments, corners and colours of a binary PLY with float places, uchar colours and triangles."""
    head, _, body = file.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    count = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith("element")}
    points = np.frombuffer(body, np.dtype([("at", "<f4", 3), ("colour", "u1", 3)]), count["vertex"])
    faces = np.frombuffer(body[points.nbytes :], np.dtype([("count", "u1"), ("corners", "<i4", 3)]), count["face"])
    assert (faces["count"] == 3).all()
    assert points.nbytes + faces.nbytes == len(body)
    return [line for line in lines if line.startswith("comment")], points["at"][faces["corners"]], points["colour"]


def volume(corners: np.ndarray) -> float:
    """By the divergence theorem, from corners (m, 3, 3) alone."""
    a, b, c = corners.astype(float).transpose(1, 0, 2)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def corners_of(file: Path) -> np.ndarray:
    return {".stl": lambda: read_stl(file)[1], ".obj": lambda: read_obj(file)[1], ".ply": lambda: read_ply(file)[1]}[file.suffix]()


@pytest.mark.parametrize("kind", MESH_WRITERS)
def test_a_tetrahedron_comes_back_in_lps(tmp_path, kind):
    """The corner at 3 mm to the right is at -3 in the file; turned half about the long axis, normals still point outwards: 10 mm³."""
    file = tmp_path / f"liver.{kind}"
    MESH_WRITERS[kind](file, tetrahedron(), LIVER)
    corners = corners_of(file)
    assert {tuple(corner) for corner in corners.reshape(-1, 3).tolist()} == {(0, 0, 0), (-3, 0, 0), (0, -4, 0), (0, 0, 5)}
    assert volume(corners) == pytest.approx(10)


def test_an_stl_names_its_space_and_has_unit_normals(tmp_path):
    """Its header holds the words that 3D Slicer looks for and does not begin like a text file; the bottom looks down."""
    MESH_WRITERS["stl"](tmp_path / "x.stl", tetrahedron(), LIVER)
    header, corners, normals = read_stl(tmp_path / "x.stl")
    assert header == "clseg liver SPACE=LPS"
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(normals[0], [0, 0, -1], atol=1e-6)
    a, b, c = corners[3].astype(float)
    assert np.dot(np.cross(b - a, c - a), normals[3]) > 0


def test_an_obj_and_a_ply_name_their_space_in_comments(tmp_path):
    """And the PLY has the structure's colour at every point."""
    for kind in ("obj", "ply"):
        MESH_WRITERS[kind](tmp_path / f"x.{kind}", tetrahedron(), LIVER)
    assert read_obj(tmp_path / "x.obj")[0] == "# clseg SPACE=LPS"
    comments, _, colours = read_ply(tmp_path / "x.ply")
    assert "comment SPACE=LPS" in comments
    assert {tuple(colour) for colour in colours.tolist()} == {LIVER.colour}


@pytest.mark.parametrize("kind", MESH_WRITERS)
def test_a_disk_that_fills_leaves_no_half_mesh(tmp_path, monkeypatch, kind):
    """One sentence, no file."""
    from clseg.io import files

    monkeypatch.setattr(files, "_create", lambda part, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), mode))
    with pytest.raises(OutputError, match="the disk is full"):
        MESH_WRITERS[kind](tmp_path / f"x.{kind}", tetrahedron(), LIVER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not tools_are_there(), reason="fast-simplification is not installed (extra 'mesh')")
@pytest.mark.parametrize("layers", [1, 2])
def test_a_structure_on_one_or_two_layers_has_one_skin(layers):
    """On an oblique grid of 0.7 × 1.3 × 5 mm: the middle of a box lies where the affine says, its volume is that of 24 voxels."""
    maps = [np.zeros((7, 6, 5), np.uint16) for _ in range(2)]
    maps[0][2:4, 1:5, 1:4] = LIVER.id
    if layers == 2:
        maps[0][3] = 0
        maps[1][3:4, 1:5, 1:4] = LIVER.id
    found = skin(Segments(Volume(np.zeros((7, 6, 5), np.int16), tilted()), tuple(maps), (LIVER,)), LIVER)
    middle = (tilted() @ [2.5, 2.5, 2, 1])[:3]
    np.testing.assert_allclose((found.points.max(axis=0) + found.points.min(axis=0)) / 2, middle, atol=0.05)
    assert found.volume_mm3 == pytest.approx(24 * 0.7 * 1.3 * 5, rel=1e-3)
