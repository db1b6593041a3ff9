"""Recorded: losses and gradients of a step as a CUDA graph, recorded once and replayed for every batch.

A step of a small network with ten decoders is thousands of short kernels, and launching them one by
one from Python may take longer than they run (LOG.md, 2026-11-26).  What is recorded cannot choose: every decoder
sees every patch, and learns nothing from one that does not teach it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clseg.recipe import OptimRecipe
from clseg.training.examples import IGNORE
from clseg.training.network import Lesson, Trainee
from clseg.training.patches import Patch

WARM_UP = 3  # runs in which libraries choose their kernels and take their memory, as PyTorch's notes on graphs advise


class Slots:
    """Places in memory for a batch of `count` patches of `size` voxels, filled anew with every batch.

    A decoder that a patch does not teach finds nothing but unknown voxels there, and no label annotated.
    """

    def __init__(self, network: Trainee, count: int, size: Sequence[int], device: str) -> None:
        self.images = torch.zeros((count, 1, *size), device=device)
        self.lessons = {
            name: Lesson(
                range(count),
                torch.full((count, *size), IGNORE, dtype=torch.uint8, device=device),
                torch.zeros((count, len(decoder.spec.labels)), dtype=torch.bool, device=device),
            )
            for name, decoder in network.decoders.items()
        }

    def fill(self, batch: Sequence[Patch]) -> None:
        """Put a batch in its places."""
        for row, patch in enumerate(batch):
            self.images[row].copy_(patch.image)
        for name, lesson in self.lessons.items():
            labels = lesson.annotated.shape[1]
            lesson.annotated.copy_(torch.tensor([patch.annotated.get(name, (False,) * labels) for patch in batch]))
            for row, patch in enumerate(batch):
                if name in patch.targets:
                    lesson.target[row].copy_(patch.targets[name])
                else:
                    lesson.target[row].fill_(IGNORE)


class Recorded:
    """Callable: a batch → names of the decoders that it teaches and their losses; their gradients lie in the network's parameters.

    Decoders that a batch does not teach have no gradient, as after a plain step, so that the optimiser leaves them alone.
    """

    def __init__(self, network: Trainee, rule: OptimRecipe, device: str) -> None:
        self.network, self.rule, self.device = network, rule, device
        self.slots: Slots | None = None

    def __call__(self, batch: Sequence[Patch]) -> tuple[list[str], torch.Tensor]:
        with torch.cuda.device(self.device):
            if self.slots is None or self._moved():
                self.slots = Slots(self.network, len(batch), batch[0].image.shape[1:], self.device)
                self._record()
            self.slots.fill(batch)
            self.graph.replay()
        taught = [name for name in self.slots.lessons if any(name in patch.targets for patch in batch)]
        for name, gradients in self.gradients.items():
            for parameter, gradient in zip(self.network.decoders[name].parameters(), gradients, strict=True):
                parameter.grad = gradient if name in taught else None
        return taught, torch.stack([self.losses[name] for name in taught])

    def _places(self) -> list[int]:
        return [tensor.data_ptr() for part in (self.network.encoder, self.network.decoders) for tensor in part.parameters()]

    def _moved(self) -> bool:
        """Whether weights lie elsewhere than when the step was recorded, which would go on to read the old ones."""
        return self.places != self._places()

    def _record(self) -> None:
        self._capture()
        self.places = self._places()
        self.gradients = {name: [p.grad for p in decoder.parameters()] for name, decoder in self.network.decoders.items()}

    def _capture(self) -> None:
        ahead, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(ahead)
        tuned, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run()
        ahead.wait_stream(aside)
        self.network.zero_grad(set_to_none=True)  # so that what is recorded overwrites gradients instead of adding to them
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others may cut patches meanwhile
            self._run()
        torch.backends.cudnn.benchmark = tuned

    def _run(self) -> None:
        losses = self.network.losses(self.slots.images, self.slots.lessons, self.rule)
        sum(losses.values()).backward()
        self.losses = {name: loss.detach() for name, loss in losses.items()}
