"""Workbench: the device on which patches are made, beside what it does otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch


class Workbench:
    """A device, a stream of its own there, and the arrays of cases, which are brought there once and stay.

    Only CUDA devices have a workbench; for all others the CPU does the work.  Tensors made here may be used by other
    streams, until what was given to those is waited for (`loop._descend` does).
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device if device.startswith("cuda") else "cpu"
        self.tensors: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array on the device."""
        if self.device == "cpu":
            return torch.from_numpy(array)
        if id(array) not in self.tensors:
            self.tensors[id(array)] = (array, torch.from_numpy(array).to(self.device))  # the array stays, so that no other gets its id
        return self.tensors[id(array)][1]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Tensors made in this block lie on the device, and are finished when it ends."""
        if self.device == "cpu":
            yield
            return
        stream = _stream(self.device)
        with torch.cuda.stream(stream), torch.device(self.device):
            yield
        stream.synchronize()


@lru_cache
def _stream(device: str) -> torch.cuda.Stream:
    """One for all workbenches of a device: torch has but 32, which it hands out in turn."""
    return torch.cuda.Stream(device)
