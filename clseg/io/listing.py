"""Listing: which files a folder holds, as words for sentences about what is not among them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

_NAMED = 3
_MOST_COUNTED = 10_000


def files_in(folder: Path) -> Iterator[str]:
    """The files of a folder and then of those in it, by name, as paths from the folder on; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in sorted(names) if not name.startswith("."))


def told(names: Iterable[str]) -> str:
    """`no files`, `1 file: a.txt`, `5 files: a.txt, b.csv, c.md and 2 more`; beyond 10,000 they are not counted."""
    known = list(islice(names, _MOST_COUNTED + 1))
    if not known:
        return "no files"
    more = len(known) - _NAMED
    others = "" if more <= 0 else f" and {more:,} more" if len(known) <= _MOST_COUNTED else " and more"
    count = f"{len(known):,} file{'s' * (len(known) != 1)}" if len(known) <= _MOST_COUNTED else f"more than {_MOST_COUNTED:,} files"
    return f"{count}: {', '.join(known[:_NAMED])}{others}"
