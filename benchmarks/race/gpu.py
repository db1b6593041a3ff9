"""GPU: how much of its memory is taken, asked of NVIDIA's own library."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
EVERY = 0.02  # seconds between two looks

Used = Callable[[], float]
"""MiB that all processes together have taken"""


def used_on(device: str) -> Used | None:
    """What tells how much of `cuda` or `cuda:N` is taken; None for other devices and where NVIDIA's library is not there."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return None
    try:
        used = used_by(ctypes.CDLL(LIBRARY), int(number or 0))
        used()
    except OSError:
        return None
    return used


def used_by(nvml: Any, number: int) -> Used:
    """The same of GPU `number` through the library's functions; OSError when it does not know the GPU."""

    def must(code: int) -> None:
        if code:
            raise OSError(f"NVIDIA's library answers {code}.")

    handle, numbers = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used: bytes
    must(nvml.nvmlInit_v2())
    must(nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)))

    def used() -> float:
        must(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(numbers)))
        return numbers[2] / 2**20

    return used


class Highest:
    """The most that was taken at a time beyond what was at first, in MiB; None where nobody can tell."""

    def __init__(self) -> None:
        self.mib: float | None = None


@contextmanager
def watched(used: Used | None, every: float = EVERY) -> Iterator[Highest]:
    """Look again and again, from another thread, how much is taken."""
    highest = Highest()
    if used is None:
        yield highest
        return
    before, over = used(), threading.Event()
    highest.mib = 0.0

    def look() -> None:
        while not over.wait(every):
            highest.mib = max(highest.mib or 0.0, used() - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        over.set()
        watcher.join()
