"""Facts about kept arrays: a damaged file of the cache costs time, never a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import TrainingError
from clseg.training.kept import arrays_in, kept

ARRAYS = {"hu": np.arange(6000, dtype=np.int16).reshape(20, 30, 10), "known": np.array([True, False])}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "a.npz"


def made(file: Path) -> int:
    """How often the arrays were made when they were asked for once; they are always the same."""
    calls: list[int] = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return ARRAYS

    found = kept(file, make)
    assert {name: array.tolist() for name, array in found.items()} == {name: array.tolist() for name, array in ARRAYS.items()}
    return len(calls)


def flipped(data: bytes) -> bytes:
    """A byte in the middle of the first array is another."""
    at = data.index(b"hu.npy") + 300
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "its end cut": lambda data: data[:-30],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"no arrays at all",
    "a byte": flipped,
    "zeros at its end": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(file: Path, damage: str) -> None:
    """Made once and used; damaged it is made again, and is whole afterwards."""
    assert [made(file), made(file)] == [1, 0]
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert arrays_in(file) is None
    assert [made(file), made(file)] == [1, 0]


def test_a_file_that_stays_damaged_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that loses what was written nobody tries for ever."""
    monkeypatch.setattr("clseg.training.kept.np.savez_compressed", lambda stream, **arrays: stream.write(b"PK"))
    with pytest.raises(TrainingError, match="was written and cannot be read"):
        kept(file, lambda: ARRAYS)


def test_what_cannot_be_made_leaves_no_file(file: Path) -> None:
    """The error of the making comes through."""
    with pytest.raises(KeyError):
        kept(file, lambda: {}["nothing"])
    assert not file.exists()
