"""Facts about specs: the paper's networks have the paper's sizes, and a spec survives being stored."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import WeightsError
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
    decoder_from_dict,
    encoder_from_dict,
    paper_decoder,
    paper_encoder,
    to_dict,
)

GRID = Grid("RAS", (1.5, 1.5, 1.5), (128, 96, 112))
CT = Intensity(-995.0, 1265.0, -187.85, 490.71)
PAPER = paper_encoder(GRID, CT)


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_encoder_of_the_paper() -> None:
    """14 006 112 parameters, widths 32 … 320, and the head-foot axis is halved one time less than the others."""
    with torch.device("meta"):
        assert parameters(Encoder(PAPER)) == 14_006_112
    assert [level.width for level in PAPER.levels] == [32, 64, 128, 256, 320, 320]
    assert PAPER.total_stride == (32, 32, 16)


@pytest.mark.parametrize(("base", "millions"), [(32, 17.2), (16, 9.1), (8, 3.3)])
def test_the_dense_decoders_of_the_paper(base: int, millions: float) -> None:
    """A decoder with base width 32, 16 and 8 has 17.2, 9.1 and 3.3 million parameters."""
    with torch.device("meta"):
        assert round(parameters(Decoder(paper_decoder(("liver",), base), PAPER)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("base", "widths"),
    [(32, [320, 256, 128, 64, 32]), (16, [256, 128, 64, 32, 16]), (8, [128, 64, 32, 16, 8])],
)
def test_widths_double_towards_the_bottleneck_up_to_320(base: int, widths: list[int]) -> None:
    """min(b·2^i, 320) from the bottleneck down to b."""
    assert [stage.up for stage in paper_decoder(("liver",), base).stages] == widths


triples = st.tuples(*[st.integers(1, 4)] * 3)
grids = st.builds(
    Grid,
    st.sampled_from(["RAS", "LPS", "SAR", "AIL"]),
    st.tuples(*[st.floats(0.1, 10, exclude_min=True)] * 3),
    st.tuples(*[st.integers(1, 256)] * 3),
)
intensities = st.builds(Intensity, st.floats(-2000, -1), st.floats(1, 3000), st.floats(-500, 500), st.floats(0.1, 1000))
levels = st.builds(Level, st.integers(1, 512), triples, triples, st.integers(1, 4))
encoders = st.builds(
    EncoderSpec,
    st.lists(levels, min_size=2, max_size=7).map(tuple),
    grids,
    intensities,
    st.integers(1, 3),
    block=st.sampled_from(["plain", "residual"]),
    scheme=st.sampled_from(["ct", "zscore"]),
)
skips = st.none() | st.sets(st.integers(0, 511), max_size=9).map(lambda channels: tuple(sorted(channels)))
stages = st.builds(Stage, st.integers(1, 512), st.lists(st.integers(1, 512), min_size=1, max_size=4).map(tuple), triples, skips)
names = st.lists(st.text(min_size=1), min_size=1, unique=True).map(tuple)
supporters = st.lists(st.builds(Supporter, st.text(min_size=1), names, st.text()), max_size=3, unique_by=lambda one: one.name).map(tuple)
decoders = st.builds(DecoderSpec, st.lists(stages, min_size=1, max_size=6).map(tuple), names, st.booleans(), supporters, bias=st.booleans())


@given(encoders)
def test_an_encoders_spec_survives_json(spec: EncoderSpec) -> None:
    """encoder_from_dict undoes to_dict, through JSON text, to the last bit."""
    assert encoder_from_dict(json.loads(json.dumps(to_dict(spec)))) == spec


@given(decoders)
def test_a_decoders_spec_survives_json(spec: DecoderSpec) -> None:
    """decoder_from_dict undoes to_dict, through JSON text; labels may be in any script."""
    assert decoder_from_dict(json.loads(json.dumps(to_dict(spec)))) == spec


def test_fields_of_later_versions_leave_older_specs_as_they_were() -> None:
    """Without a choice of skips and without supporters the JSON is that of version 0.1, so fingerprints stay; and that JSON is read."""
    text = json.dumps(to_dict(paper_decoder(("liver",))), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == "2791b040a1c672b6676c390d9230ab4411ca66852496d479d4ad28971cbf5b97"
    old = {"stages": [{"up": 8, "convs": [8], "kernel": [3, 3, 3]}], "labels": ["liver"], "last_activation": False}
    assert decoder_from_dict(old) == DecoderSpec((Stage(8, (8,), (3, 3, 3), skip=None),), ("liver",), supporters=())


@pytest.mark.parametrize("skip", [(1, 0), (0, 0), (-1, 2), ("0", "1"), (0.5,)])
def test_skip_channels_are_rising_indices(skip: tuple) -> None:
    """Unordered, repeated, negative and other things are no channels; none at all is a choice."""
    with pytest.raises(WeightsError, match="indices from 0, rising, each once"):
        Stage(8, (8,), (3, 3, 3), skip)
    assert Stage(8, (8,), (3, 3, 3), ()).skip == ()


def test_supporters_are_complete_and_named_once() -> None:
    """The same name twice, a supporter without fingerprint and a list that is none are refused."""
    plain = to_dict(paper_decoder(("liver",)))
    one = {"name": "body", "labels": ["body"], "fingerprint": "0123"}
    with pytest.raises(WeightsError, match="each of its supporters once, given body, body"):
        decoder_from_dict({**plain, "supporters": [one, one]})
    for wrong in ([{"name": "body", "labels": ["body"]}], [{**one, "gate": 1}], None, [1]):
        with pytest.raises(WeightsError, match="not usable"):
            decoder_from_dict({**plain, "supporters": wrong})


@pytest.mark.parametrize("key", ["levels", "grid", "intensity", "channels", "norm"])
def test_an_encoders_spec_without_a_field_is_refused(key: str) -> None:
    """A field that is missing is an error, never a default."""
    plain = to_dict(PAPER)
    del plain[key]
    with pytest.raises(WeightsError, match="encoder's spec is not usable"):
        encoder_from_dict(plain)


@pytest.mark.parametrize("key", ["stages", "labels", "last_activation"])
def test_a_decoders_spec_without_a_field_is_refused(key: str) -> None:
    """A field that is missing is an error, never a default."""
    plain = to_dict(paper_decoder(("liver",)))
    del plain[key]
    with pytest.raises(WeightsError, match="decoder's spec is not usable"):
        decoder_from_dict(plain)


@pytest.mark.parametrize("place", ["", "grid", "intensity", "levels"])
def test_an_unknown_field_is_refused(place: str) -> None:
    """A field that this version does not know may change the network, so it is never passed over."""
    plain = json.loads(json.dumps(to_dict(PAPER)))
    table = plain[place] if place else plain
    (table[0] if place == "levels" else table)["dilation"] = 2
    with pytest.raises(WeightsError, match="dilation"):
        encoder_from_dict(plain)
    decoder = json.loads(json.dumps(to_dict(paper_decoder(("liver",)))))
    (decoder["stages"][0] if place else decoder)["attention"] = True
    with pytest.raises(WeightsError, match="attention"):
        decoder_from_dict(decoder)


@pytest.mark.parametrize("nonsense", [None, [], "levels", {"levels": 3}])
def test_what_is_no_spec_is_refused(nonsense: object) -> None:
    """Anything else in the place of a spec is a WeightsError, not a crash."""
    for parse in (encoder_from_dict, decoder_from_dict):
        with pytest.raises(WeightsError, match="not usable"):
            parse(nonsense)  # type: ignore[arg-type]


def test_impossible_specs_are_refused_when_made() -> None:
    """Clipping needs low < high, axes need three directions, a decoder names each label once, an encoder has two levels."""
    with pytest.raises(WeightsError, match="low < high"):
        Intensity(0.0, 0.0, 0.0, 1.0)
    with pytest.raises(WeightsError, match="sd > 0"):
        Intensity(-1.0, 1.0, 0.0, 0.0)
    for code in ("RAR", "RA", "XYZ", "RASL"):
        with pytest.raises(WeightsError, match="three letters"):
            Grid(code, (1.0, 1.0, 1.0), (8, 8, 8))
    with pytest.raises(WeightsError, match="must be positive"):
        Grid("RAS", (1.0, 0.0, 1.0), (8, 8, 8))
    for labels in ((), ("liver", "liver")):
        with pytest.raises(WeightsError, match="labels, each once"):
            paper_decoder(labels)
    with pytest.raises(WeightsError, match="two levels"):
        EncoderSpec(PAPER.levels[:1], GRID, CT)
    with pytest.raises(WeightsError, match="batch"):
        EncoderSpec(PAPER.levels, GRID, CT, norm="batch")
