"""DICOM: one CT out of a folder, a zip archive or a multi-frame file.

`headers` finds images and reads what they say, `series` chooses which belong to the scan, `stack` puts them in
order and onto an even, straight grid, `pixels` decodes them to HU, `unpack` opens archives safely.
"""

from __future__ import annotations

from pathlib import Path

from clseg.errors import InputError
from clseg.io.dicom.headers import Slice, dicom_files, headers, images
from clseg.io.dicom.series import choose
from clseg.io.dicom.stack import build
from clseg.io.dicom.unpack import unpacked
from clseg.io.finding import WARNING, Finding, Found, unheard
from clseg.io.listing import files_in, told
from clseg.volume import Volume

__all__ = ["read_dicom_file", "read_dicom_folder", "read_dicom_zip", "source_images"]


def read_dicom_folder(folder: Path, *, series: str | None = None, found: Found = unheard, called: Path | None = None) -> Volume:
    """The CT in a folder and the folders in it: the series that `series` (UID or number) names, or that the rule of `series.choose` takes.

    `called` is how the user knows the folder.  Raises UsageError when no series is called so, InputError when there is
    no usable CT.
    """
    return build(source_images(folder, series=series, found=found, called=called), called or folder, found)


def source_images(folder: Path, *, series: str | None = None, found: Found = unheard, called: Path | None = None) -> tuple[Slice, ...]:
    """The images that `read_dicom_folder` makes its volume of, in no order; errors as there."""
    called = called or folder
    files = dicom_files(folder)
    if not files:
        tip = "Give the folder that holds the slices; of NIfTI, NRRD and MetaImage the file itself."
        there = f"; it holds {told(files_in(folder))}" if called == folder else ""  # of an archive DICOM alone is unpacked
        raise InputError(f"'{called}' holds no DICOM series{there}.", tip=tip)
    damaged: list[Path] = []
    slices = headers(files, damaged.append)
    if damaged:
        names = ", ".join(file.name for file in damaged[:3]) + (", …" if len(damaged) > 3 else "")
        found(Finding(WARNING, "files", f"{len(damaged)} of {len(files)} DICOM files {'is' if len(damaged) == 1 else 'are'} damaged and {'was' if len(damaged) == 1 else 'were'} left out ({names}).", "Export or copy the series again."))
    return choose(slices, called, series=series, found=found)


def read_dicom_zip(archive: Path, *, series: str | None = None, found: Found = unheard) -> Volume:
    """The same for a zip archive, which is unpacked into a temporary folder; InputError for archives that are damaged or traps."""
    with unpacked(archive) as folder:
        return read_dicom_folder(folder, series=series, found=found, called=archive)


def read_dicom_file(file: Path, *, series: str | None = None, found: Found = unheard) -> Volume:
    """A multi-frame (enhanced) CT; InputError for a file with a single image, which is no scan."""
    slices = images(file)
    if len(slices) < 2:
        what = "a single DICOM image" if slices else "a DICOM file without an image"
        raise InputError(f"'{file}' is {what}, expected a series or a multi-frame CT.", tip="Give the folder that holds the series instead of one file.")
    return build(choose(slices, file, series=series, found=found), file, found)
