"""A stage that begins with a 1×1×1 convolution says the same, folded or joined."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.network import decoder as decoders
from clseg.network.blocks import folded
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.slabs import LAST, Joined
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage

POINT, THREE = (1, 1, 1), (3, 3, 3)


def _encoder(stride=(2, 2, 2), size=(8, 12, 8)) -> EncoderSpec:
    levels = (Level(6, POINT, THREE, 1), Level(10, stride, THREE, 1))
    return EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), size), Intensity(-1000, 1000, 0, 500))


def _decoder(stage: Stage, encoder: EncoderSpec, *, bias: bool = True) -> Decoder:
    torch.manual_seed(5)
    made = Decoder(DecoderSpec((stage,), ("liver", "spleen"), bias=bias), encoder).eval()
    for name, weight in made.named_parameters():
        torch.nn.init.normal_(weight, std=1.0 if "norm" in name else 0.4)
    return made


def _features(encoder: EncoderSpec) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(6)
    network = Encoder(encoder).eval()
    with torch.inference_mode():
        return tuple(network(torch.randn(1, 1, *encoder.grid.patch)))


def _joined(decoder: Decoder, features) -> Joined:
    return Joined(features[1], decoder.ups[0], features[0], decoder.skips[0], decoder.convs[0][0].conv.in_channels)


@pytest.fixture
def counted(monkeypatch):
    """How often a stage was folded."""
    calls = []
    plain = decoders.fold
    monkeypatch.setattr(decoders, "fold", lambda *given: calls.append(1) or plain(*given))
    return calls


@settings(max_examples=25, deadline=None)
@given(
    stride=st.tuples(*[st.sampled_from([1, 2, 3])] * 3).filter(lambda s: max(s) > 1),
    up=st.integers(1, 9),
    outputs=st.integers(1, 9),
    skip=st.sampled_from([None, (), (4,), (0, 2, 5)]),
    below=st.tuples(*[st.integers(1, 4)] * 3).filter(lambda n: max(n) > 1),  # a norm needs two voxels
    bias=st.booleans(),
    last=st.booleans(),
)
def test_folded_is_as_joined(stride, up, outputs, skip, below, bias, last) -> None:
    encoder = _encoder(stride, tuple(n * s for n, s in zip(below, stride, strict=True)))
    decoder = _decoder(Stage(up, (outputs, 3), POINT, skip), encoder, bias=bias)
    with torch.no_grad():  # the plain way
        features = [f.clone(memory_format=LAST if last else torch.contiguous_format) for f in _features(encoder)]
        expected = decoder(features)
    with torch.inference_mode():
        assert folded(decoder.convs[0][0], _joined(decoder, features))
        found = decoder(features)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_nothing_that_is_read_is_written_to(counted) -> None:
    encoder = _encoder()
    decoder, features = _decoder(Stage(4, (4,), POINT), encoder), _features(encoder)
    before = [f.clone() for f in features]
    with torch.inference_mode():
        decoder.forward_deep(list(features), 1, spend=True)
    assert counted == [1]
    assert all(torch.equal(a, b) for a, b in zip(before, features, strict=True))


@pytest.mark.parametrize("kernel", [POINT, THREE])
def test_a_spent_skip_is_let_go_before_the_next_step(kernel) -> None:
    """What was read is gone when the norm of the first convolution runs, as the plan of memory has it."""
    encoder = _encoder()
    decoder, features = _decoder(Stage(4, (4,), kernel), encoder), list(_features(encoder))
    skip, gone = weakref.ref(features[0]), []
    decoder.convs[0][0].act.register_forward_hook(lambda *_: gone.append(skip() is None))
    with torch.inference_mode():
        decoder.forward_deep(features, 1, spend=True)
    assert gone == [True]


def test_what_cannot_be_folded_goes_the_plain_way(counted) -> None:
    encoder = _encoder()
    features = _features(encoder)
    point, cube = (_decoder(Stage(4, (4,), kernel), encoder) for kernel in (POINT, THREE))
    twice = [torch.cat([f, f]) for f in features]
    with torch.inference_mode():
        one = point(features)
        assert counted == [1]
        cube(features)
        torch.testing.assert_close(point(twice)[1:], one, rtol=1e-4, atol=1e-4)  # several windows
        seen = []
        handle = point.convs[0][0].conv.register_forward_hook(lambda *_: seen.append(1))
        point(features)  # somebody listens
        handle.remove()
    point([f.clone() for f in features])  # with a gradient
    assert counted == [1]
    assert seen == [1]


def test_sizes_that_do_not_meet_go_the_plain_way(counted) -> None:
    encoder = _encoder(size=(7, 12, 8))
    stage = Stage(4, (4,), POINT)
    decoder = Decoder(DecoderSpec((stage,), ("liver",), mismatch="crop"), encoder).eval()
    with torch.inference_mode():
        decoder([torch.randn(1, 6, 7, 12, 8), torch.randn(1, 10, 4, 6, 4)])
    assert counted == []
