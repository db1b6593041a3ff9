"""Cores: the CPUs that this process may use, and whether it may start others."""

from __future__ import annotations

import os

from clseg.errors import UsageError


def cores() -> int:
    """How many, which a container or a queue may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_daemonic(asked: str, tip: str) -> None:
    """UsageError in a process that may not start others (a worker of `multiprocessing.Pool`, say), where `asked` needs them."""
    import multiprocessing

    if multiprocessing.current_process().daemon:
        raise UsageError(f"{asked} starts processes, which a daemonic process, such as this one, may not.", tip=tip)
