"""How sure decoders are is summed from their probabilities, slab by slab, and brought to the scan as a map of bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clseg.inference.confidence import Confidence, onto_scan
from clseg.inference.planned.export import LabelMap
from clseg.inference.predictor import Slab
from clseg.inference.prepare import place
from clseg.network.spec import Grid
from clseg.review import Certainty
from clseg.volume import Volume

LABELS = {"abdomen": ("liver", "spleen"), "trunk": ("body",)}


def slab(*rows: list[float], start: int = 0) -> Slab:
    """Liver and spleen along x; background is what is left over."""
    values = torch.tensor(rows)
    return Slab(start, {"abdomen": torch.cat([1 - values.sum(0, keepdim=True), values])[:, :, None, None]})


def heard(*slabs: Slab, keep_map: bool = False, shape=(4, 1, 1)) -> Confidence:
    confidence = Confidence(keep_map)
    for one in slabs:
        confidence.hear(one, LABELS, shape)
    return confidence


def test_a_mean_can_be_done_by_hand():
    """Liver 0.6 and 0.8 of 1 in two voxels, the rest background 0.4 and spleen 0.2: margins 0.2 and 0.6, mean probability 0.7.

    Only the second lies beside another class; its entropy is that of 0.8 and 0.2 over three classes.
    """
    found = heard(slab([0.6, 0.6, 0.8, 0.0], [0.0, 0.0, 0.2, 0.1])).certainties
    assert set(found) == {"liver"}
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / math.log(3)
    expected = Certainty((0.6 + 0.6 + 0.8) / 3, (0.2 + 0.2 + 0.6) / 3, 0.6, entropy)
    assert vars(found["liver"]) == pytest.approx(vars(expected), rel=1e-6)


def test_alike_classes_have_an_entropy_of_one():
    """0.34, 0.33 and 0.33 are as unclear as can be, 1 and 0 as clear."""
    unclear = heard(slab([0.34, 0.0], [0.33, 0.0])).certainties["liver"]
    clear = heard(slab([1.0, 0.0], [0.0, 0.0])).certainties["liver"]
    assert unclear.boundary_entropy == pytest.approx(1, abs=1e-3)
    assert (clear.boundary_entropy, clear.margin) == (0, 1)


def test_a_border_of_the_scan_is_none_of_the_structure():
    """A liver that fills the slice has no voxel beside another class: its border is unknown."""
    found = heard(slab([0.9, 0.9], [0.0, 0.0])).certainties["liver"]
    assert (found.boundary_margin, found.boundary_entropy) == (None, None)


def test_slabs_are_summed():
    """Two slabs of one slice give what one of two slices gives."""
    torch.manual_seed(0)
    values = torch.softmax(torch.randn(3, 6, 5, 4) * 2, dim=0)
    whole = heard(Slab(0, {"abdomen": values})).certainties
    cut = heard(*(Slab(k, {"abdomen": values[..., k : k + 1]}) for k in range(4))).certainties
    assert set(whole) == set(cut) == {"liver", "spleen"}
    for name, one in whole.items():
        assert vars(one) == pytest.approx(vars(cut[name]), rel=1e-6)


def test_probabilities_are_not_touched():
    """What decoders say goes on to the canvas as it came."""
    one = slab([0.6, 0.1], [0.3, 0.1])
    before = one.probabilities["abdomen"].clone()
    heard(one, keep_map=True, shape=(2, 1, 1))
    assert torch.equal(one.probabilities["abdomen"], before)


def test_nothing_found_is_nothing_known():
    """Background alone has no certainty."""
    assert heard(slab([0.1, 0.2], [0.0, 0.0])).certainties == {}


# ---- imported networks ------------------------------------------------------------------------------------------------


def test_imported_networks_tell_the_probability_of_the_winner():
    """Scores 255 and 51 of 255 are a mean of 0.6; margin and border are unknown."""
    box = (slice(1, 4), slice(0, 1), slice(0, 1))
    labels, score = (np.array(values, np.uint8).reshape(3, 1, 1) for values in ([2, 0, 2], [255, 102, 51]))
    confidence = Confidence(keep_map=True)
    confidence.hear_map(LabelMap(box, labels, score), ("liver", "spleen"), (4, 1, 1))
    assert confidence.certainties == {"spleen": Certainty(pytest.approx(0.6))}
    assert confidence.map.ravel().tolist() == [255, 255, 102, 51]


def test_a_structure_of_both_kinds_keeps_its_margin():
    """An imported network's voxels add to the probability, not to the margin, which only the other knows."""
    confidence = heard(slab([0.6, 0.6, 0.6, 0.0], [0.0] * 4))
    box = (slice(0, 1),) * 3
    confidence.hear_map(LabelMap(box, np.full((1, 1, 1), 1, np.uint8), np.full((1, 1, 1), 255, np.uint8)), ("liver",), (4, 1, 1))
    found = confidence.certainties["liver"]
    assert (found.probability, found.margin) == (pytest.approx((3 * 0.6 + 1) / 4), pytest.approx(0.2))


# ---- the map ----------------------------------------------------------------------------------------------------------


def lying_in(shape: tuple[int, int, int], spacing: float, orientation: str = "RAS") -> tuple[Volume, object]:
    """A scan full of tissue and how it lies on a grid of 1 mm."""
    scan = Volume(np.zeros(shape, np.int16, order="F"), np.diag([spacing, spacing, spacing, 1.0]))
    return scan, place(scan, Grid(orientation, (1.0, 1.0, 1.0), (8, 8, 8)))[1]


def test_without_being_asked_no_map_is_made():
    """Sums alone are kept."""
    confidence = heard(slab([0.6, 0.0, 0.0, 0.0], [0.0] * 4))
    scan, placement = lying_in((4, 1, 1), 1.0)
    confidence.settle(placement, scan)
    assert confidence.map is None


def test_the_map_holds_what_the_least_sure_decoder_says_of_its_answer():
    """Liver 0.6 (153), background 0.8 (204); where the body's decoder has 0.5 it is 128."""
    values = slab([0.6, 0.2, 0.2, 0.2], [0.0] * 4).probabilities["abdomen"]
    trunk = torch.tensor([1.0, 1.0, 1.0, 0.5])
    confidence = heard(Slab(0, {"abdomen": values, "trunk": torch.stack([1 - trunk, trunk])[:, :, None, None]}), keep_map=True)
    scan, placement = lying_in((4, 1, 1), 1.0)
    confidence.settle(placement, scan)
    assert confidence.map.ravel().tolist() == [153, 204, 204, 128]
    assert confidence.map.dtype == np.uint8


def test_slices_nobody_spoke_of_are_certain():
    """Of four slices the lowest was heard of alone."""
    confidence = heard(slab([0.6], [0.0]), keep_map=True, shape=(1, 1, 4))
    scan, placement = lying_in((1, 1, 4), 1.0)
    confidence.settle(placement, scan)
    assert confidence.map.ravel().tolist() == [153, 255, 255, 255]


def test_the_scan_gets_what_lies_between_two_voxels():
    """Voxels of 0.5 mm in a grid of 1 mm: 100 and 200 become 100, 125, 175, 200 in the middle of the line."""
    scan, placement = lying_in((8, 8, 8), 0.5)
    assert placement.shape == (4, 4, 4)
    sure = np.broadcast_to(np.array([100, 100, 200, 200], np.uint8)[:, None, None], (4, 4, 4))
    assert onto_scan(sure, placement, scan)[2:6, 3, 3].tolist() == [100, 125, 175, 200]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_the_map_lies_as_the_scan_does(orientation: str):
    """On a grid of the same voxels every byte comes back to where it was, whichever way the network's axes point."""
    from clseg.spatial.orient import to_orientation

    scan, placement = lying_in((5, 6, 7), 1.0, orientation)
    given = np.random.default_rng(0).integers(0, 256, (5, 6, 7), np.uint8)
    sure = to_orientation(scan.like(given), orientation).array
    assert np.array_equal(onto_scan(np.ascontiguousarray(sure), placement, scan), given)
