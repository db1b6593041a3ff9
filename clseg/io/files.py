"""Files: read a scan by its content, and write results that appear whole or not at all."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from clseg.errors import InputError, OutputError, UsageError
from clseg.io.finding import WARNING, Finding, Found, unheard
from clseg.volume import Volume

if TYPE_CHECKING:
    import SimpleITK

AnyPath = str | os.PathLike[str]

_CHUNK = 1 << 20
_SNIFF = 1024


# ---- reading ----------------------------------------------------------------------------------------------------------


def read(path: AnyPath, *, series: str | None = None, found: Found = unheard) -> Volume:
    """Read a scan: NIfTI, NRRD, MetaImage, or DICOM in a folder, a zip archive or a multi-frame file; told apart by content.

    The affine is in RAS+ mm whatever the format says.  `series` is the UID or number of a DICOM series, for folders and
    archives with several; `found` hears what was noticed, e.g. which series was taken and what was mended.

    Raises UsageError when there is nothing at `path` or no such series, InputError when what is there is not one
    readable 3-D scan.
    """
    path = existing(path)
    if path.is_fifo():  # can be read but once, and may never end
        raise UsageError(f"'{path}' is a pipe, expected a file or folder.", tip="Write it to a file first.")
    if volume := _read_dicom(path, series, found):
        return volume
    if series:
        raise UsageError(f"'{path}' is no DICOM and has no series '{series}'.", tip="Leave --series out.")
    start = _first_bytes(path)
    if not start:
        raise InputError(f"'{path}' is empty (0 bytes).", tip="Copy or download the file again.")
    if start[:2] == b"\x1f\x8b" or start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2"):
        from clseg.io.nifti import read_nifti

        return read_nifti(path)
    if start[:4] == b"NRRD":
        image = read_itk(path, "NrrdImageIO")
        if not _says_how_the_patient_lies(image):
            found(Finding(WARNING, "orientation", "The file does not say how the patient lies (it has no anatomical `space`): left and right may be swapped.", "Convert the scan again from its DICOM series."))
        return from_itk(image, path)
    if _is_metaimage(start):
        return _read_itk(path, "MetaImageIO")
    raise InputError(f"'{path}' is {_what(start)}, expected NIfTI, NRRD, MetaImage or DICOM.")


def _is_metaimage(start: bytes) -> bool:
    """By its first bytes; ITK may write a page of other lines between the first and the sizes."""
    return b"NDims" in start and (b"DimSize" in start or start.lstrip().startswith(b"ObjectType"))


def existing(path: AnyPath) -> Path:
    """The path, if a file or folder is there; UsageError otherwise."""
    path = Path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"There is no file or folder '{path}'.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    return path


def sha256_of(path: AnyPath) -> str:
    """The sha256 of a file as 64 hexadecimal digits, read in pieces."""
    path = existing(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


class Hashes:
    """sha256 of files as `sha256_of` says it, of each computed once, and again when the file has changed: its size, its times, or which file it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], str] = {}

    def __call__(self, path: AnyPath) -> str:
        found = existing(path).stat()  # before it is hashed: what changes meanwhile is hashed again the next time
        key = (os.fspath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        if key not in self._known:
            self._known[key] = sha256_of(path)
        return self._known[key]


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_SNIFF)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error


def _what(start: bytes) -> str:
    """What a file that is no scan seems to be, as words that follow 'is'."""
    if start[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        return "an Analyze 7.5 file or a damaged NIfTI file (its magic word is missing)"
    if not any(start):
        return "filled with zeros"
    with suppress(UnicodeDecodeError):
        start[:512].decode("ascii")
        return "a text file"
    return "no scan in a known format"


def _read_dicom(path: Path, series: str | None, found: Found) -> Volume | None:
    """The CT in a folder, an archive or a DICOM file; None for a file that is something else."""
    from clseg.io.dicom import read_dicom_file, read_dicom_folder, read_dicom_zip
    from clseg.io.dicom.headers import is_dicom

    if path.is_dir():
        return read_dicom_folder(path, series=series, found=found)
    if _first_bytes(path)[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return read_dicom_zip(path, series=series, found=found)
    return read_dicom_file(path, series=series, found=found) if is_dicom(path) else None


def _says_how_the_patient_lies(image: SimpleITK.Image) -> bool:
    """Whether an NRRD names directions of the body; ITK takes whatever else for left, posterior, superior."""
    space = image.GetMetaData("NRRD_space") if image.HasMetaDataKey("NRRD_space") else ""
    return bool(re.match(r"(left|right)-(anterior|posterior)-(superior|inferior)|[LR][AP][SI]", space, re.IGNORECASE))


def _read_itk(path: Path, image_io: str) -> Volume:
    return from_itk(read_itk(path, image_io), path)


def read_itk(path: AnyPath, image_io: str) -> SimpleITK.Image:
    """An ITK image by the named reader of ITK; InputError when it cannot be read."""
    import SimpleITK as sitk

    with _itk_silent():
        try:
            return sitk.ReadImage(str(path), imageIO=image_io)
        except RuntimeError as error:
            raise InputError(
                f"'{path}' is damaged or incomplete: {_reason(error)}.", tip="Copy or download the file again (with its data file, if it has one)."
            ) from error


def from_itk(image: SimpleITK.Image, path: AnyPath) -> Volume:
    """A Volume from an ITK image called `path`: axes (i, j, k), patient coordinates turned from LPS to RAS; InputError for colour and 2-D."""
    import SimpleITK as sitk

    from clseg.io.nifti import float32_or_integer, refuse_many_volumes

    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"'{path}' holds {image.GetNumberOfComponentsPerPixel()} values per voxel (colour or vectors), expected one HU value.")
    if image.GetDimension() < 3:
        raise InputError(f"'{path}' is a 2-D picture of {image.GetSize()} pixels, expected a 3-D scan.")
    if image.GetDimension() > 3:
        refuse_many_volumes(image.GetSize(), path)
        image = sitk.Extract(image, (*image.GetSize()[:3], *(0 for _ in image.GetSize()[3:])))
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # ITK's arrays are (k, j, i)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1  # ITK is LPS, ours is RAS
    return Volume(float32_or_integer(array, path), affine + 0.0)  # no negative zeros


@contextmanager
def _itk_silent() -> Iterator[None]:
    """ITK writes warnings to the terminal; not while we read."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _reason(error: Exception) -> str:
    """The last line of ITK's long story, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


# ---- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: AnyPath, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that gets its name only when it is complete.

    The bytes go to a temporary name in the same folder, then to the disk (fsync), and are moved into place in one step;
    whatever interrupts the block, the temporary file is removed and an older file at `path` stays as it was.
    `mode` is 'wb', or 'w' for UTF-8 text, in which bytes of file names that are none are spelt \\udcXX.

    Raises OutputError when the file cannot be written.
    """
    final = Path(os.path.realpath(path))  # through a link to the file it names
    if final.exists() and not final.is_file():
        raise OutputError(f"'{path}' cannot be written: it is not a regular file.")
    part = final.with_name(f".{final.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    stream: IO[Any] | None = None
    try:
        stream = _create(part, mode)
        yield stream
        stream.flush()
        _to_disk(stream)
        stream.close()
        os.replace(part, final)
    except BaseException as error:
        with suppress(OSError):
            if stream is not None:
                stream.close()
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part), part):  # not one about another file
            raise _cannot_write(path, error) from error
        raise


def write_together(contents: Mapping[AnyPath, bytes]) -> None:
    """Write files that belong together: when all of them are on the disk they get their names, one right after the other in this order.

    Raises OutputError when one of them cannot be written; then all are as they were.
    """
    with ExitStack() as unfinished:
        for path, content in reversed(contents.items()):  # what was begun last is ended first
            stream = unfinished.enter_context(writing(path))
            stream.write(content)
            stream.flush()
            _to_disk(stream)


def write_json(path: AnyPath, obj: Any) -> None:
    """Write readable JSON (UTF-8); numpy values become plain ones, NaN and infinity become null."""
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with writing(path, "w") as stream:
        stream.write(text + "\n")


def write_csv(path: AnyPath, header: Sequence[str], rows: Iterable[Sequence[Any]], *, delimiter: str = ",") -> None:
    """Write a table (UTF-8, commas or another `delimiter`, one line feed per row); None and NaN become empty cells."""
    with writing(path, "w") as stream:
        table = csv.writer(stream, lineterminator="\n", delimiter=delimiter)
        table.writerow(header)
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"The table has {len(header)} columns, this row has {len(row)}: {row!r}.")
            table.writerow(["" if cell is None else cell for cell in map(_plain, row)])


def prepare_folder(path: AnyPath) -> Path:
    """Create the folder (and its parents) if need be and prove that files can be made in it.

    Raises UsageError when a file stands in its place, OutputError when it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise _in_its_place(folder) from error
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def check_writable(path: AnyPath, need_bytes: int = 0) -> Path:
    """Prove that files can be made in the folder, or in the nearest one above it that is there, and that `need_bytes` more fit.

    Nothing is created.  Raises UsageError when a file stands in its place, OutputError when it cannot be written to.
    """
    folder = Path(path)
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
        free = shutil.disk_usage(nearest).free
    except NotADirectoryError as error:
        raise _in_its_place(folder) from error
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if free < need_bytes:
        raise OutputError(
            f"The disk of '{folder}' is too full: up to {_size(need_bytes)} may be needed, {_size(free)} are free.",
            tip="Free some space or choose an output folder on another disk.",
        )
    return folder


def _create(part: Path, mode: str) -> IO[Any]:
    """A new file, with the rights that new files have here."""
    if "b" in mode:
        return open(part, "xb")
    return open(part, "x", encoding="utf-8", errors="backslashreplace", newline="")  # names of files may be no UTF-8; JSON reads \udcfc as it was


def _to_disk(stream: IO[Any]) -> None:
    """fsync, where the file system knows what that is."""
    try:
        os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _in_its_place(folder: Path) -> UsageError:
    file = next((place for place in (folder, *folder.parents) if os.path.lexists(place) and not place.is_dir()), folder)
    where = "a file of that name is in its place" if file == folder else f"'{file}' is a file"
    return UsageError(f"The output folder '{folder}' cannot be made: {where}.", tip="Choose another output.")


def _cannot_write(path: AnyPath, error: OSError) -> OutputError:
    reasons = {
        errno.ENOSPC: ("the disk is full", "Free some space or choose an output folder on another disk."),
        errno.EDQUOT: ("the disk quota is used up", "Free some space or choose an output folder on another disk."),
        errno.EACCES: ("permission denied", "Choose a folder that belongs to you."),
        errno.EPERM: ("permission denied", "Choose a folder that belongs to you."),
        errno.EROFS: ("the file system is read-only", "Choose another output folder."),
        errno.ENOENT: ("its folder does not exist", "Create the folder first."),
    }
    reason, tip = reasons.get(error.errno or 0, ((error.strerror or str(error)).lower(), None))
    return OutputError(f"'{path}' cannot be written: {reason}.", tip=tip)


def _plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
