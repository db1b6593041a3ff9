"""Model: one frozen encoder and the decoders bound to it, and to each other, by fingerprint."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from clseg.errors import WeightsError
from clseg.network.checkpoint import (
    Checkpoint,
    Range,
    Sideways,
    build_decoder,
    build_encoder,
    empty,
    fill,
    fingerprint,
    load,
)
from clseg.network.spec import EncoderSpec, Supporter

if TYPE_CHECKING:
    import torch

    from clseg.network.decoder import Decoder
    from clseg.network.encoder import Encoder


@dataclass(frozen=True)
class Stored:
    """The files of a model's weights, and what tells whether they are still those that were checked."""

    encoder: Path
    decoders: Mapping[str, Path]
    _state: tuple[tuple[int, ...] | None, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_state", self._seen())

    def refuse_changed(self) -> None:
        """WeightsError when a file is no longer the one that was there."""
        for path, then, now in zip((self.encoder, *self.decoders.values()), self._state, self._seen(), strict=True):
            if now is None:
                raise WeightsError(f"The weights file {path} has gone since it was checked.", tip="Fetch or import it again.")
            if now != then:
                raise WeightsError(f"The weights file {path} was changed since it was checked.", tip="Start again: it will be checked anew.")

    def _seen(self) -> tuple[tuple[int, ...] | None, ...]:
        """Size, time of change and place on disk of every file, None where there is none."""
        return tuple(_looked_at(path) for path in (self.encoder, *self.decoders.values()))


def _looked_at(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


@dataclass(frozen=True)
class Model:
    """One encoder, its decoders by name, and who answers.

    `slices` is the body-part range (None: everywhere) of every decoder that answers;
    others only support.  `label_slices` are the ranges of labels that live in a part of
    their decoder's, by decoder, `sideways` how far from the middle of the body a decoder's
    organs lie, where that is known.  `supporters` are the names here of a decoder's supporters, in
    the order of its spec; a decoder without an entry has them under the names in its
    spec.  A model that is `stored` is hollow, shapes without numbers, until `fill` and after `empty`.
    """

    encoder: Encoder
    decoders: Mapping[str, Decoder]
    slices: Mapping[str, Range | None]
    supporters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_slices: Mapping[str, Mapping[str, Range | None]] = field(default_factory=dict)
    sideways: Mapping[str, Sideways] = field(default_factory=dict)
    stored: Stored | None = None

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for decoder in self.decoders.values() for label in decoder.spec.labels)

    def answering(self, names: Collection[str]) -> Model:
        """The same model, where only the decoders `names` answer; the others are there to support them."""
        return replace(self, slices={name: wanted for name, wanted in self.slices.items() if name in names})

    @property
    def _parts(self) -> tuple[Encoder | Decoder, ...]:
        return (self.encoder, *self.decoders.values())

    @property
    def hollow(self) -> bool:
        """Whether the weights are in their files alone."""
        return self.stored is not None and any(weight.is_meta for part in self._parts for weight in part.parameters())

    @property
    def bytes(self) -> int:
        """What the weights take in memory."""
        return sum(4 * weight.numel() for part in self._parts for weight in part.parameters())

    def fill(self) -> None:
        """Read the weights, all or none, where they are in their files alone; WeightsError when these have changed or gone."""
        if self.stored is None or not self.hollow:
            return
        self.stored.refuse_changed()
        files = (self.stored.encoder, *(self.stored.decoders[name] for name in self.decoders))
        try:
            for part, file in zip(self._parts, files, strict=True):
                fill(part, load(file).tensors)
        except BaseException:
            self.empty()
            raise

    def empty(self) -> None:
        """Let go of weights that can be read again."""
        if self.stored is not None:
            for part in self._parts:
                empty(part)

    def to(self, device: str) -> Model:
        """The same model on another device."""
        from clseg.network.blocks import order_on

        for part in self._parts:
            part.to(device=device, memory_format=order_on(device))
        return self

    def logits(
        self, features: Sequence[torch.Tensor], names: Iterable[str], depth: int = 1, *, spend: bool = False
    ) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """Logits of the decoders `names` at their `depth` finest stages, finest first, in the order asked.

        Supporters run before the decoders that they support, each once and at all their
        stages, and are handed out only where they are asked for themselves.  With `spend`
        the last decoder to run uses the list `features` up.
        """
        wanted = list(names)
        running = self.with_supporters(wanted)
        shared = {helper for name in running for helper in self.supporters_of(name)}
        last = running[-1] if spend and running and len(set(wanted)) == len(wanted) else None
        known: dict[str, list[torch.Tensor]] = {}
        for name in wanted:
            yield name, self._logits(name, features, depth, shared, known, last)[:depth]

    def with_supporters(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and all decoders that support them, directly or through others, each once, supporters first."""
        found: dict[str, None] = {}
        for name in names:
            found.update(dict.fromkeys((*self.with_supporters(self.supporters_of(name)), name)))
        return tuple(found)

    def supporters_of(self, name: str) -> tuple[str, ...]:
        """The decoders that support `name` directly."""
        return self.supporters.get(name) or tuple(one.name for one in self.decoders[name].spec.supporters)

    def _logits(
        self,
        name: str,
        features: Sequence[torch.Tensor],
        depth: int,
        shared: Collection[str],
        known: dict[str, list[torch.Tensor]],
        last: str | None,
    ) -> list[torch.Tensor]:
        """Logits of one decoder; of those in `shared` all stages, kept in `known` for the decoders that need them.

        `last` is the decoder after which nobody needs the features.
        """
        if name in known:
            return known[name]
        if name in shared:
            depth = len(self.decoders[name].spec.stages)
        supports = [self._logits(helper, features, depth, shared, known, last) for helper in self.supporters_of(name)]
        logits = self.decoders[name].forward_deep(features, depth, supports, spend=name == last)
        if name in shared:
            known[name] = logits
        return logits


def load_model(encoder: Path, decoders: Mapping[str, Path]) -> Model:
    """Build a Model from weights files.

    Raises WeightsError when a decoder was trained on another encoder or with other
    supporters: their features and logits would mean nothing to it.
    """
    root = load(encoder)
    return assemble(root, ((name, load(path)) for name, path in decoders.items()))


def assemble(encoder: Checkpoint, decoders: Iterable[tuple[str, Checkpoint]], stored: Stored | None = None) -> Model:
    """Build a Model from checkpoints already in memory, see `load_model`; a hollow one where it is told the files that they are `stored` in."""
    key = fingerprint(encoder.tensors, encoder.spec)
    parts = dict(decoders)
    for name, checkpoint in parts.items():
        if checkpoint.encoder != key:
            raise WeightsError(
                f"Decoder '{name}' belongs to encoder {str(checkpoint.encoder)[:12]}, this encoder is {key[:12]}.",
                tip="Use the encoder that the decoder was trained on; decoders cannot be moved to another one.",
            )
    hollow = stored is not None
    built = {name: build_decoder(checkpoint, encoder.spec, hollow=hollow) for name, checkpoint in parts.items()}
    slices = {name: checkpoint.slices for name, checkpoint in parts.items()}
    label_slices = {name: checkpoint.label_slices for name, checkpoint in parts.items() if checkpoint.label_slices}
    sideways = {name: checkpoint.sideways for name, checkpoint in parts.items() if checkpoint.sideways is not None}
    return Model(build_encoder(encoder, hollow=hollow), built, slices, _bound_supporters(parts), label_slices, sideways, stored)


def _bound_supporters(parts: Mapping[str, Checkpoint]) -> dict[str, tuple[str, ...]]:
    """Of every decoder with supporters their names in `parts`, where they are known by their weights, not by name."""
    supported = {name: part.spec.supporters for name, part in parts.items() if part.spec.supporters}
    if not supported:
        return {}
    keys = {name: fingerprint(part.tensors, part.spec) for name, part in parts.items()}
    owners = {(key, parts[name].spec.labels): name for name, key in keys.items()}
    bound = {}
    for name, supporters in supported.items():
        lost = [one for one in supporters if (one.fingerprint, one.labels) not in owners]
        if lost:
            raise WeightsError(_why_not(name, lost[0], supported, keys), tip="Fetch the supporters that the decoder was trained with.")
        bound[name] = tuple(owners[one.fingerprint, one.labels] for one in supporters)
    return bound


def _why_not(name: str, lost: Supporter, supported: Mapping[str, tuple[Supporter, ...]], keys: Mapping[str, str]) -> str:
    """One sentence: why the decoder `name` cannot have its supporter `lost`."""
    try:
        TopologicalSorter({one: [helper.name for helper in helpers] for one, helpers in supported.items()}).prepare()
    except CycleError as error:
        return f"Decoders support each other in a circle: {' ← '.join(error.args[1])}."
    if lost.fingerprint in keys.values():
        return f"Decoder '{name}' expects the labels {', '.join(lost.labels)} of its supporter '{lost.name}', which has others."
    if lost.name in keys:
        return f"Decoder '{name}' is supported by '{lost.name}' {lost.fingerprint[:12]}, this '{lost.name}' is {keys[lost.name][:12]}."
    return f"Decoder '{name}' is supported by '{lost.name}' {lost.fingerprint[:12]}, which is not in this model."
