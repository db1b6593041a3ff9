"""Folder: where another program's model lies, a folder or a zip of one, and its JSON files."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from clseg.errors import UsageError, WeightsError


@contextmanager
def opened(path: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """The folder at `path`, or a temporary one with the members of the zip at `path` whose file name is `wanted`.

    Raises UsageError when there is neither, WeightsError when the zip is damaged, and when a member
    would leave the folder; nothing of such a zip is unpacked.
    """
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise UsageError(f"There is nothing at {path}, expected a model's folder or a zip of one.")
    if path.suffix in (".pth", ".pt", ".model", ".ckpt"):  # such files are zips, too
        raise WeightsError(f"{path} is a checkpoint alone, expected the model's folder or a zip of it.", tip="Give the folder that also holds its plans.")
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is a file but no zip, expected a model's folder or a zip of one.")
    with tempfile.TemporaryDirectory(prefix="clseg-import-") as folder:
        _unpack(path, Path(folder), wanted)
        yield Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; WeightsError when it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON text: {error}.") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds {type(data).__name__}, expected a JSON object.")
    return data


def structure_name(name: str) -> str:
    """A label of another program as a name of ours, which is a file name too: `tumor/edema ` → `tumor_edema`."""
    return re.sub(r"[,;/\\\x00-\x1f]+", "_", name.strip()).lstrip(".") or "_"


def _unpack(path: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _refuse_stray(path, member)
            chosen = [member for member in members if wanted(PurePosixPath(member.filename).name)]
            _need_space(folder, sum(member.file_size for member in chosen))
            for member in chosen:
                archive.extract(member, folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise WeightsError(f"The zip {path} is damaged or cannot be unpacked: {error}.", tip="Copy or fetch it again.") from error
    except OSError as error:
        raise WeightsError(f"The zip {path} cannot be unpacked: {error.strerror or error}.") from error


def _refuse_stray(path: Path, member: zipfile.ZipInfo) -> None:
    """WeightsError for a member that is a link, whose name leaves the folder, on any system, or that is not simply deflated."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        told = f"The zip {path} compresses '{member.filename}' in a way that cannot be unpacked in bounded memory."
        raise WeightsError(told, tip="Unpack it yourself and give the folder.")
    name = member.filename.replace("\\", "/")
    link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if name.startswith("/") or ".." in name.split("/") or ":" in name or link:
        raise WeightsError(f"The zip {path} has the member '{member.filename}', which would leave its folder; nothing was unpacked.")


def _need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        told = f"Unpacking needs {needed / 1e6:.0f} MB in {folder}, {free / 1e6:.0f} MB are free."
        raise WeightsError(told, tip="Unpack it elsewhere and import the folder.")
