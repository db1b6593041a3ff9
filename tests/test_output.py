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
