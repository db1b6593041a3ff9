"""Results in every format: written where `Output` says, whole, in place, and without what an earlier run left."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from clseg.errors import OutputError, UsageError
from clseg.io.files import read
from clseg.io.labels import read_label_names
from clseg.output import Output
from clseg.results import bytes_needed, check_tools
from clseg.segmentation import Segmentation
from clseg.spatial.surface import tools_are_there
from tests.test_segmentation import BODY, LIVER, TUMOUR, files_in, segmentation

needs_tool = pytest.mark.skipif(not tools_are_there(), reason="fast-simplification is not installed (extra 'mesh')")


def all_files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@needs_tool
def test_everything_at_once_is_listed_and_nothing_else_is_there(tmp_path):
    """Masks in two formats, a Slicer segmentation, surfaces of three kinds: run.json names every file, those in folders with a slash."""
    found = segmentation()
    files = found.save(tmp_path, types="nifti,nrrd,seg.nrrd", mesh=["stl,obj", "ply"], statistics=True)
    listed = json.loads((tmp_path / "run.json").read_text())["files"]
    assert set(listed) == all_files(tmp_path) == {file.relative_to(tmp_path).as_posix() for file in files}
    assert {"liver.nii.gz", "liver.nrrd", "segmentation.seg.nrrd", "meshes/liver.stl", "meshes/gtv_liver.ply"} <= set(listed)
    assert not any("spleen" in name for name in listed)


def test_formats_agree_with_each_other(tmp_path):
    """The label map as NIfTI and as NRRD, the mask as NIfTI and as NRRD: the same voxels on the same grid."""
    found = segmentation()
    found.save(tmp_path / "maps", multilabel=True, types="nifti,nrrd")
    found.save(tmp_path / "masks", types="nifti,nrrd")
    for stem in ("maps/segmentation", "masks/liver"):
        one, other = (read(tmp_path / f"{stem}{ending}") for ending in (".nii.gz", ".nrrd"))
        np.testing.assert_array_equal(one.array, other.array)
        assert one.same_grid(other)
        assert one.array.any()


def test_the_same_result_gives_the_same_bytes_in_every_format(tmp_path):
    """Two saves, run.json apart, which holds times."""
    mesh = ["stl", "obj", "ply"] if tools_are_there() else []
    for name in ("a", "b"):
        segmentation().save(tmp_path / name / "maps", multilabel=True, types="nifti,nrrd,seg.nrrd", mesh=mesh, label_tables="itksnap,slicer")
        segmentation().save(tmp_path / name / "bids", bids="sub-01")
    names = {name for name in all_files(tmp_path / "a") if not name.endswith("run.json")}
    assert len(names) >= 11
    assert [name for name in names if (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()] == []


@needs_tool
def test_what_an_earlier_run_left_in_other_formats_goes(tmp_path):
    """All formats, then NIfTI alone: neither segmentation nor surfaces nor their empty folder stay; a note of the user's does."""
    segmentation().save(tmp_path, types="nifti,nrrd,seg.nrrd", mesh="stl")
    (tmp_path / "notes.txt").touch()
    segmentation().save(tmp_path)
    assert files_in(tmp_path) == {"body.nii.gz", "liver.nii.gz", "gtv_liver.nii.gz", "run.json", "notes.txt"}


@needs_tool
def test_a_surface_of_what_is_no_longer_found_goes(tmp_path):
    """Liver found, then not: its surface and its NRRD mask are gone, those of the body are there."""
    segmentation().save(tmp_path, types="nrrd", mesh="stl")
    (tmp_path / "meshes" / "mine.stl").touch()
    segmentation(liver=False).save(tmp_path, types="nrrd", mesh="stl")
    assert all_files(tmp_path) == {"body.nrrd", "meshes/body.stl", "meshes/mine.stl", "run.json"}


def test_tables_of_a_label_map_name_all_that_was_asked_for(tmp_path):
    """ITK-SNAP's and Slicer's tables hold the five structures, found or not, with the numbers of the map."""
    segmentation().save(tmp_path / "x.nii.gz", label_tables="itksnap,slicer")
    assert files_in(tmp_path) == {"x.nii.gz", "x.labels.json", "x.itksnap.txt", "x.ctbl", "x.run.json"}
    names = read_label_names(tmp_path / "x.nii.gz")
    for name in ("x.itksnap.txt", "x.ctbl"):
        rows = [line.split() for line in (tmp_path / name).read_text().splitlines() if line[0] != "#"]
        assert {int(row[0]) for row in rows} == {0, *names}


def test_a_bids_label_map_is_that_of_the_scan(tmp_path):
    """nibabel reads the flat map with the affine of the scan; the table names its numbers; reports lie beside it."""
    found = segmentation()
    found.save(tmp_path, bids="sub-7_ct.nii.gz", statistics=True)
    stem = tmp_path / "sub-7" / "anat" / "sub-7_desc-clseg"
    image = nib.load(f"{stem}_dseg.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), found.labels.array)
    np.testing.assert_array_equal(image.affine, found.scan.affine)
    rows = [line.split("\t") for line in Path(f"{stem}_dseg.tsv").read_text().splitlines()[1:]]
    assert {name: int(index) for index, name, _ in rows} == found.names
    listed = json.loads(Path(f"{stem}_run.json").read_text())["files"]
    assert "../../dataset_description.json" in listed
    assert all((tmp_path / "sub-7" / "anat" / name).is_file() for name in listed)


def test_a_bids_dataset_of_somebody_else_stays_as_it_is(tmp_path):
    """UsageError before anything is written."""
    (tmp_path / "dataset_description.json").write_text('{"Name": "raw"}')
    with pytest.raises(UsageError, match="dataset of its own"):
        segmentation().save(tmp_path, bids="sub-7")
    assert files_in(tmp_path) == {"dataset_description.json"}


def test_dicom_results_need_a_dicom_series(tmp_path):
    """UsageError that names the type, before anything is written or removed."""
    segmentation().save(tmp_path)
    before = files_in(tmp_path)
    for type in ("dicom_seg", "dicom_labelmap", "dicom_rtstruct"):
        with pytest.raises(UsageError, match=f"{type} needs a DICOM series"):
            segmentation().save(tmp_path, types=type)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(("type", "name", "kind"), [("dicom_seg", "segmentation.seg.dcm", "binary"), ("dicom_labelmap", "segmentation.labelmap.dcm", "labelmap"), ("dicom_rtstruct", "segmentation.rtstruct.dcm", None)])
def test_dicom_writers_get_file_segments_and_source(tmp_path, monkeypatch, type, name, kind):
    """Of a series the writer is called with all it needs; one that has nothing to write leaves no file, not even the old one."""
    called = []

    def write(file, segments, source, **options):
        called.append((file, [a.name for a in segments.present], source, options))
        file.touch()
        return bool(segments.present)

    for module, function in (("seg", "write_seg"), ("rtstruct", "write_rtstruct")):
        stand_in = ModuleType(f"clseg.io.dicom.{module}")
        setattr(stand_in, function, write)
        stand_in.check_highdicom = lambda: None
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    found = replace(segmentation(), source="the series")
    found.save(tmp_path, types=type)
    options = {"model": "", **({"kind": kind} if kind == "labelmap" else {})}
    assert called == [(tmp_path / name, ["body", "liver", "gtv_liver"], "the series", options)]
    assert files_in(tmp_path) == {name, "run.json"}
    replace(found, layers=(np.zeros_like(found.layers[0]),)).save(tmp_path, types=type)
    assert files_in(tmp_path) == {"run.json"}


@needs_tool
@pytest.mark.parametrize("options", [{"types": "nrrd,seg.nrrd"}, {"types": "nifti", "mesh": "stl,obj,ply"}, {"multilabel": True, "types": "nrrd", "label_tables": "slicer"}])
def test_what_is_said_to_be_needed_is_enough(tmp_path, monkeypatch, options):
    """The bytes of all files are fewer than the estimate, also without its two megabytes for reports where surfaces are written."""
    found = segmentation()
    files = found.save(tmp_path, **options)
    needed = bytes_needed(found.segments, Output.at(tmp_path, **options))
    assert sum(file.stat().st_size for file in files) < needed
    if "mesh" in options:
        assert sum(file.stat().st_size for file in files if file.parent.name == "meshes") < needed - 2_000_000


def test_a_disk_that_fills_leaves_whole_files_and_no_run(tmp_path, monkeypatch):
    """The Slicer segmentation meets a full disk: one sentence, whole masks, no half file, no run.json."""
    import os

    from clseg.io import files

    create = files._create

    def full(part: Path, mode: str):
        return os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb") if ".seg.nrrd" in part.name else create(part, mode)

    monkeypatch.setattr(files, "_create", full)
    with pytest.raises(OutputError, match=r"segmentation\.seg\.nrrd' cannot be written: the disk is full"):
        segmentation().save(tmp_path, types="nifti,seg.nrrd")
    assert files_in(tmp_path) == {"body.nii.gz", "liver.nii.gz", "gtv_liver.nii.gz"}


@pytest.mark.parametrize("case", ["lidc_idri", "openkbp"])
def test_a_real_ct_keeps_its_place_in_every_format(shared, tmp_path, case):
    """Corner voxels within a thousandth of a millimetre by nibabel and by ITK, voxels the same, on the grid of a hospital's CT."""
    file = next(iter(sorted((shared / "data" / case).glob("*/ct.nii.gz"))), None)
    if file is None:
        pytest.skip(f"no CT in {case}")
    scan = read(file)
    layers = [np.zeros(scan.shape, np.uint16, order="F") for _ in range(2)]
    i, j, k = (n // 4 for n in scan.shape)
    layers[0][i:-i, j:-j, k:-k] = BODY.id
    layers[1][i : 2 * i, j : 2 * j, k : 2 * k] = LIVER.id
    found = Segmentation(scan, tuple(layers), (BODY, LIVER))
    found.save(tmp_path, types="nifti,nrrd,seg.nrrd")
    corners = [tuple(int(bit * (n - 1)) for bit, n in zip(bits, scan.shape, strict=True)) for bits in np.ndindex(2, 2, 2)]
    expected = nib.affines.apply_affine(scan.affine, corners)
    for name in ("liver.nrrd", "segmentation.seg.nrrd", "liver.nii.gz"):
        image = sitk.ReadImage(str(tmp_path / name))
        there = np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners]) * [-1, -1, 1]
        np.testing.assert_allclose(there, expected, atol=1e-3)
    np.testing.assert_array_equal(read(tmp_path / "liver.nrrd").array, found.mask("liver"))
    both = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "segmentation.seg.nrrd"))).transpose(2, 1, 0, 3)
    np.testing.assert_array_equal(both[..., 1] == LIVER.id, found.mask("liver"))
    np.testing.assert_array_equal(both[..., 0] == BODY.id, found.mask("body"))
    assert TUMOUR.id not in both


def test_without_highdicom_dicom_segmentations_are_refused_before_a_scan_is_read(tmp_path, monkeypatch):
    """The extra is named at once; RTSTRUCT does without it."""
    monkeypatch.setitem(sys.modules, "highdicom", None)  # importing it raises ImportError
    with pytest.raises(OutputError, match="needs highdicom"):
        check_tools(Output.at(tmp_path, types="nifti,dicom_labelmap"))
    check_tools(Output.at(tmp_path, types="dicom_rtstruct"))
