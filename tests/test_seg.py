"""DICOM SEG: what was found lies where it was found, under its code, and refers to the images it was found in."""

from __future__ import annotations

import builtins
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from clseg.catalogue import Catalogue
from clseg.errors import OutputError, UsageError
from clseg.io.dicom.rtstruct import write_rtstruct
from clseg.io.dicom.source import source_of
from clseg.io.files import read
from clseg.io.segments import Segments
from tests.dicom_files import ROOT, in_study, write_series
from tests.dicom_results import (
    NAMES,
    SERIES,
    moved,
    multi_frame,
    real_case,
    scan_on,
    seg_masks,
    segments_of,
    series,
    straight,
    voxels_of,
)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom (extra dicom) is not installed")

FOUND = [name for name in NAMES if name != "spleen"]


def written(path: Path, file: Path, **options: object) -> tuple[Dataset, Segments]:
    from clseg.io.dicom.seg import write_seg

    segments = segments_of(path)
    assert write_seg(file, segments, source_of(path), **options)
    return dcmread(file), segments


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return series(straight())(tmp_path / "in")


@pytest.mark.parametrize("name", SERIES)
def test_a_binary_file_holds_every_voxel_in_its_place(tmp_path: Path, name: str) -> None:
    """For every kind of series, overlapping structures come back voxel for voxel, each within 1e-3 mm of its place, through pydicom and SimpleITK; the empty one is not there."""
    data, segments = written(SERIES[name](tmp_path / "in"), tmp_path / "x.dcm")
    masks = seg_masks(data, segments.scan)
    assert sorted(masks) == sorted(FOUND)
    for anatomy in segments.present:
        np.testing.assert_array_equal(masks[anatomy.name], segments.mask(anatomy), err_msg=anatomy.name)


@pytest.mark.parametrize("name", SERIES)
def test_a_label_map_holds_what_is_not_hidden(tmp_path: Path, name: str) -> None:
    """For every kind of series the values are the ids of the catalogue, and where structures overlap the part hides the whole."""
    data, segments = written(SERIES[name](tmp_path / "in"), tmp_path / "x.dcm", kind="labelmap")
    masks, flat = seg_masks(data, segments.scan), segments.flat()
    for anatomy in segments.present:
        np.testing.assert_array_equal(masks[anatomy.name], flat == anatomy.id, err_msg=anatomy.name)
    assert {int(item.SegmentNumber) for item in data.SegmentSequence} == {0, *(a.id for a in segments.present)}


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_highdicom_reads_the_same(tmp_path: Path, name: str, kind: str) -> None:
    """highdicom's own reader makes one volume of it, on the scan's grid within 1e-3 mm."""
    from highdicom.seg import segread

    _, segments = written(SERIES[name](tmp_path / "in"), tmp_path / "x.dcm", kind=kind)
    seg = segread(tmp_path / "x.dcm")
    numbers = [seg.get_segment_numbers(segment_label=name)[0] for name in FOUND]
    volume = seg.get_volume(segment_numbers=numbers)
    lps = np.diag([-1.0, -1, 1, 1]) @ segments.scan.affine
    flat, whole = segments.flat(), {a.name: a for a in segments.present}
    for index, label in enumerate(FOUND):
        at = np.argwhere(volume.array[..., index] > 0)
        places = (np.c_[at, np.ones(len(at))] @ volume.affine.T) @ np.linalg.inv(lps).T
        mask = np.zeros(segments.scan.shape, bool)
        mask[tuple(np.rint(places[:, :3]).astype(int).T)] = True
        assert (np.abs(places[:, :3] - np.rint(places[:, :3])) * segments.scan.spacing).max() < 1e-3
        expected = flat == whole[label].id if kind == "labelmap" else segments.mask(whole[label])
        np.testing.assert_array_equal(mask, expected, err_msg=label)


def test_frames_are_only_where_something_is(sources: Path, tmp_path: Path) -> None:
    """Body 7 slices, lung 5, liver 3, tumour 2, node 1 make 18 frames; as a label map the 9 slices that hold anything."""
    data, _ = written(sources, tmp_path / "x.dcm")
    assert data.NumberOfFrames == len(data.PerFrameFunctionalGroupsSequence) == 7 + 5 + 3 + 2 + 1
    assert data.SegmentsOverlap == "YES"
    data, _ = written(sources, tmp_path / "y.dcm", kind="labelmap")
    assert data.NumberOfFrames == 9
    assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation Storage


def test_segments_say_what_they_are(sources: Path, tmp_path: Path) -> None:
    """In the order of the catalogue: label, code, side, kind, who found it, with which model, and a colour."""
    from highdicom.color import CIELabColor

    data, segments = written(sources, tmp_path / "x.dcm", model="starter")
    assert [item.SegmentLabel for item in data.SegmentSequence] == [a.name for a in segments.present]
    assert [item.SegmentNumber for item in data.SegmentSequence] == [1, 2, 3, 4, 5]
    items = {item.SegmentLabel: item for item in data.SegmentSequence}
    lung, node, tumour = (items[name] for name in ("lung_left", "lymph_node_station_neck_3_left", "gtv_lung"))
    (kind,) = lung.SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("39607008", "SCT", "Lung")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert node.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99CLSEG"
    assert data.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99CLSEG"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert tumour.AnatomicRegionSequence[0].CodeValue == "39607008"
    assert (lung.SegmentAlgorithmType, lung.SegmentAlgorithmName) == ("AUTOMATIC", "clseg")
    assert lung.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters == "model=starter"
    assert (lung.TrackingID, lung.TrackingUID != node.TrackingUID) == ("lung_left", True)
    lab = CIELabColor.from_rgb(*Catalogue.builtin()["lung_left"].colour)
    assert tuple(lung.RecommendedDisplayCIELabValue) == lab.value


def test_frames_refer_to_their_images(sources: Path, tmp_path: Path) -> None:
    """Every frame names the slice it lies in, the file names the series with its 9 slices, the patient and the frame of reference."""
    data, _ = written(sources, tmp_path / "x.dcm")
    for group in data.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        k = round((float(group.PlanePositionSequence[0].ImagePositionPatient[2]) + 10.75) / 3)
        assert (image.ReferencedSOPInstanceUID, "ReferencedFrameNumber" in image) == (f"{ROOT}.1.{k + 1}", False)
    (referenced,) = data.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == f"{ROOT}.1"
    assert [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence] == [f"{ROOT}.1.{k}" for k in range(1, 10)]
    assert (data.FrameOfReferenceUID, data.StudyInstanceUID, str(data.PatientName)) == (f"{ROOT}.600", f"{ROOT}.500", "Doe^Jane")
    assert (data.SeriesInstanceUID != f"{ROOT}.1", data.SeriesNumber, data.ContentDate) == (True, 1001, "20210304")


def test_frames_of_a_multi_frame_source_are_named_by_number(tmp_path: Path) -> None:
    """The slice at k = 0 stands second in its file, that at k = 8 third, as the test wrote them."""
    data, segments = written(multi_frame(tmp_path / "in"), tmp_path / "x.dcm")
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    for group in data.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        k = voxels_of(np.array([group.PlanePositionSequence[0].ImagePositionPatient], float), segments.scan)[0, 2]
        assert order[image.ReferencedFrameNumber - 1] == k
        assert image.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2.1"
    assert [item.ReferencedSOPInstanceUID for item in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence] == [f"{ROOT}.9.1"]


def test_planes_of_filled_gaps_refer_to_no_image(tmp_path: Path) -> None:
    """The fifth slice was missing: frames in its place, and no others, have no source image."""
    data, _ = written(SERIES["missing slice"](tmp_path / "in"), tmp_path / "x.dcm")
    for group in data.PerFrameFunctionalGroupsSequence:
        k = round((float(group.PlanePositionSequence[0].ImagePositionPatient[2]) + 10.75) / 3)
        named = [image.ReferencedSOPInstanceUID for item in group.DerivationImageSequence for image in item.SourceImageSequence]
        assert named == ([] if k == 4 else [f"{ROOT}.1.{k + 1}"])


@pytest.mark.parametrize(("name", "answers"), [("straight", {"YES"}), ("multi-frame", {"YES"}), ("missing slice", {"YES"}), ("gantry tilt", {"NO"})])
def test_a_frame_says_whether_its_pixels_are_those_of_the_image(tmp_path: Path, name: str, answers: set[str]) -> None:
    """They are where images were taken as they are, and not where slices were moved within their planes."""
    data, _ = written(SERIES[name](tmp_path / "in"), tmp_path / "x.dcm")
    derived = [item for group in data.PerFrameFunctionalGroupsSequence for item in group.DerivationImageSequence]
    assert {item.SourceImageSequence[0].SpatialLocationsPreserved for item in derived} == answers


def test_frames_lie_at_the_images_where_these_are_almost_even(tmp_path: Path) -> None:
    """The frame in the slice that lies 0.1 mm too high lies there, too: where the pixels are, not where the even grid is."""
    data, _ = written(moved({4: 0.1})(tmp_path / "in"), tmp_path / "x.dcm")
    heights = {round(float(group.PlanePositionSequence[0].ImagePositionPatient[2]) + 10.75, 4) for group in data.PerFrameFunctionalGroupsSequence}
    assert heights == {0, 3, 6, 9, 12.1, 15, 18, 21, 24}


def test_what_is_private_stays_behind(sources: Path, tmp_path: Path) -> None:
    """Neither scanner nor institution nor comments of the source are in the file."""
    written(sources, tmp_path / "x.dcm")
    content = (tmp_path / "x.dcm").read_bytes()
    assert not any(word in content for word in (b"Scanners Inc", b"St. Elsewhere", b"secret"))
    assert b"Doe^Jane" in content


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_same_input_gives_the_same_bytes(sources: Path, tmp_path: Path, kind: str) -> None:
    """Twice written is the same; one voxel more is another instance of another series."""
    from clseg.io.dicom.seg import write_seg

    data, segments = written(sources, tmp_path / "a.dcm", kind=kind)
    written(sources, tmp_path / "b.dcm", kind=kind)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    segments.layers[1][12, 0, 0] = Catalogue.builtin()["liver"].id
    write_seg(tmp_path / "c.dcm", Segments(segments.scan, segments.layers, segments.wanted), source_of(sources), kind=kind)
    other = dcmread(tmp_path / "c.dcm")
    assert other.SOPInstanceUID == other.file_meta.MediaStorageSOPInstanceUID != data.SOPInstanceUID
    assert other.SeriesInstanceUID != data.SeriesInstanceUID


def test_a_structure_on_several_layers_is_one_segment(sources: Path, tmp_path: Path) -> None:
    """A joined result with liver on both layers: its frames hold the union."""
    from clseg.io.dicom.seg import write_seg

    segments = segments_of(sources)
    liver = Catalogue.builtin()["liver"]
    segments.layers[0][0, 9:11, 0:2] = liver.id
    joined = Segments(segments.scan, segments.layers, segments.wanted)
    assert write_seg(tmp_path / "x.dcm", joined, source_of(sources))
    masks = seg_masks(dcmread(tmp_path / "x.dcm"), joined.scan)
    for anatomy in joined.present:
        np.testing.assert_array_equal(masks[anatomy.name], joined.mask(anatomy), err_msg=anatomy.name)


def test_one_structure_alone(sources: Path, tmp_path: Path) -> None:
    """A single segment on a single layer, which highdicom writes in another way, comes back, too."""
    from clseg.io.dicom.seg import write_seg

    segments = segments_of(sources)
    alone = Segments(segments.scan, segments.layers[1:], (Catalogue.builtin()["liver"],))
    assert write_seg(tmp_path / "x.dcm", alone, source_of(sources))
    data = dcmread(tmp_path / "x.dcm")
    assert (data.NumberOfFrames, data.SegmentsOverlap) == (3, "NO")
    np.testing.assert_array_equal(seg_masks(data, alone.scan)["liver"], alone.mask(alone.wanted[0]))


def test_what_is_hidden_altogether_is_not_in_a_label_map(sources: Path, tmp_path: Path) -> None:
    """A body of one voxel under the liver: binary has both, the label map the liver."""
    from clseg.io.dicom.seg import write_seg

    segments = segments_of(sources)
    segments.layers[0][:] = 0
    segments.layers[0][0, 0, 0] = Catalogue.builtin()["body"].id
    hidden = Segments(segments.scan, segments.layers, segments.wanted[:4])
    for kind, labels in (("binary", ["body", "lung_left", "liver"]), ("labelmap", ["Background", "lung_left", "liver"])):
        write_seg(tmp_path / "x.dcm", hidden, source_of(sources), kind=kind)
        assert [item.SegmentLabel for item in dcmread(tmp_path / "x.dcm").SegmentSequence] == labels


def test_where_nothing_was_found_nothing_is_written(sources: Path, tmp_path: Path) -> None:
    """DICOM has no segmentation without segments."""
    from clseg.io.dicom.seg import write_seg

    scan = read(sources)
    empty = Segments(scan, (np.zeros(scan.shape, np.uint16),), segments_of(sources).wanted)
    assert write_seg(tmp_path / "x.dcm", empty, source_of(sources)) is False
    assert not (tmp_path / "x.dcm").exists()


def test_a_name_beyond_ascii_survives(tmp_path: Path) -> None:
    """A patient whose name is written in Latin 1 keeps it."""

    def named(k: int, image: Dataset) -> None:
        in_study(k, image)
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "Müller^Jörg"

    write_series(tmp_path / "in", scan_on(straight()), named)
    data, _ = written(tmp_path / "in", tmp_path / "x.dcm")
    assert str(data.PatientName) == "Müller^Jörg"


def test_malformed_elements_of_the_source_do_not_stop_a_result(tmp_path: Path) -> None:
    """A sex that is none, a birth date that is none, a name of 100 letters and UIDs with letters: both kinds of results are written all the same, without a warning."""

    def spoiled(k: int, image: Dataset) -> None:
        in_study(k, image)
        image.PatientSex, image.PatientBirthDate, image.PatientName = "FEMALE", "51", "x" * 100
        image.StudyInstanceUID = "1.2.abc"
        del image.FrameOfReferenceUID

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path / "in", scan_on(straight()), spoiled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, segments = written(tmp_path / "in", tmp_path / "x.dcm")
        write_rtstruct(tmp_path / "y.dcm", segments, source_of(tmp_path / "in"))
    assert (data.StudyInstanceUID, data.PatientSex, data.PatientBirthDate) == ("1.2.abc", "", "")


def test_wrong_calls_are_told(sources: Path, tmp_path: Path) -> None:
    """Another kind, and a scan that was no DICOM."""
    from clseg.io.dicom.seg import write_seg

    segments = segments_of(sources)
    with pytest.raises(UsageError, match=r"binary or labelmap, given: 'fractional'"):
        write_seg(tmp_path / "x.dcm", segments, source_of(sources), kind="fractional")
    with pytest.raises(UsageError, match="refers to the DICOM series of its scan, but this scan is none"):
        write_seg(tmp_path / "x.dcm", segments, None)


def test_without_highdicom_the_extra_is_named(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, and how to install it."""
    from clseg.io.dicom.seg import write_seg

    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name.split(".")[0] == "highdicom":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OutputError, match="needs highdicom") as error:
        write_seg(tmp_path / "x.dcm", segments_of(sources), source_of(sources))
    assert error.value.tip == "pip install 'clseg[dicom]'"


def test_an_interrupted_file_leaves_the_old_one(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of writing: the earlier file stays, no part of the new one."""
    from highdicom.seg import Segmentation

    written(sources, tmp_path / "x.dcm")
    before = (tmp_path / "x.dcm").read_bytes()

    def full(self: Segmentation, stream: object, **options: object) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Segmentation, "save_as", full)
    with pytest.raises(OutputError, match="disk is full"):
        written(sources, tmp_path / "x.dcm")
    assert (tmp_path / "x.dcm").read_bytes() == before
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_bits_are_joined_without_gaps() -> None:
    """3 bits, 9 bits and 4 bits, of which some bytes carry rubbish behind their last bit, are 16 bits."""
    from clseg.io.dicom.seg import _Bits

    bits = _Bits()
    bits.add(bytes([0b11111101]), 3)  # 1 0 1
    bits.add(bytes([0b00001111, 0b11111111]), 9)  # 1 1 1 1 0 0 0 0 1
    bits.add(bytes([0b00000010]), 4)  # 0 1 0 0
    assert bits.padded() == bytes([0b01111101, 0b00101000])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_real_series(shared: Path, tmp_path: Path, kind: str) -> None:
    """The labels of a CT with 59 structures, in slices written from it: every structure comes back voxel for voxel."""
    from clseg.io.dicom.seg import write_seg

    segments, source = real_case(shared, tmp_path)
    assert write_seg(tmp_path / "x.dcm", segments, source, kind=kind)
    masks = seg_masks(dcmread(tmp_path / "x.dcm"), segments.scan)
    assert len(masks) == len(segments.present) > 20
    for anatomy in segments.present:
        np.testing.assert_array_equal(masks[anatomy.name], segments.mask(anatomy), err_msg=anatomy.name)
