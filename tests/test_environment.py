"""Facts about the variables that decide where things lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from clseg.environment import environment, torchrun
from clseg.errors import UsageError


def test_one_home_for_downloads_and_own_weights(tmp_path: Path) -> None:
    """CLSEG_HOME is the place of both."""
    found = environment({"CLSEG_HOME": f" {tmp_path} "})
    assert (found.home, found.own) == (tmp_path, tmp_path)


def test_own_weights_are_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without CLSEG_HOME downloads lie in the cache folder, which may be emptied; own weights in the data folder, which may not."""
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name, **_: str(tmp_path / "cache" / name))
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name, **_: str(tmp_path / "data" / name))
    found = environment({})
    assert (found.home, found.own) == (tmp_path / "cache" / "clseg", tmp_path / "data" / "clseg")


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is relative, or begins with ~, does not move with the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment({"CLSEG_HOME": "here"}).own == tmp_path / "here"
    assert environment({"CLSEG_HOME": "~/there"}).own == tmp_path / "there"


def test_what_torchrun_says() -> None:
    """The number of processes and this one's number on its machine; without torchrun one process, number 0."""
    assert torchrun({}) == (1, 0)
    assert torchrun({"WORLD_SIZE": "4", "LOCAL_RANK": "3", "RANK": "3"}) == (4, 3)
    with pytest.raises(UsageError, match="whole numbers"):
        torchrun({"WORLD_SIZE": "many"})
