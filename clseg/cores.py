"""Cores: the CPUs that this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """How many, which a container or a queue may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
