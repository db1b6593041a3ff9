"""What settings mean together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clseg import Settings
from clseg.errors import UsageError
from clseg.settings import FAST_STEP


def test_fast_is_a_coarser_step():
    """0.8 of a window instead of a half; changing something else about it keeps it."""
    assert (Settings().step, Settings(fast=True).step) == (0.5, 0.8)
    assert replace(Settings(fast=True), threads=2).step == FAST_STEP


def test_fast_and_a_step_of_ones_own_contradict_each_other():
    """Both cannot be meant."""
    with pytest.raises(UsageError, match=r"Fast means a step of 0\.8, but a step of 0\.25 was asked for") as caught:
        Settings(fast=True, step=0.25)
    assert caught.value.tip == "Leave out one of them."


@pytest.mark.parametrize("amount", ["4G", "4096M", 2**32])
def test_memory_may_be_said_as_on_the_command_line(amount):
    """4G, 4096M and 2**32 are one limit, kept as bytes; changing something else about it keeps it."""
    assert Settings(max_memory=amount) == Settings(max_memory=4294967296)
    assert replace(Settings(max_memory=amount), threads=2).max_memory == 4294967296


@pytest.mark.parametrize("amount", ["4 gigs", "", 0, True, [4]])
def test_what_is_no_amount_of_memory_is_refused(amount):
    """By name, with what was given and how it is written."""
    with pytest.raises(UsageError, match=r"^max_memory: .* is no amount of memory, expected for example 4G") as caught:
        Settings(max_memory=amount)
    assert repr(str(amount)) in caught.value.message
