"""Proof that nothing was forgotten: the model before and after, weights by hash and masks by voxel."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clseg.errors import TrainingError
from clseg.io.files import read, sha256_of, writing
from clseg.pipeline import segment
from clseg.training.base import Base
from clseg.training.kept import arrays_in
from clseg.volume import Volume


@dataclass(frozen=True)
class Witness:
    """What a model was at one moment: sha256 of its files, and masks (packed bits) of its structures on a probe scan."""

    model: str
    weights: dict[str, str]
    masks: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        with writing(path) as file:
            facts = np.array(json.dumps({"model": self.model, "weights": self.weights}))
            np.savez_compressed(file, facts=facts, **{f"mask/{n}": m for n, m in self.masks.items()})

    @classmethod
    def read(cls, path: Path) -> Witness:
        """What `save` wrote; TrainingError when it is damaged."""
        stored = arrays_in(path)
        if stored is None or "facts" not in stored:
            raise TrainingError(f"{path} is damaged, which says what the model was before this run.", tip="Train in a new folder with --run.")
        masks = {name.removeprefix("mask/"): mask for name, mask in stored.items() if name.startswith("mask/")}
        return cls(**json.loads(str(stored["facts"])), masks=masks)


@dataclass(frozen=True)
class Proof:
    """`weights`: sha256 by asset, before and after; `changed`: voxels that changed, by structure."""

    weights: dict[str, tuple[str, str | None]]
    changed: dict[str, int]

    @property
    def holds(self) -> bool:
        return not any(self.changed.values()) and all(before == after for before, after in self.weights.values())

    @property
    def sentence(self) -> str:
        return f"{sum(self.changed.values())} voxels changed in {len(self.changed)} structures"

    def to_dict(self) -> dict[str, Any]:
        weights = {name: {"before": before, "after": after} for name, (before, after) in self.weights.items()}
        return {"statement": self.sentence, "weights": weights, "voxels_changed": self.changed}


def probe_scan(path: str, folder: Path) -> Volume:
    """The CT at `path` (relative to `folder`), or a synthetic torso when it is empty."""
    if path:
        return read(folder / path)
    from clseg.phantom import phantom

    return phantom()[0]


def witness(model: str, structures: Iterable[str], probe: Volume, assets: Iterable[str]) -> Witness:
    """Segment `structures` of the probe as users would, and hash the files of `assets`."""
    wanted = tuple(structures)
    base = Base.open(model)
    files = base.files(base.listing.asset(name) for name in assets)
    weights = {name: sha256_of(path) for name, path in files.items()}
    if not wanted:
        return Witness(model, weights, {})
    result = segment(probe, wanted, model=model, device="cpu", offline=True)
    masks = {name: np.packbits(np.asarray(result.mask(name), bool)) for name in wanted}
    return Witness(model, weights, masks)


def compare(before: Witness, after: Witness) -> Proof:
    """What changed between two moments; structures that are gone count as changed in every voxel they had."""
    weights = {name: (digest, after.weights.get(name)) for name, digest in before.weights.items()}
    changed = {}
    for name, mask in before.masks.items():
        now = after.masks.get(name, np.zeros_like(mask))
        changed[name] = int(np.unpackbits(mask ^ now).sum())
    return Proof(weights, changed)


def demand(proof: Proof) -> None:
    """Raise TrainingError unless the proof holds."""
    if not proof.holds:
        other = [name for name, (before, after) in proof.weights.items() if before != after]
        raise TrainingError(
            f"Earlier results would change ({proof.sentence}; weights changed: {', '.join(other) or 'none'}), "
            "so the new weights were not listed.",
            tip="This is a fault of clseg; please report it with the run's folder.",
        )
