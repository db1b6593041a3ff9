"""Rows: the comparisons, one function each; every one gives Results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from race.agreement import agreement, equal_voxels
from race.gpu import used_on
from race.networks import (
    CLASSES,
    KINDS,
    dense_decoder,
    encoder_like,
    install_decoders,
    pruned_decoder,
    structures,
    weight_count,
    write_plans,
)
from race.peer import Peer, make_weights, peer_at, peer_with
from race.scans import CHEST, SIZES, make_scan
from race.table import Figure, Result, usual_figures
from race.timing import Pairs, Run, Spread, added, in_turns, measured

ROOT = Path(__file__).parents[2]
DECODERS = 8
DECODER_OF = {"dense": dense_decoder, "pruned": pruned_decoder}
HEAD = "brainstem,mandible,parotid_gland_left,parotid_gland_right"
VOXEL_BYTES = 4  # of a scan (int16) and one label map (uint16), which memory may grow by
TRAINING = "nnUNetTrainer__nnUNetPlans__3d_fullres"


@dataclass(frozen=True)
class Cases:
    """What is run at a level of effort: (form of the network, scan) for every row, pairs of runs."""

    repeats: int
    one: tuple[tuple[str, str], ...]
    five: tuple[tuple[str, str], ...]
    decoders: tuple[tuple[str, str], ...]
    roi: str
    memory: tuple[tuple[str, str, str], ...]  # model, shorter and longer scan
    structures: int


CASES = {
    "smoke": Cases(
        1, (("tiny", "tiny"),), (("tiny", "tiny"),), (("tiny", "tiny"),), "tiny_body", (("starter", "tiny", "tiny_long"), ("tiny", "tiny", "tiny_long")), 5
    ),
    "quick": Cases(
        2, (("fast", "small"), ("fast", "medium")), (("fast", "small"),), (("paper", "small"),), "body", (("starter", "slices300", "slices1200"),), 60
    ),
    "full": Cases(
        3,
        (("fast", "small"), ("fast", "medium"), ("fast", "long"), ("fine", "medium")),
        (("fast", "small"), ("fast", "medium"), ("fine", "medium")),
        (("paper", "small"), ("paper", "medium")),
        "body",
        (("starter", "slices300", "slices1200"), ("fast", "slices300", "slices1200")),
        60,
    ),
}


@dataclass(frozen=True)
class Race:
    """Where and how everything is run."""

    cases: Cases
    folder: Path
    data: Path
    peer_folder: Path
    threads: int
    step: float
    device: str
    workers: bool
    say: Callable[[str], None]
    peer_python: str | None = None

    @cached_property
    def peer(self) -> Peer:
        return peer_with(self.peer_python) if self.peer_python else peer_at(self.peer_folder, self.say)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @cached_property
    def surroundings(self) -> dict[str, str]:
        """The environment of both sides: the same threads, models of the race alone, the clseg of this checkout."""
        import os

        quiet = {f"nnUNet_{name}": str(self.folder) for name in ("raw", "preprocessed", "results")}
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, **quiet, **threads, "nnUNet_compile": "f", "CLSEG_HOME": str(self.home), "PYTHONPATH": path}

    def scan(self, name: str) -> Path:
        return make_scan(name, self.folder / "scans", self.data)

    def clseg(self, scan: Path, out: Path, model: str, *more: str) -> Run:
        """A fresh `clseg -i SCAN -o OUT`."""
        words = ["-m", model, "--offline", "-q", "-d", self.device, "--threads", str(self.threads), "--step", str(self.step), *more]
        return self._measured([sys.executable, "-m", "clseg", "-i", scan, "-o", out, *words])

    def nnunet(self, scan: Path, out: Path, models: Sequence[Path]) -> Run:
        """A fresh process with nnU-Net's predictor."""
        words = [word for model in models for word in ("--model", str(model))] + (["--workers"] if self.workers else [])
        return self._measured(self.peer.command("predict", scan, out, *words, "--threads", str(self.threads), "--step", str(self.step), "--device", self.device))

    def _measured(self, command: Sequence[str | Path]) -> Run:
        return measured(command, self.surroundings, self.folder / "log.txt", used_on(self.device))

    def turns(self, ours: Callable[[], Run], theirs: Callable[[], Run]) -> Pairs:
        return in_turns(ours, theirs, self.cases.repeats, self.say)


def one(race: Race) -> Iterator[Result]:
    """One nnU-Net."""
    for kind, scan in race.cases.one:
        yield _against_nnunet(race, "one nnU-Net", kind, scan, CLASSES[:1], seconds=0.7, memory=0.5)


def five(race: Race) -> Iterator[Result]:
    """Five nnU-Nets on one CT, as TotalSegmentator's parts."""
    for kind, scan in race.cases.five:
        yield _against_nnunet(race, "five nnU-Nets", kind, scan, CLASSES, seconds=0.5)


def decoders(race: Race) -> Iterator[Result]:
    """One encoder with many decoders, dense and pruned, against a run for each dense decoder by itself."""
    for shape, name in race.cases.decoders:
        scan, weights = race.scan(name), {width: _decoders(race, shape, width) for width in DECODER_OF}
        for width, goal in (("dense", None), ("pruned", 0.25)):
            race.say(f"  {DECODERS} {width} decoders on {name}")
            pairs = race.turns(partial(race.clseg, scan, race.folder / "out/all.nii.gz", f"{shape}-{width}"), partial(_singly, race, scan, f"{shape}-dense"))
            gone = "" if width == "dense" else f", τ {1 - weights['pruned'] / weights['dense']:.3f}"
            sides = (f"one run of {DECODERS} {width} decoders{gone}", f"{DECODERS} runs of one dense decoder")
            yield Result("decoders", f"{shape}, {name}", sides, usual_figures(pairs, seconds=goal), runs=pairs.to_dict())


def device(race: Race) -> Iterator[Result]:
    """The starter, all structures, on the GPU against the same on the CPU; nothing where the race itself is run on a CPU."""
    if race.device == "cpu":
        return
    model, name, _ = race.cases.memory[0]
    scan, out = race.scan(name), {one: race.folder / f"out/on_{one.replace(':', '_')}.nii.gz" for one in (race.device, "cpu")}
    race.say(f"  {model} on {name}")
    pairs = race.turns(*(partial(replace(race, device=one).clseg, scan, file, model, "--roi", "all") for one, file in out.items()))
    stages = {one: seconds_of_stages(file) for one, file in out.items()}
    for one, seconds in stages.items():
        race.say(f"    {one}: " + ", ".join(f"{stage} {took:.2f} s" for stage, took in seconds.items()))
    runs = {**pairs.to_dict(), "stages": stages}
    yield Result("device", f"{model}, {name}", (race.device, "cpu"), usual_figures(pairs), equal_voxels(*out.values()), runs)


def seconds_of_stages(out: Path) -> dict[str, float]:
    """What each stage of the run took that wrote the label map `out`."""
    told = json.loads(out.with_name(out.name.replace(".nii.gz", ".run.json")).read_text())
    return {one["stage"]: one["seconds"] for one in told["stages"]}


def roi(race: Race) -> Iterator[Result]:
    """`--roi head_neck`, and the organs of the head alone, against `--roi all` on a scan of a whole body, with the starter."""
    name = race.cases.roi
    scan, out = race.scan(name), race.folder / "out"
    race.say(f"  starter on {name}")
    for asked, what in (("head_neck", "head_neck, with cord, trachea and oesophagus"), (HEAD, "organs of the head")):
        pairs = race.turns(*(partial(race.clseg, scan, out / "roi.nii.gz", "starter", "--roi", one) for one in (asked, "all")))
        yield Result("--roi", f"starter, {name}", (what, "all"), usual_figures(pairs, seconds=0.4), runs=pairs.to_dict())


def memory(race: Race) -> Iterator[Result]:
    """Peak memory of a scan four times as long, beyond what the scan and its label map take."""
    for model, *names in race.cases.memory:
        known = model if model == "starter" else _imported(race, model, CLASSES[:1])[0]
        scans = [race.scan(name) for name in names]
        race.say(f"  {model}, {' and '.join(names)}")
        pairs = race.turns(*(partial(race.clseg, scan, race.folder / "out/memory.nii.gz", known) for scan in scans[::-1]))
        beyond = [
            [run.peak_mib - SIZES[name].voxels * VOXEL_BYTES / 2**20 for run in side]
            for name, side in zip(names[::-1], (pairs.ours, pairs.theirs), strict=True)
        ]
        ratio = Spread.of([a / b for a, b in zip(*beyond, strict=True)])
        figure = Figure("peak memory beyond scan and label map", "MiB", Spread.of(beyond[0]), Spread.of(beyond[1]), ratio, 1.3)
        yield Result("memory", model, (names[1], names[0]), (figure, *usual_figures(pairs)), runs=pairs.to_dict())


def writing(race: Race) -> Iterator[Result]:
    """`benchmarks/writing.py`: a file per structure against nibabel's."""
    count, repeats = race.cases.structures, race.cases.repeats
    real = race.data / CHEST
    ct = real if real.is_file() else race.scan("small")
    words = [sys.executable, str(ROOT / "benchmarks/writing.py"), "--ct", str(ct), "--structures", str(count), "--repeats", str(repeats)]
    done = subprocess.run(words, env=race.surroundings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"writing.py failed:\n{done.stderr[-2000:]}")
    race.say(done.stdout.rstrip())
    best = {name: tuple(map(float, numbers)) for name, *numbers in re.findall(r"^(\w+) +([\d.]+) s +(-?[\d.]+) MiB beyond", done.stdout, re.M)}
    (ours, our_mib), (theirs, their_mib) = best["clseg"], best["nibabel"]
    time = Figure("wall time, least of all runs", "s", _exactly(ours), _exactly(theirs), _exactly(ours / theirs), 0.2)
    held = Figure("memory beyond the scene", "MiB", _exactly(our_mib), _exactly(their_mib), _exactly(our_mib / max(their_mib, 1)))
    yield Result("writing", f"{count} structures, 512 × 512 × 300", ("clseg", "nibabel, one gzip file each"), (time, held))


ROWS: dict[str, Callable[[Race], Iterator[Result]]] = {row.__name__: row for row in (one, five, decoders, device, roi, memory, writing)}


def _against_nnunet(race: Race, row: str, kind: str, name: str, classes: Sequence[int], *, seconds: float, memory: float | None = None) -> Result:
    """The same weights, scan, step and threads on both sides, no mirroring."""
    model, folders = _imported(race, kind, classes)
    scan, ours, theirs = race.scan(name), race.folder / "out/ours.nii.gz", race.folder / "out/theirs"
    race.say(f"  {row} of the form '{kind}' on {name}")
    pairs = race.turns(partial(race.clseg, scan, ours, model), partial(race.nnunet, scan, theirs, folders))
    labels = [structures(number, count) for number, count in enumerate(classes, 1)]
    same = agreement(ours, [(theirs / f"{number}.nii.gz", mine) for number, mine in enumerate(labels, 1)])
    return Result(row, f"{kind}, {name}", ("clseg", "nnU-Net"), usual_figures(pairs, seconds=seconds, memory=memory), same, pairs.to_dict())


def _imported(race: Race, kind: str, classes: Sequence[int]) -> tuple[str, list[Path]]:
    """The name of the model in clseg and the folders of nnU-Net that it was imported from, made when they are not there."""
    model = f"{kind}-{len(classes)}"
    place = race.folder / "networks" / model
    folders = [place / f"Dataset{290 + number}_Race" / TRAINING for number in range(1, len(classes) + 1)]
    for number, (folder, count) in enumerate(zip(folders, classes, strict=True), 1):
        write_plans(folder, KINDS[kind], structures(number, count), race.peer.reader)
    make_weights(race.peer, folders)
    words = ("nnunet", folders[0]) if len(classes) == 1 else ("totalsegmentator", place)

    def bring(name: str) -> None:
        command = [sys.executable, "-m", "clseg", "weights", "import", *map(str, words), "--name", name, "-q"]
        subprocess.run(command, env=race.surroundings, check=True)

    _installed(race, model, bring)
    return model, folders


def _decoders(race: Race, shape: str, width: str) -> float:
    """The model `<shape>-<width>` of eight decoders, installed when it is not there; returns how many weights they have."""
    encoder, model = encoder_like(shape), f"{shape}-{width}"
    specs = [DECODER_OF[width](encoder, structures(number)) for number in range(1, DECODERS + 1)]
    _installed(race, model, lambda name: install_decoders(name, encoder, specs, race.home))
    return sum(weight_count(spec, encoder) for spec in specs)


def _singly(race: Race, scan: Path, model: str) -> Run:
    """A fresh process for every decoder of the model, one after the other, as one run."""
    return added([race.clseg(scan, race.folder / "out/one.nii.gz", model, "--roi", ",".join(structures(number))) for number in range(1, DECODERS + 1)])


def _installed(race: Race, model: str, install: Callable[[str], object]) -> None:
    """`install` it, unless the model is there already."""
    from clseg.weights.cache import manifest

    if model not in {one.name for one in manifest(home=race.home).models}:
        install(model)


def _exactly(value: float) -> Spread:
    return Spread(value, value, value)
