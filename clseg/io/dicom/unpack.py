"""Unpack: the DICOM files of a zip archive in a temporary folder, without trusting names or sizes in it."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clseg.errors import InputError
from clseg.io.dicom.headers import looks_like_dicom

MOST_FILES = 100_000
MOST_BYTES = 16 << 30
BEST_RATIO = 200  # DICOM shrinks by 2 to 20; what claims more, above what is always allowed, is a trap
ALWAYS_BYTES = 1 << 28
_CHUNK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)  # RuntimeError: a password


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A folder with the archive's DICOM files under names of our own (so that none can lead elsewhere); it goes with the block.

    Raises InputError for a damaged or encrypted archive and for one that unpacks to absurdly much.
    """
    with tempfile.TemporaryDirectory(prefix="clseg-") as folder:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = [member for member in opened.infolist() if not member.is_dir()]
                _refuse_bombs(members, archive, Path(folder))
                for number, member in enumerate(sorted(members, key=lambda member: member.filename)):
                    _unpack(opened, member, Path(folder, f"{number:06d}"))
        except _DAMAGE as error:
            raise InputError(f"The zip archive '{archive}' is damaged, encrypted or does not fit on the disk: {error}.", tip="Unpack it yourself and give the folder.") from error
        yield Path(folder)


def _refuse_bombs(members: list[zipfile.ZipInfo], archive: Path, folder: Path) -> None:
    if odd := [member.filename for member in members if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]:
        told = f"The zip archive '{archive}' compresses '{odd[0]}' in a way that cannot be unpacked in bounded memory, expected stored or deflated files."
        raise InputError(told, tip="Unpack it yourself and give the folder.")
    total = sum(member.file_size for member in members)
    limit = min(MOST_BYTES, max(ALWAYS_BYTES, BEST_RATIO * archive.stat().st_size), shutil.disk_usage(folder).free)
    if len(members) > MOST_FILES or total > limit:
        raise InputError(
            f"The zip archive '{archive}' would unpack to {len(members):,} files of {total / 1e9:.1f} GB in all, expected at most {MOST_FILES:,} files and {limit / 1e9:.1f} GB.",
            tip="Unpack it yourself and give the folder.",
        )


def _unpack(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """One member, if it is a DICOM file; it never yields more bytes than its entry says, which were added up before."""
    with opened.open(member) as source:
        start = source.read(132)
        if not looks_like_dicom(start):
            return
        with open(target, "xb") as sink:
            sink.write(start)
            while piece := source.read(_CHUNK):
                sink.write(piece)
