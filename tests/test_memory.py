"""What a run will hold is known before it begins, is kept, and does not change a voxel of what is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg import pipeline, segment
from clseg.catalogue import Catalogue
from clseg.errors import UsageError
from clseg.footprint import bytes_of, in_words
from clseg.inference import infer, memory
from clseg.inference.engine import Engine
from clseg.inference.memory import SLACK, SPARE, House, Imported, Maps
from clseg.inference.parts import Parts
from clseg.inference.planned.run import answers_of, grouped, segment_planned, unfinished, windows_of
from clseg.inference.prepare import place
from clseg.io.nifti import write_volume
from clseg.phantom import small_phantom
from clseg.progress import Progress
from clseg.settings import Settings
from clseg.spatial.orthonormal import orthonormal_grid
from clseg.spatial.runs import LabelRuns
from clseg.volume import Volume
from tests.conftest import tiny_network
from tests.test_planned_run import PLAN, SCAN, engine

ROOT = Path(__file__).parents[1]
CATALOGUE = Catalogue.builtin()
ORGANS = ("liver", "spleen", "heart", "pancreas", "stomach", "aorta", "trachea", "esophagus", "gallbladder", "duodenum")
MIXED = {
    "trunk": ("body",),
    "lungs": ("lung_left", "lung_right"),
    "abdomen": ("liver", "spleen"),
    "again": ("liver", "kidney_left"),
    "tumour": ("gtv_liver",),
}


def house(labels: dict[str, tuple[str, ...]] | None = None, length: int = 24, held: int = 0) -> House:
    """Ten decoders of one organ each, and a scan of tissue of 30 × 30 × `length` voxels of 6 mm."""
    labels = labels or {organ: (organ,) for organ in ORGANS}
    scan = Volume(np.full((30, 30, length), 40, np.int16, order="F"), np.diag([6.0, 6.0, 6.0, 1.0]))
    parts = Parts((tiny_network(labels),), None, frozenset())
    wanted = tuple(CATALOGUE[name] for name in dict.fromkeys(name for names in labels.values() for name in names))
    return House(parts, wanted, CATALOGUE, place(scan, parts.grid)[1], scan, held)


@pytest.fixture
def small_tiles(monkeypatch):
    """So that what is held while restoring is not most of what so small a scan takes."""
    monkeypatch.setattr(memory, "LARGEST_TILES", 0)


# ---- the plan ---------------------------------------------------------------------------------------------------------


def test_without_a_limit_all_decoders_run_at_once():
    """One chunk of all ten; the peak is what is held already, the largest stage, and a rest."""
    plan = house(held=1000).plan(None)
    assert plan.chunks == (ORGANS,)
    assert plan.peak == 1000 + SLACK + max(stage.bytes for stage in plan.stages)


def test_the_less_memory_the_more_passes(small_tiles):
    """From what all at once would take down to the least: no decoder is lost, no limit is broken, chunks never become fewer."""
    one = house()
    most, least = one.plan(None).peak, int(least_of(one))
    assert least < most
    passes = []
    for limit in np.linspace(most, least, 12).astype(int):
        plan = one.plan(int(limit))
        assert plan.peak <= limit
        assert sorted(name for chunk in plan.chunks for name in chunk) == sorted(ORGANS)
        passes.append(len(plan.chunks))
    assert passes == sorted(passes)
    assert (passes[0], passes[-1]) == (1, 10)


def least_of(one: House) -> float:
    """The smallest limit that is not refused, found by halving."""
    low, high = 0, one.plan(None).peak
    while high - low > 1:
        middle = (low + high) // 2
        try:
            one.plan(middle)
            high = middle
        except UsageError:
            low = middle
    return high


def test_too_little_is_refused_with_what_would_do(small_tiles):
    """The amount in the sentence is enough, for a process that holds a little more before it begins as well, and hardly more than the least."""
    one = house(held=300 << 20)
    with pytest.raises(UsageError, match=r"does not fit into 1 MiB of memory; it takes at least \d+ MiB") as caught:
        one.plan(1000)
    named = bytes_of(caught.value.message.split("at least ")[1].rstrip("."))
    assert one.plan(named).peak <= named < least_of(one) + SPARE + 2**20
    assert replace(one, held=one.held + SPARE).plan(named).peak <= named


def test_what_belongs_together_is_never_parted(small_tiles):
    """Two livers are in one chunk, however little memory there is."""
    one = house({"a": ("liver",), "b": ("spleen",), "c": ("liver", "heart"), **{name: (name,) for name in ORGANS[3:]}})
    assert ("a", "c") in one.plan(int(least_of(one))).chunks


def test_decoders_out_of_reach_need_no_memory(small_tiles):
    """Three of ten run: the plan is that of three, those of the same slices side by side."""
    one = house()
    reach = {organ: None for organ in ORGANS} | {"liver": (10, 20), "heart": (0, 9), "aorta": (0, 24)}
    plan = one.plan(None, reach)
    assert plan.chunks == (("heart", "aorta", "liver"),)
    assert plan.peak < one.plan(None).peak


def test_open_slices_are_what_the_scores_are_made_of():
    """A decoder of one organ more: two channels and their weights for 16 slices of the grid and what is made of 16 finished ones."""
    one = house()
    x, y = one.placement.shape[:2]
    assert one._scores(ORGANS[:2]) - one._scores(ORGANS[:1]) == 4 * x * y * (16 * 3 + 16 * 2 + 16 * 2)


def test_a_longer_scan_takes_its_own_voxels_more():
    """Ten times as many slices: scan and maps grow, scores of open slices do not."""
    short, long = house(length=24), house(length=240)
    assert long._scores(ORGANS) == short._scores(ORGANS)
    per_voxel = (long.plan(None).peak - short.plan(None).peak) / (30 * 30 * 216)
    assert 3 < per_voxel < 30


def test_maps_are_runs_where_the_body_is():
    """100 × 100 × 100 voxels, a body in half of the slices, body and liver on two layers: a quarter of 2 × 500 000; the mask of the body to write it."""
    scan = Volume(np.zeros((100, 100, 100), np.int16), np.eye(4))
    maps = Maps((CATALOGUE["body"], CATALOGUE["liver"]), CATALOGUE, scan, (0.5, 0.5, 0.5))
    assert (maps.layers, maps.bytes, maps.written, maps.drawn) == (2, 250_000, 125_000, 0)
    sagittal = Volume(scan.array, np.eye(4)[[2, 0, 1, 3]])
    assert replace(maps, scan=sagittal).drawn == 2_000_000


def test_a_map_of_confidence_is_planned():
    """A byte per voxel of the model's grid while decoders run and are cleaned, one per voxel of the scan when it is restored and written."""
    one = house()
    grid, scan = int(np.prod(one.placement.shape)), one.scan.array.size
    plain, more = ({stage.name: stage.bytes for stage in replace(one, confidence=wanted).plan(None).stages} for wanted in (False, True))
    grown = {name: more[name] - plain[name] for name in plain}
    assert grown == {"prepare": 0, "segment": grid, "clean": grid, "restore": grid + scan, "write": scan}


def tilted(shape=(30, 30, 24)) -> Volume:
    """A scan of tissue with voxels of 6 mm, every slice 3 mm behind the one below."""
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[1, 2] = 3.0
    return Volume(np.full(shape, 40, np.int16, order="F"), affine)


def test_maps_that_are_brought_back_are_planned():
    """A scan that was straightened: a stage more, for a map of two bytes a voxel on both grids and the runs of all; what is written has the scan's size."""
    given, one = tilted((30, 30, 20)), house()
    plain, more = one.plan(None), replace(one, given=given).plan(None)
    assert [stage.name for stage in more.stages] == ["prepare", "segment", "clean", "restore", "return", "write"]
    assert more.stages[:4] == plain.stages[:4]
    copy, scan = 30 * 30 * 24, 30 * 30 * 20
    maps = Maps(one.wanted, CATALOGUE, one.scan, memory.body_shares(one.placement, one.scan))
    assert more.stages[4].bytes == maps.bytes + scan * maps.layers // 4 + 2 * (copy + scan)
    assert more.stages[5].bytes == scan * maps.layers // 4 + scan
    assert "straightened copy" in more.lines()[1]
    assert "straightened copy" not in plain.lines()[1]
    large = replace(one, given=Volume(np.broadcast_to(np.int16(0), (2000, 1000, 100)), given.affine))
    assert large.plan(None).peak > plain.peak + 2 * large.given.array.size  # more than all else that so small a copy takes


def test_maps_that_are_brought_back_are_planned_for_imported_networks():
    """The same stage between composing and writing; a byte for confidence on either grid."""
    given = tilted()
    plain, sure = (replace(imported(), given=given, confidence=wanted).plan(None, 1 << 30) for wanted in (False, True))
    assert [stage.name for stage in plain.stages] == ["prepare", "segment", "compose", "return", "write"]
    grown = {one.name: other.bytes - one.bytes for one, other in zip(plain.stages, sure.stages, strict=True)}
    assert (grown["return"], grown["write"]) == (SCAN.array.size + given.array.size, given.array.size)


def test_the_plan_can_be_read():
    """What at most, of what is allowed, in how many passes; then stage by stage."""
    first, *rows = house(held=200 << 20).plan(None).lines(4 << 30)
    assert first.startswith("Memory: ")
    assert first.endswith(" of 4.0 GiB allowed; 10 decoders in 1 pass")
    assert [row.split()[0] for row in rows] == ["before", "prepare", "segment", "clean", "restore", "write"]
    assert "200 MiB" in rows[0]


# ---- imported networks ------------------------------------------------------------------------------------------------

NAMES = {"a": ("liver",), "b": ("spleen",), "c": ("heart", "stomach")}


def imported(held: int = 0) -> Imported:
    answers = answers_of([engine(dict.fromkeys(NAMES, PLAN), NAMES)], SCAN)
    return Imported(grouped(answers, 1e18), [CATALOGUE[name] for names in NAMES.values() for name in names], CATALOGUE, SCAN, held)


def test_portions_follow_the_limit():
    """Three answers together hold 161 280 bytes of open rows; the largest alone 69 120: the share lies between them, and what is less is refused."""
    one = imported()
    sizes = [unfinished(answer) for group in one.groups for answer in group]
    assert sizes == [46_080, 46_080, 69_120]
    everything = one.plan(None, 1 << 30)
    assert (everything.share, one.plan(None, 100_000).share) == (161_280, 100_000)
    assert one.plan(everything.peak, 1 << 30).share == 161_280
    less = one.plan(everything.peak - 50_000, 1 << 30)
    assert 69_120 <= less.share < 161_280
    assert less.peak <= everything.peak - 50_000
    with pytest.raises(UsageError, match="at least"):
        one.plan(everything.peak - 500_000, 1 << 30)


def test_a_map_of_confidence_is_planned_for_imported_networks():
    """It lies on the scan's grid from the start, when label maps are composed."""
    plain, more = ({stage.name: stage.bytes for stage in replace(imported(), confidence=wanted).plan(None, 1 << 30).stages} for wanted in (False, True))
    assert {name: more[name] - plain[name] for name in plain} == {"prepare": 0, "segment": 0, "compose": SCAN.array.size, "write": SCAN.array.size}


def test_portions_change_nothing():
    """One answer at a time gives the label maps of all at once, with three times the encoder passes."""
    answers = answers_of([engine(dict.fromkeys(NAMES, PLAN), NAMES)], SCAN)
    together, apart = (dict((a.name, m) for a, m in segment_planned(SCAN, answers, held=held)) for held in (1e18, 0))
    assert together.keys() == apart.keys() == NAMES.keys()
    for name, one in together.items():
        assert one.box == apart[name].box
        assert np.array_equal(one.labels, apart[name].labels)
        assert np.array_equal(one.score, apart[name].score)
    assert windows_of(answers, 0.5, 0) == 3 * windows_of(answers, 0.5, 1e18)


# ---- the run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scan() -> Volume:
    return small_phantom()[0]


def everything(result) -> list[bytes]:
    return [np.asarray(layer).tobytes() for layer in result.layers]


@pytest.fixture
def in_passes(monkeypatch):
    """`in_passes(n)`: from now on decoders run in n chunks, whatever the memory."""

    def force(number: int) -> None:
        plan = House.plan

        def forced(self, limit, reach=None):
            groups = self._groups(reach)
            parts = [groups[i::number] for i in range(number)]
            return replace(plan(self, None, reach), chunks=tuple(tuple(n for g in part for n in g) for part in parts if part))

        monkeypatch.setattr(House, "plan", forced)

    return force


@pytest.mark.parametrize("passes", [2, 3])
def test_passes_change_nothing(tiny_model, scan, in_passes, passes):
    """Shared organs, a tumour in one of them, rivals: every layer is the same to the last byte."""
    tiny_model(MIXED)
    before = segment(scan, model="tiny")
    assert len(before.present) >= 4
    in_passes(passes)
    assert everything(segment(scan, model="tiny")) == everything(before)


def test_neither_batch_nor_slab_changes_anything(tiny_model, scan, monkeypatch):
    """Three windows at a time, and five finished slices: the same layers."""
    from clseg.inference import predictor

    tiny_model(MIXED)
    before = everything(segment(scan, model="tiny"))
    monkeypatch.setattr(predictor, "ROWS", 5)
    assert everything(segment(scan, model="tiny")) == before
    monkeypatch.setattr(infer, "Engine", lambda model, device, **options: Engine(model, device, batch=3, **options))
    assert differing(segment(scan, model="tiny"), before) <= TIES


TIES = 1e-4  # of the voxels: sums of floats in another order may end on the other side of a tie


def differing(result, before: list[bytes]) -> float:
    layers = [(np.asarray(layer).tobytes(order="C"), layer.size) for layer in result.layers]
    unequal = sum(int((np.frombuffer(a, np.uint16) != np.frombuffer(b, np.uint16)).sum()) for (a, _), b in zip(layers, before, strict=True))
    return unequal / sum(size for _, size in layers)


def test_threads_change_no_more_than_ties(tiny_model, scan):
    """Two threads instead of one: at most one voxel in ten thousand differs."""
    import torch

    tiny_model(MIXED)
    small = Volume(np.asfortranarray(scan.array[8:32, 4:24, 10:32]), scan.affine)
    before, threads = everything(segment(small, model="tiny", step=1.0)), torch.get_num_threads()
    try:
        assert differing(segment(small, model="tiny", step=1.0, threads=2), before) <= TIES
    finally:
        torch.set_num_threads(threads)


def test_too_little_memory_is_told_before_anything_is_computed(tiny_model, scan, monkeypatch):
    """No window, no resampling; what the sentence names is enough."""
    tiny_model(MIXED)
    monkeypatch.setattr(infer, "resident", lambda: 100 << 20)
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="at least") as caught:
        patch.setattr(infer, "onto_grid", pytest.fail)
        segment(scan, model="tiny", max_memory=1 << 20)
    named = bytes_of(caught.value.message.split("at least ")[1].rstrip("."))
    assert segment(scan, model="tiny", max_memory=named).facts["max_memory"] == named


def test_the_plan_is_told_to_those_who_ask(tiny_model, scan):
    """As details: what -v shows."""
    told = []

    class Told(Progress):
        def detail(self, text: str) -> None:
            told.append(text)

    tiny_model()
    segment(scan, model="tiny", report=Told())
    assert any(line.startswith("Memory: ") and line.endswith("3 decoders in 1 pass") for line in told)


def sheared(scan: Volume) -> Volume:
    affine = scan.affine.copy()
    affine[1, 2] = 0.3 * scan.spacing[2]
    return Volume(scan.array, affine)


def test_the_plan_of_a_sheared_scan_is_told_and_kept_as_runs(tiny_model, scan):
    """Its maps are runs as those of other scans, and the plan has the stage that brings them back."""
    told = []

    class Told(Progress):
        def detail(self, text: str) -> None:
            told.append(text)

    tiny_model()
    result = segment(sheared(scan), model="tiny", report=Told(), max_memory=1 << 40)
    assert any(line.startswith("  return ") for line in told)
    assert any(line.startswith("  before ") and line.endswith("scan and its straightened copy") for line in told)
    assert all(isinstance(layer, LabelRuns) and layer.shape == scan.shape for layer in result.layers)


def test_a_copy_that_does_not_fit_is_not_made(tiny_model, scan, monkeypatch):
    """A sheared scan under a limit below its straightened copy: refused before that; what the sentence names is enough."""
    tiny_model(MIXED)
    monkeypatch.setattr(infer, "resident", lambda: 100 << 20)
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="at least") as caught:
        patch.setattr(pipeline, "to_orthonormal", pytest.fail)
        segment(sheared(scan), model="tiny", max_memory=(100 << 20) + SLACK)
    named = bytes_of(caught.value.message.split("at least ")[1].rstrip("."))
    assert named > (100 << 20) + SLACK
    assert segment(sheared(scan), model="tiny", max_memory=named).facts["max_memory"] == named


def test_a_copy_that_does_not_fit_is_not_made_for_imported_networks(monkeypatch):
    """For them the copy itself is named: 30 × 36 × 30 voxels of 2 bytes, for a leaning box needs a larger one around it."""
    monkeypatch.setattr(infer, "resident", lambda: 0)
    given, parts = tilted(), Parts((), None, frozenset(), (tiny_network({"a": ("liver",)}),))
    copy = 2 * orthonormal_grid(given).array.size
    assert copy == 2 * 30 * 36 * 30
    for limit, fits in ((SLACK + copy, True), (SLACK + copy - 1, False), (None, True)):
        task = infer.Task((CATALOGUE["liver"],), CATALOGUE, Settings(max_memory=limit))
        with nullcontext() if fits else pytest.raises(UsageError, match=f"at least {in_words(SLACK + copy + SPARE)}"):
            infer.check_copy(given, parts, task)


@pytest.mark.parametrize("amount", [0, -5])
def test_no_memory_at_all_is_no_amount(amount):
    with pytest.raises(UsageError, match="is no amount of memory"):
        segment("/nowhere", max_memory=amount)


# ---- measured ---------------------------------------------------------------------------------------------------------


def clseg(ct: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clseg", "-i", str(ct), "-o", str(out), "--offline", "--step", "1", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=3600)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells what a process holds now")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("length", [200, 600])
def test_the_plan_is_kept(tmp_path, length):
    """A torso of 256 × 256 voxels, one or three of it: the starter model stays below the least that it asked for, which is at most three quarters more: it counts structures that the torso does not show."""
    write_volume(tmp_path / "ct.nii", torso(length))
    refused = clseg(tmp_path / "ct.nii", tmp_path / "out", "--max-memory", "1M")
    assert refused.returncode == 2, refused.stderr
    assert not (tmp_path / "out" / "run.json").exists()
    least = refused.stderr.split("takes at least ")[1].split(".\n")[0]
    done = clseg(tmp_path / "ct.nii", tmp_path / "out", "--stats", "--max-memory", least)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    measured = max(stage["peak_memory_mib"] for stage in run["stages"]) * 2**20
    assert run["max_memory"] == bytes_of(least)
    assert measured <= bytes_of(least) <= 1.75 * measured


def torso(length: int) -> Volume:
    from clseg.phantom import phantom

    ct, _ = phantom(spacing_mm=(2.5, 2.5, 3.0))
    small = ct.array[:128, :, :]
    wide = np.full((256, 256, length), -1000, np.int16, order="F")
    big = small.repeat(2, 0).repeat(2, 1)
    rows = np.resize(np.arange(big.shape[2]), length)
    wide[: big.shape[0], : big.shape[1]] = big[:, :, rows]
    return Volume(wide, np.diag([1.25, 1.25, 3.0, 1.0]))
