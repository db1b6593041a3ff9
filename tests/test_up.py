"""Transposed convolutions as matrix products: the numbers of torch's own."""

from __future__ import annotations

import pytest
import torch

from clseg.network.blocks import LAST, Up


@pytest.mark.parametrize("stride", [(2, 2, 2), (2, 2, 1), (1, 2, 2), (4, 1, 2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, LAST])
def test_the_product_is_torchs_transposed_convolution(stride, bias, order):
    """Whatever the stride, with biases or without, in either order of memory; channels come last in memory."""
    torch.manual_seed(0)
    up, x = Up(5, 3, stride, bias).eval(), torch.randn(1, 5, 3, 4, 2).contiguous(memory_format=order)
    with torch.no_grad():
        expected = torch.nn.ConvTranspose3d.forward(up, x)
    with torch.inference_mode():
        found = up(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert found.is_contiguous(memory_format=LAST)


def test_several_windows_and_training_take_torchs_way(monkeypatch):
    """A batch of two, and anything with a gradient."""
    monkeypatch.setattr(Up, "_multiplied", lambda *_: pytest.fail("took the other way"))
    up = Up(4, 4, (2, 2, 2))
    assert up(torch.randn(1, 4, 2, 2, 2)).requires_grad
    with torch.inference_mode():
        assert up(torch.randn(2, 4, 2, 2, 2)).shape == (2, 4, 4, 4, 4)
