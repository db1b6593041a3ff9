"""Facts about models: a decoder works on the encoder it was trained with and on no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clseg.errors import WeightsError
from clseg.network.checkpoint import Checkpoint, fingerprint, save
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model, assemble, load_model
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage

SPEC = EncoderSpec(
    (Level(8, (1, 1, 1), (3, 3, 3), 1), Level(16, (2, 2, 2), (3, 3, 3), 1)),
    Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)


def encoder(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    return Checkpoint("encoder", SPEC, Encoder(SPEC).state_dict())


def decoder(root: Checkpoint, *labels: str, slices: tuple[float, float] | None = None) -> Checkpoint:
    spec = DecoderSpec((Stage(8, (8,), (3, 3, 3)),), labels)
    return Checkpoint("decoder", spec, Decoder(spec, SPEC).state_dict(), fingerprint(root.tensors, SPEC), slices)


def test_a_model_knows_its_labels_and_ranges() -> None:
    """Labels are those of all decoders in turn; each decoder keeps its body-part range, or None."""
    root = encoder()
    model = assemble(root, [("b", decoder(root, "liver", slices=(0.2, 0.6))), ("a", decoder(root, "lung_left", "lung_right"))])
    assert model.labels == ("liver", "lung_left", "lung_right")
    assert dict(model.slices) == {"b": (0.2, 0.6), "a": None}
    assert model.spec == SPEC


def test_decoders_do_not_touch_each_other() -> None:
    """A decoder gives the same bits whether it is alone or beside others: nothing is forgotten by adding one."""
    root = encoder()
    old, new = decoder(root, "liver"), decoder(root, "spleen")
    window = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3))

    def answer(model: Model) -> torch.Tensor:
        return model.decoders["old"](model.encoder(window))

    assert torch.equal(answer(assemble(root, [("old", old)])), answer(assemble(root, [("new", new), ("old", old)])))


def test_a_foreign_encoder_is_refused() -> None:
    """Same shape, other weights: the decoder names both fingerprints and the model is not built."""
    root, other = encoder(0), encoder(1)
    with pytest.raises(WeightsError, match=fingerprint(other.tensors, SPEC)[:12]) as caught:
        assemble(other, [("liver", decoder(root, "liver"))])
    assert fingerprint(root.tensors, SPEC)[:12] in caught.value.message


def test_an_encoder_rounded_to_half_precision_is_another_encoder() -> None:
    """The binding is to the bits as stored, so a decoder trained on float32 refuses a rounded encoder."""
    root = encoder()
    rounded = replace(root, tensors={k: v.half() for k, v in root.tensors.items()})
    with pytest.raises(WeightsError, match="belongs to encoder"):
        assemble(rounded, [("liver", decoder(root, "liver"))])


def test_a_decoder_without_binding_is_refused() -> None:
    """A decoder that does not say which encoder it belongs to fits none."""
    root = encoder()
    with pytest.raises(WeightsError, match="belongs to encoder None"):
        assemble(root, [("liver", replace(decoder(root, "liver"), encoder=None))])


def test_files_become_the_same_model(tmp_path: Path) -> None:
    """load_model of saved files answers as the checkpoints in memory do, bit for bit."""
    root = encoder()
    one = decoder(root, "liver")
    save(tmp_path / "e", root)
    save(tmp_path / "d", one)
    loaded = load_model(tmp_path / "e", {"liver": tmp_path / "d"})
    window = torch.ones(1, 1, 8, 8, 8)
    window[0, 0, 2] = -1
    expected = assemble(root, [("liver", one)])
    assert torch.equal(
        loaded.decoders["liver"](loaded.encoder(window)), expected.decoders["liver"](expected.encoder(window))
    )


def test_two_files_in_each_others_place_are_refused(tmp_path: Path) -> None:
    """A decoder given as the encoder is a WeightsError."""
    root = encoder()
    save(tmp_path / "e", root)
    save(tmp_path / "d", decoder(root, "liver"))
    with pytest.raises(WeightsError, match="decoder's"):
        load_model(tmp_path / "d", {})
