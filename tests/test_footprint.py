"""Amounts of memory are read as people write them, and what this process holds is what the system says."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import UsageError
from clseg.footprint import bytes_of, in_words, peak, resident

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4G", 4 * 2**30), ("4GiB", 4 * 2**30), ("4g", 4 * 2**30), ("4096M", 4 * 2**30), ("4294967296", 4 * 2**30), (" 1.5 G ", 3 * 2**29),
     ("4GB", 4 * 10**9), ("512K", 2**19), ("100B", 100), ("1T", 2**40), (".5G", 2**29)],
)  # fmt: skip
def test_amounts_are_read(text, expected):
    """Letters alone and KiB, MiB, GiB are powers of 1024, those with B alone of 1000; bytes need no letter."""
    assert bytes_of(text) == expected


@pytest.mark.parametrize("amount", [2**32, np.int64(2**32), 4.294967296e9])
def test_a_number_is_bytes(amount):
    """Of whatever kind; the result is an int, as JSON wants it."""
    assert bytes_of(amount) == 2**32
    assert type(bytes_of(amount)) is int


@pytest.mark.parametrize("text", ["", "G", "4X", "-1G", "0", "0.0G", "4 G B", "1e9", "four", "99999999T", "4Gi", "nan", 0, -5, 0.5, 2**60, math.nan, math.inf, True, None, ["4G"], b"4G", 4j])
def test_what_is_no_amount_is_refused(text):
    """With what was given, and how it is written."""
    with pytest.raises(UsageError, match="no amount of memory, expected for example 4G") as caught:
        bytes_of(text)
    assert repr(str(text)) in caught.value.message


@pytest.mark.parametrize(("count", "expected"), [(1, "1 MiB"), (2**20, "1 MiB"), (2**20 + 1, "2 MiB"), (2**30, "1.0 GiB"), (2**30 + 1, "1.1 GiB"), (int(1.3 * 2**30), "1.3 GiB")])
def test_words_name_enough(count, expected):
    """Rounded up: whoever allows what is named allows what is needed."""
    assert in_words(count) == expected
    assert bytes_of(expected) >= count


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds now")
def test_the_peak_stays_and_the_present_does_not():
    """A child that held 64 MiB for a moment; and its peak is its own, however much the process held that started it."""
    program = "\n".join(
        [
            "from clseg.footprint import peak, resident",
            "before = resident()",
            "held = bytearray(64 << 20); held[::4096] = b'x' * len(held[::4096])",
            "during = resident(); del held",
            "print(before, during, resident(), peak())",
        ]
    )
    mine = bytearray(256 << 20)
    mine[::4096] = b"x" * len(mine[::4096])
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout.split()
    before, during, after, most = map(int, said)
    assert during - before > 60 << 20
    assert after < during - (60 << 20)
    assert during - (1 << 20) <= most < 200 << 20 < peak()
    assert 0 < resident() <= peak()
