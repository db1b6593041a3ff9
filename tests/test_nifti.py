"""NIfTI files are read with their whole grid, and masks are written on exactly that grid."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.errors import InputError, OutputError, UsageError
from clseg.io import files, nifti, voxels
from clseg.io.labels import from_xml, read_label_names, to_xml
from clseg.io.nifti import read_nifti, write_mask, write_structure
from clseg.volume import Header, Volume

DATA = Path(__file__).parents[2] / "shared" / "data"
LABELS = {5: ("liver", (221, 130, 101)), 1: ("spleen", (157, 108, 162)), 200: ("gtv <&> ]]> ü", (0, 255, 51))}


def oblique(seed: int = 0, *, handed: int = 1) -> np.ndarray:
    """A rotated, anisotropic grid away from the origin, exact in float32."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    affine[:3, :3] = rotation * np.sign(np.linalg.det(rotation)) * handed * random.uniform(0.5, 5, 3)
    affine[:3, 3] = random.uniform(-300, 300, 3)
    return affine.astype(np.float32).astype(np.float64)


def scan(shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(1).integers(-1000, 1000, shape).astype(np.int16)


def saved(path: Path, array: np.ndarray, *, affine: np.ndarray | None = None, **fields: object) -> Path:
    """A NIfTI-1 file made by nibabel, with header fields set by name."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    codes = {name: int(fields.pop(name, 1)) for name in ("qform_code", "sform_code")}
    image.set_qform(image.affine, codes["qform_code"])
    image.set_sform(image.affine, codes["sform_code"])
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patched(path: Path, offset: int, content: bytes) -> Path:
    """The file with some bytes of its header overwritten."""
    whole = path.read_bytes()
    path.write_bytes(whole[:offset] + content + whole[offset + len(content) :])
    return path


# ---- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<u2", ">i4", "<f4", ">f8", "<i8"])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_numbers_come_back_in_native_types(tmp_path, dtype, ending):
    """Integers keep their type in native byte order, floats become float32, values and affine are those of nibabel."""
    array = (scan() % 100).astype(dtype)
    image = nib.Nifti1Image(array, oblique(), nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<"), dtype=array.dtype)
    nib.save(image, tmp_path / f"ct.{ending}")
    volume = read_nifti(tmp_path / f"ct.{ending}")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_array_equal(volume.affine, nib.load(tmp_path / f"ct.{ending}").affine)
    assert volume.array.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))
    assert volume.array.dtype.isnative


def test_nifti_2_is_read(tmp_path):
    """A NIfTI-2 file is read like a NIfTI-1 file."""
    nib.save(nib.Nifti2Image(scan(), oblique()), tmp_path / "ct.nii.gz")
    volume = read_nifti(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(volume.array, scan())
    np.testing.assert_array_equal(volume.affine, oblique())


@pytest.mark.parametrize(("slope", "inter", "dtype"), [(1, 0, np.int16), (0, 5, np.int16), (2, -3, np.float32), (1, -1024, np.float32)])
def test_slope_and_intercept(tmp_path, slope, inter, dtype):
    """Scaling is applied and gives float32; a neutral or unset one (slope 0) leaves the integers."""
    path = patched(saved(tmp_path / "ct.nii", scan()), 112, np.array([slope, inter], "<f4").tobytes())
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.array, scan() * slope + inter if slope else scan())
    assert volume.array.dtype == dtype


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("slope", "inter"), [(NAN, NAN), (NAN, 0), (0, NAN), (0, INF)])
def test_a_scaling_that_is_not_written_is_none(tmp_path, slope, inter):
    """NaN for both, as headers of nibabel have it before they are saved; beside a slope of 0 the intercept means nothing."""
    path = patched(saved(tmp_path / "ct.nii", scan()), 112, np.array([slope, inter], "<f4").tobytes())
    np.testing.assert_array_equal(read_nifti(path).array, scan())


@pytest.mark.parametrize(("slope", "inter"), [(INF, 0), (-INF, -1024), (INF, NAN), (1, NAN), (1, INF), (2, -INF), (NAN, -1024), (NAN, INF)])
def test_a_scaling_by_what_is_no_number_is_refused(tmp_path, slope, inter):
    """Nobody knows which HU are meant; the stored numbers are not taken for them."""
    path = patched(saved(tmp_path / "ct.nii", scan()), 112, np.array([slope, inter], "<f4").tobytes())
    with pytest.raises(InputError, match=f"damaged NIfTI header: its values are to be taken {slope:g} times and raised by {inter:g}, expected two numbers") as told:
        read_nifti(path)
    assert "DICOM" in told.value.tip


@pytest.mark.parametrize(("qform_code", "sform_code"), [(1, 2), (0, 3), (4, 0), (0, 0)])
def test_sform_then_qform_then_voxel_size(tmp_path, qform_code, sform_code):
    """The transform with a code counts, the sform first; the header says what the file had."""
    image = nib.Nifti1Image(scan(), None)
    image.header.set_zooms((1, 2, 3))
    q, s = oblique(1), oblique(2)
    if qform_code:
        image.header.set_qform(q, qform_code)
    image.header.set_sform(s, sform_code)
    nib.save(image, tmp_path / "ct.nii")
    volume = read_nifti(tmp_path / "ct.nii")
    expected = s if sform_code else q if qform_code else np.diag([-1, 2, 3, 1])
    np.testing.assert_allclose(volume.affine[:3, :3], expected[:3, :3], atol=1e-5)
    assert (volume.header.qform_code, volume.header.sform_code) == (qform_code, sform_code)
    assert (volume.header.qform is None, volume.header.sform is None) == (qform_code == 0, sform_code == 0)


def test_one_volume_in_four_dimensions_is_squeezed(tmp_path):
    """Axes of length 1 behind the third are dropped."""
    np.testing.assert_array_equal(read_nifti(saved(tmp_path / "ct.nii", scan()[..., None, None])).array, scan())


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (scan((4, 5, 6, 2)), r"holds 2 volumes \(4 × 5 × 6 × 2\)"),
        (scan((4, 5)), r"2-D picture \(4 × 5\)"),
        (np.zeros((4, 5, 6), np.complex64), "complex numbers"),
        (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour picture"),
    ],
)
def test_what_is_not_one_scan_of_numbers_is_refused(tmp_path, array, words):
    """More volumes, pictures, complex and colour voxels are InputErrors."""
    with pytest.raises(InputError, match=words):
        read_nifti(saved(tmp_path / "ct.nii.gz", array))


def test_hint_splits_a_4d_file(tmp_path, monkeypatch):
    """The command in the hint splits a 4-D file into readable parts."""
    path = saved(tmp_path / "ct.nii.gz", scan((4, 5, 6, 2)))
    with pytest.raises(InputError) as refusal:
        read_nifti(path)
    monkeypatch.chdir(tmp_path)
    exec(refusal.value.tip.split('"')[1])
    np.testing.assert_array_equal(read_nifti("volume_1.nii.gz").array, scan((4, 5, 6, 2))[..., 1])


@pytest.mark.parametrize(("offset", "content", "words"), [
    (42, b"\0\0", "no voxels"),
    (42, b"\xff\xff", "no voxels"),
    (42, b"\xff\x7f\xff\x7f\xff\x7f", "incomplete"),
    (70, b"\x01\x27", "data code|data type"),
    (280, bytes(48), "affine cannot be inverted"),
    (280, np.full(12, np.nan, "<f4").tobytes(), "affine cannot be inverted"),
    (344, b"ni1\0", "two-file"),
    (344, b"what", "not a NIfTI"),
    (108, np.float32(1e30).tobytes(), "start at byte"),
    (108, np.float32(np.nan).tobytes(), "start at byte"),
    (112, np.array([1, np.nan], "<f4").tobytes(), "damaged"),
])  # fmt: skip
def test_damaged_headers_are_refused(tmp_path, offset, content, words):
    """A header that makes no sense is an InputError of one sentence, not a crash and not terabytes of memory."""
    with pytest.raises(InputError, match=words):
        read_nifti(patched(saved(tmp_path / "ct.nii", scan()), offset, content))


@settings(max_examples=80, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=6), packed=st.booleans())
def test_any_bytes_in_the_header_give_a_volume_or_an_input_error(tmp_path_factory, changes, packed):
    """Whatever a fault does to header bytes, the reader answers with a Volume or an InputError."""
    path = saved(tmp_path_factory.mktemp("fuzz") / "ct.nii", scan((3, 4, 5)))
    whole = bytearray(path.read_bytes())
    for offset, value in changes:
        whole[offset] = value
    path.write_bytes(gzip.compress(whole) if packed else whole)
    try:
        answer: object = read_nifti(path)
    except InputError as refusal:
        answer = refusal
    assert isinstance(answer, (Volume, InputError))
    assert "\n" not in getattr(answer, "message", "")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.999])
def test_truncated_download_is_refused(tmp_path, monkeypatch, ending, part, fast):
    """A file cut anywhere, even in its last bytes, is an InputError."""
    if not fast:
        monkeypatch.setattr(nifti, "igzip", None)
    path = saved(tmp_path / f"ct.{ending}", scan((20, 20, 20)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=r"incomplete|damaged|empty|not a NIfTI"):
        read_nifti(path)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("where", [0.5, -6])
def test_flipped_bits_are_noticed(tmp_path, monkeypatch, fast, where):
    """A damaged byte in compressed data or in its checksum is an InputError, not a wrong voxel."""
    if not fast:
        monkeypatch.setattr(nifti, "igzip", None)
    path = saved(tmp_path / "ct.nii.gz", scan((20, 20, 20)))
    whole = bytearray(path.read_bytes())
    whole[where if where < 0 else int(len(whole) * where)] ^= 0x55
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"damaged|incomplete"):
        read_nifti(path)


def test_broken_qform_beside_a_good_sform_is_ignored(tmp_path):
    """A quaternion longer than 1 does not matter when the sform says where the scan lies."""
    path = patched(saved(tmp_path / "ct.nii", scan(), affine=oblique()), 256, np.full(3, 9, "<f4").tobytes())
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.affine, oblique())
    assert (volume.header.qform, volume.header.qform_code) == (None, 0)


def test_missing_file_is_a_mistake_of_the_call(tmp_path):
    """No file is a UsageError."""
    with pytest.raises(UsageError, match="no file or folder"):
        read_nifti(tmp_path / "ct.nii.gz")


# ---- writing ----------------------------------------------------------------------------------------------------------


def mask_like(volume: Volume) -> np.ndarray:
    return np.random.default_rng(2).random(volume.shape) < 0.3


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize(("qform_code", "sform_code"), [(1, 2), (0, 2), (1, 0), (0, 0), (3, 4)])
def test_mask_lies_on_the_grid_of_the_scan(tmp_path, ending, handed, qform_code, sform_code):
    """Shape, affine, matrices and codes of the mask are bit for bit those of the scan it was made for."""
    path = saved(tmp_path / "ct.nii.gz", scan(), affine=oblique(3, handed=handed), qform_code=qform_code, sform_code=sform_code)
    volume = read_nifti(path)
    write_mask(tmp_path / f"mask.{ending}", mask_like(volume), volume)
    ct, mask = nib.load(path), nib.load(tmp_path / f"mask.{ending}")
    assert mask.shape == ct.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, ct.affine)
    for form in ("get_qform", "get_sform"):
        (expected, code), (found, found_code) = getattr(ct, form)(coded=True), getattr(mask, form)(coded=True)
        assert found_code == code
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(mask.header.get_zooms(), ct.header.get_zooms(), rtol=1e-6)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), mask_like(volume))


def test_nothing_stale_is_carried_over(tmp_path):
    """Scaling, intent, display range, names and extensions of the scan do not reach the mask."""
    image = nib.Nifti1Image(scan().astype(np.float32), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"comment"))
    image.header["cal_max"], image.header["aux_file"], image.header["toffset"] = 400, b"other.nii", 7
    image.header.set_intent("z score", name="old")
    image.header.set_slope_inter(2, 5)
    nib.save(image, tmp_path / "ct.nii.gz")
    volume = read_nifti(tmp_path / "ct.nii.gz")
    write_mask(tmp_path / "mask.nii.gz", mask_like(volume), volume)
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert (header["scl_slope"], header["scl_inter"], header["cal_max"], header["toffset"]) == (1, 0, 0, 0) or np.isnan(header["scl_slope"])
    assert (header.get_intent(), bytes(header["aux_file"]).strip(b"\0"), list(header.extensions)) == (("none", (), ""), b"", [])
    assert header.get_xyzt_units() == ("mm", "unknown")


def test_volume_without_header_gets_both_forms(tmp_path):
    """A scan that came from another format gives a mask with qform and sform of code 1 at its affine."""
    volume = Volume(scan(), oblique())
    write_mask(tmp_path / "mask.nii.gz", mask_like(volume), volume)
    mask = nib.load(tmp_path / "mask.nii.gz")
    for matrix, code in (mask.get_qform(coded=True), mask.get_sform(coded=True)):
        np.testing.assert_allclose(matrix, oblique(), atol=1e-4)
        assert code == 1


def test_sheared_grid_keeps_its_shear(tmp_path):
    """A grid with a sheared affine is written as sform alone, for a qform cannot say it."""
    affine = np.eye(4)
    affine[0, 2] = 0.3
    volume = Volume(scan(), affine)
    write_mask(tmp_path / "mask.nii.gz", mask_like(volume), volume)
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    assert int(mask.header["qform_code"]) == 0


def test_header_of_another_grid_is_not_believed(tmp_path):
    """When header and affine disagree the mask lies where the affine says."""
    volume = Volume(scan(), oblique(), Header(np.eye(4), 1, np.eye(4), 1))
    write_mask(tmp_path / "mask.nii.gz", mask_like(volume), volume)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, oblique(), atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [(5, 6, 7), (120, 110, 100), (1, 1, 1)])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 99), order=st.sampled_from("FC"), top=st.sampled_from([1, 117, 255, 256, 60000]))
def test_every_reader_gets_the_labels_back(tmp_path_factory, shape, fast, seed, order, top):
    """nibabel, SimpleITK, our reader, gzip and a reader of a single gzip member agree on labels in a mostly empty map."""
    array = np.zeros(shape, np.int64, order)
    random = np.random.default_rng(seed)
    array[random.random(shape) < 0.001] = random.integers(0, top + 1)
    array[-1, -1, -1] = top
    path = tmp_path_factory.mktemp("mask") / "mask.nii.gz"
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(voxels, "isal_zlib", None)
        voxels._deflated_zeros.cache_clear()
        write_mask(path, array, Volume(array, np.diag([1.5, 1.5, 3, 1])))
    assert nib.load(path).get_data_dtype() == (np.uint8 if top <= 255 else np.uint16)
    np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), array)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0), array)
    np.testing.assert_array_equal(read_nifti(path).array, array)
    member = zlib.decompressobj(31)
    assert member.decompress(path.read_bytes()) == gzip.decompress(path.read_bytes())
    assert (member.eof, member.unused_data) == (True, b"")


def test_the_same_mask_gives_the_same_bytes(tmp_path):
    """File name, moment and memory order do not show in the file."""
    volume = Volume(scan(), oblique())
    labels = mask_like(volume) * 5
    write_mask(tmp_path / "one.nii.gz", np.asfortranarray(labels), volume, labels=LABELS)
    write_mask(tmp_path / "two.nii.gz", np.ascontiguousarray(labels), volume, labels=dict(reversed(LABELS.items())))
    one = (tmp_path / "one.nii.gz").read_bytes()
    assert one == (tmp_path / "two.nii.gz").read_bytes()
    assert one[3:8] == bytes(5)  # no name flag, time 0


def test_uncompressed_mask_is_the_unpacked_compressed_one(tmp_path):
    """`.nii` holds the bytes that `.nii.gz` compresses."""
    volume = Volume(scan(), oblique())
    for ending in ("nii", "nii.gz"):
        write_mask(tmp_path / f"mask.{ending}", mask_like(volume), volume, labels=LABELS)
    assert (tmp_path / "mask.nii").read_bytes() == gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("slab", [1, 50, 1 << 20])
def test_one_structure_of_a_label_map_is_its_mask(tmp_path, monkeypatch, ending, fast, order, slab):
    """Read by nibabel and SimpleITK, the file holds `labels == 5`: the slices outside the box, other labels and what an earlier slice left in the buffer are 0."""
    labels = np.zeros((5, 6, 7), np.uint16, order=order)
    labels[1:4, 2:4, 2] = labels[3, 3, 3] = labels[2, 5, 5] = 5
    labels[0, :, 3:5] = 300
    monkeypatch.setattr(voxels, "_SLAB_BYTES", slab)
    if not fast:
        monkeypatch.setattr(voxels, "isal_zlib", None)
    voxels._deflated_zeros.cache_clear()
    volume, path = Volume(scan(), oblique()), tmp_path / f"mask.{ending}"
    write_structure(path, labels, 5, (slice(1, 4), slice(2, 6), slice(2, 6)), volume)
    voxels._deflated_zeros.cache_clear()
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), labels == 5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0), labels == 5)


def test_a_structure_and_its_mask_have_the_same_header_and_voxels(tmp_path):
    """Unpacked, the file of a structure is byte for byte that of its mask; packed, twice the same."""
    volume = Volume(scan(), oblique())
    labels = mask_like(volume).astype(np.uint16) * 300
    write_mask(tmp_path / "mask.nii.gz", labels == 300, volume)
    for name in ("one.nii.gz", "two.nii.gz"):
        write_structure(tmp_path / name, labels, 300, (slice(0, 5), slice(0, 6), slice(0, 7)), volume)
    assert gzip.decompress((tmp_path / "one.nii.gz").read_bytes()) == gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_a_label_map_of_another_grid_is_refused(tmp_path):
    """An InputError, and no file."""
    with pytest.raises(InputError, match="Expected an array of shape"):
        write_structure(tmp_path / "mask.nii.gz", np.ones((5, 6, 8), np.uint16), 1, (slice(0, 5), slice(0, 6), slice(0, 8)), Volume(scan(), oblique()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((5, 6, 8), np.uint8), InputError),
        (np.zeros((5, 6, 7), np.float32), InputError),
        (np.full((5, 6, 7), -1), InputError),
        (np.full((5, 6, 7), 65536), InputError),
    ],
)
def test_arrays_that_are_no_mask_are_refused(tmp_path, array, error):
    """Another shape, fractions, negative or too large ids are InputErrors and leave no file."""
    with pytest.raises(error):
        write_mask(tmp_path / "mask.nii.gz", array, Volume(scan()))
    assert list(tmp_path.iterdir()) == []


def test_name_of_another_format_is_refused(tmp_path):
    """A mask cannot be named like another format."""
    with pytest.raises(UsageError, match=r"ends in \.nii\.gz or \.nii"):
        write_mask(tmp_path / "mask.nrrd", scan() > 0, Volume(scan()))


def test_mask_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """A disk that fills while a mask is written gives an OutputError; the earlier mask stays."""
    volume = Volume(scan((60, 60, 60)))
    write_mask(tmp_path / "mask.nii.gz", volume.array > 0, volume)
    before = (tmp_path / "mask.nii.gz").read_bytes()
    monkeypatch.setattr(files, "_create", lambda part, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    with pytest.raises(OutputError, match=r"mask\.nii\.gz' cannot be written: the disk is full"):
        write_mask(tmp_path / "mask.nii.gz", volume.array > 5, volume)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("mask.nii.gz", before)]


# ---- label names ------------------------------------------------------------------------------------------------------


@given(st.dictionaries(
    st.integers(0, 65535),
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"], exclude_characters="\ufffe\uffff"), min_size=1),
        st.tuples(*[st.integers(0, 255)] * 3),
    ),
))  # fmt: skip
def test_label_tables_come_back(labels):
    """Any names, brackets and accents too, survive the way through XML."""
    assert from_xml(to_xml(labels)) == {key: name for key, (name, _) in labels.items()}


def test_label_table_is_that_of_caret():
    """Each label is one element with its id, colours from 0 to 1 and its name as CDATA, ordered by id."""
    text = to_xml({5: ("liver", (255, 0, 51)), 1: ("spleen", (0, 0, 0))}).decode()
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>')
    assert '<Label Key="5" Red="1" Green="0" Blue="0.2" Alpha="1.0"><![CDATA[liver]]></Label>' in text
    assert [row.attrib["Key"] for row in ElementTree.fromstring(text).findall("VolumeInformation/LabelTable/Label")] == ["1", "5"]


def test_damaged_label_table_is_refused():
    """XML cut in its middle is an InputError."""
    with pytest.raises(InputError, match="label table"):
        from_xml(to_xml(LABELS)[:200])


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_names_travel_inside_the_mask(tmp_path, ending):
    """The table is a header extension of kind 0 that nibabel and we read; no reader loses a voxel to it."""
    volume = Volume(scan(), oblique())
    path = tmp_path / f"segmentation.{ending}"
    write_mask(path, mask_like(volume) * np.uint8(5), volume, labels=LABELS)
    image = nib.load(path)
    (extension,) = image.header.extensions
    assert extension.get_code() == 0
    rows = ElementTree.fromstring(extension.get_content()).iter("Label")
    assert {int(row.attrib["Key"]): row.text for row in rows} == read_label_names(path) == {key: name for key, (name, _) in LABELS.items()}
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), mask_like(volume) * 5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0), mask_like(volume) * 5)


def test_names_beside_the_mask(tmp_path):
    """Without a table inside, the sidecar counts, then labels.json of the folder, either way round; else there are none."""
    volume = Volume(scan(), np.eye(4))
    write_mask(tmp_path / "x.nii.gz", mask_like(volume), volume)
    assert read_label_names(tmp_path / "x.nii.gz") == {}
    (tmp_path / "labels.json").write_text(json.dumps({"liver": 5, "spleen": 1}))
    assert read_label_names(tmp_path / "x.nii.gz") == {1: "spleen", 5: "liver"}
    (tmp_path / "x.labels.json").write_text(json.dumps({"7": "aorta"}))
    assert read_label_names(tmp_path / "x.nii.gz") == {7: "aorta"}
    (tmp_path / "x.labels.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"x\.labels\.json"):
        read_label_names(tmp_path / "x.nii.gz")


def test_real_scans_are_read_like_nibabel_reads_them(tmp_path):
    """Real CTs give the values and affine of nibabel, and masks for them come back on their grid."""
    paths = sorted(DATA.glob("soft_tissue_sarcoma/*/ct.nii.gz"))[:3]
    if not paths:
        pytest.skip("the shared CTs are not here")
    for path in paths:
        volume = read_nifti(path)
        np.testing.assert_array_equal(volume.array, np.asanyarray(nib.load(path).dataobj))
        write_mask(tmp_path / "bone.nii.gz", volume.array > 200, volume)
        assert read_nifti(tmp_path / "bone.nii.gz").same_grid(volume, tolerance_mm=0)
