"""A knob: one field of a recipe with its default and a sentence that says what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

_NONE: Any = dataclasses.MISSING


def knob(about: str, default: Any = _NONE, *, make: Callable[[], Any] = _NONE, example: Any = None, hidden: bool = False) -> Any:
    """A dataclass field that `clseg recipe new` explains with `about` (units in mm, HU, degrees).

    `example` is what a template shows for a field without a default; a `hidden`
    field is set by the program and may not stand in a file.
    """
    facts = {"about": about, "example": example, "hidden": hidden}
    return dataclasses.field(default=default, default_factory=make, metadata=facts)
