"""DICOM files written from volumes, slice by slice, so that tests can spoil one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from clseg.volume import Volume

ROOT = "1.2.826.0.1.3680043.8.498"
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
Change = Callable[[int, Dataset], object]


def unchanged(number: int, image: Dataset) -> None:
    """Leaves every image as it is; a change that returns False leaves the image out."""


def marked(**values: object) -> Change:
    """A change that sets these elements in every image."""

    def mark(number: int, image: Dataset) -> None:
        for name, value in values.items():
            setattr(image, name, value)

    return mark


def in_study(number: int, image: Dataset) -> None:
    """A change that gives every image what results refer to: a patient, a study and a frame of reference, and devices that nobody else needs to know."""
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Doe^Jane", "P-7", "19510203", "F"
    image.StudyInstanceUID, image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = f"{ROOT}.500", "S5", "A6", "Roe^Richard"
    image.StudyDate, image.StudyTime, image.SeriesDate, image.SeriesTime = "20210304", "101112", "20210304", "101500"
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = f"{ROOT}.600", ""
    image.Manufacturer, image.InstitutionName, image.PatientComments = "Scanners Inc", "St. Elsewhere", "secret"


def write_series(folder: Path, volume: Volume, change: Change = unchanged, *, series: int = 1, slope: float = 1.0, intercept: float = -1024.0) -> list[Path]:
    """One file per k of `volume` (HU, RAS+ affine), stored as 32-bit integers; `change(k, dataset)` spoils them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for k in range(volume.shape[2]):
        image = one_slice(volume, k, series=series, slope=slope, intercept=intercept)
        if change(k, image) is not False:
            written.append(folder / f"{series}-{k:03d}.dcm")
            image.save_as(written[-1], enforce_file_format=True)
    return written


def one_slice(volume: Volume, k: int, *, series: int = 1, slope: float = 1.0, intercept: float = -1024.0) -> Dataset:
    image = _image(CT, f"{ROOT}.{series}.{k + 1}", volume)
    image.SeriesInstanceUID, image.SeriesNumber, image.InstanceNumber = f"{ROOT}.{series}", series, k + 1
    image.SeriesDescription, image.Modality, image.ImageType = f"Thorax {series}", "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    position, orientation, spacing = place_of(volume, k)
    image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing = position, orientation, spacing
    image.RescaleSlope, image.RescaleIntercept = slope, intercept
    store(image, volume.array[:, :, k].T[None], slope, intercept)
    return image


def write_enhanced(file: Path, volume: Volume, change: Callable[[Dataset], object] = lambda image: None, *, order: list[int] | None = None) -> Path:
    """One multi-frame CT; frames in `order`; even frames have slope 1, odd ones 0.5."""
    order = list(range(volume.shape[2])) if order is None else order
    image = _image(ENHANCED_CT, f"{ROOT}.9.1", volume)
    image.SeriesInstanceUID, image.SeriesNumber, image.Modality = f"{ROOT}.9", 9, "CT"
    image.NumberOfFrames, image.ImageType = len(order), ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = _item("PixelSpacing", place_of(volume, 0)[2]), _item("ImageOrientationPatient", place_of(volume, 0)[1])
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    groups, frames = [], []
    for k in order:
        group, slope = Dataset(), 0.5 if k % 2 else 1.0
        group.PlanePositionSequence = _item("ImagePositionPatient", place_of(volume, k)[0])
        group.PixelValueTransformationSequence = _item("RescaleSlope", slope)
        group.PixelValueTransformationSequence[0].RescaleIntercept = -1024
        groups.append(group)
        frames.append(np.rint((volume.array[:, :, k].T + 1024.0) / slope))
    image.PerFrameFunctionalGroupsSequence = Sequence(groups)
    store(image, np.array(frames), 1.0, 0.0)
    change(image)
    image.save_as(file, enforce_file_format=True)
    return file


def store(image: Dataset, hu: np.ndarray, slope: float, intercept: float, bits: int = 32) -> None:
    """Stored values of HU (frames, rows, columns), signed."""
    image.BitsAllocated = image.BitsStored = bits
    image.HighBit, image.PixelRepresentation = bits - 1, 1
    image.PixelData = np.rint((hu.astype(float) - intercept) / slope).astype(f"<i{bits // 8}").tobytes()


def place_of(volume: Volume, k: int) -> tuple[list[str], list[str], list[str]]:
    """Position, orientation and pixel spacing of a slice as DICOM's decimal strings (at most 16 characters)."""
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    directions = (lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)).T.ravel()
    return _decimals(lps @ [0, 0, k, 1], 3), _decimals(directions), _decimals([volume.spacing[1], volume.spacing[0]])


def _decimals(numbers, count: int | None = None) -> list[str]:
    return [f"{number:.10f}"[:16] for number in list(numbers)[:count]]


def _image(kind: str, uid: str, volume: Volume) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = kind
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
    image.Columns, image.Rows = volume.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    return image


def _item(name: str, value: object) -> Sequence:
    item = Dataset()
    setattr(item, name, value)
    return Sequence([item])
