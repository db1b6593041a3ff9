"""Waiting: how threads of this process wait for each other.

GNU's OpenMP, which torch computes with on Linux, lets threads that have finished spin until
the others have too.  On an idle machine that is fastest.  Where other programs want the same
processors, the system takes them away from the spinning threads in the middle of the work:
a scan of 9 s took 66 s beside one busy program, and 13 s with threads that sleep (LOG.md).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from clseg.environment import let_threads_sleep

LOOKS, APART_S = 3, 0.004


def be_considerate(cores: int | None = None) -> bool:
    """Tell OpenMP, before torch is loaded, to let threads sleep when others are at work here; True where it was told so."""
    if others_running() < max(1, (cores or os.cpu_count() or 1) // 4):
        return False
    return let_threads_sleep()


def others_running(loads: Path = Path("/proc/loadavg")) -> int:
    """How many threads beside this one want a processor now, the least of a few looks; 0 where nobody knows."""
    found = []
    for look in range(LOOKS):
        if look:
            time.sleep(APART_S)
        try:
            found.append(int(loads.read_text().split()[3].split("/")[0]) - 1)
        except (OSError, IndexError, ValueError):
            return 0
    return max(0, min(found))
