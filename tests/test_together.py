"""Facts about doing the same for several things at once."""

from __future__ import annotations

import threading
import time
from threading import Barrier, Event

import pytest

from clseg.weights import together as module
from clseg.weights.together import Stopped, together


def test_results_come_in_the_order_of_the_things():
    """Whoever is ready first, the first result belongs to the first thing."""

    def late(seconds: float, _: Event) -> float:
        time.sleep(seconds)
        return seconds

    assert together(late, [0.05, 0.0, 0.02], threads=3) == [0.05, 0.0, 0.02]


def test_as_many_at_once_as_allowed():
    """Four jobs that wait for each other end when four may run, and more than that never do."""
    meeting, running, most, lock = Barrier(4, timeout=10), [], [], threading.Lock()

    def meet(number: int, _: Event) -> int:
        with lock:
            running.append(number)
            most.append(len(running))
        meeting.wait()
        with lock:
            running.remove(number)
        return number

    assert together(meet, range(8), threads=4) == list(range(8))
    assert max(most) == 4


def test_nothing_to_do():
    """No things, no results, no threads."""
    assert together(lambda thing, stop: thing, [], threads=4) == []


def test_the_first_error_ends_it():
    """An error is raised as it is; what has not begun is left, and what is under way is asked to stop."""
    begun, stopped = [], []

    def work(name: str, stop: Event) -> None:
        begun.append(name)
        if name == "bad":
            while "long" not in begun:
                time.sleep(0.001)
            raise ValueError("no")
        assert stop.wait(10)
        stopped.append(name)
        raise Stopped

    with pytest.raises(ValueError, match="no"):
        together(work, ["bad", "long", "later"], threads=2)
    assert (sorted(begun), stopped) == (["bad", "long"], ["long"])


def test_who_does_not_stop_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    """A job that hangs delays the error by LEAVE_S at most."""
    monkeypatch.setattr(module, "LEAVE_S", 0.1)
    free = Event()

    def work(name: str, _: Event) -> None:
        if name == "bad":
            raise ValueError("no")
        free.wait(20)

    before = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        together(work, ["hangs", "bad"], threads=2)
    assert time.monotonic() - before < 5
    free.set()
