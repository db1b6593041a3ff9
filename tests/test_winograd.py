"""Convolutions with half of the multiplications give what plain ones give, to the digits that single precision leaves."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clseg.network import slabs, winograd
from clseg.network.blocks import Conv
from clseg.network.winograd import INPUT, OUTPUT, WEIGHT, convolved, pays

LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def conv(inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3), bias: bool = True, seed: int = 0) -> Conv:
    torch.manual_seed(seed)
    return Conv(inputs, outputs, kernel, padding=tuple(k // 2 for k in kernel), bias=bias)


def window(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def plain(layer: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """In double precision."""
    bias = None if layer.bias is None else layer.bias.double()
    return nn.functional.conv3d(x.double(), layer.weight.double(), bias, layer.stride, layer.padding)


def quick(layer: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    out = torch.full((1, layer.out_channels, *x.shape[2:]), torch.nan).contiguous(memory_format=LAST)
    convolved(layer, x, out)
    return out


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 2e-5 of the largest value."""
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


def test_the_matrices_are_those_of_a_convolution_of_three() -> None:
    """Aᵀ [(G g) ⊙ (Bᵀ d)] is g read over d, exactly but for rounding, and a bias put where BIASED says reaches every row."""
    g, d = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, -2.0, 0.5, 4.0, -1.5, 3.0])
    found = OUTPUT @ ((WEIGHT @ g) * (INPUT @ d))
    expected = torch.stack([(g * d[row : row + 3]).sum() for row in range(4)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert OUTPUT[:, winograd.BIASED].tolist() == [1.0] * 4


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 19), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(3, 3, 3), (3, 1, 1), (3, 5, 3)]), st.booleans(), st.sampled_from([1, 2000, 1 << 22]),
)  # fmt: skip
def test_every_shape_kernel_and_grouping_gives_the_plain_convolution(rows, plane, widths, kernel, bias, together) -> None:
    """Rows that are no multiple of four, planes smaller than the kernel, one or many tiles at a time."""
    layer, x = conv(*widths, kernel, bias), window(widths[0], rows, *plane)
    with torch.inference_mode(), patch.object(winograd, "TOGETHER", together):
        assert_same(quick(layer, x), plain(layer, x))


def test_rows_whose_neighbours_are_there_need_no_zeros() -> None:
    """With `before` 0 the first row that goes in stands before the first that comes out, as in slabs."""
    layer, x = conv(4, 6), window(4, 11, 5, 6)
    out = torch.empty((1, 6, 9, 5, 6), memory_format=LAST)
    convolved(layer, x, out, before=0)
    assert_same(out, plain(layer, x)[:, :, 1:10])


def test_it_may_write_into_a_part_of_a_larger_map() -> None:
    """Rows beside it stay as they are."""
    layer, x = conv(4, 6), window(4, 5, 5, 6)
    whole = torch.full((1, 6, 9, 5, 6), 7.0).contiguous(memory_format=LAST)
    convolved(layer, x, whole[:, :, 2:7])
    assert_same(whole[:, :, 2:7], plain(layer, x))
    assert (whole[:, :, :2] == 7).all()
    assert (whole[:, :, 7:] == 7).all()


def test_threads_change_nothing() -> None:
    """The same numbers with one thread and with two, up to rounding: on some processors oneDNN shares the sums of its 2-D convolutions out otherwise."""
    layer, x, before = conv(64, 64), window(64, 16, 16, 16), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(quick(layer, x))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5 * float(found[0].abs().max()))


# ---- where it is used ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (conv(64, 64), (1, 64, 16, 16, 16), True),
        (conv(64, 64), (1, 64, 8, 8, 8), False),  # few voxels
        (conv(32, 64), (1, 32, 16, 16, 16), False),  # few channels
        (conv(64, 32), (1, 64, 112, 112, 128), True),  # which many voxels make up for
        (conv(64, 64, (1, 3, 3)), (1, 64, 16, 16, 16), False),
        (conv(64, 64), (2, 64, 16, 16, 16), False),
        (Conv(64, 64, 3, 2, padding=1), (1, 64, 32, 32, 32), False),
        (Conv(64, 64, 3, padding=0), (1, 64, 32, 32, 32), False),
        (Conv(64, 64, 3, padding=1, groups=2), (1, 64, 32, 32, 32), False),
    ],
)
def test_it_is_used_where_it_pays(layer: nn.Conv3d, shape: tuple[int, ...], expected: bool) -> None:
    """Many channels and voxels, kernel 3 along the first axis, nothing but a plain convolution of one window."""
    assert pays(layer, shape) is expected


def test_a_layer_uses_it_in_inference_alone() -> None:
    """With gradients, and where it does not pay, nothing changes."""
    layer, x = conv(64, 64), window(64, 16, 16, 16)
    with patch.object(winograd, "convolved", wraps=convolved) as used:
        assert_same(layer(x), plain(layer, x))
        assert used.call_count == 1
        layer(window(64, 8, 8, 8))
        with torch.inference_mode(False):
            conv(64, 64)(torch.randn(1, 64, 16, 16, 16))
        assert used.call_count == 1


@pytest.mark.parametrize("length", [4, 9, 16, 30])
def test_slabs_use_it(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, written over what went in: as in one piece."""
    monkeypatch.setattr(winograd, "LEAST", ((4, 1),))
    monkeypatch.setattr(slabs, "HELD", 4 * 8 * 6 * 7 * 5)
    layer, x = conv(8, 8), window(8, length, 6, 7)
    expected = plain(layer, x)
    with patch.object(winograd.Winograd, "__call__", autospec=True, side_effect=winograd.Winograd.__call__) as used:
        assert_same(slabs.convolved(layer, slabs.Whole(x), x), expected)
        assert used.call_count >= length // 4
