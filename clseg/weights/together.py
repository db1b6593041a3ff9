"""Together: the same for several things at once, in threads; the first error ends it for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

LEAVE_S = 2.0  # how long those that still work are given to leave in order

_X = TypeVar("_X")
_Y = TypeVar("_Y")


class Stopped(Exception):
    """Raised by a job that was asked to stop."""


def together(job: Callable[[_X, Event], _Y], things: Sequence[_X], *, threads: int) -> list[_Y]:
    """`job` of every thing, up to `threads` at once; the results in the order of the things.

    A job looks at its Event now and then and raises Stopped once it is set.  The first error (or Ctrl-C) is raised at
    once: things not begun are left, those under way are asked to stop and have LEAVE_S seconds for it.
    """
    stop, waiting, results, errors = Event(), SimpleQueue(), {}, []
    for pair in enumerate(things):
        waiting.put(pair)
    work = _Work(job, waiting, stop, results, errors)
    crew = [Thread(target=work, daemon=True) for _ in range(min(threads, len(things)))]
    try:
        for one in crew:
            one.start()
        while any(one.is_alive() for one in crew) and not errors:
            crew[-1].join(0.05)
            crew = [one for one in crew if one.is_alive()] or crew
    finally:
        stop.set()
        _wait_for(crew, time.monotonic() + LEAVE_S)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(things))]


class _Work:
    """What every thread of the crew does: take the next thing, until there is none or one has failed."""

    def __init__(self, job: Callable[[Any, Event], Any], waiting: SimpleQueue, stop: Event, results: dict[int, Any], errors: list[BaseException]) -> None:
        self.job, self.waiting, self.stop, self.results, self.errors = job, waiting, stop, results, errors

    def __call__(self) -> None:
        try:
            while not self.stop.is_set():
                number, thing = self.waiting.get_nowait()
                self.results[number] = self.job(thing, self.stop)
        except Empty:
            return
        except Stopped:
            return
        except BaseException as error:  # raised again by whoever waits
            self.errors.append(error)
            self.stop.set()


def _wait_for(crew: Sequence[Thread], until: float) -> None:
    for one in crew:
        if one.is_alive():
            one.join(max(0.0, until - time.monotonic()))
