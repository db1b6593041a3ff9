"""Facts about cost: the closed form counts what torch counts."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clseg.errors import WeightsError
from clseg.network.cost import Cost, cost, window_bytes
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.spec import (
    DecoderSpec,
    EncoderSpec,
    Grid,
    Intensity,
    Level,
    Stage,
    Supporter,
    paper_decoder,
    paper_encoder,
)

GRID, CT = Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)), Intensity(-1000.0, 1000.0, 0.0, 500.0)
ONE, TWO, THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)
SMALL = EncoderSpec((Level(4, ONE, THREE, 1), Level(6, TWO, THREE, 1)), GRID, CT)


def counted(spec: DecoderSpec, encoder: EncoderSpec, patch: tuple[int, int, int]) -> Cost:
    """Parameters and convolutions of the real network, counted by hooks while it runs on one window, without memory."""
    flops = 0

    def count(module: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        nonlocal flops
        transposed = isinstance(module, nn.ConvTranspose3d)
        voxels = prod((given[0] if transposed else made).shape[2:])  # each meets every weight once
        flops += 2 * voxels * module.weight.numel()

    with torch.device("meta"):
        decoder = Decoder(spec, encoder)
        for module in decoder.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                module.register_forward_hook(count)
        features = Encoder(encoder)(torch.zeros(1, 1, *patch))
        supports = [[torch.zeros(1, len(s.labels) + 1, *features[0].shape[2:])] for s in spec.supporters]
        decoder(features, supports)
    return Cost(sum(p.numel() for p in decoder.parameters()), flops)


def test_one_stage_by_hand() -> None:
    """8³ window, 6 channels below: up 6·5·2³ weights, 6·5 per voxel; convolution (5+4)·7·27 + 3·7; head 7·2; 512 voxels."""
    found = cost(DecoderSpec((Stage(5, (7,), THREE),), ("liver",)), SMALL, (8, 8, 8))
    assert found == Cost(6 * 5 * 8 + 9 * 7 * 27 + 3 * 7 + 7 * 2, 2 * 512 * (6 * 5 + 9 * 7 * 27 + 7 * 2))


def test_skips_left_out_and_support_heads_by_hand() -> None:
    """One skip channel instead of 4; a supporter with 2 labels: 2 + 3 channels, hidden 10, and the gate."""
    spec = DecoderSpec((Stage(5, (7,), THREE, (2,)),), ("liver",), supporters=(Supporter("lungs", ("left", "right"), ""),))
    found = cost(spec, SMALL, (8, 8, 8))
    mix, head = 5 * 10 * 27, 10 * 2
    assert found.parameters == 6 * 5 * 8 + 6 * 7 * 27 + 3 * 7 + 7 * 2 + mix + 3 * 10 + head + 1
    assert found.flops == 2 * 512 * (6 * 5 + 6 * 7 * 27 + 7 * 2 + mix + head)


@pytest.mark.parametrize(("base", "millions"), [(32, 17.2), (16, 9.1), (8, 3.3)])
def test_the_dense_decoders_of_the_paper(base: int, millions: float) -> None:
    """17.2, 9.1 and 3.3 million parameters; and what they compute is what the real ones do on the paper's patch."""
    encoder, spec, patch = paper_encoder(GRID, CT), paper_decoder(("liver",), base), (128, 96, 112)
    found = cost(spec, encoder, patch)
    assert round(found.parameters / 1e6, 1) == millions
    assert found == counted(spec, encoder, patch)


kernels = st.tuples(*[st.sampled_from([1, 3])] * 3)
strides = st.tuples(*[st.integers(1, 2)] * 3)


@st.composite
def networks(draw: st.DrawFn) -> tuple[DecoderSpec, EncoderSpec, tuple[int, int, int]]:
    """A small encoder, a decoder that fits it, and a window that its strides divide."""
    levels = draw(st.lists(st.builds(Level, st.integers(1, 9), strides, kernels, st.integers(1, 2)), min_size=2, max_size=4))
    encoder = EncoderSpec(tuple(levels), GRID, CT)
    stages = []
    for level in levels[-2::-1]:
        skip = draw(st.none() | st.sets(st.integers(0, level.width - 1)).map(lambda channels: tuple(sorted(channels))))
        convs = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
        stages.append(Stage(draw(st.integers(1, 9)), tuple(convs), draw(kernels), skip))
    supporters = draw(st.sampled_from([(), (Supporter("a", ("x",), ""),), (Supporter("a", ("x", "y"), ""), Supporter("b", ("z",), ""))]))
    times = draw(st.tuples(*[st.integers(2, 3)] * 3))
    patch = tuple(t * s for t, s in zip(times, encoder.total_stride, strict=True))
    return DecoderSpec(tuple(stages), draw(st.sampled_from([("l",), ("l", "m", "n")])), supporters=supporters), encoder, patch


@settings(max_examples=30)
@given(networks())
def test_the_closed_form_is_what_the_network_does(network: tuple) -> None:
    """Any widths, kernels, strides, skips and supporters: parameters and convolutions agree to the last one."""
    assert cost(*network) == counted(*network)


def test_torch_counts_the_same() -> None:
    """torch's own flop counter agrees for a decoder with a choice of skips."""
    from torch.utils.flop_counter import FlopCounterMode

    spec = DecoderSpec((Stage(5, (7, 3), THREE, (0, 3)),), ("liver", "spleen"))
    decoder, encoder = Decoder(spec, SMALL), Encoder(SMALL)
    with FlopCounterMode(display=False) as counter:  # with gradients: what goes to oneDNN directly is not counted
        features = encoder(torch.zeros(1, 1, 8, 8, 8))
        before = counter.get_total_flops()
        decoder(features)
    assert cost(spec, SMALL, (8, 8, 8)).flops == counter.get_total_flops() - before


def test_costs_add_up() -> None:
    """Two decoders cost what they cost together."""
    assert Cost(1, 10) + Cost(2, 20) == Cost(3, 30)


def test_a_decoder_that_does_not_fit_has_no_cost() -> None:
    """Two stages on an encoder with one step, and a skip channel that is not there."""
    stage = Stage(5, (7,), THREE)
    with pytest.raises(WeightsError, match="has 1 to 1 stages, this spec has 2"):
        cost(DecoderSpec((stage, stage), ("liver",)), SMALL, (8, 8, 8))
    with pytest.raises(WeightsError, match="skip channel 4"):
        cost(DecoderSpec((Stage(5, (7,), THREE, (4,)),), ("liver",)), SMALL, (8, 8, 8))


def test_biases_are_weighed() -> None:
    """5 of the transposed convolution and 2 of the head, which compute nothing that counts."""
    plain, biased = (DecoderSpec((Stage(5, (7,), THREE),), ("liver",), bias=bias) for bias in (False, True))
    assert cost(biased, SMALL, (8, 8, 8)) == cost(plain, SMALL, (8, 8, 8)) + Cost(5 + 2, 0)
    assert cost(biased, SMALL, (8, 8, 8)) == counted(biased, SMALL, (8, 8, 8))


def test_what_a_window_holds_by_hand() -> None:
    """One window of 128³, levels of 32 and 64 channels, one decoder: skip 32, joined in slabs and written over, two logits beside; 64 at half size below.

    All are large, so that nothing is held but the features; a tenth more, with the decoder's weights, and three times 16 MiB.
    """
    encoder = EncoderSpec((Level(32, ONE, THREE, 2), Level(64, TWO, THREE, 2)), GRID, CT)
    spec = DecoderSpec((Stage(32, (32, 32), THREE),), ("liver",))
    full, half = 128**3, 64**3
    weights = cost(spec, encoder, (128, 128, 128)).parameters
    assert window_bytes(encoder, [spec], (128, 128, 128)) == int(1.1 * 4 * (32 * full + 64 * half + weights)) + 3 * (16 << 20)
    both = 32 * full + 64 * half + 32 * full + 2 * full  # two decoders: nothing is used up, and two logits wait to be heard
    assert window_bytes(encoder, [spec, spec], (128, 128, 128)) == int(1.1 * 4 * (both + 2 * weights)) + 3 * (16 << 20)


def test_a_small_window_is_joined_at_once() -> None:
    """64³: 64 channels side by side are 64 MiB, just large; 63 are not: they, and 32 of the result, are held beside what comes from below."""
    levels = (Level(31, ONE, THREE, 1), Level(64, TWO, THREE, 1))
    encoder = EncoderSpec(levels, GRID, CT)
    spec = DecoderSpec((Stage(32, (32,), THREE),), ("liver",))
    full, half = 64**3, 32**3
    weights = cost(spec, encoder, (64, 64, 64)).parameters
    held = 64 * half + max(31 + 32 + 63, 63 + 32) * full  # all of it while the skip is joined; then the skip is let go
    assert window_bytes(encoder, [spec], (64, 64, 64)) == int(1.1 * 4 * (held + weights)) + 3 * (16 << 20)
