"""Facts about the benchmark of speed: what is measured, made and compared is what the table says."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg.io.files import read
from clseg.io.nifti import write_mask
from clseg.network.spec import joins
from clseg.phantom import small_phantom
from clseg.volume import Volume

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from race.agreement import agreement, equal_voxels
from race.gpu import used_by, used_on, watched
from race.networks import (
    KINDS,
    dense_decoder,
    encoder_like,
    install_decoders,
    pruned_decoder,
    structures,
    weight_count,
    write_plans,
)
from race.peer import Peer, ours, peer_with
from race.rows import CASES, DECODERS, Race, decoders, device, memory, roi, writing
from race.scans import SIZES, Size, fitted, make_scan
from race.table import Figure, Result, markdown, usual_figures
from race.timing import Pairs, Run, Spread, added, in_turns, measured

SLOW_AND_LARGE = "import time; held = bytearray(100 << 20); time.sleep(0.2)"


def test_a_program_is_measured_and_not_what_started_it(tmp_path):
    """Started from a process that once held more, 100 MiB are 100 MiB and a bit, and 0.2 s of sleep are no work."""
    large = np.ones(300 << 20, np.uint8)  # this process now has a higher peak than the program
    del large
    run = measured([sys.executable, "-c", SLOW_AND_LARGE], {}, tmp_path / "log")
    assert 100 < run.peak_mib < 200
    assert run.seconds >= 0.2
    assert run.cpu_seconds < run.seconds


def test_a_program_that_fails_is_no_result(tmp_path):
    """Its last words are in the error."""
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3.*no such luck"):
        measured([sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"], {}, tmp_path / "log")


def test_ways_are_run_in_turns():
    """Ours, theirs; theirs, ours; ours, theirs."""
    order: list[str] = []

    def way(name: str, seconds: float):
        return lambda: order.append(name) or Run(seconds, seconds, 100)

    pairs = in_turns(way("ours", 1), way("theirs", 4), 3, lambda text: None)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert pairs.ratio("seconds") == Spread(0.25, 0.25, 0.25)


def test_ratios_are_taken_pair_by_pair():
    """1/2, 3/4 and 1/1: median 0.75 from 0.5 to 1; a goal of 0.7 is missed, one of 0.8 kept."""
    pairs = Pairs(tuple(Run(s, s, 10) for s in (1, 3, 1)), tuple(Run(s, s, 40) for s in (2, 4, 1)))
    assert pairs.ratio("seconds") == Spread(0.75, 0.5, 1)
    time, _, memory = usual_figures(pairs, seconds=0.7, memory=0.5)
    assert (time.verdict, replace(time, goal=0.8).verdict, memory.verdict) == ("≤ 0.7: missed", "≤ 0.8: kept", "≤ 0.5: kept")


def test_runs_one_after_the_other():
    """Times add up, the largest memory counts, that of a GPU too."""
    assert added([Run(1, 2, 300), Run(10, 20, 200)]) == Run(11, 22, 300)
    assert added([Run(1, 2, 300, 50), Run(10, 20, 200, 70)]) == Run(11, 22, 300, 70)


class Nvml:
    """NVIDIA's library with one GPU, of which so many MiB are taken each time that somebody asks."""

    def __init__(self, *taken: int) -> None:
        self.taken = list(taken)

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number, handle) -> int:
        return 0 if number == 0 else 6

    def nvmlDeviceGetMemoryInfo(self, handle, numbers) -> int:
        numbers._obj[2] = (self.taken.pop(0) if len(self.taken) > 1 else self.taken[0]) << 20
        return 0


def test_the_most_that_a_program_takes_of_a_gpu_is_seen():
    """500 MiB before, then 700, 1700, and 900 until the end: 1200 beyond."""
    with watched(used_by(Nvml(500, 700, 1700, 900), 0), every=0.001) as highest:
        time.sleep(0.2)
    assert highest.mib == 1200


def test_a_gpu_that_is_not_there_is_not_watched(monkeypatch):
    """The CPU, a machine without NVIDIA's library, a number that the library does not know."""
    assert used_on("cpu") is None
    monkeypatch.setattr("race.gpu.LIBRARY", "no-such-library.so")
    assert used_on("cuda") is None
    with pytest.raises(OSError, match="answers 6"):
        used_by(Nvml(1), 1)
    with watched(None) as highest:
        pass
    assert highest.mib is None


def test_memory_of_the_gpu_is_a_line_of_the_table(tmp_path):
    """Only where both sides were watched: 100 against 400 MiB."""
    pairs = Pairs((Run(1, 1, 10, 100),), (Run(1, 1, 10, 400),))
    assert [(one.what, one.ratio.median) for one in usual_figures(pairs)][3:] == [("peak memory of the GPU", 0.25)]
    assert len(usual_figures(replace(pairs, theirs=(Run(1, 1, 10),)))) == 3
    run = measured([sys.executable, "-c", "import time; time.sleep(0.1)"], {}, tmp_path / "log", used_by(Nvml(5, 35), 0))
    assert run.gpu_mib == 30


def test_the_table():
    """A line a figure; the share of equal voxels stands in the first."""
    figure = Figure("wall time", "s", Spread(1.5, 1, 2), Spread(123.4, 100, 200), Spread(0.012, 0.01, 0.02), 0.7)
    lines = markdown([Result("one", "tiny", ("clseg", "nnU-Net"), (figure, replace(figure, goal=None)), 0.99875)]).splitlines()
    assert lines[2] == "| one | tiny: clseg against nnU-Net | wall time | 1.50 s | 123 s | 0.01 (0.01 to 0.02) | ≤ 0.7: kept | 99.875 % |"
    assert lines[3].endswith("| – |  |")


def test_a_scan_has_the_voxels_asked_for():
    """Larger than the original it goes on as its mirror image, smaller it is its middle."""
    ct, _ = small_phantom()  # 40 × 32 × 48 voxels of 6 mm
    found = fitted(ct, Size((20, 40, 96), (6.0, 6.0, 6.0)))
    assert found.shape == (20, 40, 96)
    np.testing.assert_array_equal(found.array[..., 48:], found.array[..., 47::-1])
    np.testing.assert_array_equal(found.array[:, 4:36, :48], ct.array[10:30])


def test_scans_are_made_without_real_ones(tmp_path, monkeypatch):
    """Where there are no CTs the synthetic torso serves (here the tiny one); the file is made once and has the size of its name."""
    monkeypatch.setattr("race.scans.phantom", small_phantom)
    file = make_scan("tiny", tmp_path / "scans", tmp_path / "nothing")
    before = file.stat().st_mtime_ns
    assert make_scan("tiny", tmp_path / "scans", tmp_path / "nothing").stat().st_mtime_ns == before
    assert read(file).shape == (60, 50, 56)
    assert SIZES["tiny"].voxels == 60 * 50 * 56


def label_map(file: Path, values, names=None) -> Path:
    """A file of 4 × 1 × 2 voxels with these labels in both slices."""
    array = np.asfortranarray(np.repeat(np.array(values, np.uint16)[:, None, None], 2, axis=2))
    table = None if names is None else {number: (name, (1, 2, 3)) for name, number in names.items()}
    write_mask(file, array, Volume(array, np.eye(4)), labels=table)
    return file


def test_labels_are_compared_by_name(tmp_path):
    """Ours has other numbers: of four voxels background, liver and spleen are the same, one is spleen here and nothing there."""
    ours = label_map(tmp_path / "ours.nii.gz", [0, 205, 7, 7], {"liver": 205, "spleen": 7})
    theirs = label_map(tmp_path / "theirs.nii.gz", [0, 1, 2, 0])
    assert agreement(ours, [(theirs, ("liver", "spleen"))]) == 0.75
    assert agreement(ours, [(theirs, ("spleen", "liver"))]) == 0.25


def test_where_models_compete_either_may_win(tmp_path):
    """Voxels: nobody's, one model's, both models' (ours is the second's), both models' (ours is nobody's: wrong)."""
    ours = label_map(tmp_path / "ours.nii.gz", [0, 1, 2, 0], {"liver": 1, "spleen": 2})
    first, second = (label_map(tmp_path / f"{n}.nii.gz", values) for n, values in enumerate(([0, 1, 1, 1], [0, 0, 1, 1])))
    assert agreement(ours, [(first, ("liver",)), (second, ("spleen",))]) == 0.75


def test_pruned_decoders_are_physically_small():
    """At the paper's size a quarter of all channels, and 1/16 of the weights of inner layers: τ is at least 0.9."""
    encoder = encoder_like("paper")
    dense, pruned = (build(encoder, structures(1)) for build in (dense_decoder, pruned_decoder))
    assert [stage.convs for stage in pruned.stages] == [(80, 80), (64, 64), (32, 32), (16, 16), (8, 8)]
    assert [join.skip * 4 for join in joins(pruned, encoder)] == [join.skip for join in joins(dense, encoder)]
    assert 1 - weight_count(pruned, encoder) / weight_count(dense, encoder) >= 0.9


def test_installed_decoders_answer(tmp_path, own_home):
    """A model of two decoders by name, each with its structures."""
    from clseg.weights.cache import manifest

    encoder = encoder_like("tiny")
    install_decoders("race", encoder, [pruned_decoder(encoder, structures(n, 2)) for n in (1, 2)], own_home)
    assert set(manifest(home=own_home).labels_of("race")) == {"race_1_01", "race_1_02", "race_2_01", "race_2_02"}


def test_equal_voxels_of_two_maps_with_the_same_numbers(tmp_path):
    """Three of four voxels."""
    one, other = (label_map(tmp_path / f"{n}.nii.gz", values) for n, values in enumerate(([0, 205, 7, 7], [0, 205, 7, 0])))
    assert equal_voxels(one, other) == 0.75


VERSIONS = {"nnunetv2": "2.8.1", "scipy": "1", "SimpleITK": "2.5"}


def test_a_peer_with_other_versions_says_so():
    """The same torch and numpy are not worth a word; another torch is."""
    assert str(Peer(Path("python"), {**VERSIONS, **ours()})) == "nnunetv2 2.8.1, reads with SimpleITKIO"
    other = Peer(Path("python"), {**VERSIONS, **ours(), "torch": "1.0"})
    assert other.others == {"torch": "1.0"}
    assert str(other) == f"nnunetv2 2.8.1, reads with SimpleITKIO, torch 1.0 (clseg: {ours()['torch']})"


def test_without_simpleitk_nibabel_reads(tmp_path):
    """As in TotalSegmentator; the plans say so to both sides."""
    peer = Peer(Path("python"), {**VERSIONS, **ours(), "SimpleITK": None})
    write_plans(tmp_path, KINDS["tiny"], ["liver"], peer.reader)
    assert json.loads((tmp_path / "plans.json").read_text())["image_reader_writer"] == "NibabelIO"


def python_with(folder: Path, versions: dict[str, str | None] | None) -> str:
    """A program that stands for an interpreter: asked for versions it tells these, or fails."""
    told = "exit 1" if versions is None else f"echo '{json.dumps(versions)}'"
    (folder / "python").write_text(f"#!/bin/sh\n{told}\n")
    (folder / "python").chmod(0o755)
    return str(folder / "python")


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the interpreter")
def test_an_interpreter_that_is_there(tmp_path):
    """It is taken with whatever versions it has."""
    peer = peer_with(python_with(tmp_path, {**VERSIONS, "torch": "1.0", "numpy": "1.0"}))
    assert peer.command("versions")[0] == str(tmp_path / "python")
    assert set(peer.others) == {"torch", "numpy"}


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the interpreter")
def test_an_interpreter_without_nnunet_is_refused(tmp_path):
    """So is one that does not exist."""
    with pytest.raises(RuntimeError, match="--peer-python .*python: it cannot import nnunetv2"):
        peer_with(python_with(tmp_path, None))
    with pytest.raises(RuntimeError, match="there is no such program"):
        peer_with(str(tmp_path / "nothing"))


def test_where_packages_are_found_is_told_to_both_sides(race, monkeypatch):
    """The checkout first, then what the caller's PYTHONPATH says."""
    monkeypatch.setenv("PYTHONPATH", "/tmp/site")
    root = str(Path(__file__).parents[1])
    assert race.surroundings["PYTHONPATH"].split(os.pathsep) == [root, "/tmp/site"]


class Pretended(Race):
    """A race in which nothing is run: every process of clseg takes a second and as many MiB as `peaks` says for its scan."""

    peaks = {}  # noqa: RUF012

    def clseg(self, scan, out, model, *more):
        return Run(1.0, 1.0, self.peaks.get(Path(scan).name, 500.0))

    def scan(self, name):
        return self.folder / name


@pytest.fixture
def race(tmp_path) -> Race:
    return Pretended(CASES["smoke"], tmp_path, tmp_path / "data", tmp_path / "peer", 1, 0.5, "cpu", False, lambda text: None)


def test_memory_counts_beyond_scan_and_label_map(race, monkeypatch):
    """Four bytes a voxel are taken off both sides: 300 and 100 MiB beyond them are 3 times as much, more than 1.3."""
    mib = {name: SIZES[name].voxels * 4 / 2**20 for name in ("tiny", "tiny_long")}
    monkeypatch.setattr(Pretended, "peaks", {"tiny": 100 + mib["tiny"], "tiny_long": 300 + mib["tiny_long"]})
    result = next(memory(race))
    assert result.figures[0].ratio.median == pytest.approx(3)
    assert result.figures[0].verdict == "≤ 1.3: missed"
    assert result.sides == ("tiny_long", "tiny")


def test_one_run_of_many_decoders_against_a_run_each(race):
    """Eight fresh processes of a second each are eight seconds: a run of all in one second is an eighth."""
    dense, pruned = decoders(race)
    assert DECODERS == 8
    assert [figure.ratio.median for figure in dense.figures] == [1 / 8, 1 / 8, 1]
    assert (dense.figures[0].verdict, pruned.figures[0].verdict) == ("–", "≤ 0.25: kept")


def test_a_region_against_everything(race):
    """The whole group, then organs of the head alone; equal seconds are more than 0.4."""
    results = list(roi(race))
    assert [result.sides[0] for result in results] == ["head_neck, with cord, trachea and oesophagus", "organs of the head"]
    assert {result.figures[0].verdict for result in results} == {"≤ 0.4: missed"}


class OnGpu(Pretended):
    """Every run writes a label map, the same on both devices, and how long its one stage took."""

    def clseg(self, scan, out, model, *more):
        label_map(out, [0, 1, 2, 0])
        seconds = {"cuda": 0.5, "cpu": 2.0}[self.device]
        out.with_name(out.name.replace(".nii.gz", ".run.json")).write_text(json.dumps({"stages": [{"stage": "segment", "seconds": seconds}]}))
        return Run(seconds, 1.0, 500.0, 300.0 if self.device == "cuda" else None)


def test_the_gpu_against_the_cpu(race, tmp_path):
    """Half a second against two is a quarter; equal maps are equal; the seconds of the stages are kept; on a CPU there is nothing to compare."""
    (tmp_path / "out").mkdir()
    there = OnGpu(**{**vars(race), "device": "cuda"})
    (result,) = device(there)
    assert (result.sides, result.figures[0].ratio.median, result.agreement) == (("cuda", "cpu"), 0.25, 1)
    assert result.runs["stages"] == {"cuda": {"segment": 0.5}, "cpu": {"segment": 2.0}}
    assert list(device(race)) == []


def test_told_to_stop_it_shows_what_is_finished(tmp_path, capsys, monkeypatch):
    """Of two comparisons the first is in the table and in the file, and the program says that it was stopped."""
    import speed

    def rows(race, names):
        yield Result("one", "tiny", ("clseg", "nnU-Net"), usual_figures(Pairs((Run(1, 1, 1),), (Run(2, 1, 1),))))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(speed, "run", rows)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            speed.main(["--smoke", "--folder", str(tmp_path), "--json", str(tmp_path / "all.json")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 130
    said = capsys.readouterr().out
    assert "Stopped" in said
    assert "| one | tiny: clseg against nnU-Net | wall time | 1.00 s | 2.00 s | 0.50 |" in said
    assert [one["row"] for one in json.loads((tmp_path / "all.json").read_text())["results"]] == ["one"]


def test_the_foot_names_gpu_and_peer():
    """The GPU only where it was used; nnU-Net where it was asked for."""
    import speed

    about = {"cpu": "Chip", "cores": 16, "gpu": "NVIDIA H100", "torch": "2", "python": "3.12", "load_at_start": 0.5, "peer": "nnunetv2 2.8.1"}
    given = argparse.Namespace(device="cuda", threads=4, step=0.5)
    assert speed.foot(about, given, 2).splitlines() == [
        "Chip, 16 cores and NVIDIA H100; torch 2, Python 3.12; cuda, 4 threads, step 0.5, 2 pairs.",
        "nnU-Net: nnunetv2 2.8.1.",
        "Load of the machine before: 0.5.",
    ]
    given.device = "cpu"
    assert "H100" not in speed.foot(about, given, 1)


def test_what_the_benchmark_of_writing_says(race, monkeypatch):
    """Its lines are read: 0.63 s of 12.6 s are 0.05."""
    said = "clseg           0.63 s        6 MiB beyond the scene      6.7 MB\nnibabel        12.60 s      228 MiB beyond the scene     22.9 MB\n"
    monkeypatch.setattr("race.rows.subprocess.run", lambda *words, **options: type("Done", (), {"returncode": 0, "stdout": said, "stderr": ""}))
    (result,) = writing(race)
    assert result.figures[0].ratio.median == pytest.approx(0.05)
    assert result.figures[0].verdict == "≤ 0.2: kept"


def test_one_case_of_a_row_alone(tmp_path, capsys):
    """Of all scans the one that was named; a name that no row has is refused with those that there are."""
    import speed

    given = argparse.Namespace(
        effort="full", repeats=None, case="fast, medium", folder=tmp_path, peer=None, data=tmp_path, threads=1, step=0.5, device="cpu", workers=False, peer_python=None
    )
    chosen = speed.race_of(given).cases
    assert (chosen.one, chosen.five, chosen.decoders) == ((("fast", "medium"),), (("fast", "medium"),), ())
    with pytest.raises(SystemExit):
        speed.main(["--smoke", "--case", "fast, moon", "--folder", str(tmp_path)])
    assert "no row has the case 'fast, moon'; there are tiny, tiny" in capsys.readouterr().err
