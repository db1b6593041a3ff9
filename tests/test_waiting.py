"""Threads sleep while they wait when other programs want the processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from clseg import waiting
from clseg.environment import let_threads_sleep
from clseg.waiting import be_considerate, others_running


@pytest.mark.parametrize(("others", "cores", "told"), [(0, 2, False), (1, 2, True), (1, 16, False), (4, 16, True)])
def test_others_at_work_make_threads_sleep(monkeypatch, others, cores, told):
    """A quarter of the processors, one at least."""
    said = []
    monkeypatch.setattr(waiting, "others_running", lambda: others)
    monkeypatch.setattr(waiting, "let_threads_sleep", lambda: said.append(True) or True)
    assert be_considerate(cores) == told
    assert said == [True] * told


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_stays(name):
    """Who says how threads wait knows better; otherwise they spin a thousand times."""
    variables: dict[str, str] = {}
    assert let_threads_sleep(variables)
    assert variables == {"GOMP_SPINCOUNT": "1000"}
    assert not let_threads_sleep(mine := {name: "ACTIVE"})
    assert mine == {name: "ACTIVE"}


@pytest.mark.parametrize(("text", "others"), [("0.5 0.4 0.3 1/200 4711\n", 0), ("9.9 9.9 9.9 5/200 4711\n", 4), ("", 0), ("1 2 3 x/9 4\n", 0)])
def test_those_that_run_are_counted_without_this_one(tmp_path: Path, text, others):
    """The fourth field is how many want a processor, of how many; what cannot be read counts for nothing, and so does a missing file."""
    (tmp_path / "loadavg").write_text(text)
    assert others_running(tmp_path / "loadavg") == others
    assert others_running(tmp_path / "nowhere") == 0
