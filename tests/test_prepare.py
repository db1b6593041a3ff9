"""A scan goes onto the model's lattice with every structure where it was in the patient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.inference.prepare import normalise, onto_grid, place
from clseg.network.spec import Grid, Intensity
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume
from tests.lattice import CODES, affine_of, inside_mm, model_world, world


def body(code: str, shape, spacing, centre_mm=(0.0, 0.0, 0.0), radius_mm: float = 45.0, middle_mm=(0.0, 0.0, 0.0)) -> Volume:
    """A ball of 50 HU in air."""
    volume = Volume(np.zeros(shape, np.int16), affine_of(code, shape, spacing, middle_mm))
    return volume.like(np.where(inside_mm(world(volume), centre_mm, radius_mm) > 0, 50, -1000).astype(np.int16))


@pytest.mark.parametrize("code", CODES[::5])
@pytest.mark.parametrize("model", ["RAS", "LPS", "SAR"])
def test_the_ball_is_where_it_was(code, model):
    """Whatever the axes of scan and model: the bright voxels of the prepared scan lie around the ball's centre in mm."""
    centre = np.array([8.0, -12.0, 5.0])
    table = np.array([100.0, 20.0, -30.0])
    scan = body(code, (50, 44, 48), (3.0, 3.5, 3.2), centre + table, middle_mm=table)
    oriented, placement = place(scan, Grid(model, (4.0, 4.0, 4.0), (16, 16, 16)))
    hu = onto_grid(oriented.array, placement).numpy()
    assert hu.shape == placement.shape
    weight = np.clip(hu + 1000, 0, None)
    found = (model_world(oriented, placement) * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    np.testing.assert_allclose(found, centre + table, atol=0.3)


@settings(max_examples=30)
@given(
    shape=st.tuples(*[st.integers(2, 30)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 8.0)] * 3),
    target=st.tuples(*[st.floats(1.0, 6.0)] * 3),
)
def test_the_lattice_covers_the_scan(shape, spacing, target):
    """The lattice is at least as long as the scan along every axis, and what is computed is part of it."""
    scan = Volume(np.full(shape, 40, np.int16), affine_of("LPS", shape, spacing))
    oriented, placement = place(scan, Grid("RAS", target, (16, 16, 16)))
    assert oriented.orientation == "RAS"
    for part, m, n, s, t in zip(placement.box, placement.lattice, oriented.shape, spacing, target, strict=True):
        assert 0 <= part.start < part.stop <= m
        assert m * t >= n * s - 2e-3 * t
    assert tuple(onto_grid(oriented.array, placement).shape) == placement.shape


def test_the_lattice_does_not_depend_on_how_finely_the_scan_is_stored():
    """The same body in voxels half as large: the model's voxels lie at the same places, up to which of them are computed."""
    grid = Grid("RAS", (4.0, 4.0, 4.0), (16, 16, 16))
    lattices = []
    for shape, spacing in (((40, 44, 48), (3.0, 3.0, 3.0)), ((80, 88, 96), (1.5, 1.5, 1.5))):
        oriented, placement = place(body("RAS", shape, spacing), grid)
        places = model_world(oriented, placement)
        lattices.append([places[:, 0, 0, 0] % 4.0, places[0, :, 0, 1] % 4.0, places[0, 0, :, 2] % 4.0])
    for coarse, fine in zip(*lattices, strict=True):
        np.testing.assert_allclose(coarse.mean(), fine.mean(), atol=1e-6)


@settings(max_examples=15)
@given(
    spacing=st.tuples(*[st.floats(4.0, 8.0)] * 3),
    centre=st.tuples(*[st.floats(-40.0, 40.0)] * 3),
    radius=st.floats(25.0, 50.0),
)
def test_what_is_computed_begins_and_ends_on_eights(spacing, centre, radius):
    """Both ends of the box are multiples of 8 lattice voxels or the lattice's own end, and the body is inside."""
    shape = tuple(round(240 / s) for s in spacing)
    scan = body("RAS", shape, spacing, centre, radius)
    oriented, placement = place(scan, Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)))
    for part, m in zip(placement.box, placement.lattice, strict=True):
        assert part.start % 8 == 0
        assert part.stop % 8 == 0 or part.stop == m
    points = world(oriented)[oriented.array > -300]
    inside = model_world(oriented, placement).reshape(-1, 3)
    assert (points.min(axis=0) >= inside.min(axis=0) - 1.5).all()
    assert (points.max(axis=0) <= inside.max(axis=0) + 1.5).all()


def test_copies_with_other_voxels_are_computed_on_the_same_voxels():
    """The same body in voxels half as large: not only the lattice but the box in it is the same, so windows fall on the same places."""
    grid = Grid("RAS", (4.0, 4.0, 4.0), (16, 16, 16))
    boxes = []
    for shape, spacing in (((60, 66, 72), (4.0, 4.0, 4.0)), ((120, 132, 144), (2.0, 2.0, 2.0))):
        _, placement = place(body("RAS", shape, spacing, (10.0, -4.0, 7.0), 60.0), grid)
        boxes.append(placement.box)
    assert boxes[0] == boxes[1]
    assert boxes[0] != tuple(slice(0, n) for n in (60, 66, 72))


def test_air_around_the_body_is_cut_off():
    """A ball of 45 mm in a scan of 300 mm: 90 mm and margins, in steps of 24 mm, are at most 56 of 100 voxels along each axis."""
    scan = body("RAS", (100, 100, 100), (3.0, 3.0, 3.0))
    _, placement = place(scan, Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)))
    assert max(placement.shape) <= 56


def test_same_spacing_changes_no_number():
    """A scan that has the model's spacing already is cut, not interpolated."""
    random = np.random.default_rng(0).integers(-200, 200, (12, 10, 8), np.int16)
    oriented, placement = place(Volume(random, np.diag([3.0, 3.0, 3.0, 1.0])), Grid("RAS", (3.0, 3.0, 3.0), (8, 8, 8)))
    np.testing.assert_array_equal(onto_grid(oriented.array, placement).numpy(), random[placement.box])


def test_prepared_numbers_do_not_depend_on_how_the_file_lay():
    """All 48 axis orders of one scan are prepared to exactly the same numbers."""
    scan = body("RAS", (30, 26, 22), (4.0, 4.5, 5.0))
    grid = Grid("RAS", (6.0, 6.0, 6.0), (16, 16, 16))
    first = onto_grid(*_array_and_placement(scan, grid))
    for code in CODES:
        other = onto_grid(*_array_and_placement(to_orientation(scan, code), grid))
        assert torch.equal(first, other), code


def _array_and_placement(scan: Volume, grid: Grid):
    oriented, placement = place(scan, grid)
    return oriented.array, placement


def test_normalise_by_hand():
    """Clip to -100…300, subtract 100, divide by 50: air -4, water -2, bone 4."""
    rule = Intensity(-100.0, 300.0, 100.0, 50.0)
    found = normalise(torch.tensor([-1000.0, -100.0, 0.0, 100.0, 300.0, 2000.0]), rule)
    assert found.tolist() == [-4.0, -4.0, -2.0, 0.0, 4.0, 4.0]
