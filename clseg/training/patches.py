"""Patches: which case, where, and what the network sees there.

Every choice follows from (seed, iteration, position in the batch) alone, so a
resumed run draws the very patches that the interrupted one would have drawn.  Patches are made
where they are asked for: on a GPU, where cases stay once they were used, or by a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clseg.errors import TrainingError
from clseg.inference.prepare import normalise
from clseg.network.spec import Intensity
from clseg.recipe import Recipe
from clseg.training.augment import change_intensity, in_voxels, maybe_mirrored, other_sides, random_matrix
from clseg.training.examples import IGNORE, OPEN, Example
from clseg.training.synthesis import Pose, synthesise
from clseg.training.workbench import Workbench
from clseg.volume import AIR_HU

Annotated = dict[str, tuple[bool, ...]]


@dataclass(frozen=True)
class Patch:
    """`image` float32 (1, x, y, z); per decoder a uint8 target (x, y, z) and which labels are annotated."""

    image: torch.Tensor
    targets: dict[str, torch.Tensor]
    annotated: Annotated


class Patches:
    """An endless, seeded source of patches, on `device`, from those examples that teach some decoder something.

    With `optim.workers`, processes of their own, the CPU makes them whatever the device.  Noise is drawn by the device, so that a seed gives other patches on a GPU than on a CPU.  Raises TrainingError when a dataset that is drawn from has no such example.
    """

    def __init__(self, examples: Sequence[Example], recipe: Recipe, device: str = "cpu") -> None:
        self.recipe = recipe
        self.bench = Workbench("cpu" if recipe.optim.workers else device)
        self.by_dataset = {
            d.name: [e for e in examples if e.dataset == d.name and e.targets] for d in recipe.dataset if d.weight > 0
        }
        for name, mine in self.by_dataset.items():
            if not mine:
                raise TrainingError(f"No case of dataset '{name}' annotates a structure of any decoder of the recipe.")
        self.weights = np.array([d.weight for d in recipe.dataset if d.weight > 0])
        self.intensity = Intensity(*vars(recipe.intensity).values())
        self.size = np.array(recipe.grid.patch)
        self.spacing = recipe.grid.spacing_mm
        self.labels = {decoder.name: decoder.labels for decoder in recipe.decoder}
        self.never_mirrored = {d.name for d in recipe.dataset if not d.mirror}
        self.mirrored = {decoder.name: other_sides(decoder.labels) for decoder in recipe.decoder} if recipe.augment.mirror else {}

    def batch(self, iteration: int) -> list[Patch]:
        with self.bench.at_work():
            return [
                self.patch(np.random.default_rng([self.recipe.seed, iteration, i])) for i in range(self.recipe.optim.batch)
            ]

    def patch(self, rng: np.random.Generator) -> Patch:
        """One patch; on a GPU within `bench.at_work()`."""
        names = list(self.by_dataset)
        name = names[rng.choice(len(names), p=self.weights / self.weights.sum())]
        example = self.by_dataset[name][rng.integers(len(self.by_dataset[name]))]
        decoders = self._decoders(example, rng)
        centre = self._centre(example, rng)
        matrix = random_matrix(rng, self.recipe.augment)
        if self.recipe.augment.mirror and name not in self.never_mirrored:
            matrix = maybe_mirrored(matrix, self.recipe.grid.orientation, rng)
        if example.atlas is None:
            hu, targets = self._cut(example, decoders, centre, in_voxels(matrix, self.spacing))
        else:
            hu, targets = self._synthesise(example, decoders, centre, matrix, rng)
        annotated = {d: example.annotated[d] for d in decoders}
        if np.linalg.det(matrix) < 0:
            targets, annotated = self._sides_changed(targets, annotated)
        outline = targets.get(self.recipe.augment.clear_outside)
        body = None if outline is None else (outline > 0) & (outline < OPEN)
        hu = change_intensity(hu, body, rng, self.recipe.augment, self.recipe.grid.spacing_mm[2])
        image = normalise(hu, self.intensity)[None]
        return Patch(image, targets, annotated)

    def _sides_changed(self, targets: dict[str, torch.Tensor], annotated: Annotated) -> tuple[dict[str, torch.Tensor], Annotated]:
        """What was left is right in a mirrored patch: targets, and which labels are annotated."""
        tables = {d: self.bench.tensor(self.mirrored[d]) for d in targets}
        return (
            {d: tables[d][target.long()] for d, target in targets.items()},
            {d: tuple(known[self.mirrored[d][n] - 1] for n in range(1, len(known) + 1)) for d, known in annotated.items()},
        )

    def _decoders(self, example: Example, rng: np.random.Generator) -> list[str]:
        """Decoders that learn from this patch; those with nothing to find here only now and then."""
        chosen = [
            name for name in example.targets if example.points[name] or rng.random() < self.recipe.optim.negatives
        ]
        return chosen or list(example.targets)

    def _centre(self, example: Example, rng: np.random.Generator) -> np.ndarray:
        """A voxel of a random annotated structure, jittered, or any voxel."""
        places = [p for decoder in example.points.values() for p in decoder if len(p)]
        if places and rng.random() < self.recipe.optim.foreground:
            points = places[rng.integers(len(places))]
            return points[rng.integers(len(points))] + rng.uniform(-0.2, 0.2, 3) * self.size
        return rng.uniform(0, 1, 3) * example.shape(self.spacing)

    def _cut(
        self, example: Example, decoders: list[str], centre: np.ndarray, matrix: np.ndarray
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sample HU linearly and targets by nearest voxel on the turned lattice around `centre`."""
        shape = np.array(example.hu.shape)
        reach = np.abs(matrix) @ (self.size / 2)
        low = np.clip(np.floor(centre - reach - 1).astype(int), 0, shape - 2)
        high = np.clip(np.ceil(centre + reach + 2).astype(int), low + 2, shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        hu = _sample(self.bench.tensor(example.hu)[box], _lattice(self.size, matrix, centre - low, high - low))
        nearest, outside = _nearest(self.size, matrix, centre, shape)
        empty = torch.zeros(tuple(self.size), dtype=torch.uint8)
        targets = {d: empty for d in decoders}
        for name in decoders:
            if (target := example.targets[name]) is not None:
                targets[name] = self.bench.tensor(target).reshape(-1)[nearest].masked_fill_(outside, IGNORE)
        return hu, targets

    def _synthesise(
        self, example: Example, decoders: list[str], centre: np.ndarray, matrix: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A CT made of the label map around `centre`, and the targets on the same lattice."""
        atlas = example.atlas
        assert atlas is not None
        middle_mm = (centre - (np.array(example.shape(self.spacing)) - 1) / 2) * self.spacing
        pose = Pose(self.recipe.grid.patch, self.spacing, middle_mm, matrix)
        hu, ids = synthesise(atlas, pose, self.recipe.synthesis, rng)
        return hu, {d: torch.from_numpy(atlas.lookup(self.labels[d])).to(ids.device)[ids.long()] for d in decoders}


def _turned(size: np.ndarray, matrix: np.ndarray, centre: np.ndarray) -> list[torch.Tensor]:
    """Where every patch voxel looks, along each axis of the source: three of (x, y, z), in the units of `matrix` and `centre`."""
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2).view([-1 if a == i else 1 for a in range(3)]) for i, n in enumerate(size)]
    return [sum(axes[i] * float(matrix[row, i]) for i in range(3)) + float(centre[row]) for row in range(3)]  # type: ignore[misc]


def _lattice(size: np.ndarray, matrix: np.ndarray, centre: np.ndarray, shape: np.ndarray) -> torch.Tensor:
    """Where every patch voxel looks in a box of `shape`: (1, x, y, z, 3) in grid_sample's units, last axis first."""
    unit = 2 / (shape - 1)
    return torch.stack(_turned(size, matrix * unit[:, None], centre * unit - 1)[::-1], dim=-1)[None]


def _nearest(size: np.ndarray, matrix: np.ndarray, centre: np.ndarray, shape: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """For every patch voxel the number of the nearest voxel of an array of `shape`, and whether it lies outside of it: (x, y, z)."""
    number = torch.zeros(tuple(size), dtype=torch.int64)
    outside = torch.zeros(tuple(size), dtype=torch.bool)
    for along, n in zip(_turned(size, matrix, centre), shape.tolist(), strict=True):
        voxel = along.round_().long()
        outside |= (voxel < 0) | (voxel >= n)
        number.mul_(n).add_(voxel.clamp_(0, n - 1))
    return number, outside


def _sample(hu: torch.Tensor, lattice: torch.Tensor) -> torch.Tensor:
    """`hu` (x, y, z) on the lattice, linearly, air beyond; values are shifted so that zero padding means air."""
    source = hu.float() - AIR_HU
    sampled = torch.nn.functional.grid_sample(source[None, None], lattice, padding_mode="zeros", align_corners=True)
    return sampled[0, 0] + AIR_HU
