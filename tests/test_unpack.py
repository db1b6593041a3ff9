"""A zip archive of DICOM files is read, and its traps hurt nobody."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import InputError, UsageError
from clseg.io.dicom.unpack import unpacked
from clseg.io.files import read
from tests.dicom_files import write_series
from tests.test_dicom import scan


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary files go; nothing may be left in it."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def zipped(target: Path, files: list[Path], names: list[str] | None = None) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, file in enumerate(files):
            archive.write(file, names[number] if names else f"study/series/{file.name}")
    return target


def test_an_archive_is_read_like_a_folder(tmp_path, temporary):
    """Whatever the archive is called; series are chosen as in a folder; nothing is left behind."""
    files = [*write_series(tmp_path / "a", scan(), series=1), *write_series(tmp_path / "b", type(scan())(scan().array[:, :, :4], scan().affine), series=2)]
    archive = zipped(tmp_path / "ct.nii.gz", files)
    np.testing.assert_array_equal(read(archive).array, scan().array)
    assert read(archive, series="2").shape == (40, 32, 4)
    with pytest.raises(UsageError, match=r"no series '3' in '.*ct\.nii\.gz'"):
        read(archive, series="3")
    assert list(temporary.iterdir()) == []


def test_names_in_an_archive_lead_nowhere(tmp_path, temporary):
    """Members called ../../evil, /etc/evil and twice the same are read under names of our own; nothing appears elsewhere."""
    files = write_series(tmp_path / "a", scan())
    names = [f"../../evil{n}" if n % 2 else f"/{tmp_path}/evil{n}" for n in range(len(files))]
    names[3] = names[1]
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = zipped(tmp_path / "evil.zip", files, names)
    before = sorted(tmp_path.rglob("*"))
    with unpacked(archive) as folder:
        assert sorted(file.name for file in folder.iterdir()) == [f"{n:06d}" for n in range(12)]
    np.testing.assert_array_equal(read(archive).array, scan().array)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_dicom_is_not_unpacked(tmp_path, temporary):
    """Programs, links and texts in an archive stay in it."""
    files = write_series(tmp_path / "a", scan())
    (tmp_path / "autorun.exe").write_bytes(b"MZ" + bytes(500))
    with unpacked(zipped(tmp_path / "x.zip", [tmp_path / "autorun.exe", *files])) as folder:
        assert len(list(folder.iterdir())) == 12


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, temporary):
    """1 GiB of zeros in a megabyte."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.dcm", "w", force_zip64=True) as member:
        for _ in range(64):
            member.write(bytes(16 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 2_000_000
    with pytest.raises(InputError, match=r"would unpack to 1 files of 1\.1 GB"):
        read(tmp_path / "bomb.zip")
    assert list(temporary.iterdir()) == []


def test_a_size_that_lies_does_not_help(tmp_path, temporary):
    """A member that claims fewer bytes than it has ends as damaged."""
    file = tmp_path / "lie.dcm"
    file.write_bytes(bytes(128) + b"DICM" + bytes(100_000))
    archive = bytearray(zipped(tmp_path / "lie.zip", [file]).read_bytes())
    honest = (100_132).to_bytes(4, "little")
    assert archive.count(honest) == 2
    (tmp_path / "lie.zip").write_bytes(archive.replace(honest, (1000).to_bytes(4, "little")))
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "lie.zip")
    assert list(temporary.iterdir()) == []


def test_damaged_archives_are_refused(tmp_path, temporary):
    """An archive cut in its middle, one with a flipped byte in a member, and one without DICOM in it."""
    whole = zipped(tmp_path / "whole.zip", write_series(tmp_path / "a", scan())).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flip.zip").write_bytes(whole[:500] + bytes([whole[500] ^ 255]) + whole[501:])
    (tmp_path / "note.txt").write_text("nothing")
    zipped(tmp_path / "empty.zip", [tmp_path / "note.txt"])
    for name, words in (("cut", "damaged"), ("flip", "damaged"), ("empty", r"holds no DICOM series\.$")):
        with pytest.raises(InputError, match=words) as refusal:
            read(tmp_path / f"{name}.zip")
        assert f"{name}.zip" in refusal.value.message
    assert list(temporary.iterdir()) == []


def test_what_unpacks_in_unbounded_memory_is_refused(tmp_path):
    """bzip2 and LZMA members are decompressed by zipfile without a bound, whatever their entries say."""
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "odd.zip", "w", kind) as archive:
            archive.writestr("image.dcm", bytes(1 << 20))
        with pytest.raises(InputError, match="bounded memory"), unpacked(tmp_path / "odd.zip"):
            pass
