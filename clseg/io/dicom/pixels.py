"""Pixels: stored values of DICOM images, compressed or not, as HU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clseg.errors import InputError
from clseg.io.dicom.headers import Bounded, Slice, damage_told

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MOST_PIXELS = 4096 * 4096  # of one image
_BEST_RATIO = 1000  # decoded bytes per byte in the file, above what is always allowed
_ALWAYS_BYTES = 1 << 28
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # a plain picture: GDCM does not rescale its values
_TAGS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "PixelData")


class Decoder:
    """Decodes images; the frames of the file that was read last are kept, for a multi-frame file is decoded once."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._frames = np.empty((0, 0, 0))

    def hu(self, one: Slice) -> np.ndarray:
        """The image in HU, (rows, columns): int16 or int32 where slope and intercept are whole, else float32.

        Raises InputError for colour, damaged pixels and images of an absurd size.
        """
        if one.path != self._path:
            self._frames, self._path = _frames(one.path), one.path
        if one.frame >= len(self._frames) or self._frames.shape[1:] != one.size[::-1]:
            raise InputError(f"The DICOM file '{one.path}' is damaged: it does not hold the images that it announces.", tip="Export or copy the series again.")
        return _scaled(self._frames[one.frame], one.slope, one.intercept)


def _frames(path: Path) -> np.ndarray:
    """All stored values of a file, (frames, rows, columns)."""
    from pydicom import dcmread
    from pydicom.pixels import get_decoder

    with damage_told(path):
        with Bounded(path) as stream:
            file = dcmread(stream, force=True)
        _refuse_absurd(file, path)
        syntax = file.file_meta.get("TransferSyntaxUID") if hasattr(file, "file_meta") else None
        if syntax is None:  # files of old
            file.file_meta.TransferSyntaxUID = syntax = "1.2.840.10008.1.2"
        try:
            known = get_decoder(syntax).is_available
        except NotImplementedError:
            known = syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
        array = file.pixel_array if known else _by_gdcm(file)
        return array.reshape(-1, int(file.Rows), int(file.Columns))


def _refuse_absurd(file: Dataset, path: Path) -> None:
    if int(file.get("SamplesPerPixel", 1)) != 1:
        raise InputError(f"The DICOM file '{path}' is a colour picture, expected one HU value per pixel.", tip="Give the CT itself, not a rendered picture.")
    pixels, frames = int(file.Rows) * int(file.Columns), int(file.get("NumberOfFrames") or 1)
    if not 0 < pixels <= _MOST_PIXELS or frames * pixels * 2 > max(_ALWAYS_BYTES, _BEST_RATIO * path.stat().st_size):
        raise InputError(f"The DICOM file '{path}' announces {frames} images of {file.Columns} × {file.Rows} pixels, which it cannot hold.", tip="Export or copy the series again.")


def _by_gdcm(file: Dataset) -> np.ndarray:
    """What pydicom alone cannot decode (JPEG, JPEG-LS, JPEG 2000), through SimpleITK from a copy that has pixels and nothing else."""
    import SimpleITK as sitk
    from pydicom.dataset import Dataset, FileMetaDataset

    copy = Dataset()
    for name in _TAGS:
        if name in file:
            copy[name] = file[name]
    copy.SOPClassUID, copy.SOPInstanceUID = _SECONDARY_CAPTURE, "1.2.3"
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = file.file_meta.TransferSyntaxUID
    copy.file_meta.MediaStorageSOPClassUID, copy.file_meta.MediaStorageSOPInstanceUID = _SECONDARY_CAPTURE, "1.2.3"
    with tempfile.TemporaryDirectory(prefix="clseg-") as folder, _mute():
        copy.save_as(Path(folder, "image.dcm"), enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder, "image.dcm")), imageIO="GDCMImageIO"))


@contextmanager
def _mute() -> Iterator[None]:
    """ITK warns, and the JPEG libraries in GDCM write to the process's stderr, past Python; not while we decode."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    try:
        stderr = os.dup(2)
    except OSError:  # closed: nobody is disturbed
        yield
        return
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """stored × slope + intercept in the smallest type that holds it."""
    ends = [float(end) * slope + intercept for end in (stored.min(), stored.max())]
    whole = stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer()
    if not whole or max(map(abs, (*ends, slope, intercept))) >= 2**31:
        with np.errstate(over="ignore", invalid="ignore"):  # damaged numbers are noticed in their results
            return (stored * np.float64(slope) + intercept).astype(np.float32)
    values = stored.astype(np.int64) * int(slope) + int(intercept)
    return values.astype(np.int16 if min(ends) >= -(2**15) and max(ends) < 2**15 else np.int32)
