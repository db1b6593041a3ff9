"""The training loop: next batch, forward, loss, backward, step, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from clseg.errors import TrainingError
from clseg.recipe import OptimRecipe
from clseg.training.average import Average
from clseg.training.losses import deep_loss
from clseg.training.network import Trainee
from clseg.training.patches import Patch, Patches


@dataclass(frozen=True)
class Step:
    """What one iteration did: its number (from 1), the loss per decoder, the learning rate, seconds."""

    iteration: int
    losses: dict[str, float]
    rate: float
    seconds: float


def make_optimiser(network: torch.nn.Module, rule: OptimRecipe) -> torch.optim.Optimizer:
    """AdamW; biases and normalisation are not decayed."""
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": rule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rule.rate)


def rate_at(iteration: int, rule: OptimRecipe) -> float:
    """Linear warm-up, then polynomial decay to zero."""
    warm = min(1.0, (iteration + 1) / max(1, rule.warmup))
    return rule.rate * warm * (1 - iteration / rule.iterations) ** rule.power


def train(
    network: Trainee,
    optimiser: torch.optim.Optimizer,
    average: Average,
    patches: Patches,
    *,
    start: int,
    rule: OptimRecipe,
    callbacks: Iterable[Callable[[Step], None]],
) -> None:
    """Run iterations `start` … `rule.iterations`; callbacks see every step.

    Raises TrainingError, before the weights are touched, when a loss is not a number.
    """
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(patches.batch, start)
        for iteration in range(start, rule.iterations):
            clock = time.perf_counter()
            batch = upcoming.result()
            upcoming = ahead.submit(patches.batch, iteration + 1)
            rate = rate_at(iteration, rule)
            for group in optimiser.param_groups:
                group["lr"] = rate

            losses = batch_losses(network, batch, rule)
            values = {name: float(loss.detach()) for name, loss in losses.items()}
            _refuse_not_finite(values, iteration + 1)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), rule.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(network, iteration)

            step = Step(iteration + 1, values, rate, time.perf_counter() - clock)
            for callback in callbacks:
                callback(step)


def _refuse_not_finite(losses: dict[str, float], iteration: int) -> None:
    for name, loss in losses.items():
        if not math.isfinite(loss):
            told = f"The loss of decoder '{name}' is {loss} at iteration {iteration}, expected a number."
            raise TrainingError(told, tip="Go on from the last saved state with --resume, or train anew with a smaller optim.rate.")


def batch_losses(network: Trainee, batch: list[Patch], rule: OptimRecipe) -> dict[str, torch.Tensor]:
    """One encoder pass; every decoder learns from the patches that annotate its organs."""
    dtype = torch.bfloat16 if rule.precision == "bfloat16" else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        features = network.encoder(torch.stack([patch.image for patch in batch]))
        losses = {}
        for name, decoder in network.decoders.items():
            rows = [i for i, patch in enumerate(batch) if name in patch.targets]
            if not rows:
                continue
            mine = features if len(rows) == len(batch) else [f[rows] for f in features]
            target = torch.stack([batch[i].targets[name] for i in rows])
            annotated = torch.tensor([batch[i].annotated[name] for i in rows])
            losses[name] = deep_loss(decoder.forward_deep(mine, rule.deep_supervision), target, annotated)
    return losses
