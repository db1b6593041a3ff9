"""Facts about several processes that train one model: they see different patches, share gradients, and leave one set of files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from clseg.errors import TrainingError
from clseg.manifest import FILE_NAME, Manifest
from clseg.training.distributed import Share, World, joined, world
from clseg.training.export import export
from clseg.training.loop import learner, rate_at
from clseg.training.network import fresh
from clseg.training.patches import Patches
from clseg.training.pretrain import load_examples, pretrain
from clseg.training.run import Reports
from tests.small_dataset import BODY, GROW, LADDER, TOML, tiny_recipe, write_dataset, written

ROOT = Path(__file__).parents[1]

PROGRAM = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from clseg.recipe import LearnRecipe, read_recipe
from clseg.training import course, loop, pretrain
from clseg.training.distributed import world
from clseg.training.learn import learn

folder, students = Path(sys.argv[1]), []

def spy(*args, **kwargs):
    students.append(loop.learner(*args, **kwargs))
    return students[-1]

pretrain.learner = course.learner = spy

def digest():
    tensors = [t for _, t in sorted({**students[-1].network.state_dict(), **students[-1].average.tensors}.items())]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()

ports = iter(sys.argv[2:])  # a group of processes needs a port that no group of theirs had before

os.environ["MASTER_PORT"] = next(ports)
with world("cpu") as here:
    told = {"rank": here.rank, "size": here.size, "shared": here.shared(10.0 + here.rank)}
os.environ["MASTER_PORT"] = next(ports)
files = pretrain.pretrain(read_recipe(folder / "recipe.toml"), folder / "runs" / "train")
told |= {"trained": sorted(files), "train": digest()}
os.environ["MASTER_PORT"] = next(ports)
learned = learn(read_recipe(folder / "grow.toml", LearnRecipe), folder / "runs" / "learn")
told |= {"learned": sorted(learned.files), "recover": digest(), "proof": learned.proof and learned.proof.sentence, "stages": len(students)}
(folder / f"told{here.rank}.json").write_text(json.dumps(told))
"""


def pair(*words: object) -> list[subprocess.Popen[str]]:
    """Two processes of one training, as torchrun would start them."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


def free_ports(count: int) -> list[str]:
    """Ports of this machine that nobody uses just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


def ended(both: list[subprocess.Popen[str]], seconds: float = 280) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of both."""
    try:
        return [(one.returncode, *said) for one in both for said in [one.communicate(timeout=seconds)]]
    finally:
        for one in both:
            one.kill()


# ---- one process ------------------------------------------------------------------------------------------------------


class Numbers:
    """A source whose n-th batch is n."""

    def batch(self, iteration: int) -> int:
        return iteration


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun there is one process, the first; sharing and waiting do nothing, the network is not wrapped."""
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with world("cpu") as here:
        assert here == World(0, 1, 0)
        assert here.first
        assert here.shared(0.25) == 0.25
        here.wait()
        network = torch.nn.Linear(1, 1)
        assert joined(network, here) is network
        assert not torch.distributed.is_initialized()


def test_no_patch_is_seen_by_two_processes() -> None:
    """Of three processes each sees every third batch; together they see every batch once."""
    shares = [Share(Numbers(), World(rank, 3)) for rank in range(3)]  # type: ignore[arg-type]
    assert [share.batch(1) for share in shares] == [3, 4, 5]
    assert sorted(share.batch(number) for share in shares for number in range(4)) == list(range(12))
    assert [Share(Numbers(), World()).batch(number) for number in range(3)] == [0, 1, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "chosen", "backend"), [("cuda", [1], "nccl"), ("cuda:0", [], "nccl"), ("cpu", [], "gloo")])
def test_every_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch, device: str, chosen: list[int], backend: str) -> None:
    """`cuda` is the device of the process's number on its machine; a device with a number is what it says."""
    called: list[object] = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: called.append(number))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **_: called.append(name))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: called.append("ended"))
    with pytest.raises(KeyError), world(device) as here:
        assert here == World(3, 4, 1)
        assert not here.first
        raise KeyError
    assert called == [*chosen, backend, "ended"]


def test_a_process_that_has_gone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait for it say so, instead of a fault of their own."""

    def gone(*_: object) -> None:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(torch.distributed, "barrier", gone)
    monkeypatch.setattr(torch.distributed, "broadcast", gone)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    for call in (World(1, 2).wait, lambda: World(1, 2).shared(1.0)):
        with pytest.raises(TrainingError, match="Another process of this training has ended"):
            call()


# ---- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_one_model(workplace: Path, own_home: Path) -> None:
    """`train` and `learn` with two gloo processes: equal weights in both after every stage, files and proof from the first alone.

    And the weights are those of one process that averages the gradients of both batches by hand.
    """
    (workplace / "recipe.toml").write_text(TOML)
    written(workplace, GROW, 'model = "tiny"', BODY, LADDER)
    results = ended(pair("-c", PROGRAM, workplace, *free_ports(3)), seconds=200)
    assert [code for code, *_ in results] == [0, 0], results
    first, second = (json.loads((workplace / f"told{rank}.json").read_text()) for rank in range(2))
    assert (first["rank"], second["rank"], first["size"], second["size"]) == (0, 1, 2, 2)
    assert (first["shared"], second["shared"]) == (10.0, 10.0)
    assert (first["trained"], second["trained"]) == (["body", "encoder", "lungs", "solid"], [])
    for stage in ("train", "recover", "stages"):
        assert first[stage] == second[stage]
    assert (first["learned"], first["proof"], second["proof"]) == (["body"], "0 voxels changed in 2 structures", None)
    assert "tiny-body" in Manifest.read(own_home / FILE_NAME).model("tiny").assets

    expected = by_hand(workplace)
    for part, file in expected.items():
        assert close(workplace / "runs" / "train" / "weights" / f"{part}.safetensors", file)
    alone = pretrain(tiny_recipe(workplace), workplace / "runs" / "alone")
    assert not close(alone["encoder"], expected["encoder"])


def by_hand(folder: Path) -> dict[str, Path]:
    """What two processes must come to, in one: per step the mean of the gradients of the batches 2i and 2i + 1."""
    recipe = tiny_recipe(folder)
    student = learner(fresh(recipe), recipe.optim)
    patches = Patches(load_examples(recipe, folder / "runs" / "cache", Reports()), recipe)
    for iteration in range(recipe.optim.iterations):
        for group in student.optimiser.param_groups:
            group["lr"] = rate_at(iteration, recipe.optim)
        for rank in range(2):
            batch = Share(patches, World(rank, 2)).batch(iteration)
            (sum(student.network(batch, recipe.optim).values()) / 2).backward()
        torch.nn.utils.clip_grad_norm_(student.network.parameters(), recipe.optim.clip_norm)
        student.optimiser.step()
        student.optimiser.zero_grad(set_to_none=True)
        student.average.update(student.network, iteration)
    return export(recipe, student.average, folder / "runs" / "by_hand", done=recipe.optim.iterations)


def close(one: Path, other: Path) -> bool:
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.allclose(t.float(), second[n].float(), atol=1e-3, rtol=1e-3) for n, t in first.items())


def torchrun(recipe: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -m clseg -- train …` as a user says it."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clseg", "--", "train", str(recipe), "--run", str(run), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_and_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to torchrun ends all processes with the state saved; resumed, the run ends, and says its files once."""
    recipe, run = write_dataset(tmp_path), tmp_path / "runs" / "tiny"
    recipe.write_text(TOML.replace("iterations = 6", "iterations = 20000").replace("checkpoint_every = 3", "checkpoint_every = 15000"))
    process = torchrun(recipe, run)
    wait_for(lambda: (run / "metrics.csv").is_file() and len((run / "metrics.csv").read_text().splitlines()) > 1, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Something went wrong that should not" not in said
    assert said.count("Interrupted") == 2
    noted: dict[str, Any] = json.loads((run / "recipe.json").read_text())
    assert (run / "state.safetensors").is_file()
    noted["recipe"]["optim"]["iterations"] = done(run) + 2  # a shorter way to the end
    (run / "recipe.json").write_text(json.dumps(noted))
    recipe.write_text(recipe.read_text().replace("iterations = 20000", f"iterations = {done(run) + 2}"))
    again = torchrun(recipe, run, "--resume")
    heard, said = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert [line.split("\t")[0] for line in heard.splitlines()] == ["encoder", "lungs", "solid", "body"]


def done(run: Path) -> int:
    from clseg.training.state import read_average

    return read_average(run / "state.safetensors")[1]


@pytest.mark.slow
def test_an_error_of_one_ends_both(tmp_path: Path) -> None:
    """The first process refuses a folder that holds a run; the second does not wait for ever, and does not call it a fault."""
    recipe, run = write_dataset(tmp_path), tmp_path / "runs" / "tiny"
    (run / "stages").mkdir(parents=True)
    (first, _, told), (second, _, heard) = ended(pair("-m", "clseg", "train", recipe, "--run", run))
    assert (first, second) == (1, 1)
    assert "holds a run already" in told
    assert "Another process of this training has ended" in heard


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)
