"""Workbench: the device on which patches are made, beside what it does otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Workbench:
    """A device, a stream of its own there, and the arrays of cases, which are brought there once and stay.

    Only CUDA devices have a workbench; for all others the CPU does the work.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device if device.startswith("cuda") else "cpu"
        self.here: dict[int, torch.Tensor] = {}
        self.stream: torch.cuda.Stream | None = None

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array on the device; it must live as long as this workbench."""
        if self.device == "cpu":
            return torch.from_numpy(array)
        if id(array) not in self.here:
            self.here[id(array)] = torch.from_numpy(array).to(self.device)
        return self.here[id(array)]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Tensors made in this block lie on the device, and are finished when it ends."""
        if self.device == "cpu":
            yield
            return
        self.stream = self.stream or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self.stream), torch.device(self.device):
            yield
        self.stream.synchronize()
