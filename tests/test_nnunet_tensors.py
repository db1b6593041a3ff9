"""Facts about the tensors of nnU-Net: every one gets its place, second names fall away, and nothing is missing or too much."""

from __future__ import annotations

import pytest
import torch

from clseg.errors import WeightsError
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity
from clseg.weights.importers.nnunet_shape import shape_of
from clseg.weights.importers.nnunet_tensors import completed, renamed
from tests.small_nnunet import plans, weights


def specs(kind: str) -> tuple[EncoderSpec, DecoderSpec]:
    shape = shape_of(plans(kind)["configurations"]["3d_fullres"])
    grid = Grid("SPL", (6.0, 6.0, 6.0), (8, 8, 8))
    encoder = EncoderSpec(shape.levels, grid, Intensity(-900, 700, 10, 200), block=shape.block)
    return encoder, DecoderSpec(shape.stages, ("liver", "spleen"), True, bias=True)


@pytest.mark.parametrize(("kind", "lower"), [("plain", 12), ("residual", 31)])
def test_second_names_fall_away(kind: str, lower: int) -> None:
    """3 convolutions (plain), 7 and a projection of 3 tensors (residual) of 4 tensors each; 2 more and 4 of the ends above."""
    encoder, decoder = renamed(weights(kind))
    assert (len(encoder), len(decoder)) == (lower, 2 * 4 + 4)
    assert len(weights(kind)) > 2 * len(encoder)


@pytest.mark.parametrize(
    ("kind", "theirs", "part", "ours"),
    [
        ("plain", "encoder.stages.1.0.convs.1.norm.weight", 0, "levels.1.1.norm.weight"),
        ("residual", "encoder.stem.convs.0.conv.weight", 0, "stem.conv.weight"),
        ("residual", "encoder.stages.1.blocks.0.skip.1.conv.weight", 0, "levels.1.0.skip.conv.weight"),
        ("residual", "encoder.stages.1.blocks.1.conv2.conv.bias", 0, "levels.1.1.second.conv.bias"),
        ("plain", "decoder.transpconvs.0.bias", 1, "ups.0.bias"),
        ("plain", "decoder.stages.0.convs.1.conv.weight", 1, "convs.0.1.conv.weight"),
        ("plain", "decoder.seg_layers.0.bias", 1, "heads.0.bias"),
    ],
)
def test_every_tensor_gets_its_place(kind: str, theirs: str, part: int, ours: str) -> None:
    """Some of each kind, by their bytes."""
    found = weights(kind)
    assert torch.equal(renamed(found)[part][ours], found[theirs])


def test_half_precision_becomes_single() -> None:
    """Weights saved as float16 are computed with in float32."""
    halves = {name: tensor.half() for name, tensor in weights().items()}
    assert {tensor.dtype for part in renamed(halves) for tensor in part.values()} == {torch.float32}


def test_a_tensor_of_another_network_is_refused() -> None:
    """Its name is in the sentence."""
    with pytest.raises(WeightsError, match="'encoder.vit.blocks.0.attn.qkv.weight'"):
        renamed({**weights(), "encoder.vit.blocks.0.attn.qkv.weight": torch.zeros(1)})


@pytest.mark.parametrize("value", ["text", torch.eye(4).to_sparse(), torch.zeros(4, dtype=torch.complex64)], ids=["text", "sparse", "complex"])
def test_what_is_no_tensor_of_numbers_is_refused(value: object) -> None:
    """In the place of a bias: its name is in the sentence."""
    with pytest.raises(WeightsError, match=r"'encoder\.stages\.0\.0\.convs\.0\.conv\.bias' is a .*, expected a dense tensor of real numbers"):
        renamed({**weights(), "encoder.stages.0.0.convs.0.conv.bias": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_whole_list_is_checked(kind: str) -> None:
    """A tensor that is missing, in excess or of another shape is named; the complete list comes back as it was."""
    encoder, decoder = specs(kind)
    parts = renamed(weights(kind))
    assert completed(encoder, decoder, parts, bias=True) == parts
    without = {name: tensor for name, tensor in parts[1].items() if name != "ups.0.weight"}
    with pytest.raises(WeightsError, match="lacks the tensor 'ups.0.weight'"):
        completed(encoder, decoder, (parts[0], without), bias=True)
    with pytest.raises(WeightsError, match="has in excess the tensor 'levels.9.0.conv.weight'"):
        completed(encoder, decoder, ({**parts[0], "levels.9.0.conv.weight": torch.zeros(1)}, parts[1]), bias=True)
    with pytest.raises(WeightsError, match=r"'heads.0.bias' has the shape \(9,\), its plans ask for \(3,\)"):
        completed(encoder, decoder, (parts[0], {**parts[1], "heads.0.bias": torch.zeros(9)}), bias=True)


def test_absent_biases_are_zero_only_where_the_plans_say_so() -> None:
    """Without `conv_bias` zeros stand in, but heads must have theirs; with it a lost bias is an error."""
    encoder, decoder = specs("plain")
    bare = renamed(weights(bias=False))
    lower, upper = completed(encoder, decoder, bare, bias=False)
    assert not lower["levels.0.0.conv.bias"].any()
    assert not upper["ups.0.bias"].any()
    with pytest.raises(WeightsError, match="lacks the tensor 'levels.0.0.conv.bias'"):
        completed(encoder, decoder, bare, bias=True)
    headless = {name: tensor for name, tensor in bare[1].items() if name != "heads.0.bias"}
    with pytest.raises(WeightsError, match="lacks the tensor 'heads.0.bias'"):
        completed(encoder, decoder, (bare[0], headless), bias=False)
