"""Facts about the shapes that flow through encoder and decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clseg.errors import WeightsError
from clseg.network.blocks import ConvNormAct, ResidualBlock, Up, convolution
from clseg.network.decoder import Decoder, _meeting
from clseg.network.encoder import Encoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage

ONE, TWO, THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)


def encoder_spec(*strides: tuple[int, int, int]) -> EncoderSpec:
    """An encoder with widths 8, 12, 16 …, one level per stride."""
    levels = tuple(Level(8 + 4 * i, stride, THREE, 1 + i % 2) for i, stride in enumerate(strides))
    return EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)), Intensity(-1000, 1000, 0, 500))


def test_one_feature_map_per_level() -> None:
    """Widths and resolutions are those of the levels; an anisotropic stride halves two axes only."""
    encoder = Encoder(encoder_spec(ONE, (2, 2, 1), TWO))
    shapes = [tuple(f.shape) for f in encoder(torch.zeros(2, 1, 16, 8, 12))]
    assert shapes == [(2, 8, 16, 8, 12), (2, 12, 8, 4, 12), (2, 16, 4, 2, 6)]


def test_a_decoder_with_a_width_of_its_own_in_every_layer() -> None:
    """`up` and each convolution of a stage may differ, as after pruning; logits have one channel more than labels."""
    spec = encoder_spec(ONE, (2, 2, 1), TWO)
    stages = (Stage(7, (5, 6, 3), THREE), Stage(2, (9, 4), (1, 3, 3)))
    decoder = Decoder(DecoderSpec(stages, ("liver", "spleen")), spec)
    assert decoder(Encoder(spec)(torch.randn(1, 1, 16, 8, 12))).shape == (1, 3, 16, 8, 12)
    convs = [tuple(m.weight.shape[:2]) for m in decoder.modules() if isinstance(m, nn.Conv3d)]
    assert convs == [(5, 7 + 12), (6, 5), (3, 6), (9, 2 + 8), (4, 9), (3, 3), (3, 4)]


def test_a_strided_stem_gives_coarse_logits() -> None:
    """With a stem stride of 2 logits come at half the resolution of the window."""
    spec = encoder_spec(TWO, TWO)
    decoder = Decoder(DecoderSpec((Stage(8, (8,), THREE),), ("liver",)), spec)
    assert decoder(Encoder(spec)(torch.zeros(1, 1, 16, 16, 8))).shape == (1, 2, 8, 8, 4)


def test_deep_logits_are_finest_first_and_the_first_is_the_answer() -> None:
    """forward_deep gives the `depth` finest stages; its first entry equals forward."""
    spec = encoder_spec(ONE, TWO, TWO)
    decoder = Decoder(DecoderSpec((Stage(8, (8,), THREE), Stage(8, (8,), THREE)), ("liver",)), spec)
    features = Encoder(spec)(torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)))
    deep = decoder.forward_deep(features, depth=5)
    assert [tuple(level.shape[2:]) for level in deep] == [(8, 8, 8), (4, 4, 4)]
    assert torch.equal(deep[0], decoder(features))
    assert len(decoder.forward_deep(features, depth=1)) == 1


def test_a_stage_may_read_some_of_the_skips_channels() -> None:
    """With channels 1 and 4 of the skip: what a full stage says whose weights for the other channels are zero."""
    spec = encoder_spec(ONE, TWO)
    some, full = (Decoder(DecoderSpec((Stage(3, (5,), THREE, skip),), ("liver",)), spec) for skip in ((1, 4), None))
    weights = some.state_dict()
    wide = torch.zeros(5, 3 + 8, *THREE)
    wide[:, [0, 1, 2, 3 + 1, 3 + 4]] = weights["convs.0.0.conv.weight"]
    full.load_state_dict({**weights, "convs.0.0.conv.weight": wide})
    features = [torch.randn(2, 8, 8, 8, 8), torch.randn(2, 12, 4, 4, 4)]
    torch.testing.assert_close(some(features), full(features), atol=1e-5, rtol=1e-5)


def test_all_of_the_skips_channels_cost_nothing() -> None:
    """All, by name or by default, are the encoder's own tensor, not a copy; the choice is in the spec, not among the weights."""
    spec = encoder_spec(ONE, TWO)
    decoders = [Decoder(DecoderSpec((Stage(3, (5,), THREE, skip),), ("liver",)), spec) for skip in (None, tuple(range(8)), (0, 7))]
    x = torch.zeros(1, 8, 2, 2, 2)
    assert [decoder.skips[0](x) is x for decoder in decoders] == [True, True, False]
    assert len({tuple(decoder.state_dict()) for decoder in decoders}) == 1


def test_a_stage_may_read_no_skip_at_all() -> None:
    """An empty choice: the answer does not depend on the finest features."""
    spec = encoder_spec(ONE, TWO)
    decoder = Decoder(DecoderSpec((Stage(3, (5,), THREE, ()),), ("liver",)), spec)
    below = torch.randn(1, 12, 4, 4, 4)
    assert torch.equal(decoder([torch.zeros(1, 8, 8, 8, 8), below]), decoder([torch.ones(1, 8, 8, 8, 8), below]))


def test_a_channel_that_the_level_does_not_have_is_refused() -> None:
    """The finest level has the channels 0 to 7."""
    with pytest.raises(WeightsError, match=r"skip channel 8, the encoder's level has 8 \(0 to 7\)"):
        Decoder(DecoderSpec((Stage(8, (8,), THREE, (0, 8)),), ("liver",)), encoder_spec(ONE, TWO))


def activations(convs: int, last_activation: bool) -> list[bool]:
    """Which of the convolutions of a one-stage decoder are followed by LeakyReLU."""
    decoder = Decoder(DecoderSpec((Stage(8, (8,) * convs, THREE),), ("liver",), last_activation), encoder_spec(ONE, TWO))
    return [isinstance(m.act, nn.LeakyReLU) for m in decoder.modules() if isinstance(m, ConvNormAct)]


def test_only_the_last_activation_is_left_out() -> None:
    """CL-Net has no LeakyReLU before the logits; a stage with a single convolution keeps it."""
    assert activations(3, last_activation=False) == [True, True, False]
    assert activations(3, last_activation=True) == [True, True, True]
    assert activations(1, last_activation=False) == [True]


def test_the_block_is_convolution_norm_leaky_relu() -> None:
    """An identity convolution of ±1 checkerboard values: norm leaves ±1, LeakyReLU turns -1 into -0.01."""
    block = ConvNormAct(1, 1, (1, 1, 1))
    nn.init.ones_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    x = torch.tensor([1.0, -1.0]).repeat(4).view(1, 1, 2, 2, 2)
    assert torch.allclose(block(x), torch.where(x > 0, 1.0, -0.01), atol=1e-4)


def test_a_decoder_has_no_more_stages_than_the_encoder_has_steps() -> None:
    """Three levels have two steps between them; a decoder with three stages, or none, is refused."""
    for count in (0, 3):
        with pytest.raises(WeightsError, match=f"has 1 to 2 stages, this spec has {count}"):
            Decoder(DecoderSpec((Stage(8, (8,), THREE),) * count, ("liver",)), encoder_spec(ONE, TWO, TWO))


def test_a_decoder_with_fewer_stages_ends_at_a_coarser_level() -> None:
    """On three levels a decoder with one stage reads the middle level and gives logits of half the window's size."""
    spec = encoder_spec(ONE, TWO, TWO)
    decoder = Decoder(DecoderSpec((Stage(8, (8,), THREE),), ("liver",)), spec)
    assert decoder(Encoder(spec)(torch.zeros(1, 1, 16, 16, 16))).shape == (1, 2, 8, 8, 8)


@pytest.mark.parametrize(("kernel", "stride", "inputs", "size"), [(THREE, (1, 1, 1), 4, 6), (THREE, (2, 2, 2), 4, 6), ((1, 3, 3), (1, 1, 1), 40, 12), ((1, 1, 1), (1, 1, 1), 4, 6)])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_gives_the_same_with_and_without_a_gradient(kernel, stride, inputs, size, batch) -> None:
    """The ways around torch's slow paths change nothing but the time: all agree with torch's own function."""
    torch.manual_seed(0)
    layer, x = convolution(inputs, 3, kernel, stride), torch.randn(batch, inputs, size, size, size)
    expected = nn.functional.conv3d(x, layer.weight, layer.bias, stride, [k // 2 for k in kernel])
    assert torch.allclose(layer(x), expected, atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(layer(x), expected, atol=1e-5)


def residual(*strides: tuple[int, int, int]) -> EncoderSpec:
    levels = tuple(Level(8 + 4 * i, stride, THREE, 1 + i % 2) for i, stride in enumerate(strides))
    return EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)), Intensity(-1000, 1000, 0, 500), block="residual")


def test_a_residual_encoder_has_a_stem_and_blocks() -> None:
    """Shapes as those of a plain one; a projection stands only where the width changes, which is in the first block of a level."""
    encoder = Encoder(residual(ONE, (2, 2, 1), TWO))
    shapes = [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 8, 12))]
    assert shapes == [(1, 8, 16, 8, 12), (1, 12, 8, 4, 12), (1, 16, 4, 2, 6)]
    blocks = [m for m in encoder.modules() if isinstance(m, ResidualBlock)]
    assert [isinstance(block.skip, ConvNormAct) for block in blocks] == [False, True, False, True]
    assert [isinstance(block.pool, nn.AvgPool3d) for block in blocks] == [False, True, False, True]
    assert encoder.stem.conv.weight.shape == (8, 1, 3, 3, 3)


def test_a_residual_block_with_silent_convolutions_is_its_shortcut() -> None:
    """Scale and shift 0 in the second norm: what remains is LeakyReLU of the mean over the stride."""
    block = ResidualBlock(1, 1, THREE, (2, 1, 1))
    nn.init.zeros_(block.second.norm.weight)
    x = torch.tensor([3.0, 1.0, -3.0, -1.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    assert torch.allclose(block(x)[0, 0, :, 0, 0], torch.tensor([2.0, -0.02]))


def test_another_kind_of_block_or_intensity_is_refused() -> None:
    """The sentence names those that are known."""
    spec = residual(ONE, TWO)
    with pytest.raises(WeightsError, match="plain or residual blocks, given 'dense'"):
        EncoderSpec(spec.levels, spec.grid, spec.intensity, block="dense")
    with pytest.raises(WeightsError, match="ct, zscore, rescale, none, given 'histogram'"):
        EncoderSpec(spec.levels, spec.grid, spec.intensity, scheme="histogram")


def test_a_decoder_may_have_biases() -> None:
    """Transposed convolutions and heads; with all weights 0 the logits are the head's bias."""
    spec = encoder_spec(ONE, TWO)
    decoder = Decoder(DecoderSpec((Stage(3, (5,), THREE),), ("liver",), bias=True), spec)
    for name, parameter in decoder.named_parameters():
        nn.init.constant_(parameter, 7.0 if name == "heads.0.bias" else 0.0)
    assert decoder.ups[0].bias.shape == (3,)
    assert (decoder([torch.zeros(1, 8, 4, 4, 4), torch.zeros(1, 12, 2, 2, 2)]) == 7).all()


def test_where_sizes_differ_both_are_cropped_around_their_middles() -> None:
    """Of 6 and 3 voxels the middle 3 remain, from voxel 1; of 4 and 7 the middle 4 of the 7, from voxel 1; equal ones are left alone."""
    x, skip = torch.arange(6.0).view(1, 1, 6, 1, 1), torch.arange(3.0).view(1, 1, 3, 1, 1)
    cropped, kept = _meeting(x, skip, "crop")
    assert (cropped.flatten().tolist(), kept is not skip, kept.flatten().tolist()) == ([1.0, 2.0, 3.0], True, [0.0, 1.0, 2.0])
    _, cropped = _meeting(torch.zeros(1, 1, 4, 1, 1), torch.arange(7.0).view(1, 1, 7, 1, 1), "crop")
    assert cropped.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert _meeting(x, x, "crop")[0] is x


def test_where_sizes_differ_the_one_from_below_is_resized() -> None:
    """Corners stay corners: 0 … 6 on 4 voxels become 0, 3, 6 on 3."""
    x = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 1, 4, 1, 1)
    resized, skip = _meeting(x, torch.zeros(1, 2, 3, 1, 1), "resize")
    assert (resized.flatten().tolist(), skip.shape[1]) == ([0.0, 3.0, 6.0], 2)


def test_windows_that_strides_do_not_divide() -> None:
    """13 voxels under strides of 4 come out as 13 with either rule, and are an error without one."""
    spec = encoder_spec(ONE, TWO, TWO)
    maps = Encoder(spec)(torch.randn(1, 1, 13, 8, 6))
    stages = (Stage(8, (8,), THREE), Stage(8, (8,), THREE))
    for rule in ("crop", "resize"):
        assert Decoder(DecoderSpec(stages, ("liver",), mismatch=rule), spec)(maps).shape == (1, 2, 13, 8, 6)
    with pytest.raises(RuntimeError):
        Decoder(DecoderSpec(stages, ("liver",)), spec)(maps)
    with pytest.raises(WeightsError, match="mismatch is one of '', 'crop', 'resize', given 'stretch'"):
        DecoderSpec(stages, ("liver",), mismatch="stretch")


@pytest.mark.parametrize(("batch", "act"), [(1, True), (3, True), (2, False)])
def test_normalising_in_place_is_torchs_own_to_the_last_bit(batch: int, act: bool) -> None:
    """Without a gradient a block writes over its convolution's result; with one it cannot: both give the same bits, and the input stays."""
    torch.manual_seed(5)
    block = ConvNormAct(3, 6, THREE, act=act)
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    x = torch.randn(batch, 3, 9, 8, 7)
    before = x.clone()
    with torch.inference_mode():
        found = block(x)
        expected = block.act(nn.functional.instance_norm(block.conv(x), weight=block.norm.weight, bias=block.norm.bias, eps=1e-5))
    assert torch.equal(found, expected)
    assert torch.equal(x, before)


def test_wide_layers_keep_their_channels_last_in_inference_alone() -> None:
    """From 16 channels on a block hands on channels last in inference mode, with the numbers of the plain way; in training and in no_grad it does not."""
    torch.manual_seed(6)
    block = nn.Sequential(ConvNormAct(16, 24, THREE), Up(24, 16, (2, 2, 2)), ConvNormAct(16, 16, THREE))
    x = torch.randn(1, 16, 9, 8, 7)
    trained = block(x).detach()
    with torch.no_grad():
        plain = block(x)
    with torch.inference_mode():
        found = block(x)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert trained.is_contiguous()
    assert plain.is_contiguous()
    torch.testing.assert_close(found, trained, atol=1e-5, rtol=1e-4)
