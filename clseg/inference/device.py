"""Devices: how they are spelt, and how many threads make sense; known before torch is there to look for them."""

from __future__ import annotations

import re

from clseg.errors import UsageError

MOST_THREADS = 1024  # far more let OpenMP die without a word


def check_threads(threads: int) -> None:
    """UsageError unless it is 0 (torch's choice) to MOST_THREADS."""
    if not 0 <= threads <= MOST_THREADS:
        raise UsageError(f"threads is {threads}, expected 0 (torch's choice) to {MOST_THREADS}.")


def check_spelling(device: str) -> None:
    """UsageError unless it is `auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", device):
        raise UsageError(f"Unknown device '{device}', expected auto, cpu, cuda, cuda:N or mps.")
