"""Facts about the loss for partial labels, on voxels few enough to reckon by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.training.examples import OPEN
from clseg.training.losses import SMOOTH, deep_loss, partial_loss

UNKNOWN = 255


def voxels(*rows: list[float]) -> torch.Tensor:
    """Logits (1, K+1, n, 1, 1) of n voxels, one list of K+1 logits per voxel, with gradient."""
    return torch.tensor(rows).T[None, :, :, None, None].contiguous().requires_grad_()


def target(*labels: int) -> torch.Tensor:
    """Target (1, n, 1, 1)."""
    return torch.tensor(labels, dtype=torch.uint8)[None, :, None, None]


def annotated(*known: bool) -> torch.Tensor:
    return torch.tensor([known])


def gradient(logits: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """d loss / d logits, shape (K+1, n)."""
    partial_loss(logits, truth, known).backward()
    return logits.grad[0, :, :, 0, 0]


def test_one_background_voxel_with_everything_annotated() -> None:
    """Three equal logits: cross-entropy log 3; the background is pulled up by 2/3, each label pushed down by 1/3."""
    logits = voxels([0.0, 0.0, 0.0])
    loss = partial_loss(logits, target(0), annotated(True, True))
    assert loss.item() == pytest.approx(log(3) + 1, abs=1e-3)  # the Dice loss of a label that is not there is 1
    assert gradient(logits, target(0), annotated(True, True))[:, 0].tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3], abs=1e-3)


def test_an_unannotated_label_takes_no_part() -> None:
    """Label 2 not annotated: the softmax is over background and label 1, likelihood 1/2, gradient −1/2, +1/2, 0."""
    logits = voxels([0.0, 0.0, 0.0])
    loss = partial_loss(logits, target(0), annotated(True, False))
    assert loss.item() == pytest.approx(log(2) + 1, abs=1e-3)
    assert gradient(logits, target(0), annotated(True, False))[:, 0].tolist() == pytest.approx([-1 / 2, 1 / 2, 0], abs=1e-3)


def test_nothing_is_learned_where_nothing_is_annotated() -> None:
    """With no label annotated every gradient is exactly zero, and so is the loss."""
    logits = voxels([0.3, -2.0, 1.0], [5.0, 0.0, 1.0])
    assert partial_loss(logits, target(0, 0), annotated(False, False)).item() == 0
    assert gradient(logits, target(0, 0), annotated(False, False)).abs().max() == 0


@given(st.lists(st.lists(st.floats(-8, 8), min_size=4, max_size=4), min_size=1, max_size=5), st.sets(st.integers(1, 3)))
def test_background_never_moves_unannotated_labels(rows: list[list[float]], known: set[int]) -> None:
    """Whatever the logits, no background voxel has a gradient on a label that is not annotated."""
    flags = [label in known for label in (1, 2, 3)]
    slope = gradient(voxels(*rows), target(*[0] * len(rows)), annotated(*flags))
    for label in {1, 2, 3} - known:
        assert slope[label].abs().max() == 0


def test_a_labelled_voxel_moves_annotated_labels_only() -> None:
    """Where label 1 is painted, background is pushed down and label 2, which is not annotated, left alone."""
    slope = gradient(voxels([0.0, 0.0, 0.0]), target(1), annotated(True, False))[:, 0]
    assert slope[0] > 0.3
    assert slope[1] < -0.6
    assert slope[2] == 0


def test_unknown_voxels_get_no_gradient_and_do_not_count() -> None:
    """The loss of [background, unknown] is that of [background] alone; the unknown voxel's gradient is exactly zero."""
    logits = voxels([0.2, 0.5], [3.0, -7.0])
    alone = partial_loss(voxels([0.2, 0.5]), target(0), annotated(True))
    assert partial_loss(logits, target(0, UNKNOWN), annotated(True)).item() == pytest.approx(alone.item(), abs=1e-6)
    slope = gradient(logits, target(0, UNKNOWN), annotated(True))
    assert slope[:, 1].tolist() == [0, 0]
    assert slope[0, 0] < 0


def test_a_patch_of_unknown_voxels_is_no_crash() -> None:
    """Nothing known: the cross-entropy is 0, the gradient exactly 0 and nothing is NaN."""
    logits = voxels([0.2, 0.5])
    assert torch.isfinite(partial_loss(logits, target(UNKNOWN), annotated(True)))
    assert gradient(logits, target(UNKNOWN), annotated(True)).abs().max() == 0


def test_a_perfect_prediction_costs_nothing() -> None:
    """Logits of 50 for the truth, 0 elsewhere: cross-entropy and Dice loss are both about 0."""
    truth = [0, 1, 2, 1]
    rows = [[50.0 if i == t else 0.0 for i in range(3)] for t in truth]
    assert partial_loss(voxels(*rows), target(*truth), annotated(True, True)).item() == pytest.approx(0, abs=1e-5)


def test_dice_by_hand() -> None:
    """Two voxels with probability 1/2, one of them the label: Dice 2·½/(1+1) = 1/2; cross-entropy log 2."""
    loss = partial_loss(voxels([0.0, 0.0], [0.0, 0.0]), target(1, 0), annotated(True))
    assert loss.item() == pytest.approx(log(2) + 1 / 2, abs=1e-4)


def test_dice_is_of_the_batch() -> None:
    """One Dice over both cases: overlap ½ of sums 1+1, not the mean of 2/3 and 0."""
    logits = torch.zeros(2, 2, 1, 1, 1)
    truth = torch.tensor([1, 0], dtype=torch.uint8).view(2, 1, 1, 1)
    loss = partial_loss(logits, truth, torch.tensor([[True], [True]]))
    assert loss.item() == pytest.approx(log(2) + 1 / 2, abs=1e-4)


def test_dice_is_of_annotated_cases_only() -> None:
    """A case that does not annotate the label adds nothing to its Dice, and 0 to the cross-entropy."""
    logits = torch.zeros(2, 2, 1, 1, 1)
    truth = torch.tensor([1, 0], dtype=torch.uint8).view(2, 1, 1, 1)
    loss = partial_loss(logits, truth, torch.tensor([[True], [False]]))
    assert loss.item() == pytest.approx(log(2) / 2 + 1 - (1 + SMOOTH) / (1.5 + SMOOTH), abs=1e-5)


def test_resolutions_weigh_half_as_much_each() -> None:
    """Three levels of 4³, 2³ and 1³ voxels: the loss is (a + b/2 + c/4) / (1 + 1/2 + 1/4)."""
    truth = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    truth[0, 1::2, 1::2, 1::2] = 1
    truth[0, 3, 1, 1] = 0
    known = annotated(True)
    levels = [torch.randn(1, 2, n, n, n, generator=torch.Generator().manual_seed(n)) for n in (4, 2, 1)]
    a, b, c = (float(partial_loss(level, truth[:, s // 2 :: s, s // 2 :: s, s // 2 :: s], known)) for level, s in zip(levels, (1, 2, 4), strict=True))
    assert float(deep_loss(levels, truth, known)) == pytest.approx((a + b / 2 + c / 4) / 1.75, rel=1e-6)


def test_coarse_finest_logits_are_judged_at_full_resolution() -> None:
    """With a strided stem the finest logits are upsampled to the target: a constant 2³ answers for all 64 voxels."""
    truth = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    truth[0, 0, 0, 0] = 1
    logits = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
    coarse = float(deep_loss([logits.expand(1, 2, 2, 2, 2)], truth, annotated(True)))
    q = 1 / (1 + exp(1))  # probability of background
    dice = 2 * (1 - q) / (64 * (1 - q) + 1)
    assert coarse == pytest.approx(-(63 * log(q) + log(1 - q)) / 64 + 1 - dice, rel=1e-5)


def test_beyond_an_open_end_is_background_or_the_open_label() -> None:
    """Label 2 has open ends: where its contours have stopped label 1 alone is pushed down, by as much as background and label 2 gain."""
    logits = voxels([0.0, 0.0, 0.0])
    loss = partial_loss(logits, target(OPEN), annotated(True, True), [False, True])
    assert loss.item() == pytest.approx(log(3 / 2) + (1 + 0) / 2, abs=1e-3)  # the Dice of label 2 does not see the voxel
    loss.backward()
    assert logits.grad[0, :, 0, 0, 0].tolist() == pytest.approx([-1 / 6, 1 / 3, -1 / 6], abs=1e-3)


def test_without_open_labels_beyond_is_unknown() -> None:
    """When nobody says which label is open, nothing is learned there."""
    assert gradient(voxels([0.2, 0.5]), target(OPEN), annotated(True)).abs().max() == 0
