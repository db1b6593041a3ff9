"""What a DICOM header says is read as it is, and nothing is guessed."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.uid import ImplicitVRLittleEndian

from clseg.errors import InputError
from clseg.io.dicom import source_images
from clseg.io.dicom.headers import Bounded, dicom_files, images, looks_like_dicom
from clseg.volume import Volume
from tests.dicom_files import marked, one_slice, write_enhanced, write_series

AFFINE = np.array([[-0.5, 0, 0, 10], [0, -0.75, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
CT = Volume(np.zeros((6, 4, 3), np.int16), AFFINE)


def test_a_slice_says_where_it_lies(tmp_path):
    """Six columns 0.5 mm apart and four rows 0.75 mm apart; patient coordinates stay LPS; the normal points to the head."""
    (one,) = images(write_series(tmp_path, CT)[2])
    assert (one.size, one.pixel_mm) == ((6, 4), (0.5, 0.75))
    np.testing.assert_allclose(one.position, [-10, -20, -25])
    np.testing.assert_allclose(one.normal, [0, 0, 1])
    assert (one.slope, one.intercept, one.modality, one.number, one.frame) == (1.0, -1024.0, "CT", 1, 0)


def test_frames_say_where_they_lie(tmp_path):
    """Shared groups hold for all frames, their own go first."""
    frames = images(write_enhanced(tmp_path / "e.dcm", CT))
    assert [frame.frame for frame in frames] == [0, 1, 2]
    assert [frame.position[2] for frame in frames] == [-30, -27.5, -25]
    assert [frame.slope for frame in frames] == [1.0, 0.5, 1.0]
    assert {frame.pixel_mm for frame in frames} == {(0.5, 0.75)}


@pytest.mark.parametrize(
    "values",
    [
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]},
        {"PixelSpacing": [0, 1]},
        {"PixelSpacing": [-1, 1]},
        {"ImagePositionPatient": [1, 2]},
        {"ImagePositionPatient": ["1e30", 0, 0]},
    ],
    ids=str,
)
def test_impossible_places_are_none(tmp_path, values):
    """Directions that are no plane, spacings that are not positive and positions off the earth count as not given."""
    from pydicom import config

    before, config.settings.writing_validation_mode = config.settings.writing_validation_mode, config.IGNORE
    try:
        (one,) = images(write_series(tmp_path, CT, marked(**values))[0])
    finally:
        config.settings.writing_validation_mode = before
    assert not one.placed


def test_rounded_directions_become_unit_vectors(tmp_path):
    """Cosines rounded to three digits are at right angles again, within the rounding."""
    (one,) = images(write_series(tmp_path, CT, marked(ImageOrientationPatient=["0.966", "0.259", "0", "-0.259", "0.966", "0"]))[0])
    axes = np.stack([one.row, one.column, one.normal])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(one.row, [np.cos(np.radians(15)), np.sin(np.radians(15)), 0], atol=1e-3)


def test_files_of_old_have_no_preamble(tmp_path):
    """A file that begins at once with its elements is found and read."""
    image = one_slice(CT, 0)
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    buffer = io.BytesIO()
    dcmwrite(buffer, image, implicit_vr=True, little_endian=True, enforce_file_format=True)
    content = buffer.getvalue()
    start = content.index(b"\x08\x00\x08\x00", 132)  # ImageType, the first element behind the file's own
    (tmp_path / "old").write_bytes(content[start:])
    assert dicom_files(tmp_path) == [tmp_path / "old"]
    assert images(tmp_path / "old")[0].size == (6, 4)


def test_folders_are_searched_and_other_files_passed_over(tmp_path):
    """Nested folders yes; hidden ones, texts and short files no; what is no image gives none."""
    (file, *_) = write_series(tmp_path / "b" / "c", CT)
    (tmp_path / "a.txt").write_text("x" * 400)
    (tmp_path / "short").write_bytes(b"\x08\x00\x05\x00")
    hidden = tmp_path / ".trash"
    hidden.mkdir()
    (hidden / "x.dcm").write_bytes(file.read_bytes())
    assert [found.name for found in dicom_files(tmp_path)] == ["1-000.dcm", "1-001.dcm", "1-002.dcm"]
    assert len(source_images(tmp_path)) == 3
    assert looks_like_dicom(bytes(128) + b"DICM")
    assert not looks_like_dicom(b"")


def test_a_folder_that_links_to_itself_ends(tmp_path):
    """A link to the folder above is not followed."""
    write_series(tmp_path / "a", CT)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert len(dicom_files(tmp_path)) == 3


def test_a_bounded_file_reads_no_more_than_it_has(tmp_path):
    """Asked for four gigabytes, it gives the ten bytes that it has, and sets no more aside."""
    (tmp_path / "x").write_bytes(b"0123456789")
    with Bounded(tmp_path / "x") as stream:
        assert stream.read(2) == b"01"
        assert stream.read(2**32) == b"23456789"
        assert stream.read(2**32) == b""


def test_too_many_frames_are_refused(tmp_path):
    """A million frames are announced."""
    with pytest.raises(InputError, match="1000000 frames"):
        images(write_enhanced(tmp_path / "e.dcm", CT, lambda image: setattr(image, "NumberOfFrames", 1_000_000)))


def test_damage_is_told_with_the_name_of_the_file(tmp_path):
    """A file that ends within its header."""
    (file, *_) = write_series(tmp_path, CT)
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(InputError, match=rf"{file.name}' is damaged"):
        images(file)
