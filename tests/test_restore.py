"""Labels come back to the scanner's grid: at the right place, with smooth borders, without gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.catalogue import Catalogue
from clseg.inference import restore as module
from clseg.inference.merge import Canvas, Layer, Question
from clseg.inference.predictor import Slab
from clseg.inference.prepare import Placement, place
from clseg.network.spec import Grid
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume
from tests.lattice import CODES, affine_of, dice, faint, inside_mm, model_world, soft_layer, world

MODEL = Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16))
LIVER, SPLEEN = 101, 4711
EXTENT_MM = 132.0
CENTRE = np.array([4.0, -7.0, 3.0])
RADIUS = 40.0


def restore(*given, **more) -> np.ndarray:
    """`restore` as an array."""
    return np.asarray(module.restore(*given, **more))


def soft_tissue(code: str, spacing, extent_mm: float = EXTENT_MM) -> Volume:
    """A cube of soft tissue, so that nothing is cropped."""
    shape = tuple(round(extent_mm / s) for s in spacing)
    return Volume(np.full(shape, 40, np.int16), affine_of(code, shape, spacing))


def ball_restored(scan: Volume, grid: Grid = MODEL, radius: float = RADIUS, centre=CENTRE) -> tuple[np.ndarray, np.ndarray]:
    """A ball painted on the model's grid after it came back, and the ball drawn on the scanner's grid."""
    oriented, placement = place(scan, grid)
    layer = soft_layer({LIVER: inside_mm(model_world(oriented, placement), centre, radius)})
    return restore(layer, placement, scan), inside_mm(world(scan), centre, radius) > 0


def centroid_mm(mask: np.ndarray, scan: Volume) -> np.ndarray:
    return world(scan)[mask].mean(axis=0)


@pytest.mark.parametrize("code", CODES)
def test_a_ball_comes_back_whatever_the_axes(code):
    """For all 48 orders and uneven voxels: ids on the grid of the scan, Dice above 0.97, centre within a third of a mm."""
    scan = soft_tissue(code, (2.0, 2.5, 4.0))
    found, expected = ball_restored(scan)
    assert (found.dtype, found.shape) == (np.uint16, scan.shape)
    assert set(np.unique(found)) == {0, LIVER}
    assert dice(found == LIVER, expected) > 0.97
    np.testing.assert_allclose(centroid_mm(found == LIVER, scan), CENTRE, atol=0.34)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "PIR"])
def test_the_model_may_have_any_axes_too(orientation):
    """A model with axes of its own paints the same ball."""
    scan = soft_tissue("LPI", (2.0, 2.5, 4.0))
    found, expected = ball_restored(scan, Grid(orientation, (3.0, 3.5, 4.0), (16, 16, 16)))
    assert dice(found == LIVER, expected) > 0.97


@settings(max_examples=25)
@given(spacing=st.tuples(*[st.floats(1.2, 7.0)] * 3), model=st.tuples(*[st.floats(1.5, 5.0)] * 3), code=st.sampled_from(CODES))
def test_a_ball_comes_back_whatever_the_spacing(spacing, model, code):
    """Scanner's grids finer and coarser than the model's, per axis: Dice above 0.95."""
    found, expected = ball_restored(soft_tissue(code, spacing), Grid("RAS", model, (16, 16, 16)))
    assert dice(found == LIVER, expected) > 0.95


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 0.8), (1.0, 1.0, 3.0), (1.0, 1.0, 5.0)])
def test_borders_are_smoother_than_by_nearest_neighbour(spacing):
    """On a finer grid the error against the true ball is less than half of what nearest neighbour leaves."""
    scan = soft_tissue("RAS", spacing, extent_mm=90.0)
    grid = Grid("RAS", (5.0, 5.0, 5.0), (16, 16, 16))
    found, expected = ball_restored(scan, grid, radius=30.0)
    oriented, placement = place(scan, grid)
    painted = inside_mm(model_world(oriented, placement), CENTRE, 30.0) > 0
    nearest = painted[np.ix_(*[_nearest(n, s, m, t) for n, s, m, t in _axes(placement)])]
    assert nearest.shape == expected.shape
    assert 1 - dice(found == LIVER, expected) < 0.5 * (1 - dice(nearest, expected))


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR", "PIL"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (3.0, 3.0, 3.0), (2.0, 5.5, 7.0)])
def test_by_nearest_neighbour_every_voxel_has_the_id_of_the_nearest(code, spacing):
    """With smooth=False no voxel is anything but the nearest one of the model, whatever the axes, scores and faint voxels."""
    scan = soft_tissue(code, spacing, extent_mm=66.0)
    oriented, placement = place(scan, MODEL)
    random = np.random.default_rng(3)
    labels = random.choice(np.array([0, LIVER, SPLEEN], np.uint16), placement.shape)
    layer = Layer(labels, np.where(labels > 0, 140, 0).astype(np.uint8), {LIVER: [faint(labels, LIVER, random.random(labels.shape))]})
    nearest = np.ix_(*[_nearest(n, s, m, t) for n, s, m, t in _axes(placement)])
    assert placement.shape == placement.lattice  # the scan is all body
    found = restore(layer, placement, scan, smooth=False)
    assert (found.dtype, found.flags.f_contiguous) == (np.uint16, True)
    np.testing.assert_array_equal(to_orientation(scan.like(found), "RAS").array, labels[nearest])
    assert oriented.shape == labels[nearest].shape


def test_by_nearest_neighbour_what_was_cropped_away_is_background():
    """A box full of liver in much air: its voxels alone, and no column of them is stretched to the end of the scan."""
    scan = soft_tissue("LAS", (3.0, 3.0, 3.0), extent_mm=240.0)
    scan = scan.like(np.where(inside_mm(world(scan), np.array([40.0, -30.0, 20.0]), 45) > 0, 40, -1000).astype(np.int16))
    oriented, placement = place(scan, MODEL)
    layer = Layer(np.full(placement.shape, LIVER, np.uint16), np.full(placement.shape, 255, np.uint8))
    found = to_orientation(scan.like(restore(layer, placement, scan, smooth=False)), "RAS").array
    expected = np.zeros(oriented.shape, np.uint16)
    expected[placement.box] = LIVER  # scan and model share the voxel size here, so they share the lattice
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tile", [(5, 3, 2), (1000, 1000, 1000)])
@pytest.mark.parametrize("smooth", [True, False])
def test_the_size_of_the_tiles_changes_nothing(tile, smooth, monkeypatch):
    """Three structures that touch, in tiles of a few voxels and in one: the same map."""
    scan = soft_tissue("LPI", (2.0, 2.5, 4.0), extent_mm=60.0)
    oriented, placement = place(scan, MODEL)
    points = model_world(oriented, placement)
    layer = soft_layer({**halves(points, radius=20.0), 7: inside_mm(points, CENTRE + 24, 9.0)})
    expected = restore(layer, placement, scan, smooth=smooth)
    monkeypatch.setattr(module, "TILE", tile)
    np.testing.assert_array_equal(restore(layer, placement, scan, smooth=smooth), expected)
    assert set(np.unique(expected)) == {0, LIVER, SPLEEN, 7}


def _axes(placement: Placement):
    return zip(placement.scan_shape, placement.scan_spacing, placement.lattice, placement.spacing, strict=True)


def _nearest(n: int, s: float, m: int, t: float) -> np.ndarray:
    """For each of `n` voxels of `s` mm the index of the nearest of `m` voxels of `t` mm, concentric."""
    return np.clip(np.rint((np.arange(n) - (n - 1) / 2) * s / t + (m - 1) / 2), 0, m - 1).astype(int)


def test_what_was_cropped_away_is_background():
    """A small body in much air: the labels lie where the body is, everything outside the box is 0."""
    scan = soft_tissue("LAS", (3.0, 3.0, 3.0), extent_mm=240.0)
    centre = np.array([40.0, -30.0, 20.0])
    scan = scan.like(np.where(inside_mm(world(scan), centre, 45) > 0, 40, -1000).astype(np.int16))
    oriented, placement = place(scan, MODEL)
    assert np.prod(placement.shape) < 0.3 * scan.array.size
    layer = soft_layer({LIVER: inside_mm(model_world(oriented, placement), centre, 35)})
    found = restore(layer, placement, scan) == LIVER
    assert dice(found, inside_mm(world(scan), centre, 35) > 0) > 0.97


def halves(points: np.ndarray, axis: int = 0, radius: float = RADIUS) -> dict[int, np.ndarray]:
    """Two halves of a ball that touch in the plane through its centre: depths in mm."""
    ball, across = inside_mm(points, CENTRE, radius), points[..., axis] - CENTRE[axis]
    return {LIVER: np.minimum(ball, across), SPLEEN: np.minimum(ball, -across)}


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1.0, 2.0, 5.0), (4.0, 4.0, 4.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_that_touch_leave_no_gap_and_meet_where_they_should(spacing, axis):
    """Inside the ball, away from its surface, every voxel is one or the other, and each keeps to its side of the plane."""
    scan = soft_tissue("RAS", spacing)
    oriented, placement = place(scan, MODEL)
    points = model_world(oriented, placement)
    depths = halves(points, axis)
    soft = soft_layer(depths)
    labels = np.where(inside_mm(points, CENTRE, RADIUS) > 0, np.where(depths[LIVER] >= depths[SPLEEN], LIVER, SPLEEN), 0).astype(np.uint16)
    score = np.where(labels > 0, np.maximum(soft.score, 128), 0).astype(np.uint8)
    found = restore(Layer(labels, score, soft.faint), placement, scan)
    here = world(scan)
    deep = inside_mm(here, CENTRE, RADIUS) > 4
    assert (found[deep] > 0).all()
    across = here[..., axis] - CENTRE[axis]
    sure = deep & (np.abs(across) > 2.0 + spacing[axis] / 2)
    assert (found[sure] == np.where(across > 0, LIVER, SPLEEN)[sure]).all()


def test_a_small_structure_between_large_ones_is_not_lost():
    """A ball of 9 mm inside another organ comes back with its size, and the two together are the large ball."""
    scan = soft_tissue("RAS", (1.5, 1.5, 3.0))
    oriented, placement = place(scan, MODEL)
    points = model_world(oriented, placement)
    large, small = inside_mm(points, CENTRE, RADIUS), inside_mm(points, CENTRE, 9.0)
    labels = np.where(small > 0, SPLEEN, np.where(large > 0, LIVER, 0)).astype(np.uint16)
    likely = {SPLEEN: 1 / (1 + np.exp(-small / 2)), LIVER: 1 / (1 + np.exp(-np.minimum(large, -small) / 2))}
    score = np.where(labels > 0, np.round(np.maximum(*likely.values()) * 255), 0).astype(np.uint8)
    found = restore(Layer(labels, score, {i: [faint(labels, i, p)] for i, p in likely.items()}), placement, scan)
    here = world(scan)
    assert dice(found == SPLEEN, inside_mm(here, CENTRE, 9.0) > 0) > 0.9
    assert dice(found > 0, inside_mm(here, CENTRE, RADIUS) > 0) > 0.98


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (2.0, 2.0, 5.0), (4.4, 4.4, 4.4)])
def test_what_touches_the_border_of_the_scan_reaches_it(spacing):
    """A half-space that is cut by five faces of the scan fills the scan's voxels up to those faces."""
    scan = soft_tissue("RAS", spacing)
    oriented, placement = place(scan, MODEL)
    depth = 6.0 - model_world(oriented, placement)[..., 2]
    found = restore(soft_layer({LIVER: depth}), placement, scan) == LIVER
    z = world(scan)[..., 2]
    assert found[z < 6.0 - spacing[2] / 2 - 0.3].all()
    assert not found[z > 6.0 + spacing[2] / 2 + 0.3].any()


def test_a_layer_full_of_one_structure_fills_the_box():
    """No border, no background: every voxel of the scan has the id."""
    scan = soft_tissue("RSA", (2.0, 3.0, 4.0), extent_mm=48.0)
    _, placement = place(scan, MODEL)
    layer = Layer(np.full(placement.shape, LIVER, np.uint16), np.full(placement.shape, 255, np.uint8))
    assert (restore(layer, placement, scan) == LIVER).all()


def test_an_empty_layer_gives_an_empty_map():
    """Nothing painted, nothing found."""
    scan = soft_tissue("RAS", (3.0, 3.0, 3.0), extent_mm=48.0)
    _, placement = place(scan, MODEL)
    layer = Layer(np.zeros(placement.shape, np.uint16), np.full(placement.shape, 255, np.uint8))
    found = restore(layer, placement, scan)
    assert found.shape == scan.shape
    assert not found.any()


def test_a_winner_with_less_than_half_the_probability_keeps_its_place():
    """Where three compete and the best has 40 %, its voxels are its own nevertheless."""
    scan = soft_tissue("RAS", (3.0, 3.0, 3.0))
    oriented, placement = place(scan, MODEL)
    labels = np.where(inside_mm(model_world(oriented, placement), CENTRE, RADIUS) > 0, LIVER, 0).astype(np.uint16)
    layer = Layer(labels, np.where(labels > 0, 102, 250).astype(np.uint8))
    found = restore(layer, placement, scan) == LIVER
    assert dice(found, inside_mm(world(scan), CENTRE, RADIUS) > 0) > 0.95


# ---- a mask does not depend on what else was asked for ----------------------------------------------------------------

ORGANS = {name: Catalogue.builtin()[name] for name in ("liver", "spleen", "gallbladder")}
HERE, THERE = np.array([-25.0, 0.0, 0.0]), np.array([30.0, 0.0, 0.0])


def painted(asked: tuple[str, ...], scan: Volume, fields: dict[str, np.ndarray], shared: bool = False) -> np.ndarray:
    """The restored layer when each organ is painted by a decoder of its own, or all of them by one."""
    _, placement = place(scan, MODEL)
    canvas = Canvas(Question(placement.shape, tuple(ORGANS[name] for name in asked), Catalogue.builtin(), placement.spacing))
    groups = [tuple(fields)] if shared else [(name,) for name in asked]
    probabilities = {}
    for names in groups:
        stack = torch.from_numpy(np.stack([fields[name] for name in names])).float()
        probabilities["+".join(names)] = torch.cat([(1 - stack.sum(0, keepdim=True)).clamp(min=0), stack])
    canvas.paint(Slab(0, probabilities), {"+".join(names): names for names in groups})
    (layer,) = canvas.layers.values()
    return restore(layer, placement, scan)


def two_balls(scan: Volume, noise: float, seed: int, softness_mm: float = 2.0) -> dict[str, np.ndarray]:
    """Probabilities of a liver on one side and a spleen on the other; all around, the spleen is possible up to `noise`."""
    points = model_world(*place(scan, MODEL))
    liver, spleen = (0.9 / (1 + np.exp(-inside_mm(points, centre, 18.0) / softness_mm)) for centre in (HERE, THERE))
    anywhere = np.random.default_rng(seed).uniform(0, noise, liver.shape)
    return {"liver": liver, "spleen": np.maximum(spleen, np.minimum(anywhere, 1 - liver))}


@pytest.mark.parametrize("shared", [False, True], ids=["own decoders", "one decoder"])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (3.0, 3.0, 3.0), (1.3, 2.7, 5.0), (6.0, 6.0, 6.0)])
def test_a_mask_is_the_same_alone_and_beside_another_that_it_never_meets(spacing, shared):
    """Liver asked alone and with a spleen that wins nothing near it, though it is possible everywhere: not one voxel differs, nor does the spleen."""
    scan = soft_tissue("LPS", spacing)
    fields = two_balls(scan, noise=0.3, seed=1)
    both = painted(("liver", "spleen"), scan, fields, shared)
    for name in ("liver", "spleen"):
        alone = painted((name,), scan, fields, shared)
        assert (both == ORGANS[name].id).sum() > 0
        np.testing.assert_array_equal(alone == ORGANS[name].id, both == ORGANS[name].id)


@settings(max_examples=8)
@given(st.integers(0, 2**31), st.floats(0.05, 0.45))
def test_a_structure_that_is_nowhere_found_changes_nothing(seed, noise):
    """A gallbladder that is possible everywhere and wins nowhere leaves liver and spleen as they are, bit by bit."""
    scan = soft_tissue("RAS", (2.0, 2.0, 4.0), extent_mm=110.0)
    fields = two_balls(scan, noise=0.0, seed=0, softness_mm=0.5)
    nowhere = np.random.default_rng(seed).uniform(0, noise, fields["liver"].shape)
    without = painted(("liver", "spleen"), scan, fields)
    np.testing.assert_array_equal(painted(("liver", "spleen", "gallbladder"), scan, {**fields, "gallbladder": nowhere}), without)


def test_where_two_touch_neither_loses_what_it_has_alone():
    """A spleen right beside the liver takes only what nobody had, or what it is surer of on the model's grid."""
    scan = soft_tissue("RAS", (1.5, 1.5, 1.5))
    points = model_world(*place(scan, MODEL))
    across = points[..., 0] - CENTRE[0]
    ball = inside_mm(points, CENTRE, 30.0)
    fields = {name: 0.9 / (1 + np.exp(-np.minimum(ball, side) / 2)) for name, side in (("liver", across), ("spleen", -across))}
    both = painted(("liver", "spleen"), scan, fields)
    for name in fields:
        alone = painted((name,), scan, fields) == ORGANS[name].id
        assert (both == ORGANS[name].id)[alone].all()


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_the_models_own_grid_comes_back_unchanged(seed):
    """When scan and model share the grid, any label map with confident scores is what comes back, voxel by voxel."""
    scan = Volume(np.full((14, 12, 10), 40, np.int16), affine_of("RAS", (14, 12, 10), (3.0, 3.0, 3.0)))
    _, placement = place(scan, MODEL)
    random = np.random.default_rng(seed)
    labels = random.choice(np.array([0, LIVER, SPLEEN, 7], np.uint16), placement.shape)
    layer = Layer(labels, random.integers(130, 256, placement.shape).astype(np.uint8))
    np.testing.assert_array_equal(restore(layer, placement, scan), labels)
