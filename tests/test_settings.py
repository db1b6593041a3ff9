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
