"""Thousands of damaged files: each ends with a scan or with one sentence, quickly, in little memory, and leaves nothing behind."""

from __future__ import annotations

import gzip
import resource
import struct
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from clseg.errors import ClsegError
from clseg.io.check import check
from clseg.io.files import read
from clseg.phantom import small_phantom
from clseg.spatial.orthonormal import to_orthonormal
from clseg.volume import Volume
from tests.dicom_files import marked, store, write_enhanced, write_series

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's, which would litter the terminal

LIMIT_BYTES = 2 << 30
LIMIT_SECONDS = 10.0
Random = np.random.Generator

NUMBERS = [0, 1, -1, 2, 3, 7, 255, 256, 32767, -32768, 65535, 10**9, -(10**9), 0.5, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), -float("inf")]
NIFTI_FIELDS = (
    "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "qform_code", "sform_code",
    "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z", "magic", "sizeof_hdr",
)  # fmt: skip
DICOM_FIELDS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "Modality", "SeriesNumber", "SeriesInstanceUID",
    "SOPInstanceUID", "ImageType", "InstanceNumber", "PixelData", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
)  # fmt: skip


def ct(shape=(10, 9, 8)) -> Volume:
    volume, _ = small_phantom()
    j, k = ((length - part) // 2 for length, part in zip(volume.shape[1:], shape[1:], strict=True))
    return Volume(volume.array[2 : 2 + shape[0], j : j + shape[1], k : k + shape[2]], np.diag([-3.0, -3, 3, 1]))


# ---- what is done to files --------------------------------------------------------------------------------------------


def flipped(content: bytes, random: Random, within: int | None = None) -> bytes:
    """One to twenty bytes replaced, somewhere or near the beginning."""
    spoilt = bytearray(content)
    for at in random.integers(0, min(within or len(spoilt), len(spoilt)), random.integers(1, 21)):
        spoilt[at] = random.choice([0, 1, 127, 128, 255, random.integers(256)])
    return bytes(spoilt)


def cut(content: bytes, random: Random) -> bytes:
    return content[: random.integers(0, len(content))]


def stuffed(content: bytes, random: Random) -> bytes:
    """Bytes taken out or put in, so that everything behind is shifted."""
    at, count = int(random.integers(0, len(content))), int(random.integers(1, 64))
    return content[:at] + content[at + count :] if random.random() < 0.5 else content[:at] + random.bytes(count) + content[at:]


def nifti(random: Random) -> bytes:
    """A NIfTI file with one to three fields of its header set to something else."""
    image = nib.Nifti1Image(ct().array, ct().affine)
    block = bytearray(image.header.binaryblock)
    fields = nib.Nifti1Header().structarr.dtype.fields
    for name in random.choice(NIFTI_FIELDS, random.integers(1, 4)):
        kind, offset = fields[name][:2]
        base, places = kind.base, max(1, int(np.prod(kind.shape)))
        at = offset + base.itemsize * int(random.integers(places))
        value = NUMBERS[random.integers(len(NUMBERS))]
        with np.errstate(all="ignore"):
            block[at : at + base.itemsize] = random.bytes(base.itemsize) if base.kind == "S" else _packed(base, value)
    return bytes(block) + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")


def _packed(kind: np.dtype, value: float) -> bytes:
    if kind.kind == "f":
        return np.array(value, np.float64).astype(kind).tobytes()
    whole = 0 if value != value else int(np.clip(value, -(2**31), 2**31 - 1))
    return struct.pack("<q", whole)[: kind.itemsize]


def compressed(content: bytes, random: Random) -> bytes:
    return gzip.compress(content, 1)


def spoil_dicom(file: Path, random: Random) -> None:
    """One to three elements of a DICOM file set to something else, deleted, or the name of its compression changed."""
    image = dcmread(file)
    for name in random.choice(DICOM_FIELDS, random.integers(1, 4)):
        if random.random() < 0.15:
            image.file_meta.TransferSyntaxUID = random.choice([JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless, "1.2.3.4", "1.2.840.10008.1.2.2"])
        elif name not in image or random.random() < 0.2:
            image.pop(name, None)
        else:
            image[name]._value = _other(image[name].value, random)
    try:
        image.save_as(file)
    except Exception:  # what pydicom cannot write is spoilt byte by byte instead
        file.write_bytes(flipped(file.read_bytes(), random))


def _other(value: object, random: Random) -> object:
    number = NUMBERS[random.integers(len(NUMBERS))]
    if isinstance(value, bytes):
        return value[: random.integers(0, len(value))]
    if isinstance(value, int):
        return int(np.clip(np.nan_to_num(number), 0, 65535))
    if isinstance(value, str):
        return random.choice(["", "x", "1.2.3", "\\\\", "MR", "RGB", "9" * 70])
    if hasattr(value, "append"):
        return value[: random.integers(0, len(value))] if random.random() < 0.4 else [str(number)] * len(value)
    return str(number)


# ---- what must come of it ---------------------------------------------------------------------------------------------


@contextmanager
def little_memory() -> Iterator[None]:
    """From here on the process may take 2 GiB more than it has; more is a MemoryError, which no reader may raise."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(path: Path) -> str:
    """'read', or the class of the error, whose message must be one sentence."""
    began, result, message = time.monotonic(), "read", "fine"
    try:
        checked = check(read(path))
        if checked.needs_orthonormal:
            to_orthonormal(checked.volume)
    except ClsegError as error:
        result, message = type(error).__name__, error.message
    assert time.monotonic() - began < LIMIT_SECONDS
    assert message.strip()
    assert "\n" not in message, message
    return result


@pytest.fixture
def tidy(tmp_path, monkeypatch, capfd) -> Iterator[Path]:
    """A folder to work in; afterwards nothing may have been left in the folder of temporary files, or said on the terminal."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    read_once(tmp_path)
    with little_memory():
        yield tmp_path
    assert list(place.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def read_once(folder: Path) -> None:
    """Everything that readers import is loaded before memory is limited."""
    import SimpleITK  # noqa: F401

    nib.save(nib.Nifti1Image(ct().array, ct().affine), folder / "sound.nii.gz")
    write_series(folder / "sound", ct())
    assert outcome(folder / "sound.nii.gz") == outcome(folder / "sound") == "read"


def fuzz(count: int, seed: int, make: Callable[[int, Random], Path]) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(count):
        random = np.random.default_rng([seed, number])
        path = make(number, random)
        try:
            found[outcome(path)] += 1
        except AssertionError:
            raise
        except BaseException as error:
            raise AssertionError(f"file {number} of seed {seed} ({path}): {type(error).__name__}: {error}") from error
    return found


@pytest.mark.slow
def test_nifti_files_with_spoilt_headers(tidy):
    """1000 files with fields out of all bounds, bytes flipped, cut off or shifted, plain and compressed: some are read, some refused, none does harm."""

    def make(number: int, random: Random) -> Path:
        content = nifti(random) if number % 2 else nib.Nifti1Image(ct().array, ct().affine).to_bytes()
        for harm in random.choice([flipped, cut, stuffed, compressed], random.integers(0 if number % 2 else 1, 3), replace=False):
            content = harm(content, random, 352) if harm is flipped and random.random() < 0.7 else harm(content, random)
        path = tidy / "ct.nii.gz"
        path.write_bytes(content)
        return path

    found = fuzz(1000, 1, make)
    assert min(found["read"], found["InputError"]) > 100


@pytest.mark.slow
def test_dicom_series_with_one_spoilt_slice(tidy):
    """800 series of three slices of which one is spoilt in its elements or bytes."""
    sound = [file.read_bytes() for file in write_series(tidy / "series", ct((8, 8, 3)))]

    def make(number: int, random: Random) -> Path:
        for k, content in enumerate(sound):
            (tidy / "series" / f"1-{k:03d}.dcm").write_bytes(content)
        file = tidy / "series" / f"1-{random.integers(len(sound)):03d}.dcm"
        if number % 2:
            spoil_dicom(file, random)
        else:
            file.write_bytes(random.choice([flipped, cut, stuffed])(file.read_bytes(), random))
        return tidy / "series"

    found = fuzz(800, 2, make)
    assert min(found["read"], found["InputError"]) > 50


@pytest.mark.slow
def test_dicom_series_with_all_slices_spoilt_alike(tidy):
    """300 series whose slices all have the same strange elements, so that nothing is left out as odd."""
    sound = [file.read_bytes() for file in write_series(tidy / "series", ct((8, 8, 3)))]

    def make(number: int, random: Random) -> Path:
        seed = int(random.integers(2**31))
        for k, content in enumerate(sound):
            file = tidy / "series" / f"1-{k:03d}.dcm"
            file.write_bytes(content)
            spoil_dicom(file, np.random.default_rng(seed))
        return tidy / "series"

    found = fuzz(300, 3, make)
    assert min(found["read"], found["InputError"]) > 20


@pytest.mark.slow
def test_compressed_dicom_with_spoilt_pixels(tidy):
    """200 series of RLE slices and slices that claim to be JPEG, with bytes flipped in their pixels."""

    def packed(k, image):
        store(image, ct((8, 8, 3)).array[:, :, k].T[None], 1, -1024, 16)
        image.compress(RLELossless)

    sound = [file.read_bytes() for file in write_series(tidy / "series", ct((8, 8, 3)), packed)]

    def make(number: int, random: Random) -> Path:
        for k, content in enumerate(sound):
            (tidy / "series" / f"1-{k:03d}.dcm").write_bytes(content)
        file = tidy / "series" / "1-001.dcm"
        if number % 4 == 0:
            image = dcmread(file)
            image.file_meta.TransferSyntaxUID = random.choice([JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless])
            image.save_as(file)
        content = file.read_bytes()
        file.write_bytes(content[:-150] + flipped(content[-150:], random))
        return tidy / "series"

    assert sum(fuzz(200, 4, make).values()) == 200


@pytest.mark.slow
def test_enhanced_files_and_archives(tidy):
    """200 multi-frame files and 100 zip archives, spoilt in elements or bytes."""
    sound = write_enhanced(tidy / "enhanced.dcm", ct((8, 8, 5))).read_bytes()
    with zipfile.ZipFile(tidy / "sound.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in write_series(tidy / "series", ct((8, 8, 3)), marked(SeriesNumber=4)):
            archive.write(file, file.name)
    packed = (tidy / "sound.zip").read_bytes()

    def make(number: int, random: Random) -> Path:
        path = tidy / "spoilt"
        path.write_bytes(sound if number % 3 else packed)
        if number % 3 == 1:
            spoil_dicom(path, random)
        else:
            path.write_bytes(random.choice([flipped, cut, stuffed])(path.read_bytes(), random))
        return path

    found = fuzz(300, 5, make)
    assert found["InputError"] > 50
