"""Devices: how they are spelt, which can be said before torch is there to look for them."""

from __future__ import annotations

import re

from clseg.errors import UsageError


def check_spelling(device: str) -> None:
    """UsageError unless it is `auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", device):
        raise UsageError(f"Unknown device '{device}', expected auto, cpu, cuda, cuda:N or mps.")
