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
        small = target[:, :: steps[0], :: steps[1], :: steps[2]]
        total = total + partial_loss(level, small, annotated) / 2**i
        weights += 1 / 2**i
    return total / weights


def partial_loss(logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + soft Dice where only some labels are annotated.

    `logits` (n, K+1, x, y, z); `target` (n, x, y, z), 0 background, 255 unknown;
    `annotated` (n, K) bool.  A voxel called background may belong to any label
    that this case does not annotate, so its likelihood is the sum of the
    background's and those labels' probabilities (marginal loss, Shi et al. 2021,
    arXiv 2007.03868): such a label is never pushed down.
    """
    logits = logits.float()
    known = target != IGNORE
    log_all = torch.logsumexp(logits, dim=1)
    open_labels = torch.cat([torch.ones_like(annotated[:, :1]), ~annotated], dim=1)
    shut = torch.zeros_like(open_labels, dtype=logits.dtype).masked_fill(~open_labels, float("-inf"))
    log_background = torch.logsumexp(logits + shut[:, :, None, None, None], dim=1)
    chosen = logits.gather(1, target.masked_fill(~known, 0).long()[:, None])[:, 0]
    log_likelihood = torch.where(target == 0, log_background, chosen) - log_all
    cross_entropy = -(log_likelihood * known).sum() / known.sum().clamp(min=1)
    return cross_entropy + _dice_loss(logits, log_all, target, known, annotated)


def _dice_loss(
    logits: torch.Tensor, log_all: torch.Tensor, target: torch.Tensor, known: torch.Tensor, annotated: torch.Tensor
) -> torch.Tensor:
    """1 − mean soft Dice over labels annotated somewhere in the batch; sums run over the whole batch."""
    losses = []
    for label in range(annotated.shape[1]):
        rows = annotated[:, label]
        if not rows.any():
            continue
        probability = torch.exp(logits[rows, label + 1] - log_all[rows]) * known[rows]
        truth = target[rows] == label + 1
        overlap = (probability * truth).sum()
        losses.append(1 - (2 * overlap + SMOOTH) / (probability.sum() + truth.sum() + SMOOTH))
    return torch.stack(losses).mean() if losses else logits.sum() * 0
