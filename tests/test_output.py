"""A path says where results go: a folder for masks, or one label map with everything else named after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clseg.errors import UsageError
from clseg.output import Output


def test_a_folder_holds_masks_under_plain_names(tmp_path):
    """out/ → out/statistics.json, and no label map unless one is wanted."""
    place = Output.at(tmp_path / "out", multilabel=False)
    assert (place.folder, place.multilabel) == (tmp_path / "out", None)
    assert place.beside("statistics.json") == tmp_path / "out" / "statistics.json"


def test_a_folder_with_one_label_map(tmp_path):
    """out/ with --ml → out/segmentation.nii.gz and out/segmentation.labels.json."""
    place = Output.at(tmp_path / "out", multilabel=True)
    assert place.multilabel == tmp_path / "out" / "segmentation.nii.gz"
    assert place.labels == tmp_path / "out" / "segmentation.labels.json"


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize(("name", "stem"), [("x.nii.gz", "x"), ("x.nii", "x"), ("case.7.nii.gz", "case.7"), ("X.NII.GZ", "X")])
def test_a_file_name_is_the_prefix_of_everything_else(tmp_path, name, stem, multilabel):
    """out/x.nii.gz → out/x.statistics.json, out/x.labels.json, whether or not --ml was said."""
    place = Output.at(tmp_path / name, multilabel)
    assert (place.folder, place.multilabel) == (tmp_path, tmp_path / name)
    assert place.beside("run.json") == tmp_path / f"{stem}.run.json"
    assert place.labels == tmp_path / f"{stem}.labels.json"


def test_two_scans_in_one_folder_share_no_file(tmp_path):
    """A shell loop over a.nii.gz and b.nii.gz never overwrites its own results."""
    names = ("statistics.json", "statistics.csv", "radiomics.csv", "preview.png", "run.json")
    places = [Output.at(tmp_path / name, False) for name in ("a.nii.gz", "b.nii.gz")]
    files = [{place.multilabel, place.labels, *map(place.beside, names)} for place in places]
    assert files[0].isdisjoint(files[1])


def test_a_file_where_a_folder_is_meant_is_refused(tmp_path):
    """results.txt is there already and is no folder."""
    (tmp_path / "results").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        Output.at(tmp_path / "results", False)


def test_a_folder_where_a_file_is_meant_is_refused(tmp_path):
    """A folder called x.nii.gz cannot be replaced by a label map."""
    (tmp_path / "x.nii.gz").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        Output.at(tmp_path / "x.nii.gz", False)


def test_existing_lists_what_a_run_would_replace(tmp_path):
    """Masks of the wanted structures and the reports; not a mask of something else."""
    for name in ("liver.nii.gz", "spleen.nii.gz", "run.json", "notes.txt"):
        (tmp_path / name).touch()
    assert Output.at(tmp_path, False).existing(["liver", "aorta"]) == [tmp_path / "liver.nii.gz", tmp_path / "run.json"]
    assert Output.at(tmp_path / "x.nii.gz", False).existing(["liver"]) == []
    assert Output.at(Path(tmp_path / "new"), True).existing(["liver"]) == []


def test_existing_lists_what_a_run_would_remove(tmp_path):
    """A label map of an earlier run goes when masks are written, so it counts; one without names beside it is somebody's own."""
    (tmp_path / "segmentation.nii.gz").touch()
    assert Output.at(tmp_path, False).existing(["liver"]) == []
    (tmp_path / "segmentation.labels.json").touch()
    assert set(Output.at(tmp_path, False).existing(["liver"])) == {tmp_path / "segmentation.nii.gz", tmp_path / "segmentation.labels.json"}


def test_masks_are_stale_beside_a_label_map_only_where_an_earlier_run_lists_them(tmp_path):
    """liver.nii.gz in run.json is stale; spleen.nii.gz, which it does not list, may be somebody's own."""
    for name in ("liver.nii.gz", "spleen.nii.gz"):
        (tmp_path / name).touch()
    assert Output.at(tmp_path, True).stale(["liver", "spleen"]) == []
    (tmp_path / "run.json").write_text(json.dumps({"files": ["liver.nii.gz", 7]}))
    assert Output.at(tmp_path, True).stale(["liver", "spleen"]) == [tmp_path / "run.json", tmp_path / "liver.nii.gz"]


@pytest.mark.parametrize("content", ["not JSON", "[]", "{}", '{"files": 3}'])
def test_a_run_json_of_somebody_else_lists_nothing(tmp_path, content):
    """Whatever is in it, no mask is called stale because of it."""
    (tmp_path / "liver.nii.gz").touch()
    (tmp_path / "run.json").write_text(content)
    assert Output.at(tmp_path, True).stale(["liver"]) == [tmp_path / "run.json"]


def test_a_label_map_takes_only_its_own_reports_along(tmp_path):
    """x.nii.gz: x.statistics.csv is stale, the neighbour's y.statistics.csv and the folder's statistics.csv are not."""
    for name in ("x.statistics.csv", "y.statistics.csv", "statistics.csv", "liver.nii.gz"):
        (tmp_path / name).touch()
    assert Output.at(tmp_path / "x.nii.gz", False).stale(["liver"]) == [tmp_path / "x.statistics.csv"]


# ---- formats ----------------------------------------------------------------------------------------------------------


def run_that_wrote(folder: Path, *files: str, prefix: str = "") -> None:
    """An earlier run's files, empty, and its run.json that lists them."""
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / f"{prefix}run.json").write_text(json.dumps({"files": [*files, f"{prefix}run.json"]}))


@pytest.mark.parametrize(
    ("name", "types", "whole"),
    [("x.nrrd", ("nrrd",), "x.nrrd"), ("x.seg.nrrd", ("seg.nrrd",), "x.seg.nrrd"), ("x.nii", ("nifti",), "x.nii"), ("X.Seg.NRRD", ("seg.nrrd",), "X.Seg.NRRD")],
)
def test_the_ending_of_a_file_says_its_format(tmp_path, name, types, whole):
    """x.seg.nrrd is a Slicer segmentation, not an NRRD called x.seg; reports are called after x."""
    place = Output.at(tmp_path / name)
    assert (place.types, place.whole(types[0]), place.prefix.lower()) == (types, tmp_path / whole, "x.")


def test_other_formats_go_beside_the_file_that_is_named(tmp_path):
    """-o x.nii --output-type nifti,seg.nrrd: x.nii and x.seg.nrrd."""
    place = Output.at(tmp_path / "x.nii", types=["seg.nrrd,nifti"])
    assert [place.whole(type) for type in place.types] == [tmp_path / "x.nii", tmp_path / "x.seg.nrrd"]


def test_a_name_and_types_that_contradict_each_other_are_refused(tmp_path):
    """-o x.nii.gz --output-type nrrd: which of them is meant?"""
    with pytest.raises(UsageError, match=r"x\.nii\.gz is called like nifti, which --output-type nrrd leaves out"):
        Output.at(tmp_path / "x.nii.gz", types="nrrd")


def test_types_are_sorted_and_named_once(tmp_path):
    """Words with commas and repeated options are one list; case does not matter."""
    place = Output.at(tmp_path, types=["seg.nrrd,NIFTI", "nifti"], mesh="ply,stl", label_tables=())
    assert (place.types, place.meshes) == (("nifti", "seg.nrrd"), ("stl", "ply"))


def test_a_misspelt_type_is_told_the_nearest(tmp_path):
    """`seg_nrrd` is meant to be seg.nrrd."""
    with pytest.raises(UsageError, match="did you mean seg.nrrd"):
        Output.at(tmp_path, types="seg_nrrd")


def test_label_tables_need_a_label_map(tmp_path):
    """Masks have no numbers to explain, and a Slicer segmentation explains itself."""
    for options in ({}, {"multilabel": True, "types": "seg.nrrd"}):
        with pytest.raises(UsageError, match="Label tables"):
            Output.at(tmp_path, label_tables="slicer", **options)
    assert Output.at(tmp_path, True, label_tables="slicer,itksnap").tables == ("itksnap", "slicer")


EVERYTHING = ("liver.nii.gz", "liver.nrrd", "spleen.nrrd", "segmentation.nrrd", "segmentation.seg.nrrd", "segmentation.seg.dcm", "segmentation.rtstruct.dcm")
EVERYTHING += ("segmentation.ctbl", "segmentation.itksnap.txt", "meshes/liver.stl", "meshes/liver.obj", "meshes/spleen.ply")


def test_files_of_formats_that_are_not_written_now_are_stale(tmp_path):
    """All that the earlier run lists, but for masks and surfaces of the spleen, which is not asked for, and what is written again."""
    run_that_wrote(tmp_path, *EVERYTHING)
    place = Output.at(tmp_path, types="nifti,seg.nrrd", mesh="obj")
    stale = {place.within(file) for file in place.stale(["liver"])}
    kept = {"liver.nii.gz", "segmentation.seg.nrrd", "meshes/liver.obj", "spleen.nrrd", "meshes/spleen.ply"}
    assert stale == {*EVERYTHING, "run.json"} - kept
    assert {place.within(file) for file in place.existing(["liver"])} == stale | {"liver.nii.gz", "segmentation.seg.nrrd", "meshes/liver.obj"}


def test_files_that_no_run_lists_are_somebodys_own(tmp_path):
    """The same files beside a run.json that does not name them, or beside none: nothing but run.json is stale."""
    run_that_wrote(tmp_path, *EVERYTHING)
    (tmp_path / "run.json").write_text(json.dumps({"files": ["../liver.nrrd", "notes.txt"]}))
    (tmp_path / "notes.txt").touch()
    assert Output.at(tmp_path).stale(["liver", "spleen"]) == [tmp_path / "run.json"]
    (tmp_path / "run.json").unlink()
    assert Output.at(tmp_path).stale(["liver", "spleen"]) == []


def test_a_label_map_of_ones_own_beside_that_of_a_run_stays(tmp_path):
    """The run wrote segmentation.nrrd and its names; segmentation.nii.gz was there before and is nobody's but the user's."""
    run_that_wrote(tmp_path, "segmentation.nrrd", "segmentation.labels.json")
    (tmp_path / "segmentation.nii.gz").touch()
    stale = Output.at(tmp_path).stale(["liver"])
    assert set(stale) == {tmp_path / "run.json", tmp_path / "segmentation.nrrd", tmp_path / "segmentation.labels.json"}


def test_a_file_by_name_takes_its_other_formats_along(tmp_path):
    """x.nii.gz: the earlier x.nrrd is stale, y.nrrd and liver.nrrd are not; x.nii.gz itself goes when x.nii takes its place."""
    run_that_wrote(tmp_path, "x.nii.gz", "x.nrrd", "x.meshes/liver.stl", "y.nrrd", "liver.nrrd", prefix="x.")
    assert set(Output.at(tmp_path / "x.nii.gz").stale(["liver"])) == {tmp_path / "x.run.json", tmp_path / "x.nrrd", tmp_path / "x.meshes" / "liver.stl"}
    assert tmp_path / "x.nii.gz" in Output.at(tmp_path / "x.nii").stale(["liver"])


def test_a_bids_dataset_has_a_folder_per_case(tmp_path):
    """Label map, reports and surfaces of sub-01, session 2."""
    place = Output.at(tmp_path, bids="sub-01_ses-2_run-1_ct.nii.gz", mesh="stl")
    folder = tmp_path / "sub-01" / "ses-2" / "anat"
    stem = "sub-01_ses-2_run-1_desc-clseg"
    assert place.multilabel == folder / f"{stem}_dseg.nii.gz"
    assert place.beside("run.json") == folder / f"{stem}_run.json"
    assert place.mesh("liver", "stl") == folder / f"{stem}_meshes" / "liver.stl"
    assert place.within(tmp_path / "dataset_description.json") == "../../../dataset_description.json"


def test_a_bids_dataset_is_a_folder_of_nifti(tmp_path):
    """Neither a file's name nor other formats nor tables of other programs."""
    with pytest.raises(UsageError, match="expected the folder"):
        Output.at(tmp_path / "x.nii.gz", bids="sub-01")
    for options in ({"types": "nrrd"}, {"label_tables": "slicer"}):
        with pytest.raises(UsageError, match="label maps as NIfTI"):
            Output.at(tmp_path, bids="sub-01", **options)
