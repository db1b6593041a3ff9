"""Score: Dice of decoders on examples, on the model's grid, without cleaning: quick enough to be asked often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from clseg.inference.engine import Engine
from clseg.inference.predictor import Predictor
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.training.examples import IGNORE, OPEN, Example
from clseg.training.ladder import trimmed_mean

DiceByLabel = dict[str, dict[str, float]]  # structure → case → Dice


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples, evenly spread over the list; all for 0."""
    if not count or len(examples) <= count:
        return list(examples)
    return [examples[i * len(examples) // count] for i in range(count)]


def dice_of(
    encoder: Encoder,
    decoders: Mapping[str, Decoder],
    examples: Sequence[Example],
    *,
    helpers: Model | None = None,
    open_labels: Mapping[str, tuple[bool, ...]] | None = None,
    device: str = "cpu",
    step: float = 0.75,
) -> DiceByLabel:
    """Dice per structure and case, wherever the case annotates the structure and has voxels of it.

    Voxels whose label is unknown do not count.
    """
    model = Model(encoder, {**(helpers.decoders if helpers else {}), **decoders}, dict.fromkeys(decoders))
    if helpers:
        model = replace(model, supporters=helpers.supporters)
    predictor = Predictor(Engine(model, device, notify=lambda text: None), step=step)
    found: DiceByLabel = {}
    for example in examples:
        mine = [name for name in decoders if example.targets.get(name) is not None]
        if example.hu is None or not mine:
            continue
        predicted = _labels(predictor, example, mine)
        for name in mine:
            target = example.targets[name]
            for index, label in enumerate(decoders[name].spec.labels, start=1):
                if example.annotated[name][index - 1] and (target == index).any():
                    ends = (open_labels or {}).get(name)
                    known = target < OPEN if ends and ends[index - 1] else target != IGNORE
                    dice = _dice(predicted[name] == index, target == index, known)
                    found.setdefault(label, {})[example.name] = dice
    return found


def mean_dice(scores: DiceByLabel) -> float:
    """Mean over structures of the trimmed mean over cases, as CL-Net judges its rungs; 0 when nothing could be scored."""
    means = [trimmed_mean(list(cases.values())) for cases in scores.values() if cases]
    return sum(means) / len(means) if means else 0.0


def _labels(predictor: Predictor, example: Example, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The likeliest channel of every decoder per voxel, uint8 (x, y, z)."""
    shape = example.hu.shape
    out = {name: np.zeros(shape, np.uint8) for name in names}
    everywhere = dict.fromkeys(names, (0, shape[2]))
    for slab in predictor(torch.from_numpy(example.hu.astype(np.float32)), everywhere):
        for name in names:
            rows = slab.probabilities[name].argmax(0).to(torch.uint8).numpy()
            out[name][..., slab.start : slab.start + rows.shape[-1]] = rows
    return out


def _dice(predicted: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
    predicted = predicted & known
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else 1.0
