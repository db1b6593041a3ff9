"""Parts: everything that segments one scan, loaded: a model per encoder, the body-part scorer, what their cards say."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch

from clseg.errors import WeightsError
from clseg.inference.extent import Extent
from clseg.inference.predictor import Predictor, Slab
from clseg.manifest import Asset
from clseg.network.bodypart import SliceScorer, load_bodypart
from clseg.network.checkpoint import Checkpoint, fingerprint, load
from clseg.network.model import Model, Stored, assemble
from clseg.network.spec import Grid


@dataclass(frozen=True)
class Parts:
    """One Model per encoder, all on one grid; the scorer of slices, if there is one; decoders trained on pathological cases.

    `planned` are models, each on a grid of its own, whose decoders that answer have a
    plan (`clseg.network.plan`); an encoder with decoders of both kinds is in both.
    `offers` are the labels that the manifest lists of a decoder (one that is not named: all).
    It tells the others apart, and says nothing of them.  `turn` is that of the one scan that has the
    weights of `planned` in memory.
    """

    models: tuple[Model, ...]
    scorer: SliceScorer | None
    pathological: frozenset[str]
    planned: tuple[Model, ...] = ()
    offers: Mapping[str, Collection[str]] = field(default_factory=dict)
    turn: AbstractContextManager[bool] = field(default_factory=Lock, compare=False)

    @property
    def grid(self) -> Grid:
        return self.models[0].spec.grid

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of every decoder of the house, as `spoken` gives them."""
        return {name: self.spoken(name, decoder.spec.labels) for model in self.models for name, decoder in model.decoders.items()}

    def spoken(self, decoder: str, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels of a decoder, those that it does not offer as "", which is no structure's name."""
        offered = self.offers.get(decoder, labels)
        return tuple(label if label in offered else "" for label in labels)

    @property
    def answering(self) -> tuple[str, ...]:
        """The decoders that answer; others only support."""
        return tuple(name for model in (*self.models, *self.planned) for name in model.slices)


def load_parts(assets: Sequence[Asset], files: Mapping[str, Path], answering: Collection[str]) -> Parts:
    """Build everything from weights files; only the decoders `answering` answer, the others are there to support them.

    Raises WeightsError when a decoder fits no encoder, or encoders work on different grids.
    """
    encoders = {a.sha256: files[a.name] for a in assets if a.kind == "encoder"}  # by content: copies are loaded once
    decoders = {a.name: load(files[a.name]) for a in assets if a.kind == "decoder"}
    pathological = frozenset(name for name, part in decoders.items() if part.card.get("pathological") is True)
    every = list(_by_encoder(list(encoders.values()), decoders, files, answering))
    models, planned = (tuple(_with(every, planned=wanted)) for wanted in (False, True))
    grids = {model.spec.grid for model in models}
    if len(grids) > 1:
        shown = " and ".join(f"{g.spacing} mm in windows of {g.patch}" for g in sorted(grids, key=str))
        raise WeightsError(f"The structures asked for need encoders on different grids, {shown}.", tip="Ask for them in separate runs, with --roi.")
    scorers = [load_bodypart(files[a.name]) for a in assets if a.kind == "bodypart"]
    offers = {asset.name: asset.labels for asset in assets if asset.kind == "decoder"}
    return Parts(models, scorers[0] if scorers else None, pathological, planned, offers)


def _with(models: Sequence[Model], *, planned: bool) -> Iterator[Model]:
    """The models in which only decoders with a plan answer, or only those without; models in which then none does are left out."""
    for model in models:
        mine = [name for name in model.slices if (model.decoders[name].spec.plan is not None) == planned]
        if mine:
            yield model.answering(mine)


def _by_encoder(encoders: Sequence[Path], decoders: dict[str, Checkpoint], files: Mapping[str, Path], answering: Collection[str]) -> Iterator[Model]:
    """A Model for every encoder that some decoder belongs to; `decoders` are used up, so that what was read of one network is let go before the next.

    Networks of other programs often are many and large, and run one after the other: where all of
    an encoder that answers has a plan its model is hollow.
    """
    for path in encoders:
        encoder = load(path)
        key = fingerprint(encoder.tensors, encoder.spec)
        mine = {name: decoders.pop(name) for name in list(decoders) if decoders[name].encoder == key}
        later = all(getattr(part.spec, "plan", None) is not None for name, part in mine.items() if name in answering)
        if mine:
            yield assemble(encoder, mine.items(), Stored(path, {name: files[name] for name in mine}) if later else None).answering(answering)
    if decoders:
        assemble(load(encoders[0]), decoders.items())  # says which decoder belongs to another encoder


def slabs(predictors: Sequence[Predictor], hu: torch.Tensor, extents: Mapping[str, Extent | None]) -> Iterator[Slab]:
    """Slabs of all predictors together, bottom to top; all work on the same grid, so theirs have the same slices.

    Only decoders named in `extents` are asked, and a predictor none of whose decoders
    has an extent is not asked at all.
    """
    mine = [(one, {name: extents[name] for name in one.engine.model.slices if name in extents}) for one in predictors]
    runs = [one(hu, reach) for one, reach in mine if any(extent is not None for extent in reach.values())]
    for together in zip(*runs, strict=True) if runs else ():
        probabilities = {name: values for slab in together for name, values in slab.probabilities.items()}
        yield Slab(together[0].start, probabilities)
