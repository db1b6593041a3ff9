"""Cross-entropy + batch soft Dice for partial labels, with deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clseg.network.upsample import upsampled
from clseg.training.examples import IGNORE, OPEN

SMOOTH = 1e-5


def deep_loss(
    logits: Sequence[torch.Tensor], target: torch.Tensor, annotated: torch.Tensor, open_ended: Sequence[bool] = ()
) -> torch.Tensor:
    """Weighted mean of `partial_loss` over resolutions, finest first, weights 1, 1/2, 1/4 …

    `logits[i]` (n, K+1, x/sᵢ, y/sᵢ, z/sᵢ); `target` (n, x, y, z) is subsampled to
    each; where the finest logits are coarser than the target, they are upsampled
    trilinearly, as in inference.
    """
    total, weights = 0.0, 0.0
    for i, level in enumerate(logits):
        if i == 0 and level.shape[2:] != target.shape[1:]:
            level = upsampled(level, target.shape[1:])
        steps = [t // s for t, s in zip(target.shape[1:], level.shape[2:], strict=True)]
        small = target[:, steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1], steps[2] // 2 :: steps[2]]
        total = total + partial_loss(level, small, annotated, open_ended) / 2**i
        weights += 1 / 2**i
    return total / weights


def partial_loss(
    logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor, open_ended: Sequence[bool] = ()
) -> torch.Tensor:
    """Cross-entropy + soft Dice where only some labels are annotated.

    `logits` (n, K+1, x, y, z); `target` (n, x, y, z), 0 background, 255 unknown;
    `annotated` (n, K) bool.  Per case the softmax runs over background and the
    labels annotated there (masked softmax): what a case does not annotate is
    neither pushed down nor pulled up by it.  A voxel called 254 is background or one of
    the labels that `open_ended` (one bool for each) names: its likelihood is the sum of theirs, so all other
    labels are pushed down there (marginal loss, Shi et al. 2021, arXiv 2007.03868).

    What is computed does not depend on what the tensors hold, so that a GPU is never waited for and can record it.
    """
    possible = [0, *(label for label, open_ in enumerate(open_ended, 1) if open_)]
    known = target != IGNORE if len(possible) > 1 else target < OPEN
    shut = torch.zeros_like(annotated, dtype=torch.float32).masked_fill(~annotated, float("-inf"))
    shut = torch.nn.functional.pad(shut, (1, 0))
    log_probability = torch.log_softmax(logits.float() + shut[:, :, None, None, None], dim=1)
    chosen = log_probability.gather(1, target.masked_fill(target >= OPEN, 0).long()[:, None])[:, 0]
    if len(possible) > 1:
        either = torch.logsumexp(torch.stack([log_probability[:, label] for label in possible], dim=1), dim=1)
        chosen = torch.where(target == OPEN, either, chosen)
    cross_entropy = -(chosen * known).sum() / known.sum().clamp(min=1)
    return cross_entropy + _dice_loss(log_probability, target, annotated, possible[1:])


def _dice_loss(log_probability: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor, open_labels: Sequence[int]) -> torch.Tensor:
    """1 − mean soft Dice over labels annotated somewhere in the batch, 0 without any; sums run over the whole batch.

    A label is judged where the target is known; one with open ends not where the target is 254, the others there too.
    """
    probability = log_probability.exp().flatten(2)  # (n, K+1, voxels)
    target = target.flatten(1)
    claimed = _sums(probability, target != IGNORE if open_labels else target < OPEN)
    if open_labels:
        beyond = _sums(probability, target == OPEN)
        claimed = torch.stack([one - beyond[:, i] if i + 1 in open_labels else one for i, one in enumerate(claimed.unbind(1))], dim=1)
    index = target.masked_fill(target >= OPEN, 0).long()
    hits = probability.gather(1, index[:, None])[:, 0]
    labels = probability.shape[1]
    overlap, truth = _by_label(hits, index, labels)[:, 1:], _by_label(torch.ones_like(hits), index, labels)[:, 1:]
    rows = annotated.float()
    dice = (2 * (overlap * rows).sum(0) + SMOOTH) / ((claimed * rows).sum(0) + (truth * rows).sum(0) + SMOOTH)
    judged = annotated.any(0).float()
    return ((1 - dice) * judged).sum() / judged.sum().clamp(min=1)


def _by_label(values: torch.Tensor, index: torch.Tensor, labels: int) -> torch.Tensor:
    """Sums of `values` (n, voxels) by label: (n, labels).

    Adding up in place is quickest on a CPU; on a GPU all voxels would queue for a few numbers.
    """
    if not values.is_cuda:
        return values.new_zeros(len(values), labels).scatter_add(1, index, values)
    mine = index[:, None] == torch.arange(labels, device=index.device)[:, None]
    return torch.where(mine, values[:, None], 0).sum(2)


def _sums(probability: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Sum of every label's probability (n, K+1, voxels) over the voxels `where` (n, voxels): (n, K), without background."""
    with torch.autocast(probability.device.type, enabled=False):  # half precision cannot count a patch
        return torch.bmm(probability, where.float()[:, :, None])[:, 1:, 0]
