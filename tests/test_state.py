"""Facts about the saved state of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_bytes
from torch import nn

from clseg.errors import TrainingError
from clseg.training.average import Average
from clseg.training.loop import Learner
from clseg.training.state import load_state, read_average, save_state


def parts(seed: int = 0, width: int = 3) -> Learner:
    """A network of two layers, its optimiser and its average; the second layer's bias is never used."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(width, 2), nn.Linear(2, 1))
    return Learner(network, torch.optim.AdamW(network.parameters(), lr=0.1), Average(network, 0.9))


def step(student: Learner, number: int) -> None:
    first, second = student.network
    (second.weight @ first(torch.tensor([1.0, -2.0, float(number)]))).sum().backward()
    student.optimiser.step()
    student.optimiser.zero_grad(set_to_none=True)
    student.average.update(student.network, number)


def same(one: Learner, other: Learner) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    averages = [torch.equal(tensor, other.average.tensors[name]) for name, tensor in one.average.tensors.items()]
    return all(torch.equal(a, b) for a, b in pairs) and all(averages)


def test_a_restored_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Four steps straight, and two steps, save, load into something fresh, two steps: equal weights and average."""
    straight, first, second = parts(), parts(), parts(seed=5)
    for number in range(4):
        step(straight, number)
    for number in range(2):
        step(first, number)
    save_state(tmp_path / "s", first, "train", 2)
    assert load_state(tmp_path / "s", second, "train") == 2
    assert same(first, second)
    for number in (2, 3):
        step(second, number)
    assert same(straight, second)


def test_a_state_before_the_first_step_is_whole(tmp_path: Path) -> None:
    """An optimiser without moments is saved and restored, too."""
    save_state(tmp_path / "s", parts(), "train", 0)
    other = parts(seed=5)
    assert load_state(tmp_path / "s", other, "train") == 0
    assert same(parts(), other)
    assert other.optimiser.state_dict()["state"] == {}


def test_the_average_is_read_alone(tmp_path: Path) -> None:
    """read_average gives the averaged tensors under the network's names and the number of iterations."""
    run = parts()
    step(run, 0)
    save_state(tmp_path / "s", run, "train", 17)
    tensors, done = read_average(tmp_path / "s")
    assert done == 17
    assert set(tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert all(torch.equal(tensor, run.average.tensors[name]) for name, tensor in tensors.items())
    assert not torch.equal(tensors["0.weight"], run.network.state_dict()["0.weight"])


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    """Other shapes mean another recipe."""
    save_state(tmp_path / "s", parts(), "train", 3)
    with pytest.raises(TrainingError, match="made with another recipe"):
        load_state(tmp_path / "s", parts(width=4), "train")


@pytest.mark.parametrize("content", [b"", b"junk" * 10, to_bytes({"average.x": torch.zeros(1)})])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    """Damaged and foreign files are one sentence, not a crash."""
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(TrainingError, match="cannot be read"):
        load_state(tmp_path / "s", parts(), "train")
    with pytest.raises(TrainingError, match="cannot be read"):
        read_average(tmp_path / "s")


def test_an_interrupted_save_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails while saving, the state before it is still there, byte for byte, and nothing else."""
    save_state(tmp_path / "s", parts(), "train", 1)
    before = (tmp_path / "s").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path / "s", parts(seed=1), "train", 2)
    assert (tmp_path / "s").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_state_of_another_stage_is_left_alone(tmp_path: Path) -> None:
    """What belongs to another stage is not restored: the stage begins at its beginning."""
    first, second = parts(), parts(seed=5)
    step(first, 0)
    save_state(tmp_path / "s", first, "dense", 1)
    assert load_state(tmp_path / "s", second, "recover-lungs") == 0
    assert same(second, parts(seed=5))
