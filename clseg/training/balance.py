"""Balance: the bias of every label of a finished decoder, moved to where the Dice on training cases is highest.

A decoder that is trained on patches around its structures, with a loss that counts overlap, takes the likeliest label a
little too often: what it paints is too large (LOG.md, 2026-11-26).  A logit that is lower by s asks for a likelihood e^s
times that of every other label.  Weights other than the last bias stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from clseg.catalogue import Catalogue
from clseg.errors import TrainingError
from clseg.inference.engine import Engine
from clseg.inference.predictor import Predictor
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.training.examples import IGNORE, OPEN, Example

STEPS = np.arange(-2.0, 3.01, 0.25)  # of a logit, from the label's present one downwards
WORTH = 0.001  # of mean Dice; for less a bias stays as it is

Curve = np.ndarray
"""Dice of one structure in one case at every step"""


def balanced(
    encoder: Encoder, decoder: Decoder, examples: Sequence[Example], *, device: str = "cpu", open_labels: Sequence[bool] = ()
) -> tuple[Decoder, dict[str, float]]:
    """The decoder with its biases moved (a copy), and by how much every label's logit is lower now.

    `examples` are training cases, their targets under the decoder's recipe name, which is
    the only one that they hold.  A structure and its partner on the other side move
    together.  Raises TrainingError for a decoder that takes the logits of others, which its
    own bias is not alone in deciding about.
    """
    if decoder.spec.supporters:
        raise TrainingError("A decoder with supporters cannot be balanced.", tip="Leave balance at 0 in the recipe.")
    curves = _curves(encoder, decoder, examples, device, open_labels)
    lower = {label: _best(label, curves) for label in decoder.spec.labels}
    moved = _with_biases(decoder, encoder) if any(lower.values()) else decoder
    with torch.no_grad():
        for index, label in enumerate(decoder.spec.labels, 1):
            if lower[label]:
                moved.heads[-1].bias[index] -= lower[label]
    return moved, lower


def _with_biases(decoder: Decoder, encoder: Encoder) -> Decoder:
    """A copy that computes the same and has a bias for every label."""
    if decoder.spec.bias:
        return deepcopy(decoder)
    wider = Decoder(replace(decoder.spec, bias=True), encoder.spec)
    kept = decoder.state_dict()
    with torch.no_grad():
        for name, tensor in wider.named_parameters():
            tensor.copy_(kept[name]) if name in kept else tensor.zero_()
    return wider.requires_grad_(False).eval()


def _curves(
    encoder: Encoder, decoder: Decoder, examples: Sequence[Example], device: str, open_labels: Sequence[bool]
) -> dict[str, list[Curve]]:
    """Label → a curve for every case that shows it."""
    predictor = Predictor(Engine(Model(encoder, {"": decoder}, {"": None}), device, notify=lambda text: None), step=0.75)
    found: dict[str, list[Curve]] = {label: [] for label in decoder.spec.labels}
    for example in examples:
        name, target = next(iter(example.targets.items()))
        if example.hu is None or target is None:
            continue
        shown = [n for n, there in enumerate(example.annotated[name], 1) if there and (target == n).any()]
        sums = {n: np.zeros((2, len(STEPS)), np.int64) for n in shown}
        for part, probability in _parts(predictor, example.hu, target):
            for n in shown:
                ends = bool(open_labels) and open_labels[n - 1]
                sums[n] += _above(probability, n, part, part < OPEN if ends else part != IGNORE)
        for n, (hits, painted) in sums.items():
            found[decoder.spec.labels[n - 1]].append(2 * hits / np.maximum(1, painted + int((target == n).sum())))
    return found


def _parts(predictor: Predictor, hu: np.ndarray, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Target (x, y, n) and probabilities (labels + 1, x, y, n), some slices at a time."""
    for slab in predictor(torch.from_numpy(hu.astype(np.float32)), {"": (0, hu.shape[2])}):
        values = slab.probabilities[""].numpy()
        yield target[:, :, slab.start : slab.start + values.shape[-1]], values


def _above(probability: np.ndarray, n: int, target: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How many voxels label n still wins at every step: those that are its own, and all."""
    tiny = np.finfo(np.float32).tiny
    margin = np.log(np.maximum(probability[n], tiny)) - np.log(np.maximum(np.delete(probability, n, 0).max(0), tiny))
    own = np.sort(margin[known & (target == n)])
    every = np.sort(margin[known & (margin > STEPS[0])])
    return np.stack([len(one) - np.searchsorted(one, STEPS, side="right") for one in (own, every)])


def _best(label: str, curves: Mapping[str, list[Curve]]) -> float:
    """The smallest step of the highest mean Dice of a structure and its partner; 0 where that is hardly better."""
    catalogue = Catalogue.builtin()
    partner = catalogue[label].partner if label in catalogue else None
    cases = [*curves[label], *curves.get(partner or "", [])]
    if not cases:
        return 0.0
    mean, here = np.mean(cases, axis=0), int(np.flatnonzero(STEPS == 0)[0])
    best = min(STEPS[mean == mean.max()], key=abs)
    return float(best) if mean.max() - mean[here] > WORTH else 0.0
