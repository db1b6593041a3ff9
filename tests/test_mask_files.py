"""Masks of other programs: folders, label maps, segments of 3D Slicer, and what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from clseg.errors import InputError, UsageError
from clseg.io.mask_files import _mask_files, find_masks
from clseg.io.nifti import write_mask, write_volume
from clseg.volume import Volume
from tests.dicom_files import marked, write_series

SHAPE = (6, 5, 4)


def cube(*corner: int, value: int = 1) -> np.ndarray:
    """2 x 2 x 2 voxels from a corner on."""
    array = np.zeros(SHAPE, np.uint8)
    array[tuple(slice(c, c + 2) for c in corner)] = value
    return array


def grid() -> Volume:
    return Volume(np.zeros(SHAPE, np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))


def write(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, array, grid(), **options)
    return path


def write_itk(path: Path, array: np.ndarray, fields: dict[str, str] | None = None) -> Path:
    """The array (i, j, k) or (i, j, k, layers) by ITK, on the same grid."""
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=array.ndim == 4)
    image.SetSpacing((2.0, 2.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # RAS in ITK's LPS
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))
    return path


def segment(number: int, name: str, value: int, layer: int = 0) -> dict[str, str]:
    return {f"Segment{number}_ID": f"Segment_{number}", f"Segment{number}_Name": name, f"Segment{number}_LabelValue": str(value), f"Segment{number}_Layer": str(layer)}


# ---- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_holds_a_mask_per_file(tmp_path):
    """NIfTI, NRRD and MetaImage side by side, called like their files; other files are not looked at."""
    write(tmp_path / "liver.nii.gz", cube(0, 0, 0))
    write(tmp_path / "spleen.nii", cube(2, 2, 2))
    write_itk(tmp_path / "aorta.nrrd", cube(4, 0, 0))
    write_itk(tmp_path / "colon.mha", cube(0, 3, 0))
    (tmp_path / "statistics.json").write_text("{}")
    (tmp_path / ".hidden.nii.gz").write_bytes(b"")
    found = find_masks(tmp_path)
    assert set(found.names) == {"liver", "spleen", "aorta", "colon"}
    assert [int(found.mask(name).array.sum()) for name in ("liver", "spleen", "aorta", "colon")] == [8, 8, 8, 8]
    assert all(found.mask(name).same_grid(grid()) for name in found.names)


@pytest.mark.parametrize("prefix", ["x.", "sub-1_desc-clseg_"])
def test_a_map_of_confidence_beside_a_named_result_is_no_mask(tmp_path, prefix):
    """`-o x.nii.gz` and --bids with --save-confidence: the label map is still the only file, and its names are those inside it."""
    files = [f"{prefix}confidence.nii.gz", f"{prefix}run.json", "x.nii.gz"]
    write(tmp_path / "x.nii.gz", cube(0, 0, 0), labels={1: ("spleen", (1, 2, 3))})
    write(tmp_path / files[0], np.arange(120, dtype=np.uint8).reshape(SHAPE))
    (tmp_path / files[1]).write_text(json.dumps({"files": files}))
    assert find_masks(tmp_path).names == ("spleen",)


def test_a_subject_of_totalsegmentators_data_set_keeps_its_masks_in_a_folder(tmp_path):
    """s0001/ct.nii.gz and s0001/segmentations/liver.nii.gz: the CT is no mask."""
    write_volume(tmp_path / "ct.nii.gz", grid())
    write(tmp_path / "segmentations" / "liver.nii.gz", cube(0, 0, 0))
    assert find_masks(tmp_path, leave_out=tmp_path / "ct.nii.gz").names == ("liver",)


def test_any_one_value_is_a_mask(tmp_path):
    """0 and 255, as some programs write it; and a file of zeros is an empty mask."""
    write(tmp_path / "liver.nii.gz", cube(0, 0, 0, value=255))
    write(tmp_path / "spleen.nii.gz", np.zeros(SHAPE, np.uint8))
    found = find_masks(tmp_path)
    assert int(found.mask("liver").array.sum()) == 8
    assert not found.mask("spleen").array.any()


@pytest.mark.parametrize(
    "array",
    [cube(0, 0, 0).astype(np.int16) + cube(3, 3, 2, value=2), cube(0, 0, 0).astype(np.float32) * 0.5 + cube(3, 3, 2), -cube(0, 0, 0).astype(np.int16), cube(0, 0, 0) * np.float32(np.nan)],
    ids=["label map", "probabilities", "negative", "not a number"],
)
def test_what_is_no_mask_is_refused_by_name(tmp_path, array):
    """Several values, fractions, negative ones and NaN: the file is named, nothing is guessed."""
    write(tmp_path / "spleen.nii.gz", cube(0, 0, 0))
    write_volume(tmp_path / "odd.nii.gz", Volume(array, grid().affine))
    found = find_masks(tmp_path)
    with pytest.raises(InputError, match=r"odd\.nii\.gz' holds .* expected a mask"):
        found.mask("odd")


def test_two_files_of_one_name_are_refused(tmp_path):
    """liver.nii and liver.nrrd: which is it?"""
    write(tmp_path / "liver.nii", cube(0, 0, 0))
    write_itk(tmp_path / "liver.nrrd", cube(0, 0, 0))
    with pytest.raises(InputError, match="Two files are masks of 'liver'"):
        find_masks(tmp_path)


def test_a_run_of_ours_says_what_was_not_found(tmp_path):
    """run.json: spleen is empty and was looked for, kidney_left was not even that; an array in its place says nothing."""
    write(tmp_path / "liver.nii.gz", cube(0, 0, 0))
    (tmp_path / "run.json").write_text(json.dumps({"structures": ["liver"], "empty": ["spleen", "kidney_left"], "out_of_range": ["kidney_left"]}))
    found = find_masks(tmp_path)
    assert (found.names, found.empty, found.out_of_range) == (("liver", "spleen", "kidney_left"), ("spleen", "kidney_left"), {"kidney_left"})
    (tmp_path / "run.json").write_text("[1]")
    assert find_masks(tmp_path).names == ("liver",)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["liver.nii.gz", "confidence.nii.gz"], ["liver.nii.gz"]),
        (["liver.nrrd", "liver.nii.gz", "spleen.nii.gz", "segmentation.seg.nrrd"], ["liver.nii.gz", "spleen.nii.gz"]),
        (["segmentation.nrrd", "segmentation.seg.nrrd", "confidence.nii.gz"], ["segmentation.seg.nrrd"]),
        (["segmentation.nii.gz", "confidence.nii.gz"], ["segmentation.nii.gz"]),
    ],
)
def test_of_a_run_of_ours_every_result_is_read_once(tmp_path, written, read):
    """What its run.json lists: no map of confidence, and one of several formats; a mask that somebody put there stays one."""
    for name in written:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "run.json").write_text(json.dumps({"files": [*written, "run.json"]}))
    assert [file.name for file in _mask_files(tmp_path, None)[1]] == read
    (tmp_path / "mine.nii.gz").write_bytes(b"")
    assert {file.name for file in _mask_files(tmp_path, None)[1]} == {*read, "mine.nii.gz"}


def test_a_map_of_confidence_alone_is_no_mask(tmp_path):
    """DICOM SEG with --save-confidence: nothing there can be measured, and that is said; a file of somebody else's may be called so."""
    write(tmp_path / "confidence.nii.gz", cube(0, 0, 0))
    assert find_masks(tmp_path).names == ("confidence",)
    (tmp_path / "run.json").write_text(json.dumps({"files": ["segmentation.seg.dcm", "confidence.nii.gz"]}))
    with pytest.raises(InputError, match="There are no masks"):
        find_masks(tmp_path)


def test_a_run_of_ours_says_which_segments_there_are_none_of(tmp_path):
    """segmentation.seg.nrrd holds what was found; spleen and kidney_left are known from run.json."""
    write_itk(tmp_path / "segmentation.seg.nrrd", cube(0, 0, 0), segment(0, "liver", 1))
    run = {"files": ["segmentation.seg.nrrd"], "empty": ["spleen", "kidney_left"], "out_of_range": ["kidney_left"]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    for place in (tmp_path, tmp_path / "segmentation.seg.nrrd"):
        masks = find_masks(place)
        assert (masks.names, masks.out_of_range) == (("liver", "spleen", "kidney_left"), {"kidney_left"})


def test_a_folder_without_masks_is_refused(tmp_path):
    """Only a table in it."""
    (tmp_path / "statistics.csv").write_text("structure\n")
    with pytest.raises(InputError, match="There are no masks"):
        find_masks(tmp_path)


def test_masks_as_dicom_are_refused_with_a_way_out(tmp_path):
    """A DICOM file, and a folder of nothing else: what is read instead, and how to get it."""
    file = write_series(tmp_path / "dicom", grid(), marked(Modality="SEG"))[0]
    with pytest.raises(InputError, match="is a DICOM file, expected masks as NIfTI") as refused:
        find_masks(file)
    with pytest.raises(InputError, match="There are no masks") as empty:
        find_masks(tmp_path / "dicom")
    assert "3D Slicer" in refused.value.tip
    assert empty.value.tip == refused.value.tip


def test_nothing_there_is_a_wrong_call(tmp_path):
    """A typing error in the path is a UsageError."""
    with pytest.raises(UsageError, match="There is no file or folder"):
        find_masks(tmp_path / "nowhere")


# ---- label maps -------------------------------------------------------------------------------------------------------


def two() -> np.ndarray:
    return cube(0, 0, 0, value=5) + cube(3, 3, 2, value=1)


def ids_of(path: Path, **options) -> dict[str, int]:
    found = find_masks(path, **options)
    assert [label_map.volume.array.dtype.kind in "iu" for label_map in found.maps] == [True] * len(found.maps)
    return {name: id for label_map in found.maps for name, id in label_map.ids.items()}


def test_names_inside_the_file_are_read(tmp_path):
    """The Caret XML table that TotalSegmentator embeds; alone in a folder, too."""
    path = write(tmp_path / "out" / "seg.nii.gz", two(), labels={5: ("liver", (1, 2, 3)), 1: ("spleen", (4, 5, 6))})
    assert ids_of(path) == ids_of(path.parent) == {"spleen": 1, "liver": 5}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("n.json", '{"liver": 5, "spleen": 1}'),
        ("n.json", '{"5": "liver", "1": "spleen"}'),
        ("dataset.json", '{"labels": {"background": 0, "liver": 5, "spleen": 1}, "numTraining": 3}'),
        ("n.csv", "id,name\n5,liver\n1,spleen\n"),
        ("n.csv", "colour,name,label\nred,liver,5\nblue,spleen,1\n"),
        ("n.csv", "5,liver\n1,spleen\n"),
        ("n.tsv", "index\tname\n5\tliver\n1\tspleen\n"),
    ],
)
def test_names_may_be_given(tmp_path, name, content):
    """JSON in both directions, nnU-Net's dataset.json, CSV with and without header, TSV; a float map of whole numbers is one."""
    (tmp_path / name).write_text(content)
    write_volume(tmp_path / "seg.nii.gz", Volume(two().astype(np.float32), grid().affine))
    assert ids_of(tmp_path / "seg.nii.gz", labels=tmp_path / name) == {"liver": 5, "spleen": 1}


def test_names_beside_an_nrrd_are_read(tmp_path):
    """seg.nrrd with seg.labels.json."""
    write_itk(tmp_path / "seg.nrrd", two())
    (tmp_path / "seg.labels.json").write_text('{"liver": 5, "spleen": 1}')
    assert ids_of(tmp_path / "seg.nrrd") == {"liver": 5, "spleen": 1}


def test_a_label_map_without_names_says_the_way_out(tmp_path):
    """One sentence, and --labels in the tip."""
    write(tmp_path / "seg.nii.gz", two())
    with pytest.raises(InputError, match="Nothing says what the ids") as refused:
        find_masks(tmp_path / "seg.nii.gz")
    assert "--labels" in refused.value.tip


@pytest.mark.parametrize("content", ['{"liver": 5, "spleen": [1, 2]}', "[1]", "no json"])
def test_a_damaged_table_is_refused(tmp_path, content):
    """Regions of several ids, a list, and no JSON at all."""
    write(tmp_path / "seg.nii.gz", two())
    (tmp_path / "n.json").write_text(content)
    with pytest.raises(InputError, match="not a table of label names"):
        find_masks(tmp_path / "seg.nii.gz", labels=tmp_path / "n.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty"),
        ("name\nliver\n", "its first line is name"),
        ("id,name\nfive,liver\n", "'five'"),
        ("id,name\n5,liver\n1\n", "a line has too few cells"),
    ],
)
def test_a_damaged_csv_is_refused(tmp_path, content, reason):
    """Empty, without ids, with a word for an id, with a name that is missing."""
    write(tmp_path / "seg.nii.gz", two())
    (tmp_path / "n.csv").write_text(content)
    with pytest.raises(InputError, match=f"not a table of ids and names: .*{reason}"):
        find_masks(tmp_path / "seg.nii.gz", labels=tmp_path / "n.csv")


def test_a_ct_is_no_label_map(tmp_path):
    """Who gives the masks first and the CT behind them is told the order."""
    write_volume(tmp_path / "ct.nii.gz", Volume(two().astype(np.int16) - 1000, grid().affine))
    (tmp_path / "n.json").write_text('{"liver": 5}')
    with pytest.raises(InputError, match="holds values from -1000 to -995") as caught:
        find_masks(tmp_path / "ct.nii.gz", labels=tmp_path / "n.json")
    assert "clseg stats ct.nii.gz masks/" in caught.value.tip


def test_two_ids_of_one_name_are_refused(tmp_path):
    """5 and 1 are both liver."""
    write(tmp_path / "seg.nii.gz", two())
    (tmp_path / "n.json").write_text('{"5": "liver", "1": "liver"}')
    with pytest.raises(InputError, match="both called 'liver'"):
        find_masks(tmp_path / "seg.nii.gz", labels=tmp_path / "n.json")


def test_fractions_are_no_label_map(tmp_path):
    """0.5 is no id."""
    write_volume(tmp_path / "seg.nii.gz", Volume(two() * np.float32(0.1), grid().affine))
    (tmp_path / "n.json").write_text('{"liver": 5}')
    with pytest.raises(InputError, match="holds fractions"):
        find_masks(tmp_path / "seg.nii.gz", labels=tmp_path / "n.json")


def test_names_for_a_folder_of_masks_are_a_wrong_call(tmp_path):
    """--labels with two mask files: whose ids?"""
    write(tmp_path / "m" / "a.nii.gz", cube(0, 0, 0))
    write(tmp_path / "m" / "b.nii.gz", cube(0, 0, 0))
    (tmp_path / "n.json").write_text('{"liver": 5}')
    with pytest.raises(UsageError, match="2 mask files"):
        find_masks(tmp_path / "m", labels=tmp_path / "n.json")


def test_the_run_beside_a_label_map_says_what_was_out_of_range(tmp_path):
    """x.run.json belongs to x.nii.gz; run.json to the label map that it lists."""
    table = {5: ("liver", (1, 2, 3)), 1: ("spleen", (4, 5, 6))}
    for name in ("x.nii.gz", "segmentation.nii.gz", "else.nii.gz"):
        write(tmp_path / name, cube(0, 0, 0, value=5), labels=table)
    for name in ("x.run.json", "run.json"):
        (tmp_path / name).write_text(json.dumps({"empty": ["spleen"], "out_of_range": ["spleen"], "files": ["segmentation.nii.gz"]}))
    beyond = {name: set(find_masks(tmp_path / f"{name}.nii.gz").out_of_range) for name in ("x", "segmentation", "else")}
    assert beyond == {"x": {"spleen"}, "segmentation": {"spleen"}, "else": set()}


# ---- 3D Slicer --------------------------------------------------------------------------------------------------------


def test_segments_of_slicer_have_their_names(tmp_path):
    """One layer: Segment0 is 5, Segment1 is 1."""
    write_itk(tmp_path / "a.seg.nrrd", two(), segment(0, "Liver", 5) | segment(1, "My tumour", 1))
    found = find_masks(tmp_path / "a.seg.nrrd")
    assert found.maps[0].ids == {"Liver": 5, "My tumour": 1}
    assert found.maps[0].volume.same_grid(grid())
    assert np.array_equal(found.maps[0].volume.array, two())


def test_segments_that_overlap_lie_on_layers(tmp_path):
    """Two layers with the value 1 in each."""
    layers = np.stack([cube(0, 0, 0), cube(1, 1, 1)], axis=-1)
    write_itk(tmp_path / "a.seg.nrrd", layers, segment(0, "liver", 1, 0) | segment(1, "tumour", 1, 1))
    first, second = find_masks(tmp_path / "a.seg.nrrd").maps
    assert (first.ids, second.ids) == ({"liver": 1}, {"tumour": 1})
    assert np.array_equal(second.volume.array, cube(1, 1, 1))
    assert second.volume.same_grid(grid())


def test_segments_of_old_slicers_have_a_layer_each(tmp_path):
    """Before 4.11: no values and no layers are named."""
    fields = {f"Segment{n}_{key}": value for n, name in enumerate(("liver", "spleen")) for key, value in (("ID", f"s{n}"), ("Name", name))}
    write_itk(tmp_path / "a.seg.nrrd", np.stack([cube(0, 0, 0), cube(3, 3, 2)], axis=-1), fields)
    found = find_masks(tmp_path / "a.seg.nrrd").maps
    assert [label_map.ids for label_map in found] == [{"liver": 1}, {"spleen": 1}]


def test_a_segment_on_a_layer_that_is_not_there_is_refused(tmp_path):
    """Layer 3 of a file with one."""
    write_itk(tmp_path / "a.seg.nrrd", two(), segment(0, "liver", 5, 3))
    with pytest.raises(InputError, match="is on layer 3, but the file has 1"):
        find_masks(tmp_path / "a.seg.nrrd")


def test_damaged_fields_of_segments_are_refused(tmp_path):
    """A value that is no number, and two segments of one name on different layers."""
    write_itk(tmp_path / "a.seg.nrrd", two(), segment(0, "liver", 5) | {"Segment0_LabelValue": "five"})
    with pytest.raises(InputError, match="the value 'five', expected whole numbers"):
        find_masks(tmp_path / "a.seg.nrrd")
    layers = np.stack([cube(0, 0, 0), cube(1, 1, 1)], axis=-1)
    write_itk(tmp_path / "b.seg.nrrd", layers, segment(0, "liver", 1, 0) | segment(1, "liver", 1, 1))
    with pytest.raises(InputError, match="Two segments of .* are called 'liver'"):
        find_masks(tmp_path / "b.seg.nrrd")
