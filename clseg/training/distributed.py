"""Distributed: several processes, one model, as `torchrun` starts them.

    torchrun --nproc-per-node 2 -m clseg -- train recipe.toml --run runs/mine

Every process draws patches of its own and gradients are averaged over processes
(DistributedDataParallel), so that N processes learn from N times the patches a
step.  Only the first process writes files, so a run over several machines needs the
run's folder on a disk that all of them see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import nn

from clseg.environment import torchrun
from clseg.errors import TrainingError
from clseg.training.patches import Patch, Patches

PATIENCE = timedelta(days=7)  # the first process reads, scores and writes alone while the others wait


@dataclass(frozen=True)
class World:
    """This process among all of a run: its number, how many there are, its number on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def shared(self, value: float) -> float:
        """The first process's value, in all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        if torch.distributed.get_backend() == "nccl":
            tensor = tensor.cuda()
        with _others():
            torch.distributed.broadcast(tensor, 0)
        return float(tensor.item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with _others():
                torch.distributed.barrier()


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes that torchrun started, joined until the block ends; alone without torchrun.

    nccl for CUDA devices, gloo otherwise.  `cuda` without a number means to every
    process the device of its own number on its machine.
    """
    size, local = torchrun()
    if size == 1:
        yield World()
        return
    if device == "cuda":
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield World(torch.distributed.get_rank(), size, local)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _others() -> Iterator[None]:
    """Waiting for other processes: one that has gone is an error of its own, told there, not a fault of this one."""
    try:
        yield
    except RuntimeError as error:
        told = "Another process of this training has ended."
        raise TrainingError(told, tip="See what it said, then go on with --resume.") from error


def joined(network: nn.Module, here: World) -> nn.Module:
    """The network with its gradients averaged over all processes."""
    if here.size == 1:
        return network
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


@dataclass(frozen=True)
class Share:
    """What this process sees of the patches: every `size`-th batch."""

    patches: Patches
    here: World

    def batch(self, iteration: int) -> list[Patch]:
        return self.patches.batch(iteration * self.here.size + self.here.rank)
