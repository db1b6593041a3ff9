"""Case: one scan of many, with the name of the folder that its results go to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clseg.errors import UsageError
from clseg.output import OTHERS

SCAN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".zip")
CT_NAMES = ("ct", "image", "imaging")  # files that are called so are known by their folder: s0001/ct.nii.gz
SUMMARIES = ("summary.csv", "summary_wide.csv", "summary_radiomics.csv", "failures.csv")

_LONGEST = 150  # bytes of a name; file systems end at 255, and numbers and endings need some
_NOT_A_FOLDER = (".nii", *OTHERS)  # results in a folder with such a name would be taken for one file
_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """`name` is a safe name of one folder; `path` is absolute."""

    name: str
    path: Path


def title_of(path: Path) -> str:
    """A file's name without the endings of scans: `a_0000.nii.gz` → a_0000."""
    name = path.name
    while ending := next((e for e in SCAN_ENDINGS if name.lower().endswith(e) and len(name) > len(e)), None):
        name = name[: -len(ending)]
    return name


def safe(name: str) -> str:
    """The name with everything replaced that cannot stand in the name of a folder on every system."""
    name = re.sub(r"[^\w.+=@-]", "_", name).strip(".")
    name = name.encode()[:_LONGEST].decode(errors="ignore").rstrip(".")
    if name.lower().endswith(_NOT_A_FOLDER):
        name = "_".join(name.rsplit(".", 1))
    return f"_{name}" if not name or _OF_WINDOWS.fullmatch(name) else name


def named(paths: Sequence[Path], given: Mapping[Path, str] | None = None) -> list[Case]:
    """Cases with names that are safe and different, also where capitals do not count.

    A case is called like its file or folder, `ct.nii.gz` like its folder; where several would be called the same, all of
    them get the names of their parents in front, as many as are needed.  `given` are names that the user has chosen.
    Raises UsageError when a path is there twice, a chosen name is not safe or chosen twice.
    """
    given = given or {}
    _refuse_twice(paths, "path")
    _refuse_twice([name.casefold() for name in given.values()], "case")
    for name in given.values():
        if safe(name) != name:
            raise UsageError(f"The case '{name}' cannot be the name of a folder.", tip=f"Call it '{safe(name)}'.")
    names = _different([path for path in paths if path not in given], {name.casefold() for name in given.values()})
    return [Case(given.get(path) or names[path], path) for path in paths]


def _refuse_twice(values: Iterable[object], what: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise UsageError(f"The {what} '{value}' is there twice.", tip="Name every scan once.")
        seen.add(value)


def _different(paths: Sequence[Path], taken: set[str]) -> dict[Path, str]:
    """A name for every path, different from each other and from those that are taken (casefolded)."""
    depths = dict.fromkeys(paths, 0)
    while True:
        names = {path: _with_parents(path, depth) for path, depth in depths.items()}
        counts: dict[str, int] = dict.fromkeys(taken, 1)
        for name in names.values():
            counts[name.casefold()] = counts.get(name.casefold(), 0) + 1
        deeper = [path for path, name in names.items() if counts[name.casefold()] > 1 and depths[path] < len(path.parents)]
        if not deeper:
            return _numbered(names, taken)
        for path in deeper:
            depths[path] += 1


def _with_parents(path: Path, depth: int) -> str:
    """The name of a path with those of `depth` folders above it: (b/a.nii.gz, 1) → b_a."""
    known_by_folder = title_of(path).lower() in CT_NAMES and bool(path.parent.name)
    title = path.parent.name if known_by_folder else title_of(path)
    above = list((path.parent if known_by_folder else path).parents)
    return safe("_".join([*(folder.name for folder in reversed(above[:depth]) if folder.name), title]))


def _numbered(names: Mapping[Path, str], taken: set[str]) -> dict[Path, str]:
    """Names that are still the same, because making them safe made them so, get a number."""
    used, different = set(taken), {}
    for path, name in names.items():
        number, one = 1, name
        while one.casefold() in used:
            number += 1
            one = f"{name}_{number}"
        used.add(one.casefold())
        different[path] = one
    return different
