"""Resampling is linear interpolation between concentric lattices, with anti-aliasing on the way down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.spatial.resample import axis_weights, covering_shape, interpolate, resample

sizes = st.integers(1, 40)
edges = st.floats(0.4, 8.0)


def centres(n: int, s: float) -> np.ndarray:
    """Voxel centres in mm, 0 in the middle."""
    return (np.arange(n) - (n - 1) / 2) * s


def random_array(shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@given(sizes, edges, sizes, edges)
def test_every_row_of_weights_sums_to_one_and_none_is_negative(n_in, s_in, n_out, s_out):
    """Whatever the lattices, an output voxel is a mean of input voxels."""
    weights = axis_weights(n_in, s_in, n_out, s_out)
    assert weights.shape == (n_out, n_in)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


@given(sizes, edges, sizes, edges)
def test_weights_are_the_same_from_both_ends(n_in, s_in, n_out, s_out):
    """Concentric lattices know no first end: turning both axes round changes nothing."""
    weights = axis_weights(n_in, s_in, n_out, s_out)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-5)


@given(sizes, edges)
def test_a_lattice_onto_itself_is_the_identity(n, s):
    """Same size, same spacing: every voxel is itself alone."""
    np.testing.assert_allclose(axis_weights(n, s, n, s), np.eye(n), atol=1e-6)


def test_weights_by_hand():
    """Three voxels of 2 mm onto five of 1 mm: centres at −2 −1 0 1 2 mm, so every second lies halfway between two."""
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    np.testing.assert_allclose(axis_weights(3, 2.0, 5, 1.0), expected, atol=1e-6)


def test_weights_on_the_way_down_by_hand():
    """Halving five voxels at 1 mm: a triangle of ±2 voxels, 1 2 1 around the centre."""
    np.testing.assert_allclose(axis_weights(5, 1.0, 1, 2.0), [[0, 0.25, 0.5, 0.25, 0]], atol=1e-6)


@given(st.integers(2, 40), edges, sizes, edges)
def test_a_ramp_is_kept_on_the_way_up(n_in, s_in, n_out, ratio):
    """Going finer, a value that is its own position in mm is that position wherever there is data on both sides."""
    s_out = s_in / max(1.0, ratio)
    out = axis_weights(n_in, s_in, n_out, s_out) @ centres(n_in, s_in)
    x = centres(n_out, s_out)
    inside = np.abs(x) <= (n_in - 1) / 2 * s_in
    np.testing.assert_allclose(out[inside], x[inside], atol=1e-3 * s_in)


@given(st.integers(20, 60), edges, st.floats(1.0, 4.0))
def test_a_ramp_is_kept_on_the_way_down(n_in, s_in, ratio):
    """Going coarser, the ramp is kept within a tenth of an input voxel wherever the triangle has data on both sides."""
    n_out = max(1, int(n_in / ratio))
    out = axis_weights(n_in, s_in, n_out, s_in * ratio) @ centres(n_in, s_in)
    x = centres(n_out, s_in * ratio)
    inside = np.abs(x) <= ((n_in - 1) / 2 - ratio) * s_in
    np.testing.assert_allclose(out[inside], x[inside], atol=0.1 * s_in)


@given(sizes, st.integers(1, 40), edges, edges)
def test_no_input_voxel_is_forgotten_on_the_way_down(n_in, n_out, s_in, s_out):
    """Where the coarse lattice covers the fine one, every fine voxel counts somewhere."""
    if s_out >= s_in and n_out * s_out >= n_in * s_in:
        assert (axis_weights(n_in, s_in, n_out, s_out).sum(axis=0) > 0).all()


shapes = st.tuples(*[st.integers(1, 9)] * 3)
spacings = st.tuples(*[st.floats(0.5, 6.0)] * 3)


@given(shapes, spacings, shapes, spacings)
def test_a_constant_stays_constant(shape, spacing, target_shape, target):
    """7 HU everywhere is 7 HU everywhere, also beyond the border."""
    out = resample(torch.full(shape, 7.0), spacing, target_shape, target)
    assert tuple(out.shape) == target_shape
    torch.testing.assert_close(out, torch.full(target_shape, 7.0))


@given(shapes, spacings)
def test_the_same_lattice_gives_the_same_numbers(shape, spacing):
    """Nothing is interpolated when nothing has to be; integers become float32."""
    array = torch.arange(int(np.prod(shape)), dtype=torch.int16).reshape(shape)
    out = resample(array, spacing, shape, spacing)
    assert out.dtype == torch.float32
    assert torch.equal(out, array.float())


@pytest.mark.parametrize("kind", [">i2", ">u2", ">f4", ">f8", "<i2", "<i4", "u1"])
def test_byte_order_does_not_matter(kind):
    """Files may be big-endian, which torch does not know: the numbers are those of the same array in this machine's order."""
    native = np.random.default_rng(0).integers(0, 200, (5, 4, 6))
    weights = [axis_weights(n, 2.0, 7, 1.5) for n in native.shape]
    assert torch.equal(interpolate(native.astype(kind), weights), interpolate(native.astype(np.float32), weights))


@given(shapes, spacings, shapes, spacings, st.sampled_from([(0,), (1,), (2,), (0, 1), (0, 1, 2)]))
def test_flipping_before_is_flipping_after(shape, spacing, target_shape, target, axes):
    """Left and right are treated alike, in every axis."""
    array = random_array(shape)
    before = resample(array.flip(axes), spacing, target_shape, target)
    after = resample(array, spacing, target_shape, target).flip(axes)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


@given(shapes, spacings, shapes, spacings, st.permutations([0, 1, 2]))
def test_the_order_of_the_axes_does_not_matter(shape, spacing, target_shape, target, order):
    """Permuting before is permuting after: the axis that shrinks most goes first, which one that is makes no difference."""
    array = random_array(shape)

    def permuted(values):
        return tuple(values[axis] for axis in order)

    before = resample(array.permute(order), permuted(spacing), permuted(target_shape), permuted(target))
    after = resample(array, spacing, target_shape, target).permute(order)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_down_and_up_again_brings_back_a_smooth_field():
    """A cosine of 80 mm survives 2 mm → 5 mm → 2 mm within 10 % of its height, and the way back is the same function."""
    shape, fine, coarse = (40, 36, 30), (2.0, 2.0, 2.0), (5.0, 5.0, 5.0)
    x, y, z = (torch.from_numpy(np.cos(2 * np.pi * centres(n, 2.0) / 80)).float() for n in shape)
    field = x[:, None, None] * y[None, :, None] * z[None, None, :]
    small = resample(field, fine, covering_shape(shape, fine, coarse), coarse)
    back = resample(small, coarse, shape, fine)
    assert (back - field).abs().max() < 0.2
    assert (back - field).abs().mean() < 0.05


@given(shapes, spacings, spacings)
def test_the_covering_lattice_covers_and_is_the_smallest(shape, spacing, target):
    """Its box reaches as far as the scan's, and one voxel less would not."""
    for n, s, m, t in zip(shape, spacing, covering_shape(shape, spacing, target), target, strict=True):
        assert m >= 1
        assert m * t >= n * s - 2e-3 * t
        assert m == 1 or (m - 1) * t < n * s
