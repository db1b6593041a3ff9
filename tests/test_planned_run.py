"""Facts about running planned decoders together: what is shared, what is averaged, and who has a voxel in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg.catalogue import Catalogue
from clseg.errors import WeightsError
from clseg.inference.engine import Engine
from clseg.inference.planned import run
from clseg.inference.planned.export import KeptMap, LabelMap
from clseg.inference.planned.prepare import look
from clseg.inference.planned.run import Answer, answers_of, compose, engines_in_memory, grouped, segment_planned
from clseg.io.files import read
from clseg.network.checkpoint import Checkpoint, save
from clseg.network.model import Model, Stored, assemble
from clseg.network.plan import Plan, Scheme
from clseg.volume import Volume
from clseg.weights.importers.nnunet import find_trainings, read_training
from tests.conftest import tiny_checkpoints

PLAN = Plan("nnunet", (6.0, 6.0, 6.0), (16, 16, 16), Scheme("ct", -1000.0, 1000.0, 0.0, 500.0))
SCAN = Volume(np.random.default_rng(0).integers(-900, 900, (20, 18, 17)).astype(np.int16), np.diag([6.0, 6.0, 6.0, 1.0]))
CATALOGUE = Catalogue.builtin()


def model(plans: dict[str, Plan], labels: dict[str, tuple[str, ...]], seed: int = 0) -> Model:
    """Random decoders on one encoder, each with its plan."""
    encoder, decoders = tiny_checkpoints(labels, seed=seed)
    planned = {name: Checkpoint("decoder", replace(one.spec, plan=plans[name]), one.tensors, one.encoder) for name, one in decoders.items()}
    return assemble(encoder, planned.items())


def engine(*arguments, **options) -> Engine:
    return Engine(model(*arguments, **options), "cpu", notify=pytest.fail)


def test_equal_sight_and_encoder_share_windows() -> None:
    """Two decoders of one plan are a group, one of another spacing and one on another encoder are not in it."""
    plans = {"a": PLAN, "b": replace(PLAN, export="nearest"), "c": replace(PLAN, spacing_mm=(5.0, 6.0, 6.0))}
    first = engine(plans, {"a": ("liver",), "b": ("spleen",), "c": ("heart",)})
    second = engine({"d": PLAN}, {"d": ("pancreas",)}, seed=1)
    groups = [[answer.name for answer in group] for group in grouped(answers_of([first, second], SCAN))]
    assert groups == [["a", "b"], ["c"], ["d"]]


def test_groups_are_no_larger_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two channels of 16 rows of 18 × 20 voxels are 46 080 bytes: two decoders fit into 100 000, the third is a group of its own."""
    names = {"a": ("liver",), "b": ("spleen",), "c": ("heart",)}
    answers = answers_of([engine(dict.fromkeys(names, PLAN), names)], SCAN)
    for held, expected in ((46_080 * 3, [["a", "b", "c"]]), (100_000, [["a", "b"], ["c"]]), (1, [["a"], ["b"], ["c"]])):
        monkeypatch.setattr(run, "HELD_BYTES", held)
        assert [[answer.name for answer in group] for group in grouped(answers)] == expected


def test_folds_are_one_answer() -> None:
    """Decoders of one ensemble become one label map, which is not that of either alone."""
    folds = [engine({name: replace(PLAN, ensemble="x")}, {name: ("liver", "spleen")}, seed=seed) for seed, name in enumerate(("a", "b"))]
    ((answer, both),) = segment_planned(SCAN, answers_of(folds, SCAN))
    assert (answer.name, answer.labels, len(answer.sources)) == ("x", ("liver", "spleen"), 2)
    alone = [next(iter(segment_planned(SCAN, answers_of([one], SCAN))))[1] for one in folds]
    assert all(not (one.box == both.box and np.array_equal(one.labels, both.labels)) for one in alone)


def stored(folder: Path, plans: dict[str, Plan], labels: dict[str, tuple[str, ...]], seed: int) -> Engine:
    """The same as `engine`, of a model that is hollow until it is needed."""
    encoder, decoders = tiny_checkpoints(labels, seed=seed)
    planned = {name: Checkpoint("decoder", replace(one.spec, plan=plans[name]), one.tensors, one.encoder) for name, one in decoders.items()}
    files = {name: folder / f"{seed}-{name}" for name in planned}
    save(folder / f"{seed}", encoder)
    for name, one in planned.items():
        save(files[name], one)
    return Engine(assemble(encoder, planned.items(), Stored(folder / f"{seed}", files)), "cpu", notify=pytest.fail)


def test_networks_are_in_memory_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them: each is read when its turn comes and let go afterwards; label maps are those of networks that stay."""
    trained = [({name: PLAN}, {name: (label, "heart")}, seed) for seed, (name, label) in enumerate([("a", "liver"), ("b", "spleen"), ("c", "pancreas")])]
    hollow = [stored(tmp_path, *one) for one in trained]
    filled: list[int] = []
    predict = run.predict

    def watched(*arguments, **options):
        filled.append(sum(not one.model.hollow for one in hollow))
        yield from predict(*arguments, **options)

    monkeypatch.setattr(run, "predict", watched)
    found = [(answer.name, label_map) for answer, label_map in segment_planned(SCAN, answers_of(hollow, SCAN))]
    assert filled == [1, 1, 1]
    assert all(one.model.hollow for one in hollow)
    monkeypatch.setattr(run, "predict", predict)
    staying = [engine(plans, labels, seed=seed) for plans, labels, seed in trained]
    for (name, mine), (answer, theirs) in zip(found, segment_planned(SCAN, answers_of(staying, SCAN)), strict=True):
        assert (name, mine.box) == (answer.name, theirs.box)
        assert np.array_equal(mine.labels, theirs.labels)
        assert np.array_equal(mine.score, theirs.score)


def test_a_network_stays_as_long_as_another_group_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two decoders of one encoder that see the scan at different spacings: its weights are read once; folds of one training are there together."""
    plans = {"a": PLAN, "b": replace(PLAN, spacing_mm=(5.0, 6.0, 6.0))}
    reads = []
    fill = Model.fill
    monkeypatch.setattr(Model, "fill", lambda self: (reads.append(self.hollow), fill(self)))
    one = stored(tmp_path, plans, {"a": ("liver",), "b": ("spleen",)}, 0)
    assert len(list(segment_planned(SCAN, answers_of([one], SCAN)))) == 2
    assert reads.count(True) == 1
    folds = [stored(tmp_path, {name: replace(PLAN, ensemble="x")}, {name: ("liver",)}, seed) for seed, name in ((1, "c"), (2, "d"))]
    reads.clear()
    assert len(list(segment_planned(SCAN, answers_of(folds, SCAN)))) == 1
    assert reads.count(True) == 2


def test_weights_are_let_go_whatever_ends_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle, and a caller who wants no more: what was read for the scan does not stay for the next."""
    hollow = [stored(tmp_path, {name: PLAN}, {name: (label,)}, seed) for seed, (name, label) in enumerate([("a", "liver"), ("b", "spleen")])]
    label_maps = segment_planned(SCAN, answers_of(hollow, SCAN))
    next(label_maps)
    label_maps.close()
    assert all(one.model.hollow for one in hollow)

    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(run.Export, "add", failing)
    with pytest.raises(MemoryError):
        next(segment_planned(SCAN, answers_of(hollow, SCAN)))
    assert all(one.model.hollow for one in hollow)


def test_what_is_in_memory_is_known_in_advance() -> None:
    """From the first group that an engine answers in to the last: B waits while C runs."""
    a, b, c = (engine({name: PLAN}, {name: (label,)}, seed=seed) for seed, (name, label) in enumerate([("a", "liver"), ("b", "spleen"), ("c", "heart")]))
    answers = {one.model.labels[0]: answers_of([one], SCAN)[0] for one in (a, b, c)}
    both = replace(answers["liver"], sources=(*answers["liver"].sources, *answers["spleen"].sources))
    groups = [[both], [answers["heart"]], [answers["spleen"]]]
    assert [{id(one) for one in engines_in_memory(groups, number)} for number in range(4)] == [{id(a), id(b)}, {id(b), id(c)}, {id(b)}, set()]


def test_folds_must_agree() -> None:
    """Other labels under one ensemble's name are an error, not an average."""
    folds = [engine({name: replace(PLAN, ensemble="x")}, {name: labels}) for name, labels in (("a", ("liver",)), ("b", ("spleen",)))]
    with pytest.raises(WeightsError, match="ensemble 'x' have different plans or labels"):
        answers_of(folds, SCAN)


def test_only_decoders_that_answer_are_asked() -> None:
    """One that merely supports has no label map."""
    both = model({"a": PLAN, "b": PLAN}, {"a": ("liver",), "b": ("spleen",)}).answering({"b"})
    assert [answer.name for answer in answers_of([Engine(both, "cpu", notify=pytest.fail)], SCAN)] == ["b"]


# ---- who has a voxel --------------------------------------------------------------------------------------------------


def found(name: str, labels: tuple[str, ...], first: int, numbers: list[int], score: list[int]) -> tuple[Answer, KeptMap]:
    """An answer about some voxels in a row, from voxel `first`."""
    box = (slice(first, first + len(numbers)), slice(0, 1), slice(0, 1))
    shape = (-1, 1, 1)
    values = LabelMap(box, np.array(numbers, np.uint8).reshape(shape), np.array(score, np.uint8).reshape(shape))
    return Answer(name, look(ROW, PLAN), PLAN, (), labels), values.kept()


ROW = Volume(np.ones((6, 1, 1), np.int16))


def composed(*answers: tuple[Answer, KeptMap], wanted: str = "all") -> dict[int, list[str]]:
    """Per depth the names in the row, '' where there is nothing; the order of the answers must not matter."""
    labels = {label for answer, _ in answers for label in answer.labels}
    chosen = CATALOGUE.select([wanted], among=labels)
    layers = compose(ROW, answers, chosen, CATALOGUE)
    again = compose(ROW, answers[::-1], chosen, CATALOGUE)
    assert all(np.array_equal(layers[depth], again[depth]) for depth in layers)
    return {depth: [CATALOGUE.by_id(int(id)).name if id else "" for id in np.asarray(ids).ravel()] for depth, ids in layers.items()}


def test_of_two_organs_the_likelier_has_the_voxel() -> None:
    """They meet in voxels 2 and 3, where the liver is surer, then the spleen; alone each has its own."""
    liver = found("a", ("liver",), 0, [1, 1, 1, 1], [200, 200, 200, 140])
    spleen = found("b", ("pancreas", "spleen"), 2, [2, 2, 2], [150, 150, 150])
    assert composed(liver, spleen) == {1: ["liver", "liver", "liver", "spleen", "spleen", ""]}


def test_of_equally_likely_ones_the_smaller_has_it() -> None:
    """The adrenal gland (5 ml) goes before the liver."""
    assert composed(found("a", ("liver",), 0, [1], [200]), found("b", ("adrenal_gland_left",), 0, [1], [200]))[1][0] == "adrenal_gland_left"


def test_a_structure_and_its_part_share_a_voxel() -> None:
    """The lung and its lobe lie on two layers."""
    lung = found("a", ("lung_left",), 0, [1, 1], [200, 200])
    lobe = found("b", ("lung_upper_lobe_left",), 1, [1], [150])
    assert composed(lung, lobe) == {1: ["lung_left", "lung_left", "", "", "", ""], 2: ["", "lung_upper_lobe_left", "", "", "", ""]}


def test_rivals_on_different_layers_exclude_each_other_too() -> None:
    """The lobe of the lung (depth 2) against the liver (depth 1): the surer stays."""
    liver = found("a", ("liver",), 0, [1, 1], [200, 100])
    lobe = found("b", ("lung_upper_lobe_left",), 0, [1, 1], [150, 150])
    assert composed(liver, lobe) == {1: ["liver", "", "", "", "", ""], 2: ["", "lung_upper_lobe_left", "", "", "", ""]}


def test_what_a_loser_ruled_out_comes_back() -> None:
    """The spleen yields to the liver, so that the kidney, which the spleen would have beaten, has no rival but the liver either."""
    answers = [found(name, (name,), 0, [1], [score]) for name, score in (("liver", 250), ("spleen", 200), ("lung_upper_lobe_left", 100))]
    assert composed(*answers)[1][0] == "liver"
    assert composed(*answers)[2][0] == ""


def test_what_was_not_asked_for_is_left_out() -> None:
    """The spleen alone, though the decoder also found the pancreas."""
    assert composed(found("b", ("pancreas", "spleen"), 0, [1, 2], [200, 200]), wanted="spleen") == {1: ["", "spleen", "", "", "", ""]}


# ---- the fixtures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "resenc"])
@pytest.mark.parametrize("case", ["ct_a", "ct_b"])
def test_the_fixtures_are_segmented_as_nnunet_does(shared: Path, name: str, case: str) -> None:
    """All voxels but one in ten thousand as nnunetv2 in float32, 99.8 % as nnunetv2 itself, which adds up in float16."""
    root = shared / "fixtures" / f"nnunetv2_{name}"
    (training,) = find_trainings(root)
    encoder, decoder = (part.checkpoint for part in read_training(training))
    one = Engine(assemble(encoder, [("organs", decoder)]), "cpu", notify=pytest.fail)
    scan = read(root / "reference" / f"{case}_0000.nii.gz")
    ((_, label_map),) = segment_planned(scan, answers_of([one], scan))
    labels = np.zeros(scan.shape, np.uint8)
    labels[label_map.box] = label_map.labels
    for reference, share in (("fp32", 0.9999), ("native", 0.998)):
        expected = read(root / "reference" / f"{case}_seg_{reference}.nii.gz")
        assert (labels == expected.array).mean() >= share
