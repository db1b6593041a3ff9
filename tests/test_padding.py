"""Facts about what was never scanned: zeros around a scan are air, slices of one value hold no organ, and an offset is seen beside padding."""

from __future__ import annotations

import numpy as np
import pytest

from clseg.errors import InputError
from clseg.inference.prepare import beyond_filled, onto_grid, place
from clseg.io.check import AIR_HU, check
from clseg.measure import measure
from clseg.network.spec import Grid
from clseg.pipeline import segment
from clseg.spatial.crop import filled_slices
from clseg.spatial.orient import to_orientation
from clseg.spatial.padding import air_around, scanned, zeros_around
from tests.test_check import SHAPE, ct, torso

MODEL = Grid("RAS", (4.0, 4.0, 4.0), (16, 16, 16))


def padded(value: float, width: tuple[tuple[int, int], ...]) -> np.ndarray:
    return np.pad(torso(), width, constant_values=value)


def wiped(value: int, slices: int) -> np.ndarray:
    """So many slices of one value at either end, and the same value wherever there is air."""
    array = torso()
    return np.pad(np.where(array < -900, value, array), ((0, 0), (0, 0), (slices, slices)), constant_values=value)


@pytest.mark.parametrize("width", [((6, 9), (5, 5), (0, 0)), ((0, 0), (0, 0), (7, 4)), ((3, 3), (3, 3), (3, 3))], ids=["beside", "above and below", "all around"])
def test_zeros_around_a_scan_are_air(width):
    """Exactly the padding becomes air, with one warning; the scan stays as it was, and without padding there is none."""
    array = padded(0, width)
    found = air_around(ct(array)).array
    np.testing.assert_array_equal(found, padded(AIR_HU, width))
    assert found.dtype == array.dtype
    checked = check(ct(array))
    assert checked.volume.array is array  # other programs' networks look at what is not 0
    assert sum("exactly 0" in text for text in checked.warnings) == 1
    assert not check(ct()).warnings


def test_zeros_around_the_body_are_air():
    """A mask that set all outside the body to 0: air again, but zeros inside the body stay."""
    array = torso()
    i, j, _ = np.indices(array.shape)
    array[np.hypot(i - 11.5, j - 11.5) > 9.5] = 0
    array[11, 11, 9] = 0
    found = air_around(ct(array)).array
    assert (found[0] == AIR_HU).all()
    assert found[11, 11, 9] == 0
    inside = np.hypot(i - 11.5, j - 11.5) <= 9.5
    np.testing.assert_array_equal(found[inside], array[inside])


def test_turned_scans_have_zeros_in_their_corners():
    """What a rotation with fill 0 leaves: no face is empty, all corners are."""
    array = torso()
    i, j, _ = np.indices(array.shape)
    array[np.abs(i - 11.5) + np.abs(j - 11.5) > 15] = 0
    assert (air_around(ct(array)).array[0, 0] == AIR_HU).all()


def test_water_is_no_padding():
    """A bath of water with a little noise, as in a phantom, and one of exact zeros that does not reach the border, stay water."""
    noisy = torso()
    noisy[noisy < -900] = np.random.default_rng(1).integers(-8, 9, np.count_nonzero(noisy < -900))
    assert air_around(ct(noisy)).array is noisy
    still = torso()
    still[4:20, 4:20, 2:18] = 0
    assert air_around(ct(still)).array is still


@pytest.mark.parametrize("value", [-1024, -3024, 0])
def test_a_word_about_slices_of_one_value(value):
    """How many at which end of the patient, whichever way the file has them."""
    array = padded(value, ((0, 0), (0, 0), (3, 5)))
    for volume in (ct(array), ct(array[:, :, ::-1], np.diag([2.0, 2.0, -3.0, 1.0]))):
        (text,) = (text for text in check(volume).warnings if "one value only" in text)
        assert text.startswith("3 slices at the lower end and 5 at the upper end")


def test_an_offset_is_seen_beside_padding():
    """A CT with 1024 added whose padding of -2048 became -1024 is refused as one without padding is."""
    array = torso().astype(np.int16) + 1024
    array[:5] = -1024
    with pytest.raises(InputError, match="1024 added"):
        check(ct(array))
    check(ct(np.where(np.arange(24)[:, None, None] < 5, -2048, torso()).astype(np.int16)))  # in HU it is welcome


def test_filled_slices_are_what_lies_between():
    """By hand: constant slices at the ends go, one in the middle stays; an array of one value is kept whole."""
    array = np.zeros((2, 2, 6))
    array[0, 0, [1, 3]] = 5
    assert filled_slices(array) == slice(1, 4)
    assert filled_slices(np.zeros((2, 2, 6))) == slice(0, 6)


def test_slices_beyond_are_those_of_the_models_grid():
    """Voxels of 4 mm whose middles lie in slices of 3 mm of one value, where the air around the body is of that value, too."""
    oriented, placement = place(ct(), MODEL)
    assert beyond_filled(oriented.array, placement) == []
    oriented, placement = place(ct(wiped(AIR_HU, 6)), MODEL)
    low, high = beyond_filled(oriented.array, placement)
    first = placement.box[2].start
    middles = (np.arange(placement.shape[2]) + first + 0.5 - placement.lattice[2] / 2) * 4.0  # mm from the middle of the scan
    outside = np.flatnonzero(np.abs(middles) > 20 / 2 * 3)
    assert [*range(low.start, low.stop), *range(high.start, high.stop)] == outside.tolist()


@pytest.mark.parametrize("value", [AIR_HU, -1024, -3024, 0])
@pytest.mark.parametrize("code", ["RAS", "LPI", "SAR"])
def test_what_was_scanned_ends_where_padding_begins(value, code):
    """Four slices below the patient and seven above, whichever way the file has them; a margin is taken from padded ends alone."""
    bare, filled = (to_orientation(ct(array), code) for array in (torso(), padded(value, ((0, 0), (0, 0), (4, 7)))))
    assert scanned(bare, 30.0) == tuple(slice(0, length) for length in bare.shape)
    for margin_mm, lost in ((0.0, 0), (2.9, 0), (3.0, 1)):
        found = np.zeros(filled.shape, bool)
        found[scanned(filled, margin_mm)] = True
        standing = to_orientation(filled.like(found), "RAS").array
        assert np.flatnonzero(standing.any((0, 1))).tolist() == list(range(4 + lost, 4 + SHAPE[2] - lost))
        assert standing[:, :, 4 + lost].all()


def test_where_air_was_wiped_the_body_ends_by_itself():
    """Slices of the value that all air has: the head of a patient whose surroundings were set to one value is not cut."""
    array = wiped(-1000, 5)
    assert scanned(ct(array)) == tuple(slice(0, length) for length in array.shape)


def test_an_array_of_one_value_is_taken_as_it_is():
    assert scanned(ct(np.zeros((4, 4, 4)))) == (slice(0, 4),) * 3


def test_a_network_sees_a_padded_scan_as_the_scan_alone():
    """The same voxels on the model's grid, to the last bit."""
    grid = Grid("RAS", (2.0, 2.0, 3.0), (16, 16, 16))
    seen = [onto_grid(oriented.array, placement) for oriented, placement in (place(ct(array), grid) for array in (torso(), padded(-1024, ((0, 0), (0, 0), (4, 7)))))]
    np.testing.assert_array_equal(*seen)


def test_an_organ_that_reaches_padding_is_cut():
    """By the faces where the padding is, as it is without; one that does not reach it is complete."""
    scan = ct(padded(-1024, ((0, 0), (0, 0), (4, 7))))
    labels = np.zeros(scan.shape, np.uint16)
    labels[5:9, 5:9, 4:10], labels[12:15, 5:9, 9 : 4 + SHAPE[2]], labels[12:15, 12:15, 7:12] = 1, 2, 3
    names = {"liver": 1, "spleen": 2, "heart": 3}
    assert {one.status for one in measure([labels], scan, names).values()} == {"complete"}
    found = measure([labels], scan, names, scanned=scanned(scan))
    assert {name: one.cut_faces for name, one in found.items()} == {"liver": ("inferior",), "spleen": ("superior",), "heart": ()}
    assert [one.status for one in found.values()] == ["cut_by_fov", "cut_by_fov", "complete"]


def test_zeros_and_air_around_a_scan_give_the_same(tiny_model):
    """To the voxel, on the scan's own grid."""
    tiny_model()
    width = ((5, 5), (5, 5), (0, 0))
    zeros, air = (segment(ct(padded(value, width)), model="tiny", device="cpu", offline=True) for value in (0, AIR_HU))
    np.testing.assert_array_equal(zeros.labels.array, air.labels.array)
    assert zeros.labels.array.any()


def test_nothing_is_painted_in_slices_of_one_value(tiny_model):
    """A model that paints at random paints in the scan and in no slice of the padding."""
    tiny_model()
    result = segment(ct(padded(AIR_HU, ((0, 0), (0, 0), (6, 6)))), model="tiny", device="cpu", offline=True)
    any_label = np.any([result.mask(name) for name in result.names], axis=0)
    assert any_label[:, :, 6:-6].any()
    assert not any_label[:, :, :5].any()
    assert not any_label[:, :, -5:].any()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_scan_is_not_copied_to_be_looked_at(order: str) -> None:
    """Whether there is padding is found on views and a sample: no more than a tenth of the scan is held for it, whatever the order in memory."""
    import tracemalloc

    scan = np.full((256, 256, 200), -50, np.int16, order=order)
    tracemalloc.start()
    assert zeros_around(scan) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sample = 9_000_000  # a million voxels as float32, their size, and which are near 0
    assert peak < scan.nbytes / 10 + sample
