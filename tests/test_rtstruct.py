"""RT structure sets: contours that give the masks back, in the planes of the images, under their names."""

from __future__ import annotations

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
from tests.dicom_files import ROOT
from tests.dicom_results import (
    NAMES,
    SERIES,
    multi_frame,
    real_case,
    rtstruct_contours,
    rtstruct_masks,
    scan_on,
    segments_of,
    series,
    straight,
    voxel_places,
)

FOUND = [name for name in NAMES if name != "spleen"]


def written(path: Path, file: Path, **options: str) -> tuple[Dataset, Segments]:
    segments = segments_of(path)
    assert write_rtstruct(file, segments, source_of(path), **options)
    return dcmread(file), segments


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return series(straight())(tmp_path / "in")


@pytest.mark.parametrize("name", SERIES)
def test_filled_contours_are_the_masks(tmp_path: Path, name: str) -> None:
    """For every kind of series, contours filled in planes within 1e-3 mm of those of the scan give every structure back voxel for voxel, holes and islands too."""
    data, segments = written(SERIES[name](tmp_path / "in"), tmp_path / "x.dcm")
    masks = rtstruct_masks(data, segments.scan)
    assert list(masks) == FOUND
    for anatomy in segments.present:
        np.testing.assert_array_equal(masks[anatomy.name], segments.mask(anatomy), err_msg=anatomy.name)


@pytest.mark.parametrize("name", ["oblique", "gantry tilt", "anisotropic"])
def test_contours_run_half_way_between_pixels(tmp_path: Path, name: str) -> None:
    """The node of one voxel is a diamond whose points lie half a pixel from its centre, within 1e-3 mm."""
    data, segments = written(SERIES[name](tmp_path / "in"), tmp_path / "x.dcm")
    ((points, item),) = dict(rtstruct_contours(data))["lymph_node_station_neck_3_left"]
    centre = np.array(segments.scan.shape) - 1
    off = (voxel_places(points, segments.scan) - centre) * segments.scan.spacing
    i, j, _ = np.array(segments.scan.spacing) / 2
    expected = [(-i, 0, 0), (0, -j, 0), (0, j, 0), (i, 0, 0)]
    np.testing.assert_allclose(off[np.lexsort(off.round(2).T[::-1])], expected, atol=1e-3)
    assert (item.ContourGeometricType, item.NumberOfContourPoints) == ("CLOSED_PLANAR", 4)


def test_contours_refer_to_the_images_in_their_planes(sources: Path, tmp_path: Path) -> None:
    """Every contour names the slice it lies in; the file names patient, study, frame of reference, series and all 9 slices."""
    data, _ = written(sources, tmp_path / "x.dcm")
    for _, contours in rtstruct_contours(data):
        for points, item in contours:
            (image,) = item.ContourImageSequence
            assert image.ReferencedSOPInstanceUID == f"{ROOT}.1.{round((points[0, 2] + 10.75) / 3) + 1}"
    (frame,) = data.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (referenced,) = study.RTReferencedSeriesSequence
    assert (frame.FrameOfReferenceUID, study.ReferencedSOPInstanceUID, referenced.SeriesInstanceUID) == (f"{ROOT}.600", f"{ROOT}.500", f"{ROOT}.1")
    assert [image.ReferencedSOPInstanceUID for image in referenced.ContourImageSequence] == [f"{ROOT}.1.{k}" for k in range(1, 10)]
    assert (str(data.PatientName), data.PatientID, data.StudyInstanceUID, data.Modality) == ("Doe^Jane", "P-7", f"{ROOT}.500", "RTSTRUCT")
    assert (data.SeriesInstanceUID != f"{ROOT}.1", data.SeriesNumber, data.StructureSetDate) == (True, 2001, "20210304")


def test_contours_in_filled_gaps_refer_to_no_image(tmp_path: Path) -> None:
    """Where the fifth slice was missing, and only there, a contour has no image."""
    data, _ = written(SERIES["missing slice"](tmp_path / "in"), tmp_path / "x.dcm")
    for _, contours in rtstruct_contours(data):
        for points, item in contours:
            assert ("ContourImageSequence" not in item) == (round((points[0, 2] + 10.75) / 3) == 4)


def test_contours_on_frames_name_their_numbers(tmp_path: Path) -> None:
    """In a multi-frame file, contours at k = 0 lie in the second frame, as the test wrote them."""
    data, segments = written(multi_frame(tmp_path / "in"), tmp_path / "x.dcm")
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    for _, contours in rtstruct_contours(data):
        for points, item in contours:
            (image,) = item.ContourImageSequence
            assert order[image.ReferencedFrameNumber - 1] == round(voxel_places(points[:1], segments.scan)[0, 2])


def test_rois_say_what_they_are(sources: Path, tmp_path: Path) -> None:
    """Numbers, names, colours, how they were made, what radiotherapy calls them, and their codes with sides."""
    data, segments = written(sources, tmp_path / "x.dcm", model="starter")
    assert [(roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm) for roi in data.StructureSetROISequence] == [(n, name, "AUTOMATIC") for n, name in enumerate(FOUND, 1)]
    assert [tuple(map(int, roi.ROIDisplayColor)) for roi in data.ROIContourSequence] == [a.colour for a in segments.present]
    assert [item.RTROIInterpretedType for item in data.RTROIObservationsSequence] == ["EXTERNAL", "ORGAN", "ORGAN", "ORGAN", "GTV"]
    lung = data.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
    assert (lung.CodeValue, lung.CodingSchemeDesignator, lung.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("39607008", "SCT", "Left")
    assert "starter" in data.StructureSetDescription


def test_what_is_private_stays_behind(sources: Path, tmp_path: Path) -> None:
    """Neither scanner nor institution nor comments of the source are in the file."""
    written(sources, tmp_path / "x.dcm")
    content = (tmp_path / "x.dcm").read_bytes()
    assert not any(word in content for word in (b"Scanners Inc", b"St. Elsewhere", b"secret"))
    assert b"Doe^Jane" in content


def test_the_same_input_gives_the_same_bytes(sources: Path, tmp_path: Path) -> None:
    """Twice written is the same; one voxel more is another instance of another series."""
    data, segments = written(sources, tmp_path / "a.dcm")
    written(sources, tmp_path / "b.dcm")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    segments.layers[1][12, 0, 0] = Catalogue.builtin()["liver"].id
    write_rtstruct(tmp_path / "c.dcm", Segments(segments.scan, segments.layers, segments.wanted), source_of(sources))
    other = dcmread(tmp_path / "c.dcm")
    assert other.SOPInstanceUID == other.file_meta.MediaStorageSOPInstanceUID != data.SOPInstanceUID
    assert other.SeriesInstanceUID != data.SeriesInstanceUID


def test_long_contours_are_whole(tmp_path: Path) -> None:
    """A comb of 800 teeth has more points than 64 kB of text hold, the limit of some ways to store them; it comes back voxel for voxel."""
    from tests.dicom_files import in_study, write_series

    write_series(tmp_path / "in", scan_on(straight(), (1601, 4, 2)), in_study)
    scan = read(tmp_path / "in")
    liver = Catalogue.builtin()["liver"]
    layer = np.zeros(scan.shape, np.uint16)
    layer[:, 0, 0] = layer[::2, 1:3, 0] = liver.id
    segments = Segments(scan, (layer,), (liver,))
    write_rtstruct(tmp_path / "x.dcm", segments, source_of(tmp_path / "in"))
    data = dcmread(tmp_path / "x.dcm")
    ((_, item),) = dict(rtstruct_contours(data))["liver"]
    assert (item["ContourData"].VR, len(item.ContourData) > 3 * 3000) == ("DS", True)
    np.testing.assert_array_equal(rtstruct_masks(data, scan)["liver"], layer > 0)


def test_a_structure_on_several_layers_is_one_roi(sources: Path, tmp_path: Path) -> None:
    """A joined result with liver on both layers: the contours hold the union."""
    segments = segments_of(sources)
    segments.layers[0][0, 9:11, 0:2] = Catalogue.builtin()["liver"].id
    joined = Segments(segments.scan, segments.layers, segments.wanted)
    write_rtstruct(tmp_path / "x.dcm", joined, source_of(sources))
    masks = rtstruct_masks(dcmread(tmp_path / "x.dcm"), joined.scan)
    for anatomy in joined.present:
        np.testing.assert_array_equal(masks[anatomy.name], joined.mask(anatomy), err_msg=anatomy.name)


def test_where_nothing_was_found_nothing_is_written(sources: Path, tmp_path: Path) -> None:
    """DICOM has no structure set without structures."""
    scan = read(sources)
    empty = Segments(scan, (np.zeros(scan.shape, np.uint16),), segments_of(sources).wanted)
    assert write_rtstruct(tmp_path / "x.dcm", empty, source_of(sources)) is False
    assert not (tmp_path / "x.dcm").exists()


def test_wrong_calls_are_told(sources: Path, tmp_path: Path) -> None:
    """A scan that was no DICOM, and a folder that is not there."""
    with pytest.raises(UsageError, match="refers to the DICOM series of its scan, but this scan is none"):
        write_rtstruct(tmp_path / "x.dcm", segments_of(sources), None)
    with pytest.raises(OutputError, match="its folder does not exist"):
        write_rtstruct(tmp_path / "nowhere" / "x.dcm", segments_of(sources), source_of(sources))


@pytest.mark.slow
def test_a_real_series(shared: Path, tmp_path: Path) -> None:
    """The labels of a CT with 59 structures, in slices written from it: every structure comes back voxel for voxel."""
    segments, source = real_case(shared, tmp_path)
    assert write_rtstruct(tmp_path / "x.dcm", segments, source)
    masks = rtstruct_masks(dcmread(tmp_path / "x.dcm"), segments.scan)
    assert len(masks) == len(segments.present) > 20
    for anatomy in segments.present:
        np.testing.assert_array_equal(masks[anatomy.name], segments.mask(anatomy), err_msg=anatomy.name)
