"""A Stopwatch notes how long every stage took, also when it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clseg import footprint, stopwatch
from clseg.stopwatch import Laps, Stopwatch, peak_memory_mib


def test_laps_are_in_order_and_measured(monkeypatch):
    """Two stages of 2 s and 3 s by the clock are noted as such."""
    clock = iter([10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch.lap("read"):
        pass
    with watch.lap("write"):
        pass
    assert [(lap.stage, lap.seconds) for lap in watch.laps] == [("read", 2.0), ("write", 3.0)]


def test_a_stage_that_fails_is_noted_too():
    """The error goes on its way and the lap is there."""
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.lap("segment"):
        raise KeyError("x")
    assert [lap.stage for lap in watch.laps] == ["segment"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_peak_memory_grows_with_what_is_held():
    """Touching 64 MiB more than ever before raises the peak by about that; a Python process holds 5 MiB at least."""
    program = "; ".join(
        [
            "from clseg.stopwatch import peak_memory_mib as peak",
            "before = peak()",
            "held = bytearray(int((before + 64) * 2**20))",
            "held[::4096] = b'x' * len(held[::4096])",
            "print(before, peak())",
        ]
    )
    root = Path(__file__).parents[1]
    before, after = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, check=True).stdout.split()
    assert 5 < float(before) < float(before) + 60 < float(after)


def test_without_the_resource_module_memory_is_unknown(monkeypatch):
    """On Windows, which has no /proc either, the peak is None, not a made-up number."""
    monkeypatch.setattr(footprint, "_status", lambda key: 0)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mib() is None


def test_turns_are_added_up(monkeypatch):
    """Segment 1 s, export 2 s, segment 4 s: two laps of 5 s and 2 s, in the order in which they began."""
    clock = iter([0.0, 1.0, 1.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    laps = Laps(watch)
    for stage in ("segment", "export", "segment"):
        with laps.lap(stage):
            pass
    laps.note()
    assert [(lap.stage, lap.seconds) for lap in watch.laps] == [("segment", 5.0), ("export", 2.0)]
