"""Upsampling of logits: torch's trilinear interpolation, as three matrix products."""

from __future__ import annotations

import pytest
import torch

from clseg.network.upsample import upsampled


@pytest.mark.parametrize(("shape", "size"), [((3, 4, 5), (6, 8, 10)), ((2, 3, 2), (8, 12, 8)), ((4, 4, 4), (4, 8, 8)), ((1, 2, 3), (2, 4, 6))])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_trilinear_interpolation(shape, size, batch):
    """The same numbers as torch's own, whatever the factor along each axis."""
    x = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(upsampled(x, size), torch.nn.functional.interpolate(x, size, mode="trilinear"), atol=1e-5)


def test_the_same_size_is_left_alone():
    """Nothing is computed, not even a copy."""
    x = torch.zeros(1, 1, 2, 2, 2)
    assert upsampled(x, (2, 2, 2)) is x


def test_a_step_becomes_a_ramp_of_quarters():
    """0 and 1 side by side at twice the size: 0, a quarter, three quarters, 1."""
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2)
    assert upsampled(x, (1, 1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_a_gradient_comes_back():
    """Every coarse voxel feeds eight fine ones."""
    x = torch.zeros(1, 2, 3, 3, 3, requires_grad=True)
    upsampled(x, (6, 6, 6)).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 8.0))
    with torch.inference_mode():
        upsampled(torch.zeros(1, 1, 3, 3, 3), (6, 6, 6))
    upsampled(x, (6, 6, 6)).sum().backward()
