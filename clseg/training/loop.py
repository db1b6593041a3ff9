"""The training loop: next batch, forward, loss, backward, step, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from clseg.cores import cores, refuse_daemonic
from clseg.errors import TrainingError
from clseg.recipe import OptimRecipe
from clseg.training.average import Average
from clseg.training.distributed import World, joined
from clseg.training.network import Trainee
from clseg.training.parcel import Parcel, pack, unpack
from clseg.training.patches import Patch
from clseg.training.recorded import Recorded


class Source(Protocol):
    """Where batches come from; the same iteration always gives the same batch."""

    def batch(self, iteration: int) -> list[Patch]: ...


@dataclass(frozen=True)
class Step:
    """What one iteration did: its number (from 1), the loss per decoder, the learning rate, seconds."""

    iteration: int
    losses: dict[str, float]
    rate: float
    seconds: float


@dataclass
class Learner:
    """What a step changes: the network, its optimiser, its average, and the loss scale of half precision."""

    network: Trainee
    optimiser: torch.optim.Optimizer
    average: Average
    device: str = "cpu"
    here: World = field(default_factory=World)
    scaler: torch.amp.GradScaler | None = None


def learner(
    network: Trainee, rule: OptimRecipe, device: str = "cpu", here: World | None = None, *, warm: bool = True
) -> Learner:
    """A learner at its first step; `warm` lets the average forget the start quickly."""
    if rule.precision == "float16" and not device.startswith("cuda"):
        raise TrainingError(f"optim.precision float16 needs CUDA, the device is {device}.", tip="Use bfloat16 or float32.")
    network.to(device)
    average = Average(network, rule.average, warm=warm)
    scaler = torch.amp.GradScaler(device) if rule.precision == "float16" else None
    return Learner(network, make_optimiser(network, rule), average, device, here or World(), scaler=scaler)


def make_optimiser(network: torch.nn.Module, rule: OptimRecipe) -> torch.optim.Optimizer:
    """AdamW; biases and normalisation are not decayed."""
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": rule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    on_gpu = all(p.is_cuda for p in (*weights, *others))
    return torch.optim.AdamW(groups, lr=rule.rate, fused=on_gpu or None)  # None: torch's own choice, to the bit as ever on a CPU


def rate_at(iteration: int, rule: OptimRecipe) -> float:
    """Linear warm-up, then polynomial decay to zero."""
    warm = min(1.0, (iteration + 1) / max(1, rule.warmup))
    return rule.rate * warm * (1 - iteration / rule.iterations) ** rule.power


def train(
    learner: Learner, source: Source, rule: OptimRecipe, *, start: int = 0, callbacks: Iterable[Callable[[Step], None]] = ()
) -> None:
    """Run iterations `start` … `rule.iterations`; callbacks see every step.

    Raises TrainingError, before the weights are touched, when a loss is not a number.
    """
    gradients = _gradients(learner, rule)
    clock = time.perf_counter()
    for iteration, batch in enumerate(_batches(source, start, rule), start):
        rate = rate_at(iteration, rule)
        for group in learner.optimiser.param_groups:
            group["lr"] = rate
        values = _descend(learner, *gradients(batch), rule, iteration + 1)
        learner.average.update(learner.network, iteration)

        now = time.perf_counter()
        step, clock = Step(iteration + 1, values, rate, now - clock), now
        for callback in callbacks:
            callback(step)


def _batches(source: Source, start: int, rule: OptimRecipe) -> Iterator[list[Patch]]:
    """The batches of iterations `start` … `rule.iterations` in turn, cut while others are used: by `rule.workers` processes, or a thread."""
    return _by_workers(source, start, rule) if rule.workers else _by_a_thread(source, start, rule.iterations)


def _by_a_thread(source: Source, start: int, stop: int) -> Iterator[list[Patch]]:
    if start >= stop:
        return
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(source.batch, start)
        for iteration in range(start, stop):
            batch = upcoming.result()
            upcoming = ahead.submit(source.batch, min(iteration + 1, stop - 1))
            yield batch


def _by_workers(source: Source, start: int, rule: OptimRecipe) -> Iterator[list[Patch]]:
    """The same batches, in the same order: what a batch holds follows from its number alone.  A thread unpacks the next one."""
    refuse_daemonic("optim.workers", "Say optim.workers = 0: a thread cuts them.")
    numbers, count = range(start, rule.iterations), min(rule.workers, cores())
    loader = iter(DataLoader(_Numbered(source), batch_size=None, sampler=numbers, num_workers=count))
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(next, loader, None)
        while (parcel := upcoming.result()) is not None:
            upcoming = ahead.submit(next, loader, None)
            yield unpack(parcel)


@dataclass(frozen=True)
class _Numbered(Dataset[Parcel]):
    """A source as a dataset, whose items are batches."""

    source: Source

    def __getitem__(self, iteration: int) -> Parcel:
        return pack(self.source.batch(iteration))


def _gradients(learner: Learner, rule: OptimRecipe) -> Callable[[Sequence[Patch]], tuple[list[str], torch.Tensor]]:
    """What turns a batch into the names of the decoders that it teaches and their losses, with gradients in the parameters."""
    if rule.record and _may_be_recorded(learner):
        return Recorded(learner.network, rule, learner.device)
    network = joined(learner.network, learner.here)

    def gradients(batch: Sequence[Patch]) -> tuple[list[str], torch.Tensor]:
        learner.optimiser.zero_grad(set_to_none=True)
        losses = network(batch, rule, learner.device)
        every = torch.stack(list(losses.values()))
        (learner.scaler.scale(every.sum()) if learner.scaler else every.sum()).backward()
        return list(losses), every

    return gradients


def _may_be_recorded(learner: Learner) -> bool:
    """On one GPU, without a loss scale, and without supporters, whose gates are looked at on the way."""
    return learner.device.startswith("cuda") and learner.here.size == 1 and learner.scaler is None and learner.network.helpers is None


def _descend(learner: Learner, names: Sequence[str], losses: torch.Tensor, rule: OptimRecipe, iteration: int) -> dict[str, float]:
    """One step down the gradient, its norm clipped; returns the losses as numbers.

    The numbers are asked for once, and late: a GPU is waited for only when all its work is given.
    """
    scaler, optimiser = learner.scaler, learner.optimiser
    if scaler:
        scaler.unscale_(optimiser)
    torch.nn.utils.clip_grad_norm_(learner.network.parameters(), rule.clip_norm)
    values = dict(zip(names, losses.detach().tolist(), strict=True))  # only now may the memory of this batch be used again
    _refuse_not_finite(values, iteration)
    if scaler:
        scaler.step(optimiser)
        scaler.update()
    else:
        optimiser.step()
    return values


def _refuse_not_finite(losses: dict[str, float], iteration: int) -> None:
    for name, loss in losses.items():
        if not math.isfinite(loss):
            told = f"The loss of decoder '{name}' is {loss} at iteration {iteration}, expected a number."
            raise TrainingError(told, tip="Go on from the last saved state with --resume, or train anew with a smaller optim.rate.")
