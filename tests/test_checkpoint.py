"""Facts about weights files: they describe themselves, and what does not fit is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_bytes

from clseg.errors import OutputError, WeightsError
from clseg.network.checkpoint import (
    Checkpoint,
    build_decoder,
    build_encoder,
    fingerprint,
    load,
    read_header,
    save,
    supporter,
)
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, to_dict

ENCODER = EncoderSpec(
    (Level(8, (1, 1, 1), (3, 3, 3), 1), Level(16, (2, 2, 2), (3, 3, 3), 1)),
    Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)
DECODER = DecoderSpec((Stage(8, (8,), (3, 3, 3)),), ("liver", "spleen"))


@pytest.fixture(scope="module")
def encoder() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint("encoder", ENCODER, Encoder(ENCODER).state_dict(), card={"licence": "MIT", "cases": ["ä", "b"]})


@pytest.fixture(scope="module")
def decoder(encoder: Checkpoint) -> Checkpoint:
    torch.manual_seed(1)
    tensors = Decoder(DECODER, ENCODER).state_dict()
    return Checkpoint("decoder", DECODER, tensors, fingerprint(encoder.tensors, ENCODER), (0.25, 0.5), {"dice": 0.9})


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("stored", [["liver"], {"brain": [0.1, 0.2]}, {"liver": [0.1]}, {"liver": [0.1, "top"]}, {"liver": 0.1}, {"liver": False}])
def test_label_ranges_that_are_none_are_refused(stored: object, decoder: Checkpoint, tmp_path: Path) -> None:
    """What is not a table from labels of the decoder to two bounds is named."""
    save(tmp_path / "x.safetensors", replace(decoder, label_slices={"liver": (0.1, 0.2)}))
    header = {**read_header(tmp_path / "x.safetensors"), "label_slices": stored}
    (tmp_path / "x.safetensors").write_bytes(to_bytes(dict(decoder.tensors), metadata={"clseg": json.dumps(header)}))
    with pytest.raises(WeightsError, match="label_slices of .* must map labels of the decoder"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("stored", [[10.0], [10.0, -10.0], [0, 0], [None, 10.0], ["left", 10.0], [True, 10.0], {"low": 0}, 3, [float("-inf"), 1.0]])
def test_a_range_to_the_sides_that_is_none_is_refused(stored: object, decoder: Checkpoint, tmp_path: Path) -> None:
    """What is not two rising numbers is named."""
    save(tmp_path / "x.safetensors", decoder)
    header = {**read_header(tmp_path / "x.safetensors"), "sideways": stored}
    (tmp_path / "x.safetensors").write_bytes(to_bytes(dict(decoder.tensors), metadata={"clseg": json.dumps(header)}))
    with pytest.raises(WeightsError, match="sideways of .* must be"):
        load(tmp_path / "x.safetensors")


def test_label_ranges_are_no_part_of_the_fingerprint(decoder: Checkpoint, tmp_path: Path) -> None:
    """They can be learnt anew without a new binding; without them a file holds what files always held."""
    save(tmp_path / "x.safetensors", replace(decoder, label_slices={"liver": (0.1, 0.2)}, sideways=(-10.0, 10.0)))
    save(tmp_path / "y.safetensors", decoder)
    ranged, plain = (load(tmp_path / name) for name in ("x.safetensors", "y.safetensors"))
    assert fingerprint(ranged.tensors, ranged.spec) == fingerprint(plain.tensors, plain.spec)
    assert not {"label_slices", "sideways"} & set(read_header(tmp_path / "y.safetensors"))


def test_what_was_saved_is_loaded(encoder: Checkpoint, decoder: Checkpoint, tmp_path: Path) -> None:
    """Kind, spec, binding, body-part range, card and every bit of every tensor come back."""
    ranged = replace(decoder, label_slices={"liver": (0.25, None), "spleen": None}, sideways=(-50.0, 60.5))
    for checkpoint in (encoder, decoder, ranged):
        save(tmp_path / "x.safetensors", checkpoint)
        loaded = load(tmp_path / "x.safetensors")
        assert replace(loaded, tensors={}) == replace(checkpoint, tensors={})
        assert same(loaded.tensors, dict(checkpoint.tensors))


def test_the_header_is_read_without_the_tensors(decoder: Checkpoint, tmp_path: Path) -> None:
    """Labels, encoder and card can be looked up in the JSON metadata alone."""
    save(tmp_path / "x.safetensors", decoder)
    header = read_header(tmp_path / "x.safetensors")
    assert header["spec"]["labels"] == ["liver", "spleen"]
    assert header["encoder"] == decoder.encoder
    assert (header["format"], header["kind"], header["card"]) == (1, "decoder", {"dice": 0.9})


def test_the_same_content_gives_the_same_bytes(encoder: Checkpoint, tmp_path: Path) -> None:
    """The file does not depend on the order in which tensors and card entries were put in, nor on the hour."""
    shuffled = replace(
        encoder,
        tensors=dict(reversed(encoder.tensors.items())),
        card=dict(reversed(encoder.card.items())),
    )
    save(tmp_path / "a", encoder)
    save(tmp_path / "b", shuffled)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_without_a_folder_is_an_output_error(encoder: Checkpoint, tmp_path: Path) -> None:
    """Nothing is written where there is no folder, and the sentence says so."""
    with pytest.raises(OutputError, match="folder does not exist"):
        save(tmp_path / "missing" / "x.safetensors", encoder)


def test_the_fingerprint_is_of_the_content(encoder: Checkpoint) -> None:
    """Insertion order and memory layout do not matter; one changed bit, name, type, shape or spec field does."""
    tensors = dict(encoder.tensors)
    name = "levels.0.0.conv.weight"
    key = fingerprint(tensors, ENCODER)
    assert len(key) == 64
    assert fingerprint(dict(reversed(tensors.items())), ENCODER) == key
    turned = {**tensors, name: tensors[name].transpose(2, 4).contiguous().transpose(2, 4)}
    assert not turned[name].is_contiguous()
    assert fingerprint(turned, ENCODER) == key

    bit = tensors[name].clone()
    bit.view(torch.int32)[0, 0, 0, 0, 0] ^= 1
    others = [
        ({**tensors, name: bit}, ENCODER),
        ({**tensors, name: tensors[name].double()}, ENCODER),
        ({**tensors, name: tensors[name].reshape(-1)}, ENCODER),
        ({("x" if k == name else k): v for k, v in tensors.items()}, ENCODER),
        (tensors, replace(ENCODER, intensity=Intensity(-1000.0, 1000.0, 1.0, 500.0))),
    ]
    assert key not in {fingerprint(t, s) for t, s in others}


def test_fingerprints_stay_what_they_were() -> None:
    """A decoder of version 0.1 keeps the fingerprint that it had then."""
    tensors = {"heads.0.weight": torch.arange(6).float().view(2, 3), "b": torch.tensor(0.5).half()}
    assert fingerprint(tensors, DECODER) == "99a8ca6d484efedf664ca5a3ad935a323a8e5a2ee29c72f5909e772b25ef20f8"


def test_bfloat16_has_a_fingerprint(encoder: Checkpoint) -> None:
    """A precision that numpy does not know is fingerprinted by its bits, too."""
    rounded = {name: tensor.bfloat16() for name, tensor in encoder.tensors.items()}
    assert fingerprint(rounded, ENCODER) == fingerprint({k: v.clone() for k, v in rounded.items()}, ENCODER) != fingerprint(encoder.tensors, ENCODER)


def test_a_supporter_is_named_by_its_content(encoder: Checkpoint, decoder: Checkpoint) -> None:
    """Name, labels and fingerprint of a decoder; an encoder supports nobody."""
    named = supporter("abdomen", decoder)
    assert (named.name, named.labels, named.fingerprint) == ("abdomen", ("liver", "spleen"), fingerprint(decoder.tensors, DECODER))
    with pytest.raises(WeightsError, match="Only a decoder can support"):
        supporter("root", encoder)


def test_half_precision_is_stored_and_computed_in_single(encoder: Checkpoint, tmp_path: Path) -> None:
    """fp16 tensors stay fp16 in file and memory, halve its size, and become float32 in the network."""
    save(tmp_path / "full", encoder)
    save(tmp_path / "half", replace(encoder, tensors={k: v.half() for k, v in encoder.tensors.items()}))
    half = load(tmp_path / "half")
    assert {t.dtype for t in half.tensors.values()} == {torch.float16}
    assert sum(t.nbytes for t in half.tensors.values()) * 2 == sum(t.nbytes for t in encoder.tensors.values())
    assert (tmp_path / "half").stat().st_size < (tmp_path / "full").stat().st_size
    network = build_encoder(half)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert same(network.state_dict(), {k: v.float() for k, v in half.tensors.items()})


def test_a_built_network_is_frozen(encoder: Checkpoint, decoder: Checkpoint) -> None:
    """No parameter wants a gradient and the network is in evaluation mode."""
    for network in (build_encoder(encoder), build_decoder(decoder, ENCODER)):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("fault", ["missing", "surplus", "misshapen"])
def test_tensors_must_fit_the_spec(encoder: Checkpoint, decoder: Checkpoint, fault: str) -> None:
    """A missing, surplus or misshapen tensor is refused by name."""
    name = {"encoder": "levels.0.0.conv.weight", "decoder": "heads.0.weight"}
    for checkpoint, build in ((encoder, build_encoder), (decoder, lambda c: build_decoder(c, ENCODER))):
        tensors, one = dict(checkpoint.tensors), name[checkpoint.kind]
        if fault == "missing":
            del tensors[one]
        elif fault == "surplus":
            one = "heads.9.weight"
            tensors[one] = torch.zeros(1)
        else:
            tensors[one] = tensors[one][:-1]
        with pytest.raises(WeightsError, match=one.replace(".", r"\.")):
            build(replace(checkpoint, tensors=tensors))


def test_an_encoder_is_no_decoder(encoder: Checkpoint, decoder: Checkpoint) -> None:
    """Each kind of checkpoint builds its own kind of network only."""
    with pytest.raises(WeightsError, match="given a decoder's"):
        build_encoder(decoder)
    with pytest.raises(WeightsError, match="given an encoder's"):
        build_decoder(encoder, ENCODER)


def raw(**header: object) -> bytes:
    """A safetensors file with one tensor and the given clseg metadata."""
    whole = {"format": 1, "kind": "encoder", "spec": to_dict(ENCODER), "encoder": None, "slices": None, "card": {}}
    return to_bytes({"x": torch.zeros(1)}, metadata={"clseg": json.dumps({**whole, **header})})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (to_bytes({"x": torch.zeros(1)}), "no clseg metadata"),
        (to_bytes({"x": torch.zeros(1)}, metadata={"format": "pt"}), "no clseg metadata"),
        (to_bytes({"x": torch.zeros(1)}, metadata={"clseg": "{"}), "is not JSON"),
        (to_bytes({"x": torch.zeros(1)}, metadata={"clseg": "[]"}), "must be a JSON object"),
        (to_bytes({"x": torch.zeros(1)}, metadata={"clseg": '{"format": 1, "kind": "encoder"}'}), "lacks card, encoder"),
        (raw(format=3), "has format 3, this version reads 1 and 2"),
        (raw(format=2), "lacks sparse"),
        (raw(format=2, sparse=[]), "must be a JSON object"),
        (raw(format=2, sparse={"y": {"shape": [1], "dtype": "float32"}}), "'y' must be stored as one mask and its values"),
        (raw(kind="bodypart"), "holds a 'bodypart'"),
        (raw(spec={}), "spec is not usable"),
        (raw()[:-1], "Cannot read the weights file"),
        (b"", "Cannot read the weights file"),
        (b"PK\x03\x04" + bytes(100), "Cannot read the weights file"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    """Foreign, newer, cut and damaged files are refused with the file's name and the reason."""
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load(tmp_path / "x.safetensors")
    assert "x.safetensors" in caught.value.message or "spec" in sentence


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No file at the path is a WeightsError, too."""
    with pytest.raises(WeightsError, match="Cannot read"):
        load(tmp_path / "x.safetensors")


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    """A pickle, bare or in torch's own format, is refused and its code does not run."""
    (tmp_path / "bare").write_bytes(pickle.dumps(Bomb(tmp_path / "hit")))
    torch.save({"x": Bomb(tmp_path / "hit")}, tmp_path / "torch")
    for file in ("bare", "torch"):
        with pytest.raises(WeightsError, match="Cannot read"):
            load(tmp_path / file)
    assert not (tmp_path / "hit").exists()
    pickle.loads((tmp_path / "bare").read_bytes())
    assert (tmp_path / "hit").exists(), "the bomb itself must work, or this test proves nothing"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, encoder: Checkpoint) -> None:
    """No network is built of them: it would find nothing and say nothing."""
    name, tensor = next((n, t.clone()) for n, t in encoder.tensors.items() if t.is_floating_point())
    tensor.view(-1)[0] = value
    with pytest.raises(WeightsError, match=f"The weights hold no numbers .* in '{name}'"):
        build_encoder(replace(encoder, tensors={**encoder.tensors, name: tensor}))
