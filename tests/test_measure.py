"""Statistics per structure, with numbers that can be checked by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from clseg import measure as measure_module
from clseg.errors import InputError
from clseg.families import Family
from clseg.intensities import of_values
from clseg.measure import (
    FACES,
    FamilyStatistics,
    Statistics,
    measure,
    measure_families,
    to_json,
    to_rows,
    without_values,
)
from clseg.spatial.runs import LabelRuns
from clseg.volume import Volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NUMBERS = [name for name in vars(Statistics("absent")) if name not in ("status", "cut_faces")]


def empty(shape=(6, 7, 8)) -> np.ndarray:
    return np.zeros(shape, np.uint16)


def water(shape=(6, 7, 8), affine=None, dtype=np.int16) -> Volume:
    return Volume(np.zeros(shape, dtype), np.eye(4) if affine is None else affine)


def oblique(angle=0.3, spacing=(0.8, 1.5, 3.0)) -> np.ndarray:
    """Turned about z by `angle`, then scaled and moved."""
    cos, sin = math.cos(angle), math.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = (-100, 20, 7)
    return affine


def only(labels: np.ndarray, ct: Volume, **options) -> Statistics:
    return measure([labels], ct, {"organ": 1}, **options)["organ"]


def test_volume_of_a_box():
    """A 2×3×4 box of 0.5×1×2 mm voxels has 24 voxels, 24 mm³ and 0.024 mL."""
    labels = empty()
    labels[1:3, 1:4, 1:5] = 1
    box = only(labels, water(affine=np.diag([0.5, 1, 2, 1])))
    assert (box.voxels, box.volume_mm3, box.volume_ml) == (24, 24.0, 0.024)
    assert box.bounding_box == ((1, 3), (1, 4), (1, 5))
    assert box.centroid_mm == (0.75, 2.0, 5.0)  # mean indices 1.5, 2, 2.5 times the spacing
    assert (box.status, box.cut_faces, box.components) == ("complete", (), 1)


def test_hu_of_five_voxels():
    """Of HU 0, 10, 20, 30, 40 the mean and median are 20, the deviation √200, p5 is 2 and p95 is 38."""
    labels, ct = empty(), water()
    labels[1:6, 3, 3] = 1
    ct.array[1:6, 3, 3] = (40, 0, 30, 10, 20)
    organ = only(labels, ct)
    assert (organ.hu_mean, organ.hu_median, organ.hu_min, organ.hu_max) == (20, 20, 0, 40)
    assert (organ.hu_p5, organ.hu_p95, organ.hu_sd) == pytest.approx((2, 38, math.sqrt(200)))


def test_a_single_voxel_has_all_numbers():
    """One voxel is its own mean, median and extremes, with deviation 0, in one component."""
    labels, ct = empty(), water()
    labels[2, 3, 4], ct.array[2, 3, 4] = 1, -77
    organ = only(labels, ct)
    assert {organ.hu_mean, organ.hu_median, organ.hu_p5, organ.hu_p95, organ.hu_min, organ.hu_max} == {-77}
    assert (organ.hu_sd, organ.components, organ.centroid_mm) == (0, 1, (2, 3, 4))


def test_a_float_ct_is_not_truncated():
    """HU 0.25 and 0.5 have the mean 0.375: fractions are kept."""
    labels, ct = empty(), water(dtype=np.float32)
    labels[2, 2, 2:4], ct.array[2, 2, 2:4] = 1, (0.25, 0.5)
    organ = only(labels, ct)
    assert (organ.hu_mean, organ.hu_min, organ.hu_max, organ.hu_median) == (0.375, 0.25, 0.5, 0.375)


def test_values_beyond_int16_are_kept():
    """A CT in int32 with 100 000 HU (metal) is measured as it is."""
    labels, ct = empty(), water(dtype=np.int32)
    labels[2, 2, 2], ct.array[2, 2, 2] = 1, 100_000
    assert only(labels, ct).hu_max == 100_000


def test_percentiles_of_int16_do_not_overflow():
    """Halfway between −30 000 and 30 000 is 0, although their difference does not fit into int16."""
    labels, ct = empty(), water()
    labels[2, 2, 2:4], ct.array[2, 2, 2:4] = 1, (-30_000, 30_000)
    organ = only(labels, ct)
    assert (organ.hu_median, organ.hu_p95) == (0, 27_000)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**32 - 1), st.sampled_from([np.int8, np.uint8, np.int16, np.uint16]))
def test_counting_gives_what_sorting_gives(size, seed, dtype):
    """HU of many small integers are counted, plane by plane inside a mask: to the last digit those of the sorted values, sums exact."""
    ends = np.iinfo(dtype)
    noise = np.random.default_rng(seed)
    values = noise.integers(ends.min, ends.max, (size, 3, 2), dtype, endpoint=True)
    mask = noise.random(values.shape) < 0.5
    mask[0, 0, 0] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_module, "_BLOCK", 50)
        counting = measure_module._counted(mask, values)
    sorting = of_values(values[mask])
    exact = ("hu_median", "hu_p5", "hu_p95", "hu_min", "hu_max", "hu_mean")
    assert {key: counting[key] for key in exact} == {key: sorting[key] for key in exact}
    assert counting["hu_sd"] == pytest.approx(sorting["hu_sd"], rel=1e-12, abs=1e-9)
    assert counting["hu_p95"] == pytest.approx(np.percentile(values[mask].astype(float), 95))


def test_voxels_that_are_not_finite_are_left_out_of_hu():
    """NaN among the values leaves the HU of the others, and counts in the volume; NaN alone gives no HU."""
    labels, ct = empty(), water(dtype=np.float32)
    labels[2, 2, 2:4], ct.array[2, 2, 2:4] = 1, (np.nan, 30)
    assert (only(labels, ct).hu_mean, only(labels, ct).voxels) == (30, 2)
    ct.array[2, 2, 3] = np.inf
    assert (only(labels, ct).hu_mean, only(labels, ct).voxels) == (None, 2)


def test_missing_structures_have_no_numbers():
    """Absent and out of range structures have a status and no number, not even 0 voxels."""
    found = measure([empty()], water(), {"liver": 1, "brain": 2}, out_of_range=["brain"])
    assert [one.status for one in found.values()] == ["absent", "out_of_range"]
    assert all(getattr(one, name) is None for one in found.values() for name in NUMBERS)


def test_a_structure_that_is_there_is_measured_even_when_not_looked_for():
    """`out_of_range` explains a missing structure and hides no found one."""
    labels = empty()
    labels[2, 2, 2] = 1
    assert only(labels, water(), out_of_range={"organ"}).status == "complete"


def test_no_label_map_means_all_absent():
    """Without any label map everything is absent, in the order asked for."""
    found = measure([], water(), {"b": 2, "a": 1})
    assert [(name, one.status) for name, one in found.items()] == [("b", "absent"), ("a", "absent")]


def test_overlapping_structures_in_layers():
    """Parent and part lie in two layers over the same voxels and are measured each on its own."""
    body, liver, ct = empty(), empty(), water()
    body[1:5, 1:5, 1:5], liver[2:4, 2:4, 2:4] = 300, 7
    ct.array[2:4, 2:4, 2:4] = 60
    found = measure([body, liver], ct, {"liver": 7, "body": 300})
    assert list(found) == ["liver", "body"]
    assert (found["liver"].voxels, found["body"].voxels) == (8, 64)
    assert (found["liver"].hu_mean, found["body"].hu_mean) == (60, 60 * 8 / 64)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_components_agree_with_scipy(shape, seed, share):
    """The number of components is that of scipy.ndimage.label with all 26 neighbours, in thin boxes too."""
    labels = (np.random.default_rng(seed).random(shape) < share).astype(np.uint16)
    labels[0, 0, 0] = 1
    assert only(labels, water(shape)).components == label(labels, np.ones((3, 3, 3)))[1]


def test_components_touch_by_corners():
    """Voxels that share a corner are one component, voxels two apart are two, another label between joins nothing."""
    corner, apart = empty(), empty()
    corner[2, 2, 2] = corner[3, 3, 3] = 1
    apart[1, 2, 2] = apart[3, 2, 2] = 1
    apart[2, 2, 2] = 2
    assert (only(corner, water()).components, only(apart, water()).components) == (1, 2)


@pytest.mark.parametrize(
    ("affine", "at_start_of_i", "at_end_of_j", "at_start_of_k"),
    [
        (np.eye(4), "left", "anterior", "inferior"),
        (LPS, "right", "posterior", "inferior"),
        (np.diag([1.0, 1.0, -1.0, 1.0]), "left", "anterior", "superior"),
        (np.eye(4)[[2, 0, 1, 3]], "posterior", "superior", "left"),  # i → A, j → S, k → R
        (oblique(0.3), "left", "anterior", "inferior"),
        (oblique(math.pi), "right", "posterior", "inferior"),
    ],
)
def test_faces_are_the_patients(affine, at_start_of_i, at_end_of_j, at_start_of_k):
    """A structure at an end of an axis is cut at the patient face the affine puts there."""
    faces = []
    for place in ([0, 3, 3], [3, 6, 3], [3, 3, 0]):
        labels = empty()
        labels[tuple(place)] = 1
        organ = only(labels, water(affine=affine))
        assert organ.status == "cut_by_fov"
        assert organ.voxels == 1  # numbers are given, but flagged
        faces.append(organ.cut_faces)
    assert faces == [(at_start_of_i,), (at_end_of_j,), (at_start_of_k,)]


def test_a_structure_that_fills_the_scan_is_cut_everywhere():
    """All six faces are named, in their fixed order."""
    assert only(np.ones((6, 7, 8), np.uint8), water()).cut_faces == FACES


def test_touching_is_exact():
    """One voxel away from every face is complete."""
    labels = empty()
    labels[1:-1, 1:-1, 1:-1] = 1
    assert only(labels, water()).status == "complete"


def test_an_oblique_grid():
    """On a turned grid of 0.8×1.5×3 mm a voxel has 3.6 mm³ and its centre lies where the affine says."""
    labels = empty()
    labels[2, 3, 4] = 1
    organ = only(labels, water(affine=oblique()))
    assert organ.volume_mm3 == pytest.approx(3.6)
    assert organ.centroid_mm == pytest.approx(tuple((oblique() @ [2, 3, 4, 1])[:3]))


def test_a_sheared_grid():
    """The volume of a voxel is the determinant, not the product of its edges."""
    affine = np.eye(4)
    affine[0, 1] = 1.0  # j leans by 45°: edge √2, volume still 1
    labels = empty()
    labels[2, 3, 4] = 1
    assert only(labels, water(affine=affine)).volume_mm3 == pytest.approx(1.0)


@st.composite
def scenes(draw):
    """A small CT with four labels at random, on an oblique anisotropic grid."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, 5, shape).astype(np.uint16) * (rng.random(shape) < draw(st.floats(0.05, 1)))
    return labels, Volume(rng.normal(0, 500, shape).astype(np.float32), oblique(draw(st.floats(-0.7, 0.7))))


WANTED = {"a": 1, "b": 2, "c": 3, "d": 4}


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_agrees_with_one_mask_at_a_time(scene):
    """Every number equals the plain formula on the structure's mask; the volumes sum to the foreground."""
    labels, ct = scene
    found = measure([labels], ct, WANTED)
    for name, number in WANTED.items():
        values = ct.array[labels == number].astype(np.float64)
        one = found[name]
        assert (one.voxels or 0) == values.size
        if values.size:
            expected = [values.mean(), values.std(), *np.percentile(values, [50, 5, 95]), values.min(), values.max()]
            measured = [one.hu_mean, one.hu_sd, one.hu_median, one.hu_p5, one.hu_p95, one.hu_min, one.hu_max]
            assert measured == pytest.approx(expected, abs=1e-6)
            where = np.argwhere(labels == number)
            box = tuple(zip(where.min(0).tolist(), (where.max(0) + 1).tolist(), strict=True))
            assert one.bounding_box == box
            assert one.centroid_mm == pytest.approx(ct.affine[:3, :3] @ where.mean(0) + ct.affine[:3, 3], abs=1e-9)
    total_mm3 = sum(one.volume_mm3 or 0 for one in found.values())
    assert total_mm3 == pytest.approx(np.count_nonzero(labels) * ct.voxel_mm3)


@settings(max_examples=50, deadline=None)
@given(scenes(), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_the_order_of_the_axes_does_not_matter(scene, axes, flips):
    """Permuting and flipping arrays and affine together changes the bounding box alone."""
    labels, ct = scene
    affine = ct.affine.copy()
    flipped = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (ct.shape[axis] - 1)
            affine[:3, axis] *= -1
    turned = Volume(ct.array[flipped].transpose(axes), affine[:, [*axes, 3]])
    before = measure([labels], ct, WANTED)
    after = measure([np.ascontiguousarray(labels[flipped].transpose(axes))], turned, WANTED)
    for name in WANTED:
        one, other = dict(vars(before[name])), dict(vars(after[name]))
        box, turned_box = one.pop("bounding_box"), other.pop("bounding_box")
        assert one.pop("centroid_mm") == (other.pop("centroid_mm") and pytest.approx(after[name].centroid_mm))
        for key in ("volume_mm3", "volume_ml", "hu_mean", "hu_sd"):  # sums in another order
            assert one.pop(key) == pytest.approx(other.pop(key))
        assert one == other
        if box:
            there = [(n - b, n - a) if flip else (a, b) for (a, b), n, flip in zip(box, ct.shape, flips, strict=True)]
            assert turned_box == tuple(there[axis] for axis in axes)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("layer_order", ["C", "F"])
def test_memory_order_changes_nothing(order, layer_order):
    """Arrays in C and Fortran order and runs give the same statistics."""
    rng = np.random.default_rng(0)
    labels, hu = rng.integers(0, 5, (4, 5, 6)).astype(np.uint16), rng.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    expected = measure([labels], Volume(hu), WANTED)
    found = measure([np.asarray(labels, order=layer_order)], Volume(np.asarray(hu, order=order)), WANTED)
    runs = measure([LabelRuns.of(np.asarray(labels, order=layer_order))], Volume(np.asarray(hu, order=order)), WANTED)
    assert runs == found
    for name, one in found.items():
        assert one.hu_sd == pytest.approx(expected[name].hu_sd)  # a sum of squares in another order
        assert replace(one, hu_sd=None) == replace(expected[name], hu_sd=None)


def test_many_structures_cost_little_more_than_one(monkeypatch):
    """Of a hundred structures of 1000 voxels each no more than their boxes are drawn: 100,000 of 4 million voxels."""
    labels, ct = np.asfortranarray(empty((160, 160, 160))), water((160, 160, 160))
    ct = Volume(np.asfortranarray(ct.array), ct.affine)
    for n in range(100):
        labels[1 + 15 * (n % 10) : 11 + 15 * (n % 10), 1 + 15 * (n // 10) : 11 + 15 * (n // 10), 75:85] = n + 1
    drawn, where = [], LabelRuns.where

    def watched(runs, label, box):
        mask = where(runs, label, box)
        drawn.append(mask.size)
        return mask

    monkeypatch.setattr(LabelRuns, "where", watched)
    monkeypatch.setattr(LabelRuns, "__getitem__", lambda *_: pytest.fail("the whole map was drawn"))
    found = measure([LabelRuns.of(labels)], ct, {f"s{n}": n + 1 for n in range(100)})
    assert {one.voxels for one in found.values()} == {1000}
    assert sum(drawn) == 100_000


@pytest.mark.parametrize(
    ("layers", "wanted", "sentence"),
    [
        ([empty((6, 7, 9))], {"organ": 1}, r"shape \(6, 7, 9\), the CT has \(6, 7, 8\)"),
        ([empty().astype(float)], {"organ": 1}, "whole numbers, this one is float64"),
        ([empty()], {"organ": 0}, "id of 'organ' is 0"),
        ([empty() + 1, empty() + 1], {"organ": 1}, "'organ' .* appears in two label maps"),
    ],
)
def test_wrong_input_is_refused(layers, wanted, sentence):
    """Wrong shapes, kinds and ids are refused in a sentence that names them."""
    with pytest.raises(InputError, match=sentence):
        measure(layers, water(), wanted)


def both_kinds() -> dict[str, Statistics]:
    labels = empty()
    labels[0:2, 2, 2:4] = 1
    return measure([labels], water(), {"liver": 1, "brain": 2}, out_of_range={"brain"})


def test_json_has_plain_types_and_nulls():
    """The JSON form survives json.dumps, keeps one key order, and has null for what was not measured."""
    plain = json.loads(json.dumps(to_json(both_kinds()), allow_nan=False))
    assert list(plain) == ["liver", "brain"]
    assert list(plain["liver"]) == list(plain["brain"]) == list(vars(Statistics("absent")))
    assert plain["liver"]["bounding_box"] == [[0, 2], [2, 3], [2, 4]]
    assert (plain["liver"]["cut_faces"], plain["liver"]["centroid_mm"]) == (["left"], [0.5, 2.0, 2.5])
    assert {plain["brain"][name] for name in NUMBERS} == {None}


def test_rows_are_rectangular_with_empty_cells():
    """Every CSV row has a cell per column; what was not measured is the empty string."""
    header, rows = to_rows(both_kinds())
    assert [len(row) for row in rows] == [len(header)] * 2
    liver, brain = (dict(zip(header, row, strict=True)) for row in rows)
    assert (liver["structure"], liver["status"], liver["voxels"], liver["cut_faces"]) == (
        "liver",
        "cut_by_fov",
        4,
        "left",
    )
    assert [liver[c] for c in ("i0", "i1", "j0", "j1", "k0", "k1", "centroid_z_mm")] == [0, 2, 2, 3, 2, 4, 2.5]
    assert {value for column, value in brain.items() if column not in ("structure", "status", "kind")} == {""}
    assert header[-3:] == ["kind", "members", "missing"]
    assert liver["kind"] == brain["kind"] == "structure"


# ---- families ---------------------------------------------------------------------------------------------------------

PAIR = Family("pair", ("left", "right"))
IDS = {"left": 1, "right": 2}


def together(layers, ct=None, family=PAIR, ids=IDS, **options) -> FamilyStatistics:
    ct = ct or water()
    return measure_families(layers, ct, ids, [family], measure(layers, ct, ids, **options))[family.name]


def test_a_family_is_the_union_of_its_members():
    """Two boxes of 8 mm³, HU 10 and 30: 16 mm³, mean 20, deviation 10, two parts, one box around both."""
    labels, ct = empty(), water()
    labels[1:3, 1:3, 1:3], labels[3:5, 4:6, 5:7] = 1, 2
    ct.array[labels == 1], ct.array[labels == 2] = 10, 30
    pair = together([labels], ct)
    assert (pair.status, pair.volume_mm3, pair.hu_mean, pair.hu_sd, pair.components) == ("complete", 16.0, 20.0, 10.0, 2)
    assert pair.bounding_box == ((1, 5), (1, 6), (1, 7))
    assert pair.centroid_mm == (2.5, 3.0, 3.5)
    assert (pair.members, pair.missing) == (("left", "right"), ())


def test_overlapping_members_are_counted_once():
    """Boxes of 8 voxels on two layers that share 4: 12, not 16."""
    one, other = empty(), empty()
    one[1:3, 1:3, 1:3], other[2:4, 1:3, 1:3] = 1, 2
    assert together([one, other]).voxels == 12


def test_a_member_that_was_not_found_takes_nothing_away():
    """One kidney was removed: both were looked for, so the total is complete, and is that of the other."""
    labels = empty()
    labels[1:3, 1:3, 1:3] = 1
    pair = together([labels])
    assert (pair.status, pair.voxels, pair.members, pair.missing) == ("complete", 8, ("left", "right"), ())


def test_a_family_is_cut_where_a_member_is():
    """The right one touches the upper face."""
    labels = empty()
    labels[1:3, 1:3, 1:3], labels[3:5, 4:6, 6:8] = 1, 2
    pair = together([labels])
    assert (pair.status, pair.cut_faces) == ("cut_by_fov", ("superior",))


def test_a_family_that_was_not_looked_for_in_full_is_partial():
    """A member that nobody asked for, or one out of range: the numbers are those of the rest, cut faces included."""
    labels = empty()
    labels[1:3, 1:3, 0:2] = 1
    unasked = together([labels], family=Family("pair", ("left", "right"), ("third",)))
    unreached = together([labels], out_of_range={"right"})
    assert (unasked.status, unasked.voxels, unasked.missing, unasked.cut_faces) == ("partial", 8, ("third",), ("inferior",))
    assert (unreached.status, unreached.voxels, unreached.members, unreached.missing) == ("partial", 8, ("left",), ("right",))


def test_a_family_without_a_voxel_has_no_numbers():
    """Looked for in vain: absent; nobody looked: out_of_range; in part: partial. Never 0."""
    found = [together([empty()], out_of_range=beyond) for beyond in ((), ("left", "right"), ("left",))]
    assert [one.status for one in found] == ["absent", "out_of_range", "partial"]
    assert {getattr(one, name) for one in found for name in NUMBERS} == {None}


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_of_memory_changes_no_number_of_a_family(order):
    """Files come in Fortran order, arrays from Python in C order."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (6, 7, 8)).astype(np.uint16)
    ct = Volume(rng.integers(-1000, 1000, (6, 7, 8)).astype(np.int16), oblique())
    turned = Volume(np.asarray(ct.array, order=order), ct.affine)
    assert together([np.asarray(labels, order=order)], turned) == replace(together([labels], ct))
    assert together([labels], ct).voxels == np.count_nonzero(labels)


def test_families_have_a_section_and_rows_of_their_own():
    """JSON: under `families`, only where there is one; CSV: rows of kind family after the structures, members by semicolons."""
    labels = empty()
    labels[1:3, 1:3, 1:3], labels[3:5, 4:6, 5:7] = 1, 2
    measured = measure([labels], water(), IDS)
    families = measure_families([labels], water(), IDS, [PAIR], measured)
    plain = json.loads(json.dumps(to_json(measured, families)))
    assert list(plain) == ["left", "right", "families"]
    assert plain["families"]["pair"]["voxels"] == 16
    assert plain["families"]["pair"]["members"] == ["left", "right"]
    assert list(to_json(measured)) == ["left", "right"]
    header, rows = to_rows(measured, families)
    pair = dict(zip(header, rows[-1], strict=True))
    assert (pair["structure"], pair["kind"], pair["members"], pair["missing"], pair["voxels"]) == ("pair", "family", "left;right", "", 16)


def test_without_a_ct_there_are_volumes_and_no_hu():
    """A grid without values: 8 voxels of 6 mm³, all HU None, and no memory used for the grid."""
    labels = empty()
    labels[1:3, 1:3, 1:3] = 1
    grid = without_values(water(affine=np.diag([1.0, 2.0, 3.0, 1.0])))
    box = only(labels, grid)
    assert (box.volume_mm3, box.status) == (48.0, "complete")
    assert {value for name, value in vars(box).items() if name.startswith("hu_")} == {None}
    assert grid.array.strides == (0, 0, 0)
