"""Engine: runs encoder and decoders on a device and gives way, step by step, when its memory runs out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from clseg.errors import UsageError
from clseg.inference.device import check_spelling
from clseg.network.model import Model
from clseg.network.upsample import upsampled

Logits = tuple[str, torch.Tensor]

_NO_MEMORY = re.compile("DefaultCPUAllocator|not enough memory|can't allocate memory")  # torch has no error of its own for it
_NO_DEVICE_MEMORY = re.compile("CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")  # where not torch's allocator asks but a library does


def choose_device(wanted: str) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` → the device to use; UsageError when it is not there."""
    check_spelling(wanted)
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = wanted.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if not there or (number and int(number) >= torch.cuda.device_count()):
        raise UsageError(f"Device '{wanted}' was asked for but is not available here.", tip="Use --device auto or cpu.")
    return wanted


@contextmanager
def main_memory() -> Iterator[None]:
    """MemoryError instead of the plain RuntimeError with which torch says that main memory is used up."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not _NO_MEMORY.search(str(error)):
            raise
        raise MemoryError(str(error)) from error


@contextmanager
def device_memory() -> Iterator[None]:
    """torch.OutOfMemoryError, as torch's own allocator raises it, also where CUDA or one of its libraries finds no memory; else as `main_memory`."""
    with main_memory():
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not _NO_DEVICE_MEMORY.search(str(error)):
                raise
            raise torch.OutOfMemoryError(str(error)) from error


class Engine:
    """One encoder pass per batch of windows, then every wanted decoder on its features.

    Decoders that support a wanted one run too, each once a batch, unasked and unheard.

    When the device runs out of memory the batch is halved, then results are
    collected in main memory, then everything moves to the CPU; `notify` hears a
    sentence each time.  MemoryError when main memory is used up.  Half precision on
    CUDA, float32 elsewhere.
    """

    def __init__(self, model: Model, device: str = "cpu", *, batch: int | None = None, notify: Callable[[str], None]) -> None:
        self.model = model
        self.device = self.results = device
        self.batch = batch or (4 if device.startswith("cuda") else 1)
        self.notify = notify
        try:
            with device_memory():
                model.to(device)
        except torch.OutOfMemoryError:
            self.notify(f"Out of memory on {device} before the first window: going on with the CPU.")
            self._move_to_cpu()

    @torch.inference_mode()
    def __call__(self, tiles: torch.Tensor, decoders: Iterable[str]) -> Iterator[Logits]:
        """Logits (n, labels + 1, x, y, z) of every decoder asked for, for windows (n, 1, x, y, z), on the device `results`.

        `tiles` has at most `batch` windows when the call begins; if memory runs out
        on the way, the windows are computed in smaller groups.
        """
        wanted = list(decoders)
        if self.device == "cpu":  # nothing to give way to, so that the answers need not all be there before the first is used
            with main_memory():
                yield from self._run(tiles, wanted)
            return
        while True:
            try:
                with device_memory():
                    parts = [list(self._run(part, wanted)) for part in tiles.split(self.batch)]
                break
            except torch.OutOfMemoryError:
                self._give_way()
            except (RuntimeError, NotImplementedError) as error:
                if self.device != "mps":
                    raise
                self.notify(f"Apple's GPU cannot do this ({error}): going on with the CPU.")
                self._move_to_cpu()
        for index, name in enumerate(wanted):
            with main_memory():
                each = [part[index][1] for part in parts]
                whole = each[0] if len(each) == 1 else torch.cat(each)
            yield name, whole

    def _run(self, tiles: torch.Tensor, decoders: list[str]) -> Iterator[Logits]:
        kind = self.device.split(":")[0]
        with torch.autocast(kind, dtype=torch.float16, enabled=kind == "cuda"):
            features = self.model.encoder(tiles.to(self.device, non_blocking=True))
            for name, logits in self.model.logits(features, decoders, spend=True):
                yield name, _at_full_resolution(logits[0], tiles).to(self.results, torch.float32)

    def _give_way(self) -> None:
        """One step down; raises again when there is none left."""
        if self.device == "cpu":
            raise
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if self.batch > 1:
            self.batch = max(1, self.batch // 2)
            self.notify(f"Out of memory on {self.device}: going on with {self.batch} windows at a time.")
        elif self.results != "cpu":
            self.results = "cpu"
            self.notify(f"Out of memory on {self.device}: collecting results in main memory.")
        else:
            self.notify(f"Out of memory on {self.device} even for one window: going on with the CPU.")
            self._move_to_cpu()

    def _move_to_cpu(self) -> None:
        self.device = self.results = "cpu"
        self.model.to("cpu")


def _at_full_resolution(logits: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Logits at the resolution of the window, upsampled where the decoder ends, or the encoder begins, at a coarser one."""
    return upsampled(logits, tiles.shape[2:])
