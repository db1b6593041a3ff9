"""Trainee: what learns, and the frozen parts it learns on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage
from clseg.recipe import DecoderRecipe, OptimRecipe, Recipe
from clseg.training.examples import open_labels
from clseg.training.losses import deep_loss
from clseg.training.patches import Patch


class Trainee(nn.Module):
    """An encoder and decoders with gradients.

    With `frozen` the encoder is no part of what learns: it has no gradient, does not
    appear among parameters or in the state, and runs without a graph.  `helpers` is a
    model on the same encoder that holds the supporters of these decoders under the names
    in their specs; it is frozen likewise.  `open_labels` says per decoder which labels
    have open ends.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoders: Mapping[str, Decoder],
        *,
        frozen: bool = False,
        helpers: Model | None = None,
        open_labels: Mapping[str, tuple[bool, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        if frozen:
            encoder.requires_grad_(False).eval()
            object.__setattr__(self, "encoder", encoder)  # not registered, so not a part of this module
        else:
            self.encoder = encoder
        self.helpers = helpers
        self.open_labels = dict(open_labels or {})
        self.decoders = nn.ModuleDict(decoders)

    def to(self, device: str) -> Trainee:  # type: ignore[override]
        """The same on another device, frozen parts too."""
        super().to(device=device, memory_format=_order(device))
        self.encoder.to(device=device, memory_format=_order(device))
        if self.helpers:
            self.helpers.to(device)
        return self

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One encoder pass over images (n, 1, x, y, z); without a graph when the encoder is frozen."""
        if not self.frozen:
            return self.encoder(images)
        with torch.no_grad():
            return self.encoder(images)

    def forward(self, batch: Sequence[Patch], rule: OptimRecipe, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The loss of every decoder; each learns from the patches that annotate its organs."""
        images = torch.stack([patch.image for patch in batch])
        return self.losses(images.to(device), lessons(batch, self.decoders, device), rule)

    def losses(self, images: torch.Tensor, given: Mapping[str, Lesson], rule: OptimRecipe) -> dict[str, torch.Tensor]:
        """The loss of every decoder that a lesson is given; `images` (n, 1, x, y, z) are on the device of the weights."""
        device = images.device.type
        with torch.autocast(device, dtype=getattr(torch, rule.precision), enabled=rule.precision != "float32"):
            features = self.features(images.to(memory_format=_order(device)))
            supports = self._supports(features)
            losses = {}
            for name, lesson in given.items():
                decoder = self.decoders[name]
                mine = [_rows(level, lesson.rows) for level in features]
                helping = [[_rows(level, lesson.rows) for level in supports[s.name]] for s in decoder.spec.supporters]
                logits = decoder.forward_deep(mine, rule.deep_supervision, helping)
                losses[name] = deep_loss(logits, lesson.target, lesson.annotated, self.open_labels.get(name, ()))
        return losses

    def _supports(self, features: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """Logits of all supporters at all their stages, without a graph."""
        names = {one.name for decoder in self.decoders.values() for one in decoder.spec.supporters}
        if not names or self.helpers is None:
            return {}
        with torch.no_grad():
            return dict(self.helpers.logits(features, sorted(names), len(features)))


@dataclass(frozen=True)
class Lesson:
    """What a decoder learns from a batch: the numbers of the patches, their targets (n, x, y, z), and which labels are annotated (n, K)."""

    rows: Sequence[int]
    target: torch.Tensor
    annotated: torch.Tensor


def lessons(batch: Sequence[Patch], decoders: Iterable[str], device: str) -> dict[str, Lesson]:
    """A lesson for every decoder that some patch teaches, on `device`."""
    found = {}
    for name in decoders:
        if rows := [i for i, patch in enumerate(batch) if name in patch.targets]:
            target = torch.stack([batch[i].targets[name] for i in rows])
            annotated = torch.tensor([batch[i].annotated[name] for i in rows])
            found[name] = Lesson(rows, target.to(device), annotated.to(device, non_blocking=True))
    return found


def _order(device: str) -> torch.memory_format:
    """Channels come last on a GPU, where a step's kernels take 46 instead of 63 ms (LOG.md, 2026-11-26); on a CPU they cost five times as much."""
    return torch.channels_last_3d if device.startswith("cuda") else torch.contiguous_format


def _rows(level: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some patches of a feature map; neighbours as a view, whose gradient needs no scatter."""
    first, last = rows[0], rows[-1]
    return level[first : last + 1] if last - first + 1 == len(rows) else level[list(rows)]


def fresh(recipe: Recipe) -> Trainee:
    """The encoder and all decoders of a recipe, dense, with seeded weights."""
    spec = encoder_spec(recipe)
    decoders = {d.name: Decoder(decoder_spec(d), spec) for d in recipe.decoder}
    trainee = Trainee(Encoder(spec), decoders, open_labels=open_labels(recipe))
    start_weights(trainee, recipe.seed)
    return trainee


def encoder_spec(recipe: Recipe) -> EncoderSpec:
    e, g = recipe.encoder, recipe.grid
    levels = tuple(
        Level(width, (stride,) * 3, (kernel,) * 3, convs)
        for width, stride, kernel, convs in zip(e.widths, e.strides, e.kernels, e.convs, strict=True)
    )
    return EncoderSpec(levels, Grid(g.orientation, g.spacing_mm, g.patch), Intensity(*vars(recipe.intensity).values()))


def decoder_spec(recipe: DecoderRecipe) -> DecoderSpec:
    stages = tuple(
        Stage(width, (width,) * convs, (kernel,) * 3)
        for width, kernel, convs in zip(recipe.widths, recipe.kernels, recipe.convs, strict=True)
    )
    return DecoderSpec(stages, recipe.labels)


def start_weights(network: nn.Module, seed: int) -> None:
    """He initialisation for LeakyReLU 0.01, seeded; biases zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=0.01, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
