"""A CT comes out of DICOM as it went in, whichever way it was packed, and every fault is mended or refused in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.uid import RLELossless

from clseg.errors import InputError, UsageError
from clseg.io.files import read
from clseg.io.finding import Finding
from clseg.phantom import small_phantom
from clseg.spatial.orient import to_orientation
from clseg.volume import AIR_HU, Volume
from tests.dicom_files import ROOT, marked, one_slice, place_of, store, write_enhanced, write_series

GRADIENT = np.array([7.0, 11.0, 13.0])  # HU per mm: what is 1e-3 mm off its place is 0.01 HU off
SHARED_CT = Path(__file__).parents[2] / "shared" / "data" / "totalsegmentator_tests" / "aorta_report_crop" / "ct.nii.gz"


def scan() -> Volume:
    """A real CT where it is at hand, the small phantom elsewhere: 40 × 32 × 12 voxels in DICOM's usual axes."""
    whole = to_orientation(read(SHARED_CT) if SHARED_CT.is_file() else small_phantom()[0], "LPS")
    affine = whole.affine.copy()
    affine[:3, 3] = [-3.25, 17.5, 1234.5]
    return Volume(whole.array[:40, :32, 8:20], affine)


def ramp(affine: np.ndarray, shape=(12, 10, 8)) -> Volume:
    """HU that grow steadily through space: a value says where it lies."""
    at = np.indices(shape).reshape(3, -1)
    hu = GRADIENT @ (affine[:3, :3] @ at + affine[:3, 3:])
    return Volume(hu.reshape(shape), affine)


def lps(step=(2.0, 2.0, 3.0), origin=(20.0, 15.0, -10.0)) -> np.ndarray:
    """RAS+ affine of a straight grid in LPS axes."""
    affine = np.diag([-step[0], -step[1], step[2], 1.0])
    affine[:3, 3] = origin
    return affine


def off_mm(volume: Volume) -> np.ndarray:
    """How far every voxel of a ramp lies from where its value belongs, in mm along the gradient."""
    return np.abs(volume.array - ramp(volume.affine, volume.shape).array) / np.linalg.norm(GRADIENT)


def read_noting(path: Path, **options) -> tuple[Volume, list[Finding]]:
    findings: list[Finding] = []
    return read(path, found=findings.append, **options), findings


def sentences(findings: list[Finding]) -> str:
    return " ".join(f"{f.level}: {f.text} {f.mend}" for f in findings)


# ---- whole and sound --------------------------------------------------------------------------------------------------


def test_a_series_comes_back_as_it_was(tmp_path):
    """Voxels, type and affine (within 1e-3 mm) of a CT that was written as DICOM, without a word."""
    write_series(tmp_path, scan())
    volume, findings = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert volume.same_grid(scan(), tolerance_mm=1e-3)
    assert (volume.array.dtype, findings) == (np.int16, [])


@pytest.mark.parametrize("case", ["totalsegmentator_tests/example_ct", "openkbp/pt_96", "soft_tissue_sarcoma/STS_025"])
@pytest.mark.parametrize("packed", ["series", "enhanced"])
def test_real_scans_make_the_round_trip(tmp_path, shared, case, packed):
    """Whole CTs in RAS axes, with 3 to 4.7 mm pixels: as a series or in one file, voxels are the same and every corner lies within 1e-3 mm."""
    given = read(shared / "data" / case / "ct.nii.gz")
    path = tmp_path if packed == "series" else tmp_path / "all.dcm"
    write_series(path, given) if packed == "series" else write_enhanced(path, given)
    volume, findings = read_noting(path)
    again, given = to_orientation(volume, "RAS"), to_orientation(given, "RAS")
    np.testing.assert_array_equal(again.array, given.array)
    assert again.same_grid(given, tolerance_mm=1e-3)
    assert findings == []


def test_names_and_depth_of_files_do_not_matter(tmp_path):
    """Slices with names in reverse order, in nested folders, among other files, without endings."""
    for number, file in enumerate(write_series(tmp_path / "all", scan())):
        folder = tmp_path / "study" / f"{number % 3}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / f"IM{99 - number}")
    (tmp_path / "study" / "readme.txt").write_text("x" * 500)
    (tmp_path / "study" / ".hidden").write_bytes(bytes(200))
    volume, findings = read_noting(tmp_path / "study")
    np.testing.assert_array_equal(volume.array, scan().array)
    assert findings == []


def turned(angles_degrees: tuple[float, float, float], step=(2.0, 2.5, 3.0)) -> np.ndarray:
    """LPS axes turned about all three patient axes."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_degrees)):
        one, (a, b) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    affine = lps(step)
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, 0, 0), (17, -8, 31), (0, 180, 0), (180, 0, 0), (90, 0, 0)], ids=["straight", "chin up", "oblique", "feet first", "prone feet first", "coronal"])
def test_geometry_agrees_within_a_thousandth_of_a_millimetre(tmp_path, angles):
    """Every voxel of straight, oblique, feet-first and coronal stacks lies within 1e-3 mm of its place."""
    given = ramp(turned(angles))
    write_series(tmp_path, given, slope=0.001)
    volume, findings = read_noting(tmp_path)
    assert volume.same_grid(given, tolerance_mm=1e-3)
    assert off_mm(volume).max() < 1e-3
    assert findings == []


@pytest.mark.parametrize("tilt_degrees", [-24.0, 5.0, 20.0])
def test_gantry_tilt_is_straightened(tmp_path, tilt_degrees):
    """Slices shifted by tan(tilt) × distance come out on a right-angled grid whose inner voxels are within 1e-3 mm of their place."""
    affine = lps()
    affine[1, 2] = np.tan(np.radians(tilt_degrees)) * affine[2, 2]
    write_series(tmp_path, ramp(affine), slope=0.001)
    volume, findings = read_noting(tmp_path)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    inside = off_mm(volume) < 1e-3
    grown = volume.shape[1] - 10
    assert grown == int(np.ceil(7 * 3 * abs(np.tan(np.radians(tilt_degrees))) / 2 - 1e-6))
    assert inside.sum(axis=1).min() >= 9  # of 10 rows per column and slice, one may be mixed with the air around
    assert [finding.topic for finding in findings] == ["tilt"]
    assert f"gantry tilt of {abs(tilt_degrees):.1f}°" in findings[0].text


def test_tilt_of_whole_pixels_moves_slices_without_mixing(tmp_path):
    """Slices that run one row (2 mm) to the back each: every slice is found whole, air around it."""
    affine = lps((2, 2, 4))
    affine[1, 2] = -2.0
    given = Volume(scan().array[:, :, :5], affine)
    write_series(tmp_path, given)
    volume = read(tmp_path)
    assert volume.shape == (40, 36, 5)
    for k in range(5):
        np.testing.assert_array_equal(volume.array[:, k : k + 32, k], given.array[:, :, k])
        assert (volume.array[:, :k, k] == AIR_HU).all()
        assert (volume.array[:, k + 32 :, k] == AIR_HU).all()
    np.testing.assert_allclose(volume.affine, lps((2, 2, 4)), atol=1e-6)


def test_a_slice_that_lies_beside_the_others_is_moved(tmp_path):
    """One slice of 12 whose position says two pixels to the left is found there; a shift by a twentieth of a pixel is not worth a word."""
    pixel = scan().spacing[0]

    def beside(pixels):
        def change(k, image):
            if k == 6:
                x, y, z = place_of(scan(), 6)[0]
                image.ImagePositionPatient = [f"{float(x) + pixels * pixel:.6f}", y, z]

        return change

    write_series(tmp_path / "far", scan(), beside(2))
    volume, (finding,) = read_noting(tmp_path / "far")
    assert (volume.shape, finding.topic) == ((42, 32, 12), "tilt")
    np.testing.assert_array_equal(volume.array[2:, :, 6], scan().array[:, :, 6])
    np.testing.assert_array_equal(volume.array[:-2, :, 5], scan().array[:, :, 5])
    write_series(tmp_path / "gone", scan(), beside(40))
    with pytest.raises(InputError, match="at most 50 mm beside"):
        read(tmp_path / "gone")
    write_series(tmp_path / "near", scan(), beside(0.05))
    volume, findings = read_noting(tmp_path / "near")
    np.testing.assert_array_equal(volume.array, scan().array)
    assert findings == []


def test_directions_rounded_to_three_digits_are_no_tilt(tmp_path):
    """Directions that are off by 0.03° make slices drift by half a micrometre per millimetre: read as they are, without a word."""
    given = ramp(turned((17, -8, 31)))
    write_series(tmp_path, given, lambda k, image: setattr(image, "ImageOrientationPatient", [f"{float(c):.3f}" for c in image.ImageOrientationPatient]), slope=0.001)
    volume, findings = read_noting(tmp_path)
    assert (volume.shape, findings) == (given.shape, [])
    assert volume.same_grid(given, tolerance_mm=0.02)


def test_a_steep_tilt_is_refused(tmp_path):
    """50° is no gantry."""
    affine = lps()
    affine[1, 2] = np.tan(np.radians(50)) * affine[2, 2]
    write_series(tmp_path, ramp(affine), slope=0.001)
    with pytest.raises(InputError, match=r"tilt of 50\.0°.*at most 45°"):
        read(tmp_path)


# ---- distances --------------------------------------------------------------------------------------------------------


def test_a_missing_slice_is_interpolated_and_told(tmp_path):
    """Without slice 3 of 8 there are 8 slices again; the third is the mean of its neighbours, which on a ramp is the truth."""
    write_series(tmp_path, ramp(lps()), lambda k, _: k != 3, slope=0.001)
    volume, findings = read_noting(tmp_path)
    assert volume.same_grid(ramp(lps()), tolerance_mm=1e-3)
    assert off_mm(volume).max() < 1e-3
    assert (findings[0].level, findings[0].topic) == ("warning", "spacing")
    assert "1 seems to be missing" in findings[0].text


def test_slices_that_are_there_keep_their_values(tmp_path):
    """Only the missing slice is made up; all others are bit for bit those of the file."""
    write_series(tmp_path, scan(), lambda k, _: k != 5)
    volume = read(tmp_path)
    kept = [k for k in range(12) if k != 5]
    np.testing.assert_array_equal(volume.array[:, :, kept], scan().array[:, :, kept])


@pytest.mark.parametrize(("step", "gone", "refused"), [(3, {3, 4}, False), (3, {3, 4, 5}, True), (6, {3}, True), (4, {3}, False), (2, {2, 3, 5}, False)])
def test_how_much_may_be_missing(tmp_path, step, gone, refused):
    """Gaps of three usual distances and 10 mm are bridged: two of 3 mm slices yes (9 mm), three no; one of 4 mm yes (8 mm), one of 6 mm no (12 mm)."""
    write_series(tmp_path, ramp(lps((2, 2, step))), lambda k, _: k not in gone, slope=0.001)
    if refused:
        with pytest.raises(InputError, match="slices are missing"):
            read(tmp_path)
    else:
        assert off_mm(read(tmp_path)).max() < 1e-3


def test_uneven_distances_are_evened(tmp_path):
    """Slices at 0, 3, 6, 8, 12, 15, 18, 21 mm: the fourth lies 1 mm low; the result has 8 slices 3 mm apart in their places."""

    def lower(k, image):
        if k == 3:
            low = ramp(lps(origin=(20.0, 15.0, -11.0)))
            image.ImagePositionPatient = place_of(low, 3)[0]
            store(image, low.array[:, :, 3].T[None], 0.001, -1024)

    write_series(tmp_path, ramp(lps()), lower, slope=0.001)
    volume, findings = read_noting(tmp_path)
    assert volume.same_grid(ramp(lps()), tolerance_mm=1e-3)
    assert off_mm(volume).max() < 1e-3
    assert "2 to 4 mm apart, usually 3 mm" in findings[0].text


def test_rounded_positions_are_not_worth_a_word(tmp_path):
    """Positions rounded to a tenth of a millimetre (a thirtieth of the distance) are taken as even, voxels untouched."""

    def rounded(k, image):
        image.ImagePositionPatient = [*image.ImagePositionPatient[:2], f"{float(image.ImagePositionPatient[2]) + (0.1 if k == 4 else 0):.1f}"]

    affine = scan().affine.copy()
    affine[2, 2] = 3.0
    write_series(tmp_path, Volume(scan().array, affine), rounded)
    volume, findings = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert findings == []


def test_duplicated_slices_count_once(tmp_path):
    """A copy of a file, and a slice that was sent twice under another UID, change nothing; the second is noted."""
    files = write_series(tmp_path, scan())
    shutil.copy(files[2], tmp_path / "copy.dcm")
    volume, findings = read_noting(tmp_path)
    assert (volume.shape, findings) == (scan().shape, [])
    again = one_slice(scan(), 7)
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.77"
    again.save_as(tmp_path / "again.dcm", enforce_file_format=True)
    volume, findings = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert [(f.level, f.topic) for f in findings] == [("note", "slices")]


def test_different_slices_at_one_place_are_doubted(tmp_path):
    """Two different slices at one height: the one with the lower instance number is used, with a warning."""
    write_series(tmp_path, scan())
    other = one_slice(Volume(scan().array + np.int16(50), scan().affine), 7)
    other.SOPInstanceUID, other.InstanceNumber = f"{ROOT}.77", 99
    other.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    volume, findings = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert "warning: 1 slice lies" in sentences(findings)
    assert "1 of them show something else" in sentences(findings)


def test_time_points_are_taken_apart(tmp_path):
    """A series with two volumes at the same place gives one of them and a warning about 4-D."""
    for point in (1, 2):

        def timed(k, image, point=point):
            image.TemporalPositionIdentifier = point
            image.SOPInstanceUID, image.InstanceNumber = f"{ROOT}.5.{point}.{k}", 100 * point + k

        write_series(tmp_path / str(point), Volume(scan().array + np.int16(point), scan().affine), timed)
    volume, findings = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array + 1)
    assert [(f.level, f.topic) for f in findings] == [("warning", "4-D")]


# ---- which series -----------------------------------------------------------------------------------------------------


def test_the_series_is_chosen_by_rule_and_named(tmp_path):
    """Of a scout, an MR, a coronal reformat with more slices, a short and a long axial series the long axial one is taken, and the note names it."""

    coronal = Volume(np.zeros((8, 8, 30), np.int16), turned((90, 0, 0)))
    write_series(tmp_path / "scout", Volume(scan().array[:, :, :2], scan().affine), marked(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), series=1)
    write_series(tmp_path / "mr", Volume(np.repeat(scan().array, 3, axis=2), scan().affine), marked(Modality="MR"), series=2)
    write_series(tmp_path / "coronal", coronal, series=3)
    write_series(tmp_path / "short", Volume(scan().array[:, :, :5], scan().affine), series=4)
    write_series(tmp_path / "long", scan(), series=5)
    write_series(tmp_path / "mip", Volume(np.repeat(scan().array, 2, axis=2), scan().affine), marked(ImageType=["DERIVED", "SECONDARY", "MIP"]), series=6)
    volume, (note,) = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert note.level == "note"
    assert note.text.startswith("Series 5 'Thorax 5' (CT, 12 images) was taken of 6 series")
    assert "--series" in note.mend
    assert "series 4 'Thorax 4'" in note.mend
    assert read(tmp_path, series="4").shape == (40, 32, 5)
    assert read(tmp_path, series=f"{ROOT}.3").shape == (8, 8, 30)
    with pytest.raises(InputError, match="modality MR, expected CT"):
        read(tmp_path, series="2")
    with pytest.raises(InputError, match="2 are localizers"):
        read(tmp_path, series="1")
    with pytest.raises(UsageError, match="no series '7'"):
        read(tmp_path, series="7")


def test_a_number_that_two_series_share_is_refused(tmp_path):
    """--series 3 where two series have the number 3 lists their UIDs."""
    for series in (1, 2):
        write_series(tmp_path / str(series), scan(), marked(SeriesNumber=3), series=series)
    with pytest.raises(UsageError, match="2 series .* have the number 3") as refusal:
        read(tmp_path, series="3")
    assert f"{ROOT}.2" in refusal.value.tip


def test_series_is_refused_for_other_formats(tmp_path):
    """--series with a NIfTI file is a mistake of the call."""
    from clseg.io.nifti import write_volume

    write_volume(tmp_path / "ct.nii.gz", scan())
    with pytest.raises(UsageError, match="no DICOM"):
        read(tmp_path / "ct.nii.gz", series="1")


@pytest.mark.parametrize("modality", ["MR", "PT", "US", "NM"])
def test_other_modalities_are_refused_by_name(tmp_path, modality):
    """A folder of MR, PET, ultrasound or SPECT alone is refused with the modality."""
    write_series(tmp_path, scan(), marked(Modality=modality))
    with pytest.raises(InputError, match=rf"holds no CT but series 1 'Thorax 1' \({modality}, 12 images\)"):
        read(tmp_path)


def test_a_missing_modality_is_tolerated(tmp_path):
    """Without the tag the series is read, and a warning says what was assumed."""
    write_series(tmp_path, scan(), lambda k, image: delattr(image, "Modality"))
    volume, findings = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert [(f.level, f.topic) for f in findings] == [("warning", "modality")]


def test_images_that_do_not_fit_are_left_out(tmp_path):
    """A localizer inside the series, a screenshot without a place and a slice of another size are left out, each with a sentence."""

    def spoil(k, image):
        if k == 0:
            image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        if k == 1:
            del image.ImagePositionPatient
        if k == 11:
            image.Rows = 16
            store(image, np.zeros((1, 16, 40)), 1, -1024)

    write_series(tmp_path, scan(), spoil)
    volume, findings = read_noting(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array[:, :, 2:11])
    assert [f.level for f in findings] == ["note", "warning", "warning"]
    assert "1 localizer of the series was left out" in sentences(findings)
    assert "1 of 12 images do not say where they lie" in sentences(findings)
    assert "another size" in sentences(findings)


def test_no_place_at_all_is_refused(tmp_path):
    """Screenshots alone are no scan."""
    write_series(tmp_path, scan(), lambda k, image: delattr(image, "ImagePositionPatient"))
    with pytest.raises(InputError, match="say where they lie"):
        read(tmp_path)


# ---- pixels -----------------------------------------------------------------------------------------------------------


def test_every_slice_has_its_own_rescaling(tmp_path):
    """Slope and intercept that change from slice to slice give the same HU; halves make the result float32."""

    def rescaled(k, image):
        image.RescaleSlope, image.RescaleIntercept = (0.5, -200) if k % 2 else (1, -3000)
        store(image, scan().array[:, :, k].T[None], float(image.RescaleSlope), float(image.RescaleIntercept))

    write_series(tmp_path, scan(), rescaled)
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert volume.array.dtype == np.float32


def test_a_slice_without_its_rescaling_is_scaled_like_the_others(tmp_path):
    """Where all others agree: the same HU, and a warning; where they do not, nobody can tell; where none has any, values stay as they are."""

    def bare(*which):
        def change(k, image):
            if k in which:
                del image.RescaleSlope, image.RescaleIntercept

        return change

    found = []
    write_series(tmp_path / "one", scan(), bare(2))
    np.testing.assert_array_equal(read(tmp_path / "one", found=found.append).array, scan().array)
    assert [finding.topic for finding in found] == ["values"]
    assert "1 of" in found[0].text

    def mixed(k, image):
        image.RescaleIntercept = -1024 - k % 2
        bare(2)(k, image)

    write_series(tmp_path / "mixed", scan(), mixed)
    with pytest.raises(InputError, match="and the others do not agree"):
        read(tmp_path / "mixed")
    write_series(tmp_path / "none", scan(), bare(*range(scan().shape[2])))
    np.testing.assert_array_equal(read(tmp_path / "none").array, scan().array + 1024)


def test_twelve_bits_with_rubbish_above(tmp_path):
    """Of 16-bit words with 12 bits stored the upper four (overlays of old) do not count, signed and unsigned."""
    hu = np.clip(scan().array, -1024, 1023)
    for signed in (0, 1):

        def packed(k, image, signed=signed):
            store(image, hu[:, :, k].T[None], 1, -1024 if not signed else 0, 16)
            image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, signed
            image.RescaleIntercept = 0 if signed else -1024
            words = np.frombuffer(image.PixelData, "<u2")
            image.PixelData = ((words & 0x0FFF) | 0x5000).astype("<u2").tobytes()

        write_series(tmp_path / str(signed), Volume(hu, scan().affine), packed)
        np.testing.assert_array_equal(read(tmp_path / str(signed)).array, hu)


@pytest.mark.parametrize("kind", ["JPEG2000", "JPEG", "RLE"])
def test_compressed_pixels_are_decoded(tmp_path, kind):
    """JPEG 2000, lossless JPEG and RLE give the same HU as plain pixels, without a word on the terminal."""

    def sixteen(k, image):
        store(image, scan().array[:, :, k].T[None], 1, -1024, 16)
        if kind == "RLE":
            image.compress(RLELossless)

    files = write_series(tmp_path, scan(), sixteen)
    if kind != "RLE":
        for file in files:
            _compressed_by_gdcm(file, kind)
    np.testing.assert_array_equal(read(tmp_path).array, scan().array)


def _compressed_by_gdcm(file: Path, kind: str) -> None:
    """The file with its pixels as GDCM compresses them, everything else kept."""
    from pydicom import dcmread

    image = dcmread(file)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(file) + ".small.dcm")
    writer.UseCompressionOn()
    writer.SetCompressor(kind)
    writer.Execute(sitk.GetImageFromArray(image.pixel_array.astype(np.int16)))
    small = dcmread(str(file) + ".small.dcm")
    assert small.file_meta.TransferSyntaxUID.is_compressed
    image.file_meta.TransferSyntaxUID = small.file_meta.TransferSyntaxUID
    image.PixelData = small.PixelData
    image["PixelData"].is_undefined_length = True
    for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(image, name, getattr(small, name))
    image.save_as(file, enforce_file_format=True)
    Path(str(file) + ".small.dcm").unlink()


def test_colour_is_refused(tmp_path):
    """Three samples per pixel are a rendered picture."""

    def coloured(k, image):
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit, image.PixelRepresentation = 7, 0
        image.PixelData = bytes(3 * 40 * 32)

    write_series(tmp_path, scan(), coloured)
    with pytest.raises(InputError, match="colour picture"):
        read(tmp_path)


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path):
    """65535 × 65535 pixels in a file of 6 kB."""
    write_series(tmp_path, scan(), marked(Rows=65535, Columns=65535))
    with pytest.raises(InputError, match="cannot hold"):
        read(tmp_path)


def test_a_truncated_slice_is_refused_and_a_broken_header_left_out(tmp_path):
    """A file cut in its pixels is an InputError that names it; one cut in its header is left out and told, the gap filled."""
    files = write_series(tmp_path, scan())
    whole = files[4].read_bytes()
    files[4].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{files[4].name}' is damaged"):
        read(tmp_path)
    files[4].write_bytes(whole[:400])
    volume, findings = read_noting(tmp_path)
    assert volume.shape == scan().shape
    assert [f.topic for f in findings] == ["files", "spacing"]
    assert "1 of 12 DICOM files is damaged and was left out (1-004.dcm)" in findings[0].text
    assert "1 seems to be missing" in findings[1].text


def test_a_single_image_is_no_scan(tmp_path):
    """One slice, as a file or alone in a folder, is refused."""
    (file,) = write_series(tmp_path, Volume(scan().array[:, :, :1], scan().affine))
    with pytest.raises(InputError, match="a single DICOM image"):
        read(file)
    with pytest.raises(InputError, match="two or more slices"):
        read(tmp_path)


# ---- multi-frame ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["file", "folder"])
def test_an_enhanced_ct_is_one_file(tmp_path, inside):
    """Frames in any order, each with its own place and rescaling, are the CT that they came from."""
    order = [5, 0, 11, 3, 1, 2, 4, 10, 9, 8, 7, 6]
    file = write_enhanced(tmp_path / "enhanced.dcm", scan(), order=order)
    volume, findings = read_noting(file if inside == "file" else tmp_path)
    np.testing.assert_array_equal(volume.array, scan().array)
    assert volume.same_grid(scan(), tolerance_mm=1e-3)
    assert findings == []


def test_frames_without_a_place_are_refused(tmp_path):
    """A multi-frame file whose frames do not say where they lie, or are fewer than announced, is refused."""

    def lost(image):
        for group in image.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    def fewer(image):
        image.PerFrameFunctionalGroupsSequence = image.PerFrameFunctionalGroupsSequence[:5]

    with pytest.raises(InputError, match="say where they lie"):
        read(write_enhanced(tmp_path / "lost.dcm", scan(), lost))
    with pytest.raises(InputError, match="damaged"):
        read(write_enhanced(tmp_path / "fewer.dcm", scan(), fewer))
