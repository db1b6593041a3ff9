"""Cross-entropy + batch soft Dice for partial labels, with deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clseg.training.examples import IGNORE

SMOOTH = 1e-5


def deep_loss(logits: Sequence[torch.Tensor], target: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Weighted mean of `partial_loss` over resolutions, finest first, weights 1, 1/2, 1/4 …

    `logits[i]` (n, K+1, x/sᵢ, y/sᵢ, z/sᵢ); `target` (n, x, y, z) is subsampled to
    each; where the finest logits are coarser than the target, they are upsampled
    trilinearly, as in inference.
    """
    total, weights = 0.0, 0.0
    for i, level in enumerate(logits):
        if i == 0 and level.shape[2:] != target.shape[1:]:
            level = torch.nn.functional.interpolate(level, size=target.shape[1:], mode="trilinear")
        steps = [t // s for t, s in zip(target.shape[1:], level.shape[2:], strict=True)]
        small = target[:, steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1], steps[2] // 2 :: steps[2]]
        total = total + partial_loss(level, small, annotated) / 2**i
        weights += 1 / 2**i
    return total / weights


def partial_loss(logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + soft Dice where only some labels are annotated.

    `logits` (n, K+1, x, y, z); `target` (n, x, y, z), 0 background, 255 unknown;
    `annotated` (n, K) bool.  Per case the softmax runs over background and the
    labels annotated there (masked softmax): what a case does not annotate is
    neither pushed down nor pulled up by it.
    """
    known = target != IGNORE
    shut = torch.zeros_like(annotated, dtype=torch.float32).masked_fill(~annotated, float("-inf"))
    shut = torch.nn.functional.pad(shut, (1, 0))
    log_probability = torch.log_softmax(logits.float() + shut[:, :, None, None, None], dim=1)
    chosen = log_probability.gather(1, target.masked_fill(~known, 0).long()[:, None])[:, 0]
    cross_entropy = -(chosen * known).sum() / known.sum().clamp(min=1)
    return cross_entropy + _dice_loss(log_probability, target, known, annotated)


def _dice_loss(log_probability: torch.Tensor, target: torch.Tensor, known: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """1 − mean soft Dice over labels annotated somewhere in the batch; sums run over the whole batch."""
    losses = []
    for label in range(annotated.shape[1]):
        rows = annotated[:, label]
        if not rows.any():
            continue
        probability = log_probability[rows, label + 1].exp() * known[rows]
        truth = target[rows] == label + 1
        overlap = (probability * truth).sum()
        losses.append(1 - (2 * overlap + SMOOTH) / (probability.sum() + truth.sum() + SMOOTH))
    return torch.stack(losses).mean() if losses else log_probability[:, 0].sum() * 0
