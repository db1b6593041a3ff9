"""Facts about the way back: scores are interpolated and the largest wins, or the label map is; row by row as all at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.inference.planned import export as export_module
from clseg.inference.planned.export import Export, LabelMap, _picked
from clseg.inference.planned.prepare import View, whole
from clseg.network.plan import Plan, Resampling, Scheme
from clseg.volume import Volume

PLAN = Plan("nnunet", (2.0, 2.0, 2.0), (8, 8, 8), Scheme("none"))


def view_of(shape, size, spacing=(1.0, 1.0, 1.0), bounds=None) -> View:
    """A scan of `shape` voxels whose box becomes `size` voxels."""
    bounds = bounds or whole(shape)
    edges = tuple(s * (last - first) / n for s, (first, last), n in zip(spacing, bounds, size, strict=True))
    return View(replace(PLAN, spacing_mm=edges), shape, spacing, bounds)


def exported(scores: torch.Tensor, shape, cuts=(), spacing=(1.0, 1.0, 1.0), bounds=None, **changes) -> LabelMap:
    """The answer when scores come in pieces; the scan is stored (x, y, z), the network sees (z, y, x) of `shape`."""
    view = view_of(shape, scores.shape[1:], spacing, bounds)
    assert view.shape == tuple(scores.shape[1:])
    export = Export(view, replace(view.plan, **changes))
    for first, last in zip((0, *cuts), (*cuts, scores.shape[1]), strict=True):
        export.add(first, scores[:, first:last])
    return export.finished(Volume(np.zeros(view.scan_shape[::-1], np.int16)))


def full(found: LabelMap, shape) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores (z, y, x) of the whole scan."""
    labels, score = np.zeros(shape[::-1], np.uint8), np.zeros(shape[::-1], np.uint8)
    labels[found.box], score[found.box] = found.labels, found.score
    return labels.T, score.T


def by_torch(scores: torch.Tensor, size) -> torch.Tensor:
    """All channels at once: trilinear, half-pixel centres."""
    return torch.nn.functional.interpolate(scores[None], size=size, mode="trilinear", align_corners=False)[0]


def noise(*shape: int) -> torch.Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@given(st.sets(st.integers(1, 8), max_size=4).map(sorted))
@settings(max_examples=25)
def test_rows_in_pieces_give_what_all_at_once_gives(cuts: list[int]) -> None:
    """9 rows of scores become 17 of labels, whatever comes together: torch's trilinear logits, softmax, argmax."""
    scores, shape = noise(4, 9, 5, 6), (17, 9, 13)
    labels, score = full(exported(scores, shape, cuts), shape)
    best, winner = by_torch(scores, shape).softmax(dim=0).max(dim=0)
    assert np.array_equal(labels, winner.numpy())
    found = labels > 0
    np.testing.assert_allclose(score[found], 255 * best.numpy()[found], atol=0.51)


def test_a_device_without_room_leaves_it_to_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out in the middle of some rows: they are done again, and nothing is lost."""
    scores, shape = noise(4, 9, 5, 6), (17, 9, 13)
    expected = full(exported(scores, shape, (3, 6)), shape)
    monkeypatch.setattr(export_module, "CHUNK", 9 * 13 * 2)
    calls, winner = iter(range(100)), export_module._linear_winner

    def scarce(*arguments):
        if next(calls) == 4:
            raise torch.OutOfMemoryError("injected")
        return winner(*arguments)

    monkeypatch.setattr(export_module, "_linear_winner", scarce)
    found = full(exported(scores, shape, (3, 6)), shape)
    assert next(calls) > 9
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


def test_a_scan_on_the_networks_own_grid_is_not_interpolated() -> None:
    """The largest score of every voxel, whose scores stay as they are."""
    scores = noise(4, 6, 5, 7)
    before = scores.clone()
    labels, score = full(exported(scores, (6, 5, 7), (2, 5)), (6, 5, 7))
    best, winner = scores.softmax(dim=0).max(dim=0)
    assert np.array_equal(labels, winner.numpy())
    np.testing.assert_allclose(score[labels > 0], 255 * best.numpy()[labels > 0], atol=0.51)
    assert torch.equal(scores, before)


def test_averaged_probabilities_are_their_own_score() -> None:
    """No second softmax."""
    scores, shape = noise(3, 6, 5, 4).softmax(dim=0), (11, 10, 9)
    labels, score = full(exported(scores, shape, averaged="probabilities"), shape)
    best, winner = by_torch(scores, shape).max(dim=0)
    assert np.array_equal(labels, winner.numpy())
    np.testing.assert_allclose(score[labels > 0], 255 * best.numpy()[labels > 0], atol=0.51)


@pytest.mark.parametrize("shape", [(17, 9, 13), (4, 5, 3)])
def test_the_label_map_can_go_back_instead(shape) -> None:
    """"nearest": the winner on the network's grid, then torch's nearest neighbour."""
    scores = noise(3, 9, 5, 6)
    labels, _ = full(exported(scores, shape, (2, 5), export="nearest"), shape)
    winner = scores.argmax(dim=0)[None, None].float()
    assert np.array_equal(labels, torch.nn.functional.interpolate(winner, size=shape, mode="nearest")[0, 0].numpy())


def test_picking_rounds_as_torch_does() -> None:
    """114 voxels onto 84: 14 · 114 / 84 is 19 exactly, which single precision reaches and double precision of a rounded factor does not."""
    for n, m in ((114, 84), (109, 76), (160, 80), (7, 300)):
        theirs = torch.nn.functional.interpolate(torch.arange(n).float()[None, None], size=m, mode="nearest")[0, 0].long()
        assert np.array_equal(_picked(n, m)[0], theirs.numpy())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_across_long_voxels_slices_are_picked(axis: int) -> None:
    """With a scan of 10 mm slices against 2 mm, row i of the scan is row floor((i + 0.5) · n / m) of the network's grid."""
    size = [6, 5, 4]
    shape = [2 * n for n in size]
    shape[axis] = 3
    spacing = tuple(10.0 if a == axis else 1.0 for a in range(3))
    scores = noise(3, *size)
    labels, _ = full(exported(scores, tuple(shape), (3,), spacing), shape)
    picked = scores.index_select(axis + 1, torch.tensor([int((i + 0.5) * size[axis] / 3) for i in range(3)]))
    assert np.array_equal(labels, by_torch(picked, shape).argmax(dim=0).numpy())
    even = exported(scores, tuple(shape), (), spacing, answer=Resampling(1, 0, "never"))
    assert np.array_equal(full(even, shape)[0], by_torch(scores, shape).argmax(dim=0).numpy())


def test_the_box_is_pasted_where_it_was() -> None:
    """Beyond it is background; the label map keeps only the part where something was found."""
    shape, bounds = (9, 8, 7), ((2, 6), (1, 5), (3, 7))
    scores = torch.zeros(2, 2, 2, 2)
    scores[0], scores[1, 1] = 1.0, 9.0  # the upper half is structure 1
    found = exported(scores, shape, bounds=bounds)
    assert found.box == (slice(3, 7), slice(1, 5), slice(3, 6))  # (x, y, z) of the scan; rows at −0.25, 0.25, 0.75, 1.25: from a quarter on 9 beats 1
    assert found.labels.all()


def test_nothing_found_is_an_empty_box() -> None:
    """A map of background alone takes no memory."""
    scores = torch.zeros(2, 2, 2, 2)
    scores[0] = 5
    assert exported(scores, (4, 4, 4)).labels.size == 0


def test_more_than_255_structures_have_numbers() -> None:
    """Channel 299 of 300 is not 43."""
    scores = torch.zeros(300, 2, 2, 2)
    scores[299] = 9
    assert set(np.unique(exported(scores, (4, 4, 4), (1,)).labels)) == {299}


def test_what_is_kept_of_a_map_is_enough_to_know_who_has_a_voxel() -> None:
    """Any slices give the labels, and the probabilities where there is one; elsewhere 0."""
    rng = np.random.default_rng(0)
    labels, score = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8), rng.integers(1, 256, (4, 5, 6)).astype(np.uint8)
    box = (slice(1, 5), slice(0, 5), slice(2, 8))
    kept = LabelMap(box, labels, score).kept()
    assert kept.box == box
    for rows in (slice(0, 6), slice(2, 5), slice(3, 3)):
        found, sure = kept.part(rows)
        np.testing.assert_array_equal(found, labels[:, :, rows])
        np.testing.assert_array_equal(sure, np.where(labels[:, :, rows] > 0, score[:, :, rows], 0))
