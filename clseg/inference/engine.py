"""Engine: runs encoder and decoders on a device and gives way, step by step, when its memory runs out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar
from weakref import WeakSet

import torch

from clseg.errors import UsageError
from clseg.inference.device import check_spelling
from clseg.network.blocks import order_on
from clseg.network.model import Model
from clseg.network.upsample import upsampled

Logits = tuple[str, torch.Tensor]
T = TypeVar("T")

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


def prepared_on(device: str) -> str:
    """Where a scan is prepared for `device`: on a GPU, where it goes anyway, or in main memory."""
    return device if device.startswith("cuda") else "cpu"


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


def on_device(made: Callable[[str], T], device: str) -> T:
    """What `made` makes on a device; made in main memory where that has no room for it."""
    try:
        with device_memory():
            return made(device)
    except torch.OutOfMemoryError:
        return made("cpu")


def in_main_memory(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy of what a GPU holds in memory that it writes to directly, several times as fast as to any other."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x) if x.is_cuda else x


class Collector(Protocol):
    """Keeps results on a device, as long as there is room."""

    def leave(self) -> None:
        """Take them to main memory."""
        ...


class Engine:
    """One encoder pass per batch of windows, then every wanted decoder on its features.

    Decoders that support a wanted one run too, each once a batch, unasked and unheard.

    When the device runs out of memory the batch is halved, then results are
    collected in main memory, then everything moves to the CPU; `notify` hears a
    sentence each time.  Who keeps results on the device, where `zeros` puts them, is
    in `collecting`, to be told when they have to go to main memory.  MemoryError when main
    memory is used up.  Half precision on CUDA, float32 elsewhere.  The weights of a hollow
    model are read when they are first needed, or by `wake`, and given up by `rest`.
    """

    def __init__(self, model: Model, device: str = "cpu", *, batch: int | None = None, notify: Callable[[str], None]) -> None:
        self.model = model
        self.device = self.results = device
        self.batch = batch or (4 if device.startswith("cuda") else 1)
        self.notify = notify
        self.collecting: WeakSet[Collector] = WeakSet()
        if not model.hollow:
            self.wake()

    def wake(self) -> None:
        """Bring the weights to the device."""
        self.model.fill()
        try:
            with device_memory():
                self.model.to(self.device)
        except torch.OutOfMemoryError:
            self.notify(f"Out of memory on {self.device} before the first window: going on with the CPU.")
            self._move_to_cpu()

    def rest(self) -> None:
        """Give up the memory of weights that can be read again."""
        self.model.empty()

    @property
    def collects_on(self) -> str:
        """Where results are collected; those of Apple's GPU, which knows fewer operations, in main memory."""
        return "cpu" if self.results == "mps" else self.results

    def zeros(self, *shape: int) -> torch.Tensor:
        """Zeros where results are collected, float32."""
        return self.collected(lambda: torch.zeros(shape, device=self.collects_on))

    def collected(self, made: Callable[[], T]) -> T:
        """What `made` makes of results on `collects_on`; made anew in main memory where the device has no room for it.  MemoryError when that is used up."""
        if self.results != "cpu":
            try:
                with device_memory():
                    return made()
            except torch.OutOfMemoryError:
                self._collect_in_main_memory()
        with main_memory():
            return made()

    @torch.inference_mode()
    def __call__(self, tiles: torch.Tensor, decoders: Iterable[str]) -> Iterator[Logits]:
        """Logits (n, labels + 1, x, y, z) of every decoder asked for, for windows (n, 1, x, y, z), on the device `results`.

        `tiles` has at most `batch` windows when the call begins; if memory runs out
        on the way, the windows are computed in smaller groups.
        """
        wanted = list(decoders)
        if self.model.hollow:
            self.wake()
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
            features = self.model.encoder(tiles.to(self.device, non_blocking=True, memory_format=order_on(self.device)))
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
            self._collect_in_main_memory()
        else:
            self.notify(f"Out of memory on {self.device} even for one window: going on with the CPU.")
            self._move_to_cpu()

    def _collect_in_main_memory(self) -> None:
        self.notify(f"Out of memory on {self.device}: collecting results in main memory.")
        self._leave()

    def _move_to_cpu(self) -> None:
        self.device = "cpu"
        self._leave()
        self.model.to("cpu")

    def _leave(self) -> None:
        """What has been collected on the device goes to main memory, and what comes is collected there."""
        self.results = "cpu"
        with torch.inference_mode(False):  # what they take along is added to where that mode is off
            for collector in self.collecting:
                collector.leave()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _at_full_resolution(logits: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Logits at the resolution of the window, upsampled where the decoder ends, or the encoder begins, at a coarser one."""
    return upsampled(logits, tiles.shape[2:])
