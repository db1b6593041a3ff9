"""Allocator: how this process gets its memory from the system."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)


def keep_memory() -> bool:
    """Tell glibc to keep what is freed for the next request; True where it was told so.

    Left alone it gives every large tensor back to the system and asks for it again, page by
    page: a quarter to a third of the time of a training step on a CPU.  Elsewhere than on
    glibc nothing is done.
    """
    if sys.platform != "linux":
        return False
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    told = [set_option(_MMAP_MAX, 0), set_option(_TRIM_THRESHOLD, 2**31 - 1), set_option(_TOP_PAD, 2**28)]
    return all(told)
