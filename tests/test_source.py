"""SourceSeries: what results refer to is the series that was read, image by image, and nothing private is carried along."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import InputError, UsageError
from clseg.io.dicom.source import NO_DATE, NO_TIME, source_of, uid_of
from clseg.io.files import read
from clseg.io.nifti import write_mask
from clseg.volume import Volume
from tests.dicom_files import ROOT, in_study, one_slice, write_series
from tests.dicom_results import SERIES, SHAPE, moved, multi_frame, scan_on, series, straight, tilted, turned

FACTS = {
    "PatientName": "Doe^Jane", "PatientID": "P-7", "PatientBirthDate": "19510203", "PatientSex": "F", "StudyInstanceUID": f"{ROOT}.500",
    "StudyDate": "20210304", "StudyTime": "101112", "StudyID": "S5", "AccessionNumber": "A6", "ReferringPhysicianName": "Roe^Richard",
    "SeriesInstanceUID": f"{ROOT}.1", "FrameOfReferenceUID": f"{ROOT}.600", "PositionReferenceIndicator": "", "Modality": "CT",
}  # fmt: skip


def test_patient_study_and_frame_of_reference_are_kept_and_nothing_else(tmp_path: Path) -> None:
    """Of a header that also names scanner, institution and comments, 14 elements are left."""
    source = source_of(series(straight())(tmp_path))
    assert {element.keyword: str(element.value) for element in source.facts} == FACTS
    assert (source.uid, source.frame_of_reference, source.date, source.time) == (f"{ROOT}.1", f"{ROOT}.600", "20210304", "101500")


def test_a_scan_that_is_no_dicom_has_no_source(tmp_path: Path) -> None:
    """A NIfTI file gives None; a path with nothing at it is an error of usage."""
    write_mask(tmp_path / "ct.nii.gz", np.ones((3, 3, 3), bool), Volume(np.zeros((3, 3, 3))))
    assert source_of(tmp_path / "ct.nii.gz") is None
    with pytest.raises(UsageError, match="no file or folder"):
        source_of(tmp_path / "nothing")


def test_images_are_those_of_the_volume_by_height(tmp_path: Path) -> None:
    """Of a series with a copy of slice 2 under a later number, the nine images in the order of k; the first at every height."""
    folder = series(straight((2, 2, -3.0)))(tmp_path)
    again = one_slice(scan_on(straight((2, 2, -3.0))), 2)
    in_study(2, again)
    again.SOPInstanceUID, again.InstanceNumber = f"{ROOT}.99", 99
    again.save_as(folder / "again.dcm", enforce_file_format=True)
    source = source_of(folder)
    assert [image.uid for image in source.images] == [f"{ROOT}.1.{k + 1}" for k in range(8, -1, -1)]  # k falls where z rises
    assert [image.uid for image in source.files] == [image.uid for image in source.images]


def test_the_series_can_be_named(tmp_path: Path) -> None:
    """Of two series, the one that --series names."""
    for number in (1, 2):
        write_series(tmp_path / str(number), scan_on(straight()), in_study, series=number)
    assert [source_of(tmp_path, number).uid for number in ("1", "2")] == [f"{ROOT}.1", f"{ROOT}.2"]
    with pytest.raises(UsageError, match="no series '3'"):
        source_of(tmp_path, "3")


def test_a_zip_is_read_whole(tmp_path: Path) -> None:
    """The source of an archive is that of its folder, though the unpacked files are gone."""
    folder = series(straight())(tmp_path / "study")
    archive = Path(shutil.make_archive(str(tmp_path / "study"), "zip", folder))
    source, other = source_of(archive), source_of(folder)
    assert [image.uid for image in source.images] == [image.uid for image in other.images]
    assert source.facts == other.facts
    assert not source.images[0].path.exists()


def test_a_multi_frame_file_counts_once(tmp_path: Path) -> None:
    """Nine images by height, each with the number of its frame, in one file of class enhanced CT."""
    source = source_of(multi_frame(tmp_path))
    assert [image.frame for image in source.images] == [1, 5, 3, 7, 0, 8, 4, 6, 2]
    assert [(image.uid, image.frames, image.sop_class) for image in source.files] == [(f"{ROOT}.9.1", 9, "1.2.840.10008.5.1.4.1.1.2.1")]


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_images_without_uids_cannot_be_referred_to(tmp_path: Path, missing: str) -> None:
    """Each of the three UIDs is missed by its name."""

    def nameless(k, image):
        in_study(k, image)
        delattr(image, missing)

    write_series(tmp_path, scan_on(straight()), nameless)
    with pytest.raises(InputError, match=f"have no {missing}"):
        source_of(tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value")  # as we write it
def test_malformed_and_missing_elements_are_empty(tmp_path: Path) -> None:
    """A sex of 'female', a birth date of 1951 and no study date come out empty, a missing frame of reference as one that depends on the series, dates of the series as a fixed one."""

    def spoiled(k, image):
        in_study(k, image)
        image.PatientSex, image.PatientBirthDate = "FEMALE", "1951"
        for name in ("FrameOfReferenceUID", "StudyDate", "SeriesDate", "AccessionNumber", "PatientName"):
            delattr(image, name)

    write_series(tmp_path, scan_on(straight()), spoiled)
    source = source_of(tmp_path)
    empty = ("PatientSex", "PatientBirthDate", "StudyDate", "AccessionNumber", "PatientName")
    assert all(name in source.facts and not source.facts[name].value for name in empty)
    assert source.frame_of_reference == uid_of("frame of reference", f"{ROOT}.1")
    assert (source.date, source.time) == (NO_DATE, NO_TIME)


def test_uids_depend_on_what_they_are_made_of() -> None:
    """The same parts give the same UID of at most 64 characters, others another one, also where they read alike together."""
    assert uid_of("a", "b") == uid_of("a", "b") != uid_of("ab")
    assert uid_of("a").startswith("2.25.")
    assert len(uid_of("a")) <= 64


def test_names_beyond_ascii_make_results_utf_8(tmp_path: Path) -> None:
    """A patient called Müller in Latin 1 is read as such; only then a result needs UTF-8."""

    def named(k, image):
        in_study(k, image)
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "Müller^Jörg"

    write_series(tmp_path / "one", scan_on(straight()), named)
    source = source_of(tmp_path / "one")
    assert str(source.facts.PatientName) == "Müller^Jörg"
    assert source.charset(["liver"]) == "ISO_IR 192"
    plain = source_of(series(straight())(tmp_path / "two"))
    assert (plain.charset(["liver"]), plain.charset(["größe"])) == ("ISO_IR 100", "ISO_IR 192")


# ---- the grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERIES)
def test_planes_lie_where_the_affine_says(tmp_path: Path, name: str) -> None:
    """For every kind of series the first voxel of every slice, and the steps to its neighbours, agree within 1e-3 mm with the volume's affine."""
    path = SERIES[name](tmp_path / "in")
    scan, grid = read(path), source_of(path).grid_of(read(path))
    lps = np.diag([-1.0, -1, 1]) @ scan.affine[:3]
    expected = np.array([lps @ [0, 0, k, 1] for k in range(scan.shape[2])])
    assert np.abs(np.array([plane.position for plane in grid.planes]) - expected).max() < 1e-3
    extent = np.array(scan.shape[:2])
    assert (np.abs(np.stack([grid.row * grid.pixel_mm[0], grid.column * grid.pixel_mm[1]], 1) - lps[:, :2]) * extent).max() < 1e-3
    assert grid.step_mm == pytest.approx(scan.spacing[2], abs=1e-3)


@pytest.mark.parametrize(("name", "without"), [("straight", []), ("oblique", []), ("multi-frame", []), ("gantry tilt", []), ("missing slice", [4])])
def test_every_plane_knows_its_image(tmp_path: Path, name: str, without: list[int]) -> None:
    """Plane k has image k, also where tilt was straightened; the plane of a slice that was missing has none."""
    path = SERIES[name](tmp_path / "in")
    source = source_of(path)
    grid = source.grid_of(read(path))
    waiting = iter(source.images)
    assert [plane.image for plane in grid.planes] == [None if k in without else next(waiting) for k in range(SHAPE[2])]


def test_planes_lie_at_the_images_where_these_are_almost_even(tmp_path: Path) -> None:
    """A slice that lies 0.1 mm of 3 above its even place is not resampled, and neither is its plane: it lies where the image does."""
    path = moved({4: 0.1})(tmp_path)
    grid = source_of(path).grid_of(read(path))
    heights = [plane.position[2] for plane in grid.planes]
    assert np.diff(heights) == pytest.approx([3, 3, 3, 3.1, 2.9, 3, 3, 3])


def test_as_many_slices_are_not_always_the_same_slices(tmp_path: Path) -> None:
    """Nine slices of which one lies 1 mm low are resampled onto nine even planes; the plane between has no image."""
    path = moved({4: -1.0})(tmp_path)
    grid = source_of(path).grid_of(read(path))
    assert [plane.image is None for plane in grid.planes] == [k == 4 for k in range(9)]
    assert np.diff([plane.position[2] for plane in grid.planes]) == pytest.approx([3] * 8)


def test_a_scan_on_another_grid_has_planes_of_its_own(tmp_path: Path) -> None:
    """A sagittal stack in the same patient lies in no image's plane; a finer axial one in every second."""
    source = source_of(series(straight())(tmp_path))
    assert all(plane.image is None for plane in source.grid_of(scan_on(turned(0, 90, 0))).planes)
    fine = source.grid_of(scan_on(straight((1.0, 1.0, 1.5)), (20, 20, 5)))
    assert [plane.image and plane.image.instance for plane in fine.planes] == [1, None, 2, None, 3]
    assert fine.pixel_mm == (1.0, 1.0)


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path: Path) -> None:
    """DICOM has no word for a plane whose columns lean."""
    source, affine = source_of(series(straight())(tmp_path)), straight()
    affine[0, 1] = 0.2
    with pytest.raises(InputError, match="not at right angles"):
        source.grid_of(scan_on(affine))


def test_a_tilted_stack_keeps_its_planes(tmp_path: Path) -> None:
    """A scan whose slices are shifted against each other (an affine that leans along k) lies in the images' planes, 3 mm apart."""
    path = series(tilted(20))(tmp_path)
    grid = source_of(path).grid_of(scan_on(tilted(20)))
    assert grid.step_mm == pytest.approx(3.0)
    assert [plane.image.instance for plane in grid.planes] == list(range(1, 10))
