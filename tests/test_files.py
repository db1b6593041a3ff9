"""Files are read by their content, and written whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from clseg.errors import InputError, OutputError, UsageError
from clseg.io import files
from clseg.io.files import (
    Hashes,
    check_writable,
    prepare_folder,
    read,
    sha256_of,
    write_csv,
    write_json,
    write_together,
    writing,
)
from clseg.io.finding import Finding

SERIES = Path(__file__).parents[2] / "shared" / "data" / "totalsegmentator_tests" / "example_ct_dicom" / "series"


def scan(shape: tuple[int, int, int] = (4, 5, 6)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 50


def itk_image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    return image


# ---- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mhd"])
def test_itk_formats_are_turned_from_lps_to_ras(tmp_path, ending):
    """An ITK image keeps its voxels and gets an affine with x and y turned round."""
    sitk.WriteImage(itk_image(scan()), str(tmp_path / f"ct.{ending}"))
    volume = read(tmp_path / f"ct.{ending}")
    np.testing.assert_array_equal(volume.array, scan())
    np.testing.assert_allclose(volume.affine, [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    assert (volume.array.dtype, volume.orientation, volume.header) == (np.int16, "LPS", None)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_all_formats_of_one_scan_agree(tmp_path, ending):
    """The same oblique scan is the same Volume whichever format holds it."""
    image = itk_image(scan())
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    image.SetDirection(tuple((turned * np.linalg.det(turned)).ravel()))
    sitk.WriteImage(image, str(tmp_path / f"ct.{ending}"))
    sitk.WriteImage(image, str(tmp_path / "other.nii"))
    one, other = read(tmp_path / f"ct.{ending}"), read(tmp_path / "other.nii")
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)


def test_content_decides_not_the_name(tmp_path):
    """NIfTI named .mha, NRRD named .nii.gz and compressed NIfTI named .nii are read all the same."""
    nib.save(nib.Nifti1Image(scan(), np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(scan(), np.eye(4)), tmp_path / "b.nii.gz")
    sitk.WriteImage(itk_image(scan()), str(tmp_path / "c.nrrd"))
    for name, disguise in (("a.nii", "a.mha"), ("b.nii.gz", "b.nii"), ("c.nrrd", "c.nii.gz")):
        (tmp_path / name).rename(tmp_path / disguise)
        np.testing.assert_array_equal(read(tmp_path / disguise).array, scan())


def test_names_with_spaces_and_accents(tmp_path):
    """Folder and file names may hold blanks, accents and other scripts."""
    folder = prepare_folder(tmp_path / "Thorax d'été – 肺 scan")
    sitk.WriteImage(itk_image(scan()), str(folder / "größe 1.nrrd"))
    nib.save(nib.Nifti1Image(scan(), np.eye(4)), folder / "größe 2.nii.gz")
    for name in ("größe 1.nrrd", "größe 2.nii.gz"):
        np.testing.assert_array_equal(read(folder / name).array, scan())


@pytest.mark.parametrize("name", ["missing.nii.gz", "ct.nii.gz/missing.nii.gz"])
def test_missing_path_is_a_mistake_of_the_call(tmp_path, name):
    """A path with nothing at its end is a UsageError, exit code 2."""
    nib.save(nib.Nifti1Image(scan(), np.eye(4)), tmp_path / "ct.nii.gz")
    with pytest.raises(UsageError, match=r"There is no file or folder '.*missing.nii.gz'"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"not a scan\n" * 99, "a text file"),
        (bytes(4096), "filled with zeros"),
        (bytes(range(256)) * 8, "no scan in a known format"),
        (b"PK\x03\x04" + bytes(99), "zip archive .* is damaged"),
        (bytes(128) + b"DICM" + bytes(99), "a DICOM file without an image"),
        (b"\x5c\x01\x00\x00" + bytes(400), "magic word is missing"),
        (b"\x1f\x8b" + bytes(20), "damaged"),
        (b"NRRD0004\nnonsense\n", "damaged"),
        (b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\n", "damaged"),
    ],
)
def test_files_that_are_no_scans_are_refused_in_one_sentence(tmp_path, content, words, capfd):
    """What is no scan is an InputError that names the file and what it is; stdout stays clean."""
    (tmp_path / "ct.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=words) as refusal:
        read(tmp_path / "ct.nii.gz")
    assert "ct.nii.gz" in refusal.value.message
    assert refusal.value.message.count("\n") == 0
    assert capfd.readouterr().out == ""


def test_truncated_nrrd_and_metaimage_are_refused(tmp_path):
    """A file of another format cut in its middle is an InputError."""
    noise = np.random.default_rng(0).integers(-999, 999, (20, 20, 20)).astype(np.int16)
    for name in ("ct.nrrd", "ct.mha"):
        sitk.WriteImage(itk_image(noise), str(tmp_path / name))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="damaged or incomplete"):
            read(tmp_path / name)


def test_colour_and_flat_pictures_are_refused(tmp_path):
    """RGB voxels and 2-D pictures in an ITK format are InputErrors."""
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(tmp_path / "rgb.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.int16)), str(tmp_path / "flat.nrrd"))
    with pytest.raises(InputError, match="3 values per voxel"):
        read(tmp_path / "rgb.nrrd")
    with pytest.raises(InputError, match="2-D"):
        read(tmp_path / "flat.nrrd")


def test_four_dimensional_nrrd(tmp_path):
    """A 4-D ITK file with one volume is that volume; with two it is refused."""
    for count in (1, 2):
        sitk.WriteImage(sitk.JoinSeries([itk_image(scan())] * count), str(tmp_path / f"{count}.nrrd"))
    np.testing.assert_array_equal(read(tmp_path / "1.nrrd").array, scan())
    with pytest.raises(InputError, match="holds 2 volumes"):
        read(tmp_path / "2.nrrd")


def test_folder_without_a_series_is_refused(tmp_path):
    """A folder with no DICOM in it is an InputError that says what it holds; a NIfTI file is to be given itself."""
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"holds no DICOM series; it holds 1 file: notes\.txt\.") as caught:
        read(tmp_path)
    assert "of NIfTI, NRRD and MetaImage the file itself" in caught.value.tip


def test_dicom_series_lies_where_its_labels_lie():
    """A DICOM folder gives HU on the grid of the label map that was drawn on it (up to flips)."""
    if not SERIES.is_dir():
        pytest.skip("the shared DICOM series is not here")
    from clseg.spatial.orient import to_orientation

    volume = to_orientation(read(SERIES), "RAS")
    labels = to_orientation(read(SERIES.parent / "labels.nii.gz"), "RAS")
    assert volume.same_grid(labels, tolerance_mm=1e-3)
    assert volume.array.min() < -900


def test_dicom_series_with_a_hole_is_filled_and_told(tmp_path, capfd):
    """Of six real slices (JPEG 2000) without the fourth the others stay as they are, and the fourth is the mean of its neighbours."""
    if not SERIES.is_dir():
        pytest.skip("the shared DICOM series is not here")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(SERIES))
    for name in (*names[:3], *names[4:6]):
        shutil.copy(name, tmp_path)
    findings: list[Finding] = []
    volume, whole = read(tmp_path, found=findings.append), read(SERIES)
    kept = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(volume.array[:, :, kept], whole.array[:, :, kept])
    np.testing.assert_array_equal(volume.array[:, :, 3], np.rint((whole.array[:, :, 2].astype(float) + whole.array[:, :, 4]) / 2))
    assert "2 to 4 mm apart" in findings[0].text
    assert capfd.readouterr() == ("", "")


def test_a_file_is_hashed_again_when_it_has_changed_and_only_then(tmp_path, monkeypatch):
    """Asked three times it is read once; with other bytes of the same size, one more byte, or another file in its place it is read again."""
    read_files, original = [], files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: (read_files.append(path), original(path))[1])
    file, hashed = tmp_path / "x", Hashes()
    file.write_bytes(b"abc")
    assert [hashed(file), hashed(file), hashed(str(file))] == [hashlib.sha256(b"abc").hexdigest()] * 3
    assert read_files == [file]
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))  # another time, whatever the clock says
    assert hashed(file) == hashlib.sha256(b"abd").hexdigest()
    file.write_bytes(b"abde")
    assert hashed(file) == hashlib.sha256(b"abde").hexdigest()
    (tmp_path / "y").write_bytes(b"wxyz")
    os.utime(tmp_path / "y", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(tmp_path / "y", file)
    assert hashed(file) == hashlib.sha256(b"wxyz").hexdigest()
    file.unlink()
    with pytest.raises(UsageError, match="There is no file"):
        hashed(file)


def test_sha256_is_that_of_hashlib(tmp_path):
    """The digest of a file larger than one piece is that of all its bytes."""
    content = os.urandom((1 << 20) + 7)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(UsageError):
        sha256_of(tmp_path / "y")


# ---- writing ----------------------------------------------------------------------------------------------------------


def test_file_gets_its_name_when_it_is_complete(tmp_path):
    """While the block runs the old content stands under the name; afterwards the new one does, and nothing else is left."""
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with writing(target) as stream:
        stream.write(b"new")
        stream.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.bin"]


def _interrupted(target: Path, interruption: type[BaseException]) -> None:
    with writing(target) as stream:
        stream.write(b"half")
        raise interruption


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_interrupted_write_leaves_nothing(tmp_path, interruption):
    """Any exception, Ctrl-C too, leaves the old file and no temporary one."""
    (tmp_path / "old.bin").write_bytes(b"old")
    for name in ("old.bin", "new.bin"):
        with pytest.raises(interruption):
            _interrupted(tmp_path / name, interruption)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"old.bin": b"old"}


def test_new_files_have_the_usual_rights(tmp_path):
    """A file written atomically has the rights that open() gives, not those of a private temporary file."""
    (tmp_path / "usual").write_bytes(b"")
    with writing(tmp_path / "ours") as stream:
        stream.write(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_stays_a_link(tmp_path):
    """Writing to a symbolic link replaces the file it names."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with writing(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_folders_and_devices_are_not_replaced(tmp_path):
    """A folder or a device under the name is an OutputError and stays."""
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(OutputError, match="not a regular file"), writing(place):
            pass
        assert not place.is_file()


def test_killed_process_leaves_no_half_file(tmp_path):
    """After SIGKILL in the middle of a write the name does not exist."""
    program = (
        "import sys, time; from clseg.io.files import writing\n"
        "with writing(sys.argv[1]) as stream:\n"
        "    stream.write(bytes(1 << 20)); stream.flush(); print('half', flush=True); time.sleep(60)"
    )
    target = tmp_path / "mask.nii.gz"
    child = subprocess.Popen([sys.executable, "-c", program, target], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        assert child.stdout.readline() == b"half\n"
    finally:
        child.kill()
        child.communicate()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert not target.exists()


def test_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    """A device that takes no more bytes gives an OutputError; the old file stays."""
    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(files, "_create", lambda part, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    with pytest.raises(OutputError, match=r"out' cannot be written: the disk is full"), writing(tmp_path / "out") as stream:
        stream.write(bytes(1 << 20))
    with pytest.raises(OutputError, match="the disk is full"), writing(tmp_path / "out") as stream:
        stream.write(b"few bytes, still in the buffer")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"out": b"old"}


def test_file_limit_is_told_and_leaves_nothing(tmp_path):
    """A write stopped by the system half-way gives an OutputError and removes what was written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match="file too large"), writing(tmp_path / "out") as stream:
            stream.write(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_disk_that_fills_at_the_last_moment(tmp_path, monkeypatch):
    """An error of fsync (delayed allocation, network disks) is an OutputError and leaves nothing."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"), writing(tmp_path / "out") as stream:
        stream.write(b"x")
    assert os.listdir(tmp_path) == []


def test_errors_about_other_files_keep_their_name(tmp_path):
    """An OSError about another file inside the block is not called a failed write."""
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out"):
        (tmp_path / "other").read_bytes()
    assert os.listdir(tmp_path) == []


def test_missing_folder_is_told(tmp_path):
    """Writing into a folder that is not there is an OutputError."""
    with pytest.raises(OutputError, match="its folder does not exist"), writing(tmp_path / "no" / "out"):
        pass


def _write_many(target: Path, letter: bytes, start: float) -> None:
    time.sleep(max(0.0, start - time.time()))
    for _ in range(20):
        with writing(target) as stream:
            for _ in range(64):
                stream.write(letter * 4096)


def test_two_processes_write_one_file(tmp_path):
    """Of two processes that write one name at once, every look finds the whole work of one."""
    target, start = tmp_path / "out", time.time() + 0.3
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(target, letter, start)) for letter in (b"a", b"b")]
    seen = []
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if target.exists():
            seen.append(target.read_bytes())
        time.sleep(0.002)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert {(len(content), len(set(content))) for content in [*seen, target.read_bytes()]} == {(64 * 4096, 1)}
    assert os.listdir(tmp_path) == ["out"]


@pytest.fixture
def locked():
    """A folder in which the process may not write, even when the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_folder_without_the_right_to_write(locked):
    """A folder that belongs to someone else is an OutputError before and while writing, also for a folder inside it."""
    with pytest.raises(OutputError, match="permission denied"):
        prepare_folder(locked)
    with pytest.raises(OutputError, match="permission denied"):
        prepare_folder(locked / "inner")
    with pytest.raises(OutputError, match="permission denied"), writing(locked / "out"):
        pass
    assert os.listdir(locked) == []


def test_folder_is_made_with_its_parents(tmp_path):
    """A folder that is not there is made, one that is there stays as it is, and the proof of writing leaves nothing."""
    folder = prepare_folder(tmp_path / "a" / "b")
    (folder / "x").write_bytes(b"x")
    assert os.listdir(check_writable(str(folder), 1)) == ["x"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_file(tmp_path):
    """It is refused by name instead of waited for."""
    os.mkfifo(tmp_path / "ct.nii.gz")
    with pytest.raises(UsageError, match="is a pipe, expected a file or folder"):
        read(tmp_path / "ct.nii.gz")


IN_ITS_PLACE = {"": "a file of that name is in its place", "deeper": "'{}' is a file", "deeper/still": "'{}' is a file"}


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_file_in_place_of_the_folder(tmp_path, inner):
    """A file under the folder's name, or that of one above it, is a UsageError that names it, and stays."""
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(UsageError, match=re.escape(IN_ITS_PLACE[inner].format(tmp_path / "out"))):
        prepare_folder(tmp_path / "out" / inner)
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.parametrize("inner", ["new", "new/and/deeper"])
def test_looking_whether_one_may_write_makes_nothing(tmp_path, inner):
    """A folder that is not there yet is judged by the nearest one that is; none is made."""
    assert check_writable(tmp_path / inner, 1) == tmp_path / inner
    assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match="too full"):
        check_writable(tmp_path / inner, 5 * 10**18)


@pytest.mark.parametrize("inner", ["", "deeper", "deeper/still"])
def test_looking_below_a_file_is_a_mistake_of_the_call(tmp_path, inner):
    """A file where the folder, or one above it, should be."""
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(UsageError, match=re.escape(IN_ITS_PLACE[inner].format(tmp_path / "out"))):
        check_writable(tmp_path / "out" / inner)


def test_a_link_to_nothing_in_place_of_the_folder(tmp_path):
    """It is a name that is taken, too."""
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="a file of that name is in its place"):
        prepare_folder(tmp_path / "out")


def test_looking_where_one_may_not_write(locked):
    """A folder of somebody else, or one to be made inside it."""
    for inner in ("", "new"):
        with pytest.raises(OutputError, match="permission denied"):
            check_writable(locked / inner)


def test_full_disk_is_told_beforehand(tmp_path):
    """A need beyond the free space is an OutputError that states both sizes."""
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OutputError, match=r"up to 5000000\.0 TB may be needed, .* are free"):
        check_writable(tmp_path, 5 * 10**18)
    assert check_writable(tmp_path, free // 2) == tmp_path


def test_files_that_belong_together_get_their_names_in_order_and_late(tmp_path, monkeypatch):
    """While the first is moved the others are whole on the disk under other names; the last that was given is moved last."""
    moved, move = [], os.replace

    def noted(part, final):
        moved.append((final.name, sorted(file.read_bytes() for file in tmp_path.iterdir())))
        move(part, final)

    monkeypatch.setattr(files.os, "replace", noted)
    write_together({tmp_path / "b": b"1", tmp_path / "a": b"2", tmp_path / "c": b"3"})
    assert moved == [(name, [b"1", b"2", b"3"]) for name in "bac"]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"b": b"1", "a": b"2", "c": b"3"}


def test_files_that_belong_together_are_all_as_they_were_when_one_cannot_be_written(tmp_path):
    """A folder is in the place of the second: the first keeps its content, the third is not made."""
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match=r"b' cannot be written: it is not a regular file"):
        write_together({tmp_path / "a": b"new", tmp_path / "b": b"new", tmp_path / "c": b"new"})
    assert ((tmp_path / "a").read_bytes(), sorted(os.listdir(tmp_path))) == (b"old", ["a", "b"])


def test_json_has_null_for_what_is_no_number(tmp_path):
    """numpy values become plain ones, NaN and infinity null; text stays readable."""
    write_json(tmp_path / "x.json", {"größe": np.float32(0.5), "none": float("nan"), 3: [np.int64(2), np.array([1.0, np.inf])], "path": Path("a")})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"größe": 0.5, "none": None, "3": [2, [1.0, None]], "path": "a"}
    assert "größe" in text
    assert text.endswith("}\n")


def test_csv_can_be_read_back(tmp_path):
    """Cells with commas, quotes and line feeds come back; None and NaN are empty."""
    write_csv(tmp_path / "x.csv", ["name", "ml"], [["a,b", 1.5], ['"c"\nd', None], ["e", float("nan")]])
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream)) == [["name", "ml"], ["a,b", "1.5"], ['"c"\nd', ""], ["e", ""]]


def test_csv_row_of_another_length_is_refused(tmp_path):
    """A row that does not fit the header is a ValueError and leaves no file."""
    with pytest.raises(ValueError, match="2 columns"):
        write_csv(tmp_path / "x.csv", ["a", "b"], [[1]])
    assert os.listdir(tmp_path) == []


def test_metaimage_with_a_long_head_is_read(tmp_path):
    """What ITK writes of a NIfTI file's metadata stands before the sizes, further down than the first kilobyte."""
    image = sitk.Image(4, 5, 6, sitk.sitkInt16)
    for number in range(60):
        image.SetMetaData(f"field[{number}]", "value " * 5)
    for name in ("ct.mha", "ct.mhd"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert (tmp_path / name).read_bytes().find(b"DimSize") > 1024
        assert read(tmp_path / name).shape == (4, 5, 6)


def test_names_that_are_no_utf8_come_back(tmp_path):
    """A file name in Latin-1 is spelt with an escape in JSON and CSV, and JSON gives it back as it was."""
    name = os.fsdecode(b"x\xfc.nii.gz")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": name}
    write_csv(tmp_path / "a.csv", ["case"], [[name]])
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "case\nx\\udcfc.nii.gz\n"
