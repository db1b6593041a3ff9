"""Model: one frozen encoder and the decoders bound to it by fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clseg.errors import WeightsError
from clseg.network.checkpoint import Checkpoint, build_decoder, build_encoder, fingerprint, load
from clseg.network.spec import EncoderSpec

if TYPE_CHECKING:
    from clseg.network.decoder import Decoder
    from clseg.network.encoder import Encoder


@dataclass(frozen=True)
class Model:
    """One encoder, its decoders by name, and the body-part range of each (None: everywhere)."""

    encoder: Encoder
    decoders: Mapping[str, Decoder]
    slices: Mapping[str, tuple[float, float] | None]

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for decoder in self.decoders.values() for label in decoder.spec.labels)

    def to(self, device: str) -> Model:
        """The same model on another device."""
        self.encoder.to(device)
        for decoder in self.decoders.values():
            decoder.to(device)
        return self


def load_model(encoder: Path, decoders: Mapping[str, Path]) -> Model:
    """Build a Model from weights files.

    Raises WeightsError when a decoder was trained on another encoder: its
    features would mean nothing to it.
    """
    root = load(encoder)
    return assemble(root, ((name, load(path)) for name, path in decoders.items()))


def assemble(encoder: Checkpoint, decoders: Iterable[tuple[str, Checkpoint]]) -> Model:
    """Build a Model from checkpoints already in memory; see `load_model`."""
    key = fingerprint(encoder.tensors, encoder.spec)
    built, slices = {}, {}
    for name, checkpoint in decoders:
        if checkpoint.encoder != key:
            raise WeightsError(
                f"Decoder '{name}' belongs to encoder {str(checkpoint.encoder)[:12]}, this encoder is {key[:12]}.",
                tip="Use the encoder that the decoder was trained on; decoders cannot be moved to another one.",
            )
        built[name] = build_decoder(checkpoint, encoder.spec)
        slices[name] = checkpoint.slices
    return Model(build_encoder(encoder), built, slices)
