"""Parcel: a batch on its way from the process that cut it; every tensor that changes hands costs time, so there are two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clseg.training.patches import Annotated, Patch


@dataclass(frozen=True)
class Parcel:
    """`images` (n, 1, x, y, z); `targets` (m, x, y, z) of all patches in turn; per patch what its decoders annotate, in the order of its targets."""

    images: torch.Tensor
    targets: torch.Tensor
    annotated: list[Annotated]


def pack(batch: Sequence[Patch]) -> Parcel:
    targets = [patch.targets[name] for patch in batch for name in patch.annotated]
    return Parcel(torch.stack([patch.image for patch in batch]), torch.stack(targets), [patch.annotated for patch in batch])


def unpack(parcel: Parcel) -> list[Patch]:
    targets = iter(parcel.targets)
    return [
        Patch(image, {name: next(targets) for name in annotated}, annotated)
        for image, annotated in zip(parcel.images, parcel.annotated, strict=True)
    ]
