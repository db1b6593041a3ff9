"""Cross-entropy + batch soft Dice for partial labels, with deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clseg.network.upsample import upsampled
from clseg.training.examples import IGNORE, OPEN

SMOOTH = 1e-5


def deep_loss(
    logits: Sequence[torch.Tensor], target: torch.Tensor, annotated: torch.Tensor, open_ended: torch.Tensor | None = None
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
    logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor, open_ended: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy + soft Dice where only some labels are annotated.

    `logits` (n, K+1, x, y, z); `target` (n, x, y, z), 0 background, 255 unknown;
    `annotated` (n, K) bool.  Per case the softmax runs over background and the
    labels annotated there (masked softmax): what a case does not annotate is
    neither pushed down nor pulled up by it.  A voxel called 254 is background or one of
    the labels that `open_ended` (K,) names: its likelihood is the sum of theirs, so all other
    labels are pushed down there (marginal loss, Shi et al. 2021, arXiv 2007.03868).

    `annotated` and `open_ended` decide what is computed: with both on the CPU a GPU is never waited for.
    """
    some_open = open_ended is not None and bool(open_ended.any())
    known = target != IGNORE if some_open else target < OPEN
    shut = torch.zeros_like(annotated, dtype=torch.float32).masked_fill(~annotated, float("-inf"))
    shut = _beside(torch.nn.functional.pad(shut, (1, 0)), logits)
    log_probability = torch.log_softmax(logits.float() + shut[:, :, None, None, None], dim=1)
    chosen = log_probability.gather(1, target.masked_fill(target >= OPEN, 0).long()[:, None])[:, 0]
    if some_open:
        possible = _beside(torch.cat([open_ended.new_ones(1), open_ended]).nonzero().flatten(), logits)
        either = torch.logsumexp(log_probability.index_select(1, possible), dim=1)
        chosen = torch.where(target == OPEN, either, chosen)
    cross_entropy = -(chosen * known).sum() / known.sum().clamp(min=1)
    return cross_entropy + _dice_loss(log_probability, target, annotated, open_ended if some_open else None)


def _dice_loss(
    log_probability: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor, open_ended: torch.Tensor | None
) -> torch.Tensor:
    """1 − mean soft Dice over labels annotated somewhere in the batch; sums run over the whole batch.

    A label is judged where the target is known; one with open ends not where the target is 254, the others there too.
    """
    if not annotated.any():
        return log_probability[:, 0].sum() * 0
    probability = log_probability.exp().flatten(2)  # (n, K+1, voxels)
    target = target.flatten(1)
    known = (target < OPEN) if open_ended is None else (target != IGNORE)
    claimed = _sums(probability, known)
    if open_ended is not None:
        claimed = claimed - _sums(probability, target == OPEN) * _beside(open_ended, claimed)
    index = target.masked_fill(target >= OPEN, 0).long()
    hits = probability.gather(1, index[:, None])[:, 0]
    overlap = torch.zeros_like(probability[:, :, 0]).scatter_add(1, index, hits)[:, 1:]
    truth = torch.zeros_like(probability[:, :, 0]).scatter_add(1, index, torch.ones_like(hits))[:, 1:]
    rows = _beside(annotated.float(), probability)
    dice = (2 * (overlap * rows).sum(0) + SMOOTH) / ((claimed * rows).sum(0) + (truth * rows).sum(0) + SMOOTH)
    judged = _beside(annotated.any(0).nonzero().flatten(), dice)
    return 1 - dice.index_select(0, judged).mean()


def _beside(small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    """`small` on the device of `large`."""
    return small.to(large.device, non_blocking=True)


def _sums(probability: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Sum of every label's probability (n, K+1, voxels) over the voxels `where` (n, voxels): (n, K), without background."""
    with torch.autocast(probability.device.type, enabled=False):  # half precision cannot count a patch
        return torch.bmm(probability, where.float()[:, :, None])[:, 1:, 0]
