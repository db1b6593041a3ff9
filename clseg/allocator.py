"""Allocator: how this process gets its memory from the system."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)


def keep_memory() -> bool:
    """Tell glibc to keep what is freed for the next request; True where it was told so.

    Left alone it gives every large tensor back to the system and asks for it again, page by
    page: a quarter to a third of the time of a training step on a CPU.  Elsewhere than on
    glibc nothing is done.
    """
    set_option = _glibc("mallopt")
    if set_option is None:
        return False
    told = [set_option(_MMAP_MAX, 0), set_option(_TRIM_THRESHOLD, 2**31 - 1), set_option(_TOP_PAD, 2**28)]
    return all(told)


def give_back() -> bool:
    """Tell glibc to give the system what is free, also between what is in use; True where it was told so.

    Left alone it keeps much of what a stage has freed, and the next stage's comes on top.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)
    return trim is not None


def _glibc(name: str) -> Any:
    """A function of glibc; None elsewhere."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):  # another C library
        return None
