"""Facts about where CL-Net looks: the body in every slice, the slices that a score allows, a box with room for a window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg.inference.planned.body import Body, body_bounds, body_mask, room_of, slices_between, their_scores
from clseg.inference.planned.prepare import look
from clseg.io.files import read
from clseg.network.plan import Plan, Scheme
from clseg.volume import Volume
from clseg.weights.importers.clnet_release import find_release

AIR, FAT = -1000, -100
PLAN = Plan("clnet", (3.0, 3.0, 3.0), (4, 8, 8), Scheme("ct", -200.0, 300.0, 0.0, 100.0), "LPS", crop="body", score_range=(20.0, 40.0))


def air(*shape: int) -> np.ndarray:
    return np.full(shape, AIR, np.float32)


# ---- the body ---------------------------------------------------------------------------------------------------------


def test_the_body_is_the_largest_piece_of_a_slice_without_holes() -> None:
    """20 × 20 voxels with 4 × 4 of air inside count as 400; a piece of 9 × 9 beside them and a sheet 6 thick do not count."""
    hu = air(1, 40, 60)
    hu[0, 10:30, 5:25] = FAT
    hu[0, 18:22, 13:17] = AIR
    hu[0, 10:19, 40:49] = FAT
    hu[0, 34:40, 5:60] = FAT
    mask = body_mask(hu)
    assert mask.sum() == 400
    assert mask[0, 10:30, 5:25].all()


def test_pieces_that_touch_at_a_corner_are_two() -> None:
    """Of 10 × 10 and 12 × 12 voxels that meet at a corner the larger is the body."""
    hu = air(1, 40, 40)
    hu[0, 5:15, 5:15] = FAT
    hu[0, 15:27, 15:27] = FAT
    assert np.argwhere(body_mask(hu)[0]).min(axis=0).tolist() == [15, 15]


def test_every_slice_is_judged_by_itself() -> None:
    """One slice holds the body left, the next right; -200 HU itself is not body; a slice of air has none."""
    hu = air(3, 20, 40)
    hu[0, 5:15, 5:15] = FAT
    hu[1, 5:15, 25:35] = FAT
    hu[2, 5:15, 5:15] = -200
    assert body_mask(hu).sum(axis=(1, 2)).tolist() == [100, 100, 0]
    assert body_mask(hu)[1, 10, 30]


# ---- slices -----------------------------------------------------------------------------------------------------------


def test_slices_in_a_range_and_one_more() -> None:
    """Scores 0, 10 … 90: 20 to 40 are the slices 2, 3, 4, and 5 comes along; at the top nothing is left to come."""
    scores = np.arange(10) * 10.0
    assert slices_between(scores, (20, 40), 10) == (2, 6)
    assert slices_between(scores, (85, 300), 10) == (9, 10)
    assert slices_between(scores, (None, 15), 10) == (0, 3)
    assert slices_between(scores, (75, None), 10) == (8, 10)
    assert slices_between(scores, (41, 49), 10) is None


def test_without_scores_or_range_all_slices_count() -> None:
    """Nobody is kept away who cannot be told where to look."""
    assert slices_between(None, (20, 40), 10) == (0, 10)
    assert slices_between([500.0], None, 10) == (0, 10)


def test_scores_are_brought_to_the_scale_of_the_authors() -> None:
    """The pelvis is 0 on both; 0.88 of the way to the top of the head, where the eyes end, is their 100."""
    assert their_scores(np.array([0.0, 0.44, 0.88])).tolist() == pytest.approx([0.0, 50.0, 100.0])


# ---- the box ----------------------------------------------------------------------------------------------------------


def test_the_box_has_room_for_a_window_and_a_quarter_around_it() -> None:
    """Body from 30 to 40 of 100 with room for 20: 25 to 45, then 5 more on both sides; a body of 60 with room for 20 gets the 5 alone."""
    mask = np.zeros((100, 100, 100), bool)
    mask[30:40, 20:80, 20:80] = True
    assert body_bounds(mask, (0, 100), (20, 20, 20)) == ((20, 50), (15, 85), (15, 85))


def test_the_box_is_moved_into_the_scan() -> None:
    """Near a border the room is taken on the other side; an axis that is too short is taken whole."""
    mask = np.zeros((100, 100, 10), bool)
    mask[0:4, 97:100, 2:5] = True
    assert body_bounds(mask, (0, 100), (20, 20, 20)) == ((0, 25), (75, 100), (0, 10))


def test_only_slices_that_may_hold_the_organs_make_the_box() -> None:
    """The body's box in the slices 40 to 50 of a scan whose body is wider elsewhere."""
    mask = np.zeros((100, 100, 100), bool)
    mask[:, 40:60, 40:60] = True
    mask[70:, 10:90, 10:90] = True
    assert body_bounds(mask, (40, 50), (4, 4, 4)) == ((39, 51), (39, 61), (39, 61))


def test_slices_without_a_body_are_looked_at_whole() -> None:
    """Better too much than a box of nothing."""
    assert body_bounds(np.zeros((10, 20, 30), bool), (2, 8), (2, 2, 2)) == ((2, 8), (0, 20), (0, 30))


def test_room_is_that_of_the_plans_in_the_scans_axes() -> None:
    """A transposed network's window (4, 8, 16) of axes (x, z, y) is 8 along z, 16 along y, 4 along x; `room` goes before it."""
    turned = replace(PLAN, patch=(4, 8, 16), transpose=(2, 0, 1))
    assert room_of(turned) == (8, 16, 4)
    assert room_of(replace(turned, room=(1, 2, 3))) == (2, 3, 1)


def body_scan(letters: str = "RAS") -> Volume:
    """20 × 30 × 40 voxels of 2 mm in RAS, a body at x 2–12, y 15–27, z 5–35, stored in other axes."""
    from clseg.spatial.orient import to_orientation

    array = np.full((20, 30, 40), AIR, np.int16)
    array[2:12, 15:27, 5:35] = FAT
    return to_orientation(Volume(array, np.diag([2.0, 2.0, 2.0, 1.0])), letters)


@pytest.mark.parametrize("letters", ["RAS", "LPS", "LPI", "SAR", "ILP"])
def test_the_box_does_not_depend_on_how_a_scan_is_stored(letters: str) -> None:
    """In (z, y, x) of LPS, where y and x run the other way: z 5–35 cut to the slices 10–20 and one, y 3–15, x 8–18, with 1 and 2 around."""
    scores = np.arange(40) * 2.0  # 20 … 40 are the slices 10 … 20
    view = look(body_scan(letters), PLAN, Body(body_scan(letters), scores))
    assert view is not None
    assert view.bounds == ((9, 23), (1, 17), (6, 20))
    assert view.plan.score_range is None


def test_a_scan_beside_the_range_is_not_looked_at() -> None:
    """Scores from 50 upwards, organs between 20 and 40."""
    assert look(body_scan(), PLAN, Body(body_scan(), 50 + np.arange(40.0))) is None


def test_transposed_networks_look_at_the_same_box() -> None:
    """The bounds of a network with the axes (x, z, y) are those of the plain one in that order."""
    plain = look(body_scan(), replace(PLAN, patch=(8, 8, 8)))
    turned = look(body_scan(), replace(PLAN, patch=(8, 8, 8), transpose=(2, 0, 1)))
    assert turned.bounds == (plain.bounds[2], plain.bounds[0], plain.bounds[1])


def test_body_and_boxes_are_those_of_the_authors_program(shared: Path) -> None:
    """On the fixture's CT every voxel of the mask, and the box of every head that runs; two heads are out of range."""
    folder = shared / "fixtures" / "official_clnet"
    volume = folder / "reference" / "volume"
    scan = read(volume / "case_0000.nii.gz")
    body = Body(scan, json.loads((volume / "case_bpr_cleaned.json").read_text())["cleaned slice scores"])
    theirs = read(volume / "case_BodyMask.nii.gz").array > 0
    assert np.array_equal(body.mask, theirs.transpose(2, 1, 0))
    for name, (task, head) in find_release(folder).heads.items():
        slices = slices_between(body.scores, head.score_range, len(body.mask))
        if name in ("Eyes", "Lens"):
            assert slices is None
            continue
        told = json.loads((volume / f"bpr_{name}_header.json").read_text())["crop_bbox"]
        assert [list(bound) for bound in body_bounds(body.mask, slices, task.plans.patch)] == told
