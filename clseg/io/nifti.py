"""NIfTI: read a scan with everything its header says about the grid, write masks on exactly that grid."""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from clseg.errors import InputError, OutputError, UsageError
from clseg.io.files import AnyPath, existing, writing
from clseg.io.labels import Labels, to_xml
from clseg.io.voxels import Piece, as_bytes, as_ids, fortran, gzipped, id_type, slabs, slabs_of, structure_slabs
from clseg.spatial.crop import Box
from clseg.spatial.runs import LabelRuns
from clseg.volume import Header, Volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

try:
    from isal import igzip, isal_zlib
except ImportError:  # isal only makes it faster
    igzip = isal_zlib = None

_DESCRIPTION = b"clseg"
_SLAB_BYTES = 1 << 20
_MOST_EXTENSION_BYTES = 1 << 26
_BEST_RATIO = 1100  # deflate cannot shrink more than 1032 times
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, *(() if isal_zlib is None else (isal_zlib.error,)))

_silent = logging.Logger("clseg.nifti", level=logging.CRITICAL + 1)


# ---- reading ----------------------------------------------------------------------------------------------------------


def read_nifti(path: AnyPath) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, compressed or not, whatever its name.

    The array keeps its integer type where the header scales nothing, otherwise it is float32 with slope and intercept
    applied; it is in Fortran order as in the file.  The affine is the sform where its code is above 0, else the qform,
    else the voxel size (orientation then follows nibabel's convention and is a guess).  Axes behind the third are
    dropped when they have length 1.

    Raises UsageError when there is no file, InputError when it is damaged or not one 3-D scan of plain numbers.
    """
    path = existing(path)
    with _opened(path) as stream:
        header = _header(stream, path)
        shape = _shape(header, path)
        dtype = _dtype(header, path)
        with np.errstate(all="ignore"):  # damaged numbers are noticed in their results
            affine, grid = _geometry(header, path)
        array = _voxels(stream, header, shape, dtype, path)
    return Volume(_scaled(array, header, path), affine, grid)


def extensions(path: AnyPath) -> list[bytes]:
    """The contents of the header extensions of a NIfTI file, in their order; empty for other files."""
    path = existing(path)
    try:
        with _opened(path) as stream:
            header = _header(stream, path)
            start = int(header["sizeof_hdr"])
            stream.seek(start)
            block = stream.read(min(_offset(header) - start, _MOST_EXTENSION_BYTES))
    except InputError:
        return []
    return _split_extensions(block, header.endianness)


def float32_or_integer(array: np.ndarray, path: AnyPath) -> np.ndarray:
    """The array as native integers or float32; InputError for types that hold no single number per voxel."""
    if array.dtype.kind in "iu":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)
    raise InputError(f"'{path}' holds voxels of type {array.dtype}, expected one HU value each.")


def refuse_many_volumes(shape: Sequence[int], path: AnyPath) -> None:
    """InputError when the axes behind the third hold more than one volume."""
    count = int(np.prod(shape[3:], dtype=np.int64))
    if count > 1:
        raise InputError(
            f"'{path}' holds {count} volumes ({' × '.join(map(str, shape))}), expected one 3-D scan.",
            tip="Split it and give one part: python -c \"import nibabel as nib; [nib.save(part, f'volume_{n}.nii.gz') "
            f"for n, part in enumerate(nib.four_to_three(nib.load('{path}')))]\"",
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a file; damage met while reading becomes an InputError."""
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                yield raw
                return
            unpack = gzip.GzipFile if igzip is None else igzip.IGzipFile
            with unpack(fileobj=raw, mode="rb") as stream:
                yield stream  # type: ignore[misc]
    except EOFError as error:
        raise _incomplete(path) from error
    except _DAMAGE as error:
        raise InputError(f"'{path}' is damaged: its compressed data cannot be unpacked.", tip="Copy or download the file again.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def _header(stream: BinaryIO, path: Path) -> Nifti1Header:
    """The checked header; nibabel mends small faults without a word."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    block = stream.read(540)
    if len(block) < 348:
        raise _incomplete(path) if block else InputError(f"'{path}' is empty.", tip="Copy or download the file again.")
    if block[4:7] == b"n+2" and len(block) == 540:
        kind, size = Nifti2Header, 540
    elif block[344:347] == b"n+1":
        kind, size = Nifti1Header, 348
    elif block[344:347] == b"ni1" or block[4:7] == b"ni2":
        raise InputError(f"'{path}' is the header of a two-file NIfTI (.hdr and .img), expected one .nii or .nii.gz file.", tip="Convert it with nibabel, fslchfiletype or dcm2niix.")
    else:
        raise InputError(f"'{path}' is not a NIfTI file.")
    try:
        header = kind(block[:size], check=False)
        header.check_fix(logger=_silent, error_level=40)
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"'{path}' has a damaged NIfTI header: {error}.") from error
    if not 0 <= float(header["vox_offset"]) < 2**40:  # also where it is no number
        raise InputError(f"'{path}' has a damaged NIfTI header: its voxels start at byte {float(header['vox_offset']):g}.")
    return header


def _shape(header: Nifti1Header, path: Path) -> tuple[int, int, int]:
    shape = tuple(int(length) for length in header.get_data_shape())
    if not shape or min(shape) < 1:
        raise InputError(f"'{path}' holds no voxels (its header says {' × '.join(map(str, shape)) or 'no axes'}).")
    if len(shape) < 3:
        raise InputError(f"'{path}' is a {len(shape)}-D picture ({' × '.join(map(str, shape))}), expected a 3-D scan.")
    refuse_many_volumes(shape, path)
    return shape[:3]


def _dtype(header: Nifti1Header, path: Path) -> np.dtype:
    """The type of a voxel in the file, with its byte order."""
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise InputError(f"'{path}' has a damaged NIfTI header: its data type {int(header['datatype'])} is unknown.") from error
    if dtype.fields is not None:
        raise InputError(f"'{path}' is a colour picture (RGB), expected one HU value per voxel.", tip="Export the CT itself, not a rendered or fused picture.")
    if dtype.kind not in "iuf":
        raise InputError(f"'{path}' holds {'complex numbers' if dtype.kind == 'c' else f'voxels of type {dtype}'}, expected one HU value per voxel.")
    return dtype


def _geometry(header: Nifti1Header, path: Path) -> tuple[np.ndarray, Header]:
    """The affine in use, and both transforms as the file has them."""
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = _qform(header)
    affine = sform if sform is not None else qform if qform is not None else header.get_base_affine()
    if not _usable(affine):
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        raise InputError(
            f"'{path}' has a damaged header: its voxels of {' × '.join(f'{edge:g}' for edge in edges)} mm lie on no usable grid (the affine cannot be inverted).",
            tip="Convert the scan again from its DICOM series.",
        )
    return affine, Header(qform, qform_code, sform, int(sform_code))


def _qform(header: Nifti1Header) -> tuple[np.ndarray | None, int]:
    """The qform and its code; (None, 0) for one that is unset or broken."""
    try:
        qform, code = header.get_qform(coded=True)
    except ValueError:  # the quaternion is longer than 1
        return None, 0
    return (qform, int(code)) if qform is not None and _usable(qform) else (None, 0)


def _usable(affine: np.ndarray) -> bool:
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.isfinite(affine).all() and edges.min() > 0 and abs(np.linalg.det(affine[:3, :3] / edges)) > 1e-6)


def _voxels(stream: BinaryIO, header: Nifti1Header, shape: tuple[int, int, int], dtype: np.dtype, path: Path) -> np.ndarray:
    """The stored numbers; all bytes up to the end are read, so that a wrong checksum is noticed."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    on_disk = path.stat().st_size
    if count > on_disk * (1 if stream.__class__.__module__ == "_io" else _BEST_RATIO):
        raise _incomplete(path)
    array = np.empty(shape, dtype, order="F")
    view = memoryview(array.reshape(-1, order="F").view(np.uint8))
    stream.seek(_offset(header))
    done = 0
    while done < count:
        got = stream.readinto(view[done : done + 4 * _SLAB_BYTES])  # type: ignore[attr-defined]
        if not got:
            raise _incomplete(path)
        done += got
    while stream.read(_SLAB_BYTES):
        pass
    return array


def _offset(header: Nifti1Header) -> int:
    """Where the voxels begin: never inside the header, whatever it says."""
    return max(int(header["vox_offset"]), int(header["sizeof_hdr"]) + 4)


def _scaled(array: np.ndarray, header: Nifti1Header, path: Path) -> np.ndarray:
    slope, inter = _scaling(header, path)
    if slope == 1 and inter == 0:
        return float32_or_integer(array, path)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = array.astype(np.float32)
        scaled *= np.float32(slope)
        scaled += np.float32(inter)
    return scaled


def _scaling(header: Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0, or none written at all (NaN), means that the values are as they are."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or (np.isnan(slope) and (np.isnan(inter) or inter == 0)):
        return 1.0, 0.0
    if not (np.isfinite(slope) and np.isfinite(inter)):
        raise InputError(
            f"'{path}' has a damaged NIfTI header: its values are to be taken {slope:g} times and raised by {inter:g}, expected two numbers.",
            tip="Convert the scan again from its DICOM series.",
        )
    return slope, inter


def _split_extensions(block: bytes, endianness: str) -> list[bytes]:
    """Contents of the extensions in the bytes between header and voxels."""
    order = "little" if endianness == "<" else "big"
    found, at = [], 4
    while block[:1] not in (b"", b"\x00") and at + 8 <= len(block):
        size = int.from_bytes(block[at : at + 4], order)
        if size < 8:
            break
        found.append(block[at + 8 : at + size].rstrip(b"\x00"))
        at += size
    return found


def _incomplete(path: Path) -> InputError:
    return InputError(f"'{path}' is incomplete: it ends before its last voxel.", tip="Copy or download the file again.")


# ---- writing ----------------------------------------------------------------------------------------------------------


def write_mask(path: AnyPath, array: np.ndarray, like: Volume, *, labels: Labels | None = None) -> None:
    """Write a mask or label map as NIfTI-1 on exactly the grid of `like`, atomically.

    `array` (i, j, k) holds booleans or ids 0…65535 and has the shape of `like`; Fortran order is fastest.  The file is
    uint8 (uint16 when there are ids above 255), has the affine, qform and sform of `like` with their codes, and nothing
    else of its header.  `labels` (id → name, colour) is embedded as a header extension.  The same input gives the same
    bytes.  Names end in `.nii.gz`, or `.nii` for an uncompressed file.

    Raises UsageError for another ending, InputError for an array that does not fit, OutputError when it cannot be written.
    """
    voxels = as_ids(like.like(array).array, top=max(labels, default=0) if labels else 0)
    _write(path, voxels.dtype, slabs(voxels), like, labels)


def write_label_map(path: AnyPath, parts: Iterable[np.ndarray], like: Volume, labels: Labels) -> None:
    """Write a label map that comes in `parts` (i, j, n), some slices at a time, as `write_mask` would write the whole; errors as there."""
    dtype = id_type(max(labels, default=0))
    _write(path, dtype, slabs_of(parts, dtype), like, labels)


def write_structure(path: AnyPath, labels: np.ndarray | LabelRuns, id: int, box: Box, like: Volume) -> None:
    """Write the mask of one structure of a label map, like `write_mask` of `labels == id`; errors as there.

    `labels` (i, j, k) has the shape of `like` and holds `id` in `box` alone, so that no more than the slices of the box
    is looked at: many structures cost little more than one.
    """
    if labels.shape != like.shape:
        raise InputError(f"Expected an array of shape {like.shape} on this grid, given {labels.shape}.")
    _write(path, np.dtype(np.uint8), structure_slabs(labels, id, box), like, None)


def write_volume(path: AnyPath, volume: Volume) -> None:
    """Write a scan (int16 or float32 voxels) as NIfTI-1 on its own grid, atomically; errors as for `write_mask`."""
    if volume.array.dtype not in (np.int16, np.float32):
        raise InputError(f"A scan is written as int16 or float32, this array holds {volume.array.dtype}.")
    voxels = fortran(volume.array, volume.array.dtype.newbyteorder("<"))
    _write(path, voxels.dtype, slabs(voxels), volume, None)


def _write(path: AnyPath, dtype: np.dtype, voxels: Iterable[Piece], like: Volume, labels: Labels | None) -> None:
    name = os.fspath(path).lower()
    if not name.endswith((".nii.gz", ".nii")):
        raise UsageError(f"'{path}' cannot be written: a NIfTI file's name ends in .nii.gz or .nii.")
    pieces = chain([_header_bytes(dtype, like, labels)], voxels)
    with writing(path) as stream:
        for piece in map(as_bytes, pieces) if name.endswith(".nii") else gzipped(pieces):
            stream.write(piece)


def _header_bytes(dtype: np.dtype, like: Volume, labels: Labels | None) -> bytes:
    """All bytes before the voxels: header, extension flag, extension."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.spatialimages import HeaderDataError

    extension = b"" if not labels else _extension(to_xml(labels))
    header = Nifti1Header(endianness="<")
    try:
        header.set_data_shape(like.shape)
    except HeaderDataError as error:
        raise OutputError(f"A NIfTI-1 file cannot hold {' × '.join(map(str, like.shape))} voxels (at most 32767 along an axis).") from error
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm")
    header["magic"] = b"n+1"
    header["vox_offset"] = 352 + len(extension)
    header["descrip"] = _DESCRIPTION
    header["scl_slope"], header["scl_inter"] = 1, 0
    _place(header, like)
    return header.binaryblock + (b"\x01\0\0\0" if extension else b"\0\0\0\0") + extension


def _place(header: Nifti1Header, like: Volume) -> None:
    """Set voxel size, qform and sform so that the mask lies where `like` lies."""
    grid = like.header
    if grid is None or not _describes(grid, like):
        sheared = np.abs(_cosines(like.affine) - np.eye(3)).max() > 1e-3
        grid = Header(like.affine, 0 if sheared else 1, like.affine, 1)  # a qform cannot hold shears
    header.set_zooms(like.spacing)
    if grid.qform is not None:
        header.set_qform(grid.qform, grid.qform_code)  # sets the voxel size too
    header.set_sform(grid.sform, grid.sform_code)


def _describes(grid: Header, like: Volume) -> bool:
    """False for a header left over from another grid."""
    used = grid.sform if grid.sform_code > 0 else grid.qform if grid.qform_code > 0 else _base_affine(like)
    return used is not None and np.allclose(used, like.affine, rtol=1e-4, atol=1e-3)


def _base_affine(like: Volume) -> np.ndarray:
    """What a reader makes of shape and voxel size alone."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_shape(like.shape)
    header.set_zooms(like.spacing)
    return header.get_base_affine()


def _cosines(affine: np.ndarray) -> np.ndarray:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return axes.T @ axes


def _extension(content: bytes) -> bytes:
    """A header extension of kind 0, filled up with blanks, which XML allows, to a multiple of 16 bytes."""
    content += b" " * (-(len(content) + 8) % 16)
    return (len(content) + 8).to_bytes(4, "little") + (0).to_bytes(4, "little") + content
