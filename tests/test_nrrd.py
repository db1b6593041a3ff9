"""NRRD: masks, label maps and Slicer segmentations lie where the scan lies and say what they are."""

from __future__ import annotations

import gzip
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from clseg.catalogue import Catalogue
from clseg.errors import OutputError
from clseg.io.files import read
from clseg.io.formats import nrrd, seg_nrrd
from clseg.io.formats.nrrd import write_nrrd_map, write_nrrd_mask
from clseg.io.formats.seg_nrrd import terminology_entry, write_seg_nrrd
from clseg.io.segments import Segments
from clseg.volume import Volume
from tests.lattice import affine_of

CATALOGUE = Catalogue.builtin()
BODY, LIVER, SPLEEN, KIDNEY, CYST = (CATALOGUE[n] for n in ("body", "liver", "spleen", "kidney_left", "kidney_cyst_left"))
SHAPE = (7, 6, 5)


def tilted(code: str = "LPS") -> np.ndarray:
    """Axes towards `code`, turned by 20° about z and 10° about x, voxels of 0.7 × 1.3 × 5 mm, far from the origin."""
    a, b = np.radians(20), np.radians(10)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = affine_of(code, SHAPE, (0.7, 1.3, 5.0), (12.5, -340.25, 1040.0))
    affine[:3] = about_z @ about_x @ affine[:3]
    return affine


GRIDS = {
    "oblique": tilted(),
    "feet first": affine_of("RPI", SHAPE, (0.7, 1.3, 5.0), (1.0, 2.0, -3.0)),
    "flipped": affine_of("RAS", SHAPE, (0.5, 0.5, 2.0)),
    "coronal": affine_of("RSA", SHAPE, (1.0, 2.0, 3.0)),
    "oblique and sagittal": tilted("ASR"),
    "sheared": np.array([[1.0, 0, 0.3, 5], [0, 1, 0.4, 6], [0, 0, 2, 7], [0, 0, 0, 1]]),
}


def segments(affine: np.ndarray | None = None, *, order: str = "F") -> Segments:
    """A body with a liver of 2 × 2 × 2 and a kidney with a cyst of one voxel on a third layer; no spleen."""
    layers = [np.zeros(SHAPE, np.uint16, order=order) for _ in range(4)]
    layers[0][1:6, 1:5, 1:5] = BODY.id
    layers[1][1:3, 1:3, 1:3] = LIVER.id
    layers[1][4:6, 2:4, 2:4] = KIDNEY.id
    layers[3][4, 2, 2] = CYST.id
    scan = Volume(np.zeros(SHAPE, np.int16), np.diag([2.0, 3, 4, 1]) if affine is None else affine)
    return Segments(scan, tuple(layers), (BODY, SPLEEN, KIDNEY, LIVER, CYST))


def facts(file: Path) -> dict[str, str]:
    """Keys and values of an NRRD header, fields (`:`) and facts (`:=`) alike, read as text."""
    head = file.read_bytes().split(b"\n\n")[0].decode()
    return dict(re.match(r"(.*?):=? ?(.*)", line).groups() for line in head.splitlines()[1:])


def corners_mm(image: sitk.Image) -> np.ndarray:
    """Where ITK says that the eight corner voxels lie, LPS."""
    size = image.GetSize()
    return np.array([image.TransformIndexToPhysicalPoint((i, j, k)) for i in (0, size[0] - 1) for j in (0, size[1] - 1) for k in (0, size[2] - 1)])


def expected_mm(scan: Volume) -> np.ndarray:
    """Where they lie by the affine, turned from RAS to LPS by hand."""
    n = np.array(SHAPE) - 1
    corners = np.array([[i, j, k, 1] for i in (0, n[0]) for j in (0, n[1]) for k in (0, n[2])])
    return (corners @ scan.affine.T)[:, :3] * [-1, -1, 1]


# ---- masks and label maps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ["F", "C"])
def test_masks_and_label_maps_lie_where_the_scan_lies(tmp_path, grid, order):
    """ITK places every corner within a thousandth of a millimetre and reads the same voxels; so does our reader."""
    found = segments(GRIDS[grid], order=order)
    write_nrrd_mask(tmp_path / "liver.nrrd", found, LIVER)
    write_nrrd_map(tmp_path / "map.nrrd", found)
    for name, voxels in (("liver", found.mask(LIVER)), ("map", found.flat())):
        image = sitk.ReadImage(str(tmp_path / f"{name}.nrrd"))
        np.testing.assert_allclose(corners_mm(image), expected_mm(found.scan), atol=1e-3)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), voxels)
        again = read(tmp_path / f"{name}.nrrd")
        assert again.same_grid(found.scan)
        np.testing.assert_array_equal(again.array, voxels)


def test_a_label_map_is_as_narrow_as_its_ids_allow(tmp_path):
    """uint8 with ids up to 240; uint16 when structure 10001 was looked for, found or not."""
    found = segments()
    own = replace(SPLEEN, id=10001, name="my_organ")
    write_nrrd_map(tmp_path / "a.nrrd", found)
    write_nrrd_map(tmp_path / "b.nrrd", replace(found, wanted=(*found.wanted, own)))
    assert [facts(tmp_path / name)["type"] for name in ("a.nrrd", "b.nrrd")] == ["unsigned char", "unsigned short"]
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd").array, read(tmp_path / "b.nrrd").array)


def test_the_header_is_one_that_every_reader_understands(tmp_path):
    """NRRD0004, left-posterior-superior, kinds, gzip; the voxels follow one empty line as one gzip member."""
    found = segments()
    write_nrrd_mask(tmp_path / "liver.nrrd", found, LIVER)
    head, _, packed = (tmp_path / "liver.nrrd").read_bytes().partition(b"\n\n")
    assert head.startswith(b"NRRD0004\n")
    said = facts(tmp_path / "liver.nrrd")
    assert (said["dimension"], said["sizes"], said["kinds"]) == ("3", "7 6 5", "domain domain domain")
    assert (said["space"], said["encoding"]) == ("left-posterior-superior", "gzip")
    assert said["space directions"] == "(-2.0,0.0,0.0) (0.0,-3.0,0.0) (0.0,0.0,4.0)"
    assert said["space origin"] == "(0.0,0.0,0.0)"
    voxels = np.frombuffer(gzip.decompress(packed), np.uint8).reshape(SHAPE, order="F")
    assert np.argwhere(voxels).tolist() == np.argwhere(found.mask(LIVER)).tolist()


def test_a_structure_on_two_layers_is_one_mask(tmp_path):
    """Its voxels of both layers are 1."""
    found = segments()
    found.layers[0][0, 0, 0] = LIVER.id
    write_nrrd_mask(tmp_path / "liver.nrrd", found, LIVER)
    assert read(tmp_path / "liver.nrrd").array.sum() == 9


def test_the_same_result_gives_the_same_bytes(tmp_path):
    """The order of memory does not show."""
    for order in "FC":
        write_nrrd_map(tmp_path / f"{order}.nrrd", segments(order=order))
        write_seg_nrrd(tmp_path / f"{order}.seg.nrrd", segments(order=order))
    assert (tmp_path / "F.nrrd").read_bytes() == (tmp_path / "C.nrrd").read_bytes()
    assert (tmp_path / "F.seg.nrrd").read_bytes() == (tmp_path / "C.seg.nrrd").read_bytes()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """Compression breaks off half-way: one sentence, and yesterday's file is still whole."""
    write_nrrd_map(tmp_path / "map.nrrd", segments())
    before = (tmp_path / "map.nrrd").read_bytes()

    def full(_):
        yield b"x"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nrrd, "gzipped", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_nrrd_map(tmp_path / "map.nrrd", segments(GRIDS["oblique"]))
    assert (tmp_path / "map.nrrd").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# ---- Slicer segmentations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("slab", [1, 1 << 22])
def test_overlapping_structures_come_back_from_their_layers(tmp_path, monkeypatch, grid, slab):
    """By layer and label value every mask is the same as before, overlaps and all, in place within a thousandth of a millimetre."""
    monkeypatch.setattr(seg_nrrd, "_SLAB_VOXELS", slab)
    found = segments(GRIDS[grid])
    write_seg_nrrd(tmp_path / "x.seg.nrrd", found)
    said, image = facts(tmp_path / "x.seg.nrrd"), sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))
    np.testing.assert_allclose(corners_mm(image), expected_mm(found.scan), atol=1e-3)
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3)  # (i, j, k, layer)
    for index, anatomy in enumerate(found.present):
        assert said[f"Segment{index}_Name"] == anatomy.name
        layer, value = int(said[f"Segment{index}_Layer"]), int(said[f"Segment{index}_LabelValue"])
        np.testing.assert_array_equal(array[..., layer] == value, found.mask(anatomy))
    assert f"Segment{len(found.present)}_ID" not in said


def test_layers_without_a_structure_are_left_out(tmp_path):
    """Of four layers one is empty: three go into the file, on a list axis in front of the axes of space, which come with no direction."""
    write_seg_nrrd(tmp_path / "x.seg.nrrd", segments())
    said = facts(tmp_path / "x.seg.nrrd")
    assert (said["dimension"], said["sizes"], said["kinds"]) == ("4", "3 7 6 5", "list domain domain domain")
    assert said["space directions"].startswith("none (-2.0,0.0,0.0)")


def test_structures_that_do_not_overlap_need_three_axes(tmp_path):
    """Liver and kidney on one layer: no list axis, and 3D Slicer's layer is 0."""
    found = segments()
    write_seg_nrrd(tmp_path / "x.seg.nrrd", Segments(found.scan, found.layers[1:2], (LIVER, KIDNEY)))
    said = facts(tmp_path / "x.seg.nrrd")
    assert (said["dimension"], said["sizes"]) == ("3", "7 6 5")
    assert [said[f"Segment{n}_Layer"] for n in (0, 1)] == ["0", "0"]
    np.testing.assert_array_equal(read(tmp_path / "x.seg.nrrd").array, found.layers[1])


def test_a_segment_says_what_3d_slicer_wants_to_know(tmp_path):
    """Id, name, colour from 0 to 1, label value, layer, and the box of its whole layer: liver and kidney share i 1…5, j 1…3, k 1…3."""
    write_seg_nrrd(tmp_path / "x.seg.nrrd", segments())
    said = facts(tmp_path / "x.seg.nrrd")
    liver = {key.split("_")[1]: value for key, value in said.items() if key.startswith("Segment2_")}
    tags = liver.pop("Tags")
    assert liver == {
        "Color": "0.866667 0.509804 0.396078",  # 221, 130, 101
        "ColorAutoGenerated": "0",
        "Extent": "1 5 1 3 1 3",
        "ID": "liver",
        "LabelValue": "110",
        "Layer": "1",
        "Name": "liver",
        "NameAutoGenerated": "0",
    }
    assert tags == f"TerminologyEntry:{terminology_entry(LIVER)}|"
    assert said["Segment1_Extent"] == "1 5 1 3 1 3"  # 3D Slicer cuts the layer to that of its first segment
    assert said["Segment3_Extent"] == "4 4 2 2 2 2"


def test_a_segmentation_says_what_it_is(tmp_path):
    """A binary labelmap without offset on the scan's grid, whose matrix is RAS and whose last indices are 6, 5 and 4."""
    write_seg_nrrd(tmp_path / "x.seg.nrrd", segments())
    said = facts(tmp_path / "x.seg.nrrd")
    assert said["Segmentation_MasterRepresentation"] == said["Segmentation_SourceRepresentation"] == "Binary labelmap"
    assert said["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert said["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    grid = said["Segmentation_ConversionParameters"].split("|")[1]
    assert grid == "2.0;0.0;0.0;0.0;0.0;3.0;0.0;0.0;0.0;0.0;4.0;0.0;0.0;0.0;0.0;1.0;0;6;0;5;0;4;"


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("liver", "SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes - DICOM master list~^^~^^"),
        ("kidney_left", "SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left~Anatomic codes - DICOM master list~^^~^^"),
        ("kidney_cyst_left", "SCT^49755003^Morphologically Altered Structure~SCT^367643001^Cyst~^^~Anatomic codes - DICOM master list~SCT^64033007^Kidney~SCT^7771000^Left"),
        ("hip_right", "SCT^85756007^Tissue~SCT^85756007^Tissue~SCT^24028007^Right~Anatomic codes - DICOM master list~^^~^^"),
    ],
)
def test_terms_are_spelt_as_3d_slicer_spells_them(name, entry):
    """Category, type, modifier; region, its modifier: seven parts, codes of SNOMED CT."""
    assert terminology_entry(CATALOGUE[name]) == f"Segmentation category and type - 3D Slicer General Anatomy list~{entry}"


def test_a_structure_on_two_layers_gets_a_layer_of_its_own(tmp_path):
    """The liver's voxels of both layers are one segment; neither of the old layers still has its number."""
    found = segments()
    found.layers[0][0, 0, 0] = LIVER.id
    write_seg_nrrd(tmp_path / "x.seg.nrrd", found)
    said = facts(tmp_path / "x.seg.nrrd")
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))).transpose(2, 1, 0, 3)
    assert (said["Segment2_Name"], said["Segment2_Layer"], said["Segment2_Extent"]) == ("liver", "3", "0 2 0 2 0 2")
    assert [(array[..., layer] == LIVER.id).sum() for layer in range(4)] == [0, 0, 0, 9]


def test_nothing_found_is_an_empty_segmentation(tmp_path):
    """No segment, all voxels 0, on the scan's grid."""
    found = segments()
    write_seg_nrrd(tmp_path / "x.seg.nrrd", replace(found, wanted=(SPLEEN,)))
    assert not any(key.startswith("Segment0") for key in facts(tmp_path / "x.seg.nrrd"))
    again = read(tmp_path / "x.seg.nrrd")
    assert not again.array.any()
    assert again.same_grid(found.scan)


@pytest.mark.parametrize(
    ("space", "said"),
    [("space: left-posterior-superior", True), ("space: RAS", True), ("space: scanner-xyz", False), ("space dimension: 3", False), (None, False)],
)
def test_a_scan_that_does_not_say_how_the_patient_lies_is_told(tmp_path, space, said):
    """Directions of the body are named, or else left and right may be swapped: a warning, as for NIfTI without a form."""
    grid = "spacings: 1 1 1" if space is None else f"{space}\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)"
    file = tmp_path / "ct.nrrd"
    file.write_bytes(f"NRRD0004\ntype: short\ndimension: 3\n{grid}\nsizes: 4 4 4\nendian: little\nencoding: raw\n\n".encode() + np.zeros(64, "<i2").tobytes())
    found = []
    read(file, found=found.append)
    assert [finding.topic for finding in found] == ([] if said else ["orientation"])
