"""Streams: what a program needs of the world around it before it says anything."""

from __future__ import annotations

import os
import signal
import sys

UNREAD = 141  # 128 + SIGPIPE, as shells expect


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers and containers end a program: like Ctrl-C, nothing half-written is left."""


def sound_streams() -> None:
    """Standard streams that take every text: closed ones lead nowhere, characters that their encoding lacks are spelt (\\u2192).

    A closed descriptor would go to the next file that is opened, and whatever a library prints would be written into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (as long as the program)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def code_of_end(end: SystemExit) -> object:
    """The exit code of a program that ends, also where nobody reads what it prints any more (`clseg -h | head -1`).

    It is then that of what was to be told, such as a wrong call, and 141 where that was no
    error: help, of which somebody has seen enough.
    """
    behind = end.__context__
    if not isinstance(behind, BrokenPipeError):
        return end.code
    while behind is not None and not isinstance(code := getattr(behind, "exit_code", None), int):
        behind = behind.__context__
    return UNREAD if behind is None else code


def end_on_sigterm() -> None:
    """SIGTERM raises Terminated instead of ending the program on the spot."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
