"""Where decoders disagree the merge rules decide, voxel by voxel and in whatever slabs they are painted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.catalogue import Catalogue
from clseg.inference.extent import Reach
from clseg.inference.merge import FULL, HALF, NEAR_MM, Canvas, Layer, Question
from clseg.inference.predictor import Slab

CATALOGUE = Catalogue.builtin()
ID = {anatomy.name: anatomy.id for anatomy in CATALOGUE}


def canvas(*names: str, shape=(1, 1, 1), **known) -> Canvas:
    return Canvas(Question(shape, tuple(CATALOGUE[name] for name in names), CATALOGUE, **known))


def paint(onto: Canvas, said: dict[str, dict[str, list[float]]], start: int = 0) -> Canvas:
    """Paint along z: decoder → label → probability per slice; background is what is left over."""
    probabilities, labels = {}, {}
    for decoder, values in said.items():
        rows = torch.tensor(list(values.values()))
        probabilities[decoder] = torch.cat([1 - rows.sum(0, keepdim=True), rows])[:, None, None, :]
        labels[decoder] = tuple(values)
    onto.paint(Slab(start, probabilities), labels)
    return onto


def found(onto: Canvas, z: int = 0) -> set[str]:
    """Names of all structures that hold a voxel."""
    return {CATALOGUE.by_id(int(layer.labels[0, 0, z])).name for layer in onto.layers.values() if layer.labels[0, 0, z]}


def faint(onto: Canvas, name: str) -> dict[int, int]:
    """Flat voxel → what is kept of a structure where it did not win."""
    pieces = [piece for layer in onto.layers.values() for piece in layer.faint.get(ID[name], [])]
    return {int(i): int(v) for piece in pieces for i, v in zip(piece.index, piece.value, strict=True)}


def everything(onto: Canvas) -> list[tuple]:
    """All that is painted, so that two canvases can be compared."""
    return [(layer.labels.tolist(), layer.score.tolist(), [faint(onto, name) for name in WANTED]) for layer in onto.layers.values()]


def on_top(onto: Canvas) -> str | None:
    """The one label that a flat map would name: the last layer's."""
    ids = [int(layer.labels[0, 0, 0]) for layer in onto.layers.values() if layer.labels[0, 0, 0]]
    return CATALOGUE.by_id(ids[-1]).name if ids else None


# ---- one decoder ------------------------------------------------------------------------------------------------------


def test_the_likeliest_label_of_a_decoder_is_painted_with_its_probability():
    """Background 0.2, left lung 0.5, right lung 0.3: left lung, and half of 255 beside it."""
    onto = paint(canvas("lung_left", "lung_right"), {"lungs": {"lung_left": [0.5], "lung_right": [0.3]}})
    layer = onto.layers[1]
    assert found(onto) == {"lung_left"}
    assert layer.score[0, 0, 0] == round(0.5 * FULL)
    assert (layer.labels.dtype, layer.score.dtype) == (np.uint16, np.uint8)


def test_what_does_not_win_is_kept_for_its_border():
    """Liver with 0.4 against background with 0.6: the voxel is empty, and 0.4 of a liver is remembered."""
    onto = paint(canvas("liver"), {"abdomen": {"liver": [0.4]}})
    assert (int(onto.layers[1].labels[0, 0, 0]), int(onto.layers[1].score[0, 0, 0])) == (0, 0)
    assert faint(onto, "liver") == {0: round(0.4 * FULL)}


def test_what_is_hardly_there_is_not_kept():
    """0.01 moves no border."""
    assert faint(paint(canvas("liver"), {"abdomen": {"liver": [0.01]}}), "liver") == {}


def test_everyone_keeps_what_is_its_own():
    """Two decoders see nothing with 0.9 and 0.6: neither organ inherits the other's doubt."""
    onto = paint(canvas("liver", "spleen"), {"a": {"liver": [0.1]}, "b": {"spleen": [0.4]}})
    assert (faint(onto, "liver"), faint(onto, "spleen")) == ({0: round(0.1 * FULL)}, {0: round(0.4 * FULL)})


def test_a_loser_keeps_no_more_than_the_winner_leaves():
    """Liver 0.9 against spleen 0.6: a tenth is left for the spleen; both fields together never exceed 1."""
    onto = paint(canvas("liver", "spleen"), {"a": {"liver": [0.9]}, "b": {"spleen": [0.6]}})
    assert faint(onto, "spleen") == {0: FULL - round(0.9 * FULL)}


def test_labels_nobody_asked_for_compete_but_are_not_painted():
    """The decoder says right lung; only the left was wanted: neither appears."""
    onto = paint(canvas("lung_left"), {"lungs": {"lung_left": [0.3], "lung_right": [0.6]}})
    assert found(onto) == set()


def test_nothing_painted_is_nothing_found():
    """A fresh canvas is background."""
    layer = canvas("liver").layers[1]
    assert (int(layer.labels[0, 0, 0]), int(layer.score[0, 0, 0]), layer.faint) == (0, 0, {})


# ---- several decoders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("trunk", "lungs", "lobes"), ("lobes", "lungs", "trunk"), ("lungs", "lobes", "trunk")])
def test_a_structure_and_its_parts_share_a_voxel(order):
    """Body, left lung and its upper lobe are all there, whoever paints first and however sure each is."""
    said = {"trunk": {"body": [0.6]}, "lungs": {"lung_left": [0.99]}, "lobes": {"lung_upper_lobe_left": [0.7]}}
    onto = paint(canvas("body", "lung_left", "lung_upper_lobe_left"), {name: said[name] for name in order})
    assert found(onto) == {"body", "lung_left", "lung_upper_lobe_left"}
    assert on_top(onto) == "lung_upper_lobe_left"


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(("liver", "spleen", "winner"), [(0.9, 0.6, "liver"), (0.6, 0.9, "spleen")])
def test_strangers_compete_by_probability(order, liver, spleen, winner):
    """Liver and spleen cannot share a voxel; the likelier has it, whoever paints first."""
    said = {"a": {"liver": [liver]}, "b": {"spleen": [spleen]}}
    onto = paint(canvas("liver", "spleen"), {name: said[name] for name in order})
    assert found(onto) == {winner}
    assert int(onto.layers[1].score[0, 0, 0]) == round(0.9 * FULL)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(("one", "other", "smaller"), [("liver", "spleen", "spleen"), ("gallbladder", "liver", "gallbladder")])
def test_of_equals_the_smaller_wins(order, one, other, smaller):
    """Both 0.8: the organ with the smaller volume in the catalogue has the voxel, whoever paints first."""
    said = {"a": {one: [0.8]}, "b": {other: [0.8]}}
    onto = paint(canvas("liver", "spleen", "gallbladder"), {name: said[name] for name in order})
    assert found(onto) == {smaller}
    assert faint(onto, other if smaller == one else one) == {0: FULL - round(0.8 * FULL)}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(("lobe", "liver", "winner"), [(0.9, 0.6, "lung_upper_lobe_left"), (0.6, 0.9, "liver")])
def test_strangers_compete_across_layers(order, lobe, liver, winner):
    """A lobe and the liver lie on different layers and compete nevertheless."""
    said = {"a": {"lung_upper_lobe_left": [lobe]}, "b": {"liver": [liver]}}
    onto = paint(canvas("lung_upper_lobe_left", "liver"), {name: said[name] for name in order})
    assert found(onto) == {winner}


def test_who_loses_to_one_takes_nothing_from_another():
    """Lung 0.6 and its lobe 0.9 are there; liver 0.7 beats the lung but not the lobe, so both stay."""
    said = {"lungs": {"lung_left": [0.6]}, "lobes": {"lung_upper_lobe_left": [0.9]}, "abdomen": {"liver": [0.7]}}
    onto = paint(canvas("lung_left", "lung_upper_lobe_left", "liver"), said)
    assert found(onto) == {"lung_left", "lung_upper_lobe_left"}


def test_who_wins_against_all_takes_the_voxel_from_all():
    """Liver 0.95 beats lung and lobe on both layers; the body stays."""
    said = {"trunk": {"body": [0.8]}, "lungs": {"lung_left": [0.6]}, "lobes": {"lung_upper_lobe_left": [0.9]}, "abdomen": {"liver": [0.95]}}
    assert found(paint(canvas("body", "lung_left", "lung_upper_lobe_left", "liver"), said)) == {"body", "liver"}


# ---- the same organ from several decoders -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("sure", "unsure"), ("unsure", "sure")])
def test_the_decoder_with_the_lower_entropy_speaks_for_an_organ_both_know(order):
    """One says no liver with 0.95, the other says liver with 0.6: the first is surer, so there is none."""
    said = {"sure": {"liver": [0.05]}, "unsure": {"liver": [0.6]}}
    assert found(paint(canvas("liver"), {name: said[name] for name in order})) == set()


def test_the_entropy_is_that_of_all_labels():
    """A decoder torn between spleen and kidney is unsure about the liver too; the other one speaks."""
    said = {"torn": {"liver": [0.0], "spleen": [0.5], "kidney_left": [0.5]}, "sure": {"liver": [0.9]}}
    assert found(paint(canvas("liver", "spleen", "kidney_left"), said)) == {"liver"}


def test_silence_is_for_the_shared_organ_alone():
    """The unsure decoder keeps its say about organs that only it knows."""
    said = {"unsure": {"liver": [0.0, 0.6], "spleen": [0.6, 0.0]}, "sure": {"liver": [0.01, 0.01]}}
    onto = paint(canvas("liver", "spleen", shape=(1, 1, 2)), said)
    assert (found(onto, 0), found(onto, 1)) == ({"spleen"}, set())


def test_who_speaks_is_decided_voxel_by_voxel():
    """Each of two decoders is surer in one of two slices."""
    onto = paint(canvas("liver", shape=(1, 1, 2)), {"a": {"liver": [0.9, 0.55]}, "b": {"liver": [0.45, 0.02]}})
    assert (found(onto, 0), found(onto, 1)) == ({"liver"}, set())


# ---- tumours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("organ", "tumour"), ("tumour", "organ")])
@pytest.mark.parametrize(("liver", "tumour"), [(0.9, 0.6), (0.6, 0.9)])
def test_a_tumour_and_its_host_overlap_and_the_tumour_lies_on_top(order, liver, tumour):
    """Whoever is surer and paints first: both masks hold the voxel, and a flat map names the tumour."""
    said = {"organ": {"liver": [liver]}, "tumour": {"gtv_liver": [tumour]}}
    onto = paint(canvas("body", "liver", "gtv_liver"), {name: said[name] for name in order})
    assert found(onto) == {"liver", "gtv_liver"}
    assert on_top(onto) == "gtv_liver"


def test_a_tumour_and_a_part_of_its_host_overlap():
    """A lung tumour may lie in a lobe of that lung, whoever is surer."""
    onto = paint(canvas("lung_upper_lobe_left", "gtv_lung"), {"a": {"gtv_lung": [0.6]}, "b": {"lung_upper_lobe_left": [0.9]}})
    assert found(onto) == {"lung_upper_lobe_left", "gtv_lung"}


def test_a_tumour_competes_with_organs_it_does_not_grow_in():
    """A liver tumour with 0.6 in what is spleen with 0.9 is not there."""
    onto = paint(canvas("spleen", "gtv_liver"), {"a": {"gtv_liver": [0.6]}, "b": {"spleen": [0.9]}})
    assert found(onto) == {"spleen"}


# ---- decoders that know pathological cases -----------------------------------------------------------------------------

SICK = {
    "healthy": {"liver": [0.99] * 5},  # sure everywhere
    "sick": {"liver": [0.3] * 5},  # in doubt, and against it
    "tumour": {"gtv_liver": [0.1, 0.1, 0.9, 0.1, 0.1]},
}
SLICE_MM = (3.0, 3.0, NEAR_MM)  # a lesion reaches one slice up and down


def livers(said: dict, cuts: tuple[int, ...] = (), names: tuple[str, ...] = ("liver",), **known) -> set[int]:
    """Slices that are liver when five slices are painted in slabs."""
    onto = canvas(*names, shape=(1, 1, 5), spacing=SLICE_MM, **known)
    for low, high in pairwise([0, *cuts, 5]):
        paint(onto, {d: {n: p[low:high] for n, p in one.items()} for d, one in said.items()}, low)
    onto.finish()
    return {z for z in range(5) if "liver" in found(onto, z)}


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (3,), (4,), (1, 2, 3, 4), (2, 4)])
@pytest.mark.parametrize("names", [("liver",), ("liver", "gtv_liver")])
def test_near_a_lesion_the_decoder_speaks_that_knows_such_cases(cuts, names):
    """A tumour in slice 2: in slices 1 to 3 the decoder trained on such cases is heard, though the other is surer, in whatever slabs."""
    assert livers(SICK, cuts, names, pathological=frozenset({"sick"})) == {0, 4}


def test_without_a_lesion_the_surer_decoder_speaks():
    """The same liver, and a tumour decoder that finds nothing."""
    well = {**SICK, "tumour": {"gtv_liver": [0.1] * 5}}
    assert livers(well, pathological=frozenset({"sick"})) == {0, 1, 2, 3, 4}


def test_a_lesion_of_another_organ_changes_nothing():
    """A tumour of the kidney is no reason to distrust the liver."""
    other = {**SICK, "tumour": {"gtv_kidney": SICK["tumour"]["gtv_liver"]}}
    assert livers(other, pathological=frozenset({"sick"})) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("pathological", [frozenset(), frozenset({"healthy", "sick"})])
def test_where_all_decoders_know_the_same_the_surer_speaks(pathological):
    """None or all of them were trained on pathological cases."""
    assert livers(SICK, pathological=pathological) == {0, 1, 2, 3, 4}


# ---- where a decoder may speak ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("near", "far"), ("far", "near")])
def test_outside_its_extent_a_decoder_does_not_speak_for_the_organ(order):
    """`near` is certain background above slice 1, because it did not run there: the other decoder's liver stands."""
    said = {"near": {"liver": [0.97, 0.0]}, "far": {"liver": [0.9, 0.9]}}
    onto = paint(canvas("liver", shape=(1, 1, 2), reach=Reach({"near": (0, 1), "far": (0, 2)})), {name: said[name] for name in order})
    assert (found(onto, 0), found(onto, 1)) == ({"liver"}, {"liver"})
    assert onto.layers[1].score.ravel().tolist() == [round(0.97 * FULL), round(0.9 * FULL)]


def test_inside_its_extent_certainty_counts():
    """The same answer of a decoder that did run there is an answer: no liver in slice 1."""
    said = {"near": {"liver": [0.97, 0.0]}, "far": {"liver": [0.9, 0.9]}}
    onto = paint(canvas("liver", shape=(1, 1, 2), reach=Reach({"near": (0, 2), "far": (0, 2)})), said)
    assert (found(onto, 0), found(onto, 1)) == ({"liver"}, set())


def test_beyond_the_extent_of_a_label_another_decoder_speaks_for_it():
    """Decoder a is the surer, but may not speak of the liver below slice 1: there b does."""
    onto = canvas("liver", shape=(1, 1, 2), reach=Reach({}, {"a": {"liver": (1, 2)}}))
    paint(onto, {"a": {"liver": [0.0, 0.0]}, "b": {"liver": [0.8, 0.8]}})
    assert [found(onto, z) for z in (0, 1)] == [{"liver"}, set()]


def test_out_of_range_there_is_nothing_faint_either():
    """What the predictor zeroed leaves no trace."""
    assert faint(paint(canvas("liver"), {"abdomen": {"liver": [0.0]}}), "liver") == {}


# ---- slabs ------------------------------------------------------------------------------------------------------------

DECODERS = {
    "trunk": ("body",),
    "lungs": ("lung_left", "lung_right"),
    "lobes": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    "abdomen": ("liver", "spleen"),
    "again": ("liver", "kidney_left"),
    "tumour": ("gtv_liver",),
}
WANTED = tuple(dict.fromkeys(name for names in DECODERS.values() for name in names))


def random_probabilities(seed: int, shape=(5, 4, 12)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.softmax(3 * torch.randn(len(labels) + 1, *shape, generator=generator), 0) for n, labels in DECODERS.items()}


def random_canvas(seed: int, edges: tuple[int, ...], decoders=tuple(DECODERS), wanted=WANTED) -> Canvas:
    """Random probabilities painted in slabs between `edges`; `again` knows sick livers."""
    probabilities = random_probabilities(seed)
    onto = canvas(*wanted, shape=(5, 4, 12), spacing=(5.0, 10.0, 5.0), pathological=frozenset({"again"}), reach=Reach({"abdomen": (0, 9)}))
    for low, high in pairwise(edges):
        onto.paint(Slab(low, {name: probabilities[name][..., low:high] for name in decoders}), DECODERS)
    onto.finish()
    return onto


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 11), max_size=5, unique=True))
def test_painting_in_slabs_is_painting_at_once(seed, cuts):
    """Wherever the scan is cut into slabs, every layer is the same: labels, scores and what is faint."""
    assert everything(random_canvas(seed, (0, *sorted(cuts), 12))) == everything(random_canvas(seed, (0, 12)))


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.permutations(list(DECODERS)), st.permutations(WANTED))
def test_the_order_of_decoders_and_structures_does_not_matter(seed, decoders, wanted):
    """Whoever paints first and in whatever order structures are asked for: the same canvas, lesions and shared organs included."""
    assert everything(random_canvas(seed, (0, 7, 12), decoders, wanted)) == everything(random_canvas(seed, (0, 7, 12)))


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_fields_of_rivals_never_add_up_to_more_than_one(seed):
    """Where a structure won, what is faint of a rival is at most what the winner leaves, so no two masks can claim one place."""
    onto = random_canvas(seed, (0, 12))
    for layer in onto.layers.values():
        for name in WANTED:
            for voxel, value in faint(onto, name).items():
                holder, score = int(layer.labels.ravel()[voxel]), int(layer.score.ravel()[voxel])
                assert value <= HALF
                assert not holder or CATALOGUE.may_overlap(name, CATALOGUE.by_id(holder).name) or value + score <= FULL


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_no_two_that_may_not_overlap_share_a_voxel(seed):
    """After any painting: structures on one voxel are relatives, or a tumour and its host."""
    onto = canvas(*WANTED, shape=(5, 4, 12))
    onto.paint(Slab(0, random_probabilities(seed)), DECODERS)
    stacks = np.stack([layer.labels.ravel() for layer in onto.layers.values()])
    for ids in np.unique(stacks, axis=1).T:
        names = [CATALOGUE.by_id(int(i)) for i in ids if i]
        for a in names:
            for b in names:
                assert CATALOGUE.related(a.name, b.name) or a.name in b.hosts or b.name in a.hosts


def test_every_structure_lies_on_one_layer_and_layers_go_from_whole_to_part():
    """Body below organs below lobes below tumours."""
    onto = canvas("gtv_liver", "lung_upper_lobe_left", "body", "liver", "lung_left")
    assert list(onto.layers) == sorted(onto.layers)
    painted = {"trunk": {"body": [1.0]}, "lobes": {"lung_upper_lobe_left": [1.0]}, "lungs": {"lung_left": [1.0]}}
    paint(onto, painted)
    order = [CATALOGUE.by_id(int(layer.labels[0, 0, 0])).name for layer in onto.layers.values() if layer.labels[0, 0, 0]]
    assert order == ["body", "lung_left", "lung_upper_lobe_left"]


def test_structures_somebody_trained_take_part():
    """A custom structure from outside the catalogue competes with organs and shares voxels with the body."""
    grown = CATALOGUE.with_structures(["my_organ"])
    onto = Canvas(Question((1, 1, 1), (grown["body"], grown["liver"], grown["my_organ"]), grown))
    paint(onto, {"trunk": {"body": [0.9]}, "abdomen": {"liver": [0.6]}, "own": {"my_organ": [0.7]}})
    assert {int(layer.labels[0, 0, 0]) for layer in onto.layers.values()} == {ID["body"], grown["my_organ"].id}


def test_a_layer_is_as_small_as_it_can_be():
    """Three bytes per voxel: two for the id, one for the probability."""
    layer: Layer = canvas("liver", shape=(10, 10, 10)).layers[1]
    assert layer.labels.nbytes + layer.score.nbytes == 3000
