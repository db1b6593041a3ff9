"""Done: which cases an earlier run has finished, and what a killed one has left behind."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clseg.errors import InputError
from clseg.io.files import AnyPath, existing, sha256_of

Hashed = Callable[[AnyPath], str]
"""what gives the sha256 of a file"""

_DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(\S[^\r\n]*?)\s*$", re.IGNORECASE | re.MULTILINE)
_PART = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.part")
_HEADER_BYTES = 1 << 16


def digest_of(scan: Path, hashed: Hashed = sha256_of) -> str:
    """The sha256 of a scan: of its file; of a DICOM folder, or of a header with its data file, that of lines `sha256  name`.

    The lines are sorted by name and end with a line feed, so that `sha256sum` says the same.
    """
    existing(scan)
    if scan.is_dir():
        from clseg.io.dicom.headers import dicom_files

        return _of_lines(dicom_files(scan), scan, hashed)
    if data := _data_file(scan):
        return _of_lines([scan, data], scan.parent, hashed)
    return hashed(scan)


def is_complete(folder: Path, digest: str, request: Mapping[str, Any]) -> bool:
    """Whether the folder holds all that this request gives for the scan with this sha256."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        same = run["batch"]["sha256"] == digest and run["batch"]["request"] == request
        return same and all((folder / name).is_file() for name in run["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sweep(folder: Path, *, below: bool = False, older_s: float = 0.0) -> None:
    """Remove the unfinished files of a run that was killed, also in the folders `below`; they have names that nothing else has.

    Where other runs may be writing just now, files have to be `older_s` seconds old.
    """
    for file in folder.rglob(".*.part") if below else folder.glob(".*.part"):
        with suppress(OSError):  # the next run may be luckier
            if _PART.fullmatch(file.name) and time.time() - file.stat().st_mtime >= older_s:
                file.unlink()


def _of_lines(files: list[Path], root: Path, hashed: Hashed) -> str:
    names = sorted((file.relative_to(root).as_posix(), file) for file in files)
    text = "".join(f"{hashed(file)}  {name}\n" for name, file in names)
    return hashlib.sha256(text.encode()).hexdigest()


def _data_file(scan: Path) -> Path | None:
    """The file beside a MetaImage or NRRD header that holds its voxels."""
    if scan.suffix.lower() not in (".mhd", ".nhdr"):
        return None
    try:
        with open(scan, "rb") as stream:
            found = _DATA_FILE.search(stream.read(_HEADER_BYTES))
    except OSError as error:
        raise InputError(f"'{scan}' cannot be read: {error.strerror}.") from error
    file = scan.parent / found[1].decode("utf-8", "replace") if found else scan
    return file if file != scan and file.is_file() and scan.parent in file.parents else None
