"""Footprint: how much this process holds, and amounts as people write them."""

from __future__ import annotations

import re
import sys
from numbers import Real
from pathlib import Path

from clseg.errors import UsageError

_UNITS = {"": 1, **{letter: 1024**power for power, letter in enumerate("KMGT", 1)}}
_DECIMAL = {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_BINARY = {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)}
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?(?:I?B)?)", re.IGNORECASE)


def bytes_of(amount: str | float) -> int:
    """`4G`, `4GiB`, `4096M`, `4294967296` or the number itself → bytes; GB and MB are decimal, as on the boxes of disks.

    UsageError for anything else, and for nothing.
    """
    count = _counted(amount)
    if not 1 <= count < 2**60:  # NaN too
        raise UsageError(f"{str(amount)!r} is no amount of memory, expected for example 4G, 4GiB, 4096M or a number of bytes.")
    return int(count)


def _counted(amount: object) -> float:
    """Bytes; 0 for what is no amount."""
    if isinstance(amount, Real) and not isinstance(amount, bool):
        return amount  # type: ignore[return-value]
    found = _AMOUNT.fullmatch(amount.strip()) if isinstance(amount, str) else None
    return float(found[1]) * (_UNITS | _DECIMAL | _BINARY | {"B": 1}).get(found[2].upper(), 0) if found else 0


def in_words(count: float) -> str:
    """Bytes for people, rounded up so that what is named suffices: '1.3 GiB', '640 MiB'."""
    if count >= 1024**3:
        return f"{-(-count * 10 // 1024**3) / 10:.1f} GiB"
    return f"{-(-count // 1024**2):.0f} MiB"


def resident() -> int:
    """Bytes of main memory that this process holds now; where the system does not tell, the most it has held."""
    return _status("VmRSS") or peak()


def peak() -> int:
    """The most that this process has held so far, in bytes; 0 where nobody knows (Windows).

    Linux's own count per program: what `getrusage` says begins with what the process
    that started this one had held.
    """
    if known := _status("VmHWM"):
        return max(known, _status("VmRSS"))  # the two are counted in batches of their own
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes, 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
