"""First-order and shape features: the IBSI's published numbers, PyRadiomics' own, and shapes that can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clseg import radiomics
from clseg.radiomics import FEATURES, FIRST_ORDER, SHAPE, features, first_order, shape, to_rows
from clseg.volume import Volume

# The IBSI's digital phantom (arXiv 1612.07003, section 5.1): 5 x 4 x 4 voxels of 2 mm, rows of x, 0 where nothing is segmented.
PHANTOM = np.array(
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ],
    np.int16,
).transpose(2, 1, 0)

# Published value, tolerance (half a unit of the last published digit where the IBSI gives none).
PUBLISHED = {
    "shape_MeshVolume": (556, 4),
    "shape_VoxelVolume": (592, 4),
    "shape_SurfaceArea": (388, 3),
    "shape_SurfaceVolumeRatio": (0.698, 0.004),
    "shape_Sphericity": (0.843, 0.005),
    "shape_Maximum3DDiameter": (13.1, 0.1),
    "shape_Elongation": (0.816, 0.005),
    "shape_Flatness": (0.749, 0.005),
    "firstorder_Mean": (2.15, 0.005),
    "firstorder_Variance": (3.05, 0.005),
    "firstorder_Skewness": (1.08, 0.005),
    "firstorder_Median": (1, 0),
    "firstorder_Minimum": (1, 0),
    "firstorder_10Percentile": (1, 0),
    "firstorder_90Percentile": (4, 0),
    "firstorder_Maximum": (6, 0),
    "firstorder_InterquartileRange": (3, 0),
    "firstorder_Range": (5, 0),
    "firstorder_MeanAbsoluteDeviation": (1.55, 0.005),
    "firstorder_RobustMeanAbsoluteDeviation": (1.11, 0.005),
    "firstorder_Energy": (567, 0.5),
    "firstorder_RootMeanSquared": (2.77, 0.005),
    "firstorder_Entropy": (1.27, 0.005),  # discretised with a bin per grey level
    "firstorder_Uniformity": (0.512, 0.0005),
}

# What PyRadiomics 3.0.1 gives for the phantom with binWidth 1 and no other settings, all that the IBSI does not publish so.
PYRADIOMICS = {
    "shape_MajorAxisLength": 11.32508205493319,
    "shape_MinorAxisLength": 9.24490489119279,
    "shape_LeastAxisLength": 8.478109493212116,
    "shape_Maximum2DDiameterSlice": 11.661903789690601,
    "shape_Maximum2DDiameterColumn": 11.661903789690601,
    "shape_Maximum2DDiameterRow": 10.0,
    "firstorder_Kurtosis": 2.645379519312166,
    "firstorder_TotalEnergy": 4536.0,
}


def phantom() -> dict[str, float | None]:
    return features(PHANTOM > 0, Volume(PHANTOM, np.diag([2.0, 2.0, 2.0, 1.0])), bin_width=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_digital_phantom_has_the_published_value(name):
    """The IBSI's consensus value, within its tolerance."""
    value, tolerance = PUBLISHED[name]
    assert phantom()[f"original_{name}"] == pytest.approx(value, abs=tolerance + 1e-9)


@pytest.mark.parametrize("name", PYRADIOMICS)
def test_the_digital_phantom_has_the_value_of_pyradiomics(name):
    """Where definitions differ, PyRadiomics' goes."""
    assert phantom()[f"original_{name}"] == pytest.approx(PYRADIOMICS[name], rel=1e-9)


@pytest.mark.parametrize(("name", "published", "tolerance"), [("Major", 11.4, 0.1), ("Minor", 9.31, 0.06), ("Least", 8.54, 0.05)])
def test_published_axes_are_those_of_the_sample(name, published, tolerance):
    """The IBSI divides by N - 1, PyRadiomics by N: times the root of 74/73 the published lengths come out."""
    assert phantom()[f"original_shape_{name}AxisLength"] * math.sqrt(74 / 73) == pytest.approx(published, abs=tolerance)


def test_published_kurtosis_is_an_excess():
    """The IBSI takes 3 off, PyRadiomics does not: -0.355."""
    assert phantom()["original_firstorder_Kurtosis"] - 3 == pytest.approx(-0.355, abs=0.0005)


def test_every_feature_has_a_value():
    """32 features, named as PyRadiomics does, none of them missing for an ordinary mask."""
    assert len(FEATURES) == 32
    assert tuple(phantom()) == FEATURES
    assert all(isinstance(value, float) for value in phantom().values())


def test_a_single_voxel_is_an_octahedron():
    """1 x 2 x 3 mm: the mesh has its corners half a voxel away, volume 1 · 2 · 3 / 6, and axes without length."""
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    one = shape(mask, (1, 2, 3))
    assert one["MeshVolume"] == pytest.approx(1)
    assert (one["VoxelVolume"], one["Maximum3DDiameter"], one["MajorAxisLength"]) == (6, 3, 0)
    assert (one["Maximum2DDiameterRow"], one["Maximum2DDiameterColumn"], one["Maximum2DDiameterSlice"]) == (3, 3, 2)
    assert one["Elongation"] is one["Flatness"] is None


def test_axes_of_a_rod():
    """Five voxels in a row of 2 mm: variance 2 · 2², major axis 4 · √8, the others 0."""
    rod = shape(np.ones((5, 1, 1), bool), (2, 1, 1))
    assert rod["MajorAxisLength"] == pytest.approx(4 * math.sqrt(8))
    assert (rod["MinorAxisLength"], rod["LeastAxisLength"], rod["Elongation"]) == (0, 0, 0)


def test_axes_of_a_slanted_rod():
    """Five voxels along a diagonal of 3 · 4 mm steps: 5 mm apart, variance 2 · 5²."""
    mask = np.zeros((5, 5, 1), bool)
    mask[range(5), range(5)] = True
    rod = shape(mask, (3, 4, 1))
    assert rod["MajorAxisLength"] == pytest.approx(4 * math.sqrt(50))
    assert rod["MinorAxisLength"] == pytest.approx(0, abs=1e-6)


def test_a_ball_is_nearly_a_sphere():
    """Radius 20: volume 4/3·π·r³ and diameter 40 within 1 %, axes 4·√(r²/5), sphericity above 0.9."""
    i, j, k = np.ogrid[-22:23, -22:23, -22:23]
    ball = shape(i**2 + j**2 + k**2 <= 400, (1, 1, 1))
    assert ball["MeshVolume"] == pytest.approx(4 / 3 * math.pi * 20**3, rel=0.01)
    assert ball["Maximum3DDiameter"] == pytest.approx(41, rel=0.01)  # to half a voxel beyond the last centre
    assert ball["MajorAxisLength"] == pytest.approx(4 * math.sqrt(400 / 5), rel=0.01)
    assert 0.9 < ball["Sphericity"] <= 1
    assert ball["Maximum2DDiameterSlice"] == ball["Maximum2DDiameterRow"] == ball["Maximum2DDiameterColumn"] == 41


def test_slabs_have_the_surface_of_the_whole(monkeypatch):
    """A blob meshed slice by slice has the same volume, area and diameters as in one piece."""
    from scipy.ndimage import gaussian_filter

    blob = gaussian_filter(np.random.default_rng(0).normal(size=(24, 20, 16)), 2) > 0
    whole = shape(blob, (1, 1.5, 2))
    monkeypatch.setattr(radiomics, "_SLAB_VOXELS", 1)
    assert shape(blob, (1, 1.5, 2)) == pytest.approx(whole, rel=1e-9)


def test_diameters_are_those_of_all_pairs(monkeypatch):
    """The hull loses no pair: compared with every vertex against every other."""
    from scipy.ndimage import gaussian_filter

    blob = gaussian_filter(np.random.default_rng(1).normal(size=(14, 16, 12)), 1.5) > 0.02
    vertices = np.concatenate([vertices + np.array([start, 0, 0]) for start, vertices, _ in radiomics._meshes(np.pad(blob, 1))]) * (1, 2, 3)
    apart = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)
    same = np.isclose(vertices[:, None], vertices[None])
    monkeypatch.setattr(radiomics, "_FEW", 8)
    found = shape(blob, (1, 2, 3))
    assert found["Maximum3DDiameter"] == pytest.approx(apart.max())
    for axis, name in enumerate(("Row", "Column", "Slice")):
        assert found[f"Maximum2DDiameter{name}"] == pytest.approx(apart[same[:, :, axis]].max())


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_first_order_is_what_numpy_says(dtype):
    """Percentiles, mean and variance of 1000 values, whatever their type."""
    values = np.random.default_rng(2).integers(-1000, 2000, 1000).astype(dtype)
    found = first_order(values, 2.0)
    assert found["10Percentile"] == np.percentile(values, 10)
    assert found["InterquartileRange"] == np.percentile(values, 75) - np.percentile(values, 25)
    assert found["Mean"] == pytest.approx(values.mean(dtype=float))
    assert found["Variance"] == pytest.approx(values.var(dtype=float))
    assert found["TotalEnergy"] == 2 * (values.astype(float) ** 2).sum()


def test_bins_begin_at_multiples_of_their_width():
    """-1 and 0 lie in different bins of 25, 0 and 24 in the same: shares ¼, ¾, entropy 0.811 bits, uniformity 10/16."""
    found = first_order(np.array([-1, 0, 24, 24], np.int16), 1.0)
    assert found["Entropy"] == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))
    assert found["Uniformity"] == 0.625


def test_constant_values_have_no_spread():
    """Variance, entropy, skewness and kurtosis of a constant are 0, as PyRadiomics has it."""
    flat = first_order(np.full(7, 40, np.int16), 1.0)
    assert [flat[name] for name in ("Variance", "Entropy", "Skewness", "Kurtosis", "Range", "RobustMeanAbsoluteDeviation")] == [0] * 6
    assert math.copysign(1, flat["Entropy"]) == 1


def test_an_empty_mask_has_no_features():
    """None throughout, never 0."""
    assert set(features(np.zeros((4, 4, 4), bool), Volume(np.zeros((4, 4, 4)))).values()) == {None}


def test_without_values_there_is_still_a_shape():
    """Where no voxel has a number, first-order features are None and those of the shape are not."""
    found = features(np.ones((2, 2, 2), bool), Volume(np.full((2, 2, 2), np.nan, np.float32)))
    assert {found[f"original_firstorder_{name}"] for name in FIRST_ORDER} == {None}
    assert None not in {found[f"original_shape_{name}"] for name in SHAPE}


def test_rows_have_a_column_per_feature():
    """structure and 32 columns; None stays None."""
    header, rows = to_rows({"liver": phantom(), "spleen": dict.fromkeys(FEATURES)})
    assert header == ["structure", *FEATURES]
    assert rows[0][0] == "liver"
    assert rows[1] == ["spleen", *[None] * 32]
