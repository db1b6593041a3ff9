"""A surface is closed, looks outwards, lies in the patient and holds the volume of its voxels."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from clseg.errors import UsageError
from clseg.io.files import read
from clseg.spatial import surface as module
from clseg.spatial.regions import regions
from clseg.spatial.surface import Surface, surface_of
from tests.lattice import affine_of
from tests.test_nrrd import tilted

needs_tool = pytest.mark.skipif(not module.tools_are_there(), reason="fast-simplification is not installed (extra 'mesh')")


def ball(radius_mm: float, affine: np.ndarray, shape: tuple[int, int, int], centre_mm: np.ndarray) -> np.ndarray:
    """Label 7 where voxel centres lie within the radius of the centre, uint16 (i, j, k)."""
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mm = ijk @ affine[:3, :3].T + affine[:3, 3]
    return np.asfortranarray((np.linalg.norm(mm - centre_mm, axis=-1) <= radius_mm) * np.uint16(7))


def skin(labels: np.ndarray, affine: np.ndarray) -> Surface:
    return surface_of(labels, 7, regions(labels)[7].box, affine)


def tetrahedron() -> Surface:
    """Corners at the origin and at 3, 4 and 5 mm along the axes: 10 mm³."""
    points = np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 5]], float)
    return Surface(points, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def test_volume_by_the_divergence_theorem():
    """A tetrahedron of 3 × 4 × 5 / 6 = 10 mm³, wherever it lies; turned inside out -10 mm³."""
    whole = tetrahedron()
    assert whole.volume_mm3 == pytest.approx(10)
    assert Surface(whole.points + 1000, whole.triangles).volume_mm3 == pytest.approx(10)
    assert Surface(whole.points, whole.triangles[:, ::-1]).volume_mm3 == pytest.approx(-10)


def test_a_hole_a_turned_triangle_and_a_second_sheet_are_not_closed():
    """Only the whole tetrahedron is: every edge once in each direction."""
    whole = tetrahedron()
    t = whole.triangles
    faults = [t[:3], np.vstack([t[:3], t[3:, ::-1]]), np.vstack([t, t])]
    assert whole.is_closed
    assert [Surface(whole.points, fault).is_closed for fault in faults] == [False, False, False]


def test_sheets_that_touch_along_an_edge_are_taken_apart():
    """Two tetrahedra with an edge in common: 6 points become 8, no corner moves, the surface is closed; one with a hole is not mended."""
    one = tetrahedron()
    points = np.vstack([one.points, one.points[2:] - [10, 0, 0]])
    other = np.array([0, 1, 4, 5])[one.triangles]  # corners 0 and 1, that is one edge, are those of the first
    touching = Surface(points, np.vstack([one.triangles, other]))
    assert not touching.is_closed
    apart = module._untangled(touching)
    assert apart is not None
    assert (len(apart.points), apart.is_closed) == (8, True)
    assert apart.volume_mm3 == pytest.approx(touching.volume_mm3)
    np.testing.assert_array_equal(apart.points[apart.triangles], points[touching.triangles])
    assert module._untangled(Surface(one.points, one.triangles[:3])) is None


@needs_tool
def test_a_rough_structure_is_closed():
    """Noise, of which 40 % is structure and touches itself everywhere: closed, volume within 2 %."""
    labels = ((np.random.default_rng(0).random((16, 16, 16)) > 0.6) * 7).astype(np.uint16)
    found = skin(labels, np.eye(4))
    assert found.is_closed
    assert found.volume_mm3 == pytest.approx((labels == 7).sum(), rel=0.02)


GRIDS = {
    "even": affine_of("RAS", (1, 1, 1), (1.0, 1.0, 1.0)),
    "thick slices": affine_of("LPS", (1, 1, 1), (0.7, 0.7, 3.0), (5.0, -200.0, 1000.0)),
    "feet first": affine_of("RPI", (1, 1, 1), (0.9, 0.9, 2.0)),
    "mirrored": affine_of("RAI", (1, 1, 1), (1.0, 1.5, 2.0)),
    "oblique": tilted() * [[0.5], [0.5], [0.5], [1]] @ np.diag([2, 1.5, 0.8, 1]),
}


@needs_tool
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("radius", [4.0, 14.0])
def test_a_ball_keeps_volume_place_and_shape(grid, radius):
    """Closed, outward, the volume of its voxels within 0.1 %, its middle within a tenth of a millimetre, all points within most of a voxel's diagonal of the sphere."""
    affine = GRIDS[grid]
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(n) for n in np.ceil(2 * radius / edges) + 7)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    labels = ball(radius, affine, shape, middle)
    found = skin(labels, affine)
    assert found.is_closed
    assert found.volume_mm3 == pytest.approx((labels == 7).sum() * abs(np.linalg.det(affine[:3, :3])), rel=1e-3)
    away = np.linalg.norm(found.points - middle, axis=1)
    assert np.abs(away - radius).max() < 0.75 * np.linalg.norm(edges)
    assert np.abs(found.points.max(axis=0) + found.points.min(axis=0) - 2 * middle).max() < 0.2 * edges.max()
    outwards = np.einsum("ij,ij->i", found.normals, found.points[found.triangles].mean(axis=1) - middle)
    assert (outwards > 0).mean() > 0.99


@needs_tool
def test_stairs_are_smoothed():
    """A ball of 20 mm at 1 mm: normals leave the radius by less than 10° on average; those of its voxels' faces by more than 25°."""
    labels = ball(20, np.eye(4), (47, 47, 47), np.full(3, 23.0))
    found = skin(labels, np.eye(4))
    radial = found.points[found.triangles].mean(axis=1) - 23
    cosine = np.einsum("ij,ij->i", found.normals, radial) / np.linalg.norm(found.normals, axis=1) / np.linalg.norm(radial, axis=1)
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).mean() < 10


@needs_tool
def test_large_surfaces_are_thinned_to_a_quarter_of_the_triangles(monkeypatch):
    """A ball of 20 mm: about a quarter of what marching cubes drew, same volume."""
    labels = ball(20, np.eye(4), (47, 47, 47), np.full(3, 23.0))
    thin = skin(labels, np.eye(4))
    monkeypatch.setattr(module, "FEW_TRIANGLES", 10**9)
    full = skin(labels, np.eye(4))
    assert len(thin.triangles) == pytest.approx(len(full.triangles) / 4, rel=0.02)
    assert thin.volume_mm3 == pytest.approx(full.volume_mm3, rel=1e-3)


@needs_tool
def test_a_surface_that_thinning_would_tear_is_left_whole(monkeypatch):
    """The tool gives a sheet with a hole: all triangles are kept."""
    import fast_simplification

    labels = ball(20, np.eye(4), (47, 47, 47), np.full(3, 23.0))
    monkeypatch.setattr(fast_simplification, "simplify", lambda points, triangles, target_reduction: (points, triangles[1:]))
    found = skin(labels, np.eye(4))
    assert found.is_closed
    assert len(found.triangles) > module.FEW_TRIANGLES


SHAPES = {
    "one voxel": (slice(3, 4), slice(3, 4), slice(3, 4)),
    "a plate of one voxel": (slice(2, 10), slice(2, 10), slice(4, 5)),
    "a wire": (slice(5, 6), slice(5, 6), slice(0, 12)),
    "all of the scan": (slice(0, 12), slice(0, 12), slice(0, 12)),
}


@needs_tool
@pytest.mark.parametrize("shape", SHAPES)
def test_thin_things_and_what_the_scan_cuts_are_closed_and_keep_their_volume(shape):
    """Within 2 %, also where blurring alone would make them vanish."""
    labels = np.zeros((12, 12, 12), np.uint16)
    labels[SHAPES[shape]] = 7
    found = skin(labels, np.diag([1.0, 2.0, 3.0, 1.0]))
    assert found.is_closed
    assert found.volume_mm3 == pytest.approx((labels == 7).sum() * 6, rel=0.02)


@needs_tool
def test_separate_pieces_are_separate():
    """Two boxes far from each other: both volumes in one surface, no bridge between them."""
    labels = np.zeros((30, 10, 10), np.uint16)
    labels[2:8, 2:8, 2:8] = labels[22:28, 2:8, 2:8] = 7
    labels[10:20] = 3  # another structure
    found = skin(labels, np.eye(4))
    assert found.is_closed
    assert not ((found.points[:, 0] > 10) & (found.points[:, 0] < 20)).any()
    assert found.volume_mm3 == pytest.approx(2 * 216, rel=0.02)


@needs_tool
@pytest.mark.parametrize("most", [2000, 20000])
def test_large_boxes_are_drawn_from_blocks_in_the_same_place(monkeypatch, most):
    """However many voxels a block holds: volume within 0.1 %, middle within a tenth of a millimetre, in odd shapes too."""
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    labels = ball(11, affine, (57, 55, 21), np.array([14.0, 13.5, 20.0]))
    monkeypatch.setattr(module, "MOST_VOXELS", most)
    found = skin(labels, affine)
    assert found.is_closed
    assert found.volume_mm3 == pytest.approx((labels == 7).sum() * 0.5, rel=1e-3)
    weights = np.linalg.norm(found.normals, axis=1)
    middle = np.average(found.points[found.triangles].mean(axis=1), axis=0, weights=weights)
    np.testing.assert_allclose(middle, [14, 13.5, 20], atol=0.15)


def test_without_the_tool_the_extra_is_named(monkeypatch):
    """UsageError before anything is drawn."""
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(UsageError, match="fast-simplification") as caught:
        skin(np.full((3, 3, 3), 7, np.uint16), np.eye(4))
    assert "clseg[mesh]" in (caught.value.tip or "")


@needs_tool
def test_organs_of_a_real_ct_keep_their_volume(shared):
    """Kidneys, aorta and larynx-sized structures of the first labelled scans: closed, volume within 2 %."""
    case = shared / "data" / "openkbp" / "pt_100"
    labels = read(case / "labels.nii.gz")
    assert json.loads((case / "labels.json").read_text())
    for id, region in regions(labels.array).items():
        found = surface_of(labels.array, id, region.box, labels.affine)
        assert found.is_closed
        assert found.volume_mm3 == pytest.approx(region.voxels * labels.voxel_mm3, rel=0.02)
