"""Words: how the names of structures are spelled, counted and given a side, and things numbered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

SIDE_WORDS = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
OPPOSITE = {"left": "right", "right": "left"}
_EXCHANGED = {**OPPOSITE, "l": "r", "r": "l", "lt": "rt", "rt": "lt"}
_SIDE = re.compile(r"(?<![A-Za-z])(?:left|right)(?![A-Za-z])|(?<=[\s_-])(?:lt?|rt?)$", re.IGNORECASE)
PLURALS = (("ies", "y"), ("ae", "a"), ("i", "us"), ("a", "um"), ("s", ""), ("es", ""))


def tokens_of(roi: Iterable[str]) -> list[str]:
    """`["chest", "liver, aorta"]` → `["chest", "liver", "aorta"]`; a single string is a list of one."""
    given = [roi] if isinstance(roi, str) else roi
    return [token.strip() for entry in given for token in entry.split(",") if token.strip()]


def number_of(count: int, thing: str) -> str:
    """`1 slice`, `3 slices`."""
    return f"{count} {thing}{'s' * (count != 1)}"


def as_word(text: str) -> str:
    """`"Left  Kidney"` → `"left_kidney"`."""
    return re.sub(r"[\s_-]+", "_", text.strip().lower())


def base_and_side(word: str) -> tuple[str, str]:
    """`"left_upper_lobe"` → `("upper_lobe", "left")`; the side is empty where none or both are said."""
    parts = word.split("_")
    said = {SIDE_WORDS[part] for part in parts if part in SIDE_WORDS}
    return "_".join(part for part in parts if part not in SIDE_WORDS), said.pop() if len(said) == 1 else ""


def singulars(word: str) -> Iterator[str]:
    """The word itself, then what it may be the plural of: `arteries` → `artery`, `lungs` → `lung`."""
    yield word
    base, side = base_and_side(word)
    for plural, singular in PLURALS:
        if base.endswith(plural):
            stem = base[: -len(plural)] + singular
            yield f"{stem}_{side}" if side else stem


def side_of(name: str) -> str:
    """The side that a name says: one of its words is `left` or `right`, not both, or its last is `l` or `r`, `lt` or `rt`."""
    words = as_word(name).split("_")
    said = {word for word in words if word in OPPOSITE} or {SIDE_WORDS[word] for word in words[1:][-1:] if word in SIDE_WORDS}
    return said.pop() if len(said) == 1 else ""


def other_side(name: str) -> str:
    """`kidney_left` → `kidney_right`, `Gland_L` → `Gland_R`, and the other way round."""
    return _SIDE.sub(lambda side: _spelled_like(side[0], _EXCHANGED[side[0].lower()]), name)


def _spelled_like(old: str, new: str) -> str:
    """`Left`, `right` → `Right`."""
    return new.upper() if old.isupper() else new.capitalize() if old[0].isupper() else new
