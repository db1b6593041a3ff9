"""A Segmentation gives masks on the scan's grid, statistics, and files that say what they are."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clseg.catalogue import Catalogue
from clseg.errors import OutputError, UnknownName
from clseg.io.files import read
from clseg.io.labels import read_label_names
from clseg.segmentation import Segmentation
from clseg.volume import Header, Volume

CATALOGUE = Catalogue.builtin()
BODY, LIVER, SPLEEN, KIDNEY, TUMOUR = (CATALOGUE[n] for n in ("body", "liver", "spleen", "kidney_left", "gtv_liver"))
SHAPE = (10, 12, 8)


def scan() -> Volume:
    """An LAS grid of 2 x 3 x 4 mm, HU = slice number, with different qform and sform codes."""
    affine = np.array([[-2.0, 0, 0, 90], [0, 3, 0, -50], [0, 0, 4, 10], [0, 0, 0, 1]])
    array = np.broadcast_to(np.arange(8, dtype=np.int16) * 10, SHAPE)
    return Volume(array.copy(order="F"), affine, Header(affine, 1, affine, 2))


def segmentation(*, liver: bool = True, wanted=(BODY, LIVER, SPLEEN, KIDNEY, TUMOUR), **facts) -> Segmentation:
    """Body everywhere but the border, liver of 4 x 4 x 4 with a tumour of 2 x 2 x 2, no spleen, kidney out of range."""
    layers = [np.zeros(SHAPE, np.uint16, order="F") for _ in range(3)]
    layers[0][1:-1, 1:-1, 1:-1] = BODY.id
    if liver:
        layers[1][2:6, 2:6, 2:6] = LIVER.id
        layers[2][3:5, 3:5, 3:5] = TUMOUR.id
    return Segmentation(scan(), tuple(layers), tuple(wanted), frozenset({"kidney_left"}), facts)


def files_in(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


# ---- looking ----------------------------------------------------------------------------------------------------------


def test_names_and_ids_are_those_of_the_catalogue():
    """Every wanted structure is named, found or not."""
    assert segmentation().names == {a.name: a.id for a in (BODY, LIVER, SPLEEN, KIDNEY, TUMOUR)}


def test_masks_of_a_whole_and_its_parts_overlap():
    """The body holds the liver, the liver its tumour."""
    found = segmentation()
    assert found.mask("liver").sum() == 64
    assert found.mask("gtv_liver").sum() == 8
    assert (found.mask("body") & found.mask("liver") & found.mask("gtv_liver")).sum() == 8
    assert found.mask("body").dtype == bool


def test_the_flat_map_names_the_tumour_then_the_organ_then_the_body():
    """One label per voxel, parts before wholes; on the grid of the scan."""
    labels = segmentation().labels
    assert labels.same_grid(scan())
    ids, counts = np.unique(labels.array, return_counts=True)
    expected = {0: 960 - 480, BODY.id: 480 - 64, LIVER.id: 64 - 8, TUMOUR.id: 8}
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected


def test_a_structure_on_two_layers_has_one_mask(tmp_path):
    """Both parts are in the mask and in its file, one voxel each."""
    layers = [np.zeros(SHAPE, np.uint16, order="F") for _ in range(2)]
    layers[0][1, 1, 1] = layers[1][2, 3, 4] = LIVER.id
    found = Segmentation(scan(), tuple(layers), (LIVER,))
    assert np.argwhere(found.mask("liver")).tolist() == [[1, 1, 1], [2, 3, 4]]
    found.save(tmp_path)
    np.testing.assert_array_equal(read(tmp_path / "liver.nii.gz").array, found.mask("liver"))


def test_what_was_not_found_has_an_empty_mask():
    """Asked for and absent is no error."""
    assert not segmentation().mask("spleen").any()
    assert segmentation().present == (BODY, LIVER, TUMOUR)


@pytest.mark.parametrize(("name", "nearest"), [("livr", ("liver", "gtv_liver")), ("aorta", ())])
def test_a_structure_that_was_not_asked_for_is_an_error(name, nearest):
    """Unlike one that was not found; the nearest names are offered."""
    with pytest.raises(UnknownName) as caught:
        segmentation().mask(name)
    assert caught.value.nearest == nearest


def test_statistics_cover_every_wanted_structure():
    """Liver: 64 voxels of 24 mm³, HU 20…50 in equal parts; spleen absent; kidney out of range."""
    values = segmentation().statistics()
    assert list(values) == ["body", "liver", "spleen", "kidney_left", "gtv_liver"]
    assert values["liver"].volume_mm3 == pytest.approx(64 * 24)
    assert values["liver"].hu_mean == pytest.approx(35)
    assert [values[n].status for n in ("spleen", "kidney_left")] == ["absent", "out_of_range"]


# ---- saving into a folder ---------------------------------------------------------------------------------------------


def test_a_folder_gets_one_mask_per_structure_found(tmp_path):
    """No file for what is empty; the files returned are the files written."""
    files = segmentation().save(tmp_path / "new" / "out")
    assert files_in(tmp_path / "new" / "out") == {"body.nii.gz", "liver.nii.gz", "gtv_liver.nii.gz", "run.json"}
    assert {file.name for file in files} == files_in(tmp_path / "new" / "out")


def test_masks_lie_on_the_grid_of_the_scan(tmp_path):
    """Shape, affine, qform and sform with their codes, uint8 of 0 and 1, nothing scaled."""
    found = segmentation()
    found.save(tmp_path)
    image = nib.load(tmp_path / "liver.nii.gz")
    assert image.shape == SHAPE
    np.testing.assert_array_equal(image.affine, scan().affine)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 2)
    np.testing.assert_allclose(image.header.get_qform(), scan().affine, atol=1e-5)
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_slope_inter() == (None, None)
    np.testing.assert_array_equal(np.asarray(image.dataobj), found.mask("liver"))


def test_a_mask_of_an_earlier_run_does_not_stay(tmp_path):
    """Liver found, then not found in the same folder: its mask is gone, a mask that was not asked for stays."""
    segmentation().save(tmp_path)
    (tmp_path / "aorta.nii.gz").touch()
    segmentation(liver=False).save(tmp_path)
    assert files_in(tmp_path) == {"body.nii.gz", "aorta.nii.gz", "run.json"}


def test_saved_masks_are_those_that_can_be_looked_at(tmp_path):
    """What `save` writes straight from the layers is what `mask` gives, for every structure."""
    found = segmentation()
    found.save(tmp_path)
    for anatomy in found.present:
        np.testing.assert_array_equal(read(tmp_path / f"{anatomy.name}.nii.gz").array, found.mask(anatomy.name))


@pytest.mark.parametrize("first", [{"statistics": True, "preview": True}, {"statistics": True, "multilabel": True, "preview": True}])
def test_reports_of_an_earlier_run_do_not_stay(tmp_path, first):
    """Statistics, preview and label map of yesterday's scan beside today's masks would be believed: they go, other files stay."""
    segmentation().save(tmp_path, **first)
    (tmp_path / "notes.txt").touch()
    files = segmentation(liver=False).save(tmp_path)
    assert files_in(tmp_path) == {"body.nii.gz", "run.json", "notes.txt"}
    assert {file.name for file in files} == {"body.nii.gz", "run.json"}


def test_masks_of_an_earlier_run_do_not_stay_beside_a_label_map(tmp_path):
    """Those of structures asked for now; a mask that no run lists stays."""
    segmentation().save(tmp_path)
    (tmp_path / "spleen.nii.gz").touch()
    segmentation().save(tmp_path, multilabel=True)
    assert files_in(tmp_path) == {"segmentation.nii.gz", "segmentation.labels.json", "run.json", "spleen.nii.gz"}


def test_the_run_manifest_says_what_came_out(tmp_path):
    """Found, empty, out of range, stages, files, and the facts of the run."""
    segmentation(model={"name": "tiny"}).save(tmp_path, statistics=True)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["structures"] == ["body", "liver", "gtv_liver"]
    assert run["empty"] == ["spleen", "kidney_left"]
    assert run["out_of_range"] == ["kidney_left"]
    assert run["model"] == {"name": "tiny"}
    assert set(run["files"]) == files_in(tmp_path)
    assert [stage["stage"] for stage in run["stages"]] == ["write", "statistics"]


def test_a_run_manifest_means_that_all_is_there(tmp_path, monkeypatch):
    """When a later run into the folder is interrupted, the manifest of the earlier one is gone."""
    from clseg.io.formats import nifti as module

    segmentation().save(tmp_path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_structure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segmentation().save(tmp_path)
    assert "run.json" not in files_in(tmp_path)


def test_saving_twice_times_each_once(tmp_path):
    """The laps of one save do not pile up in the next."""
    found = segmentation()
    for name in ("a", "b"):
        found.save(tmp_path / name)
        stages = json.loads((tmp_path / name / "run.json").read_text())["stages"]
        assert [stage["stage"] for stage in stages] == ["write"]


def test_statistics_are_written_as_json_and_csv(tmp_path):
    """One entry and one row per wanted structure; what has no meaning is null, never 0."""
    segmentation().save(tmp_path, statistics=True)
    table = json.loads((tmp_path / "statistics.json").read_text())
    with (tmp_path / "statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(table) == ["body", "liver", "spleen", "kidney_left", "gtv_liver"]
    assert table["spleen"]["volume_ml"] is None
    assert len(rows) == 5


def test_statistics_end_with_the_judgement(tmp_path):
    """The liver's network was unsure, and 1.536 ml are a part of a liver: it touches no face, so it is too small."""
    from clseg.review import SMALL, UNSURE, Certainty

    found = replace(segmentation(), certainties={"liver": Certainty(0.7, 0.4, 0.2, 0.5)})
    found.save(tmp_path, statistics=True)
    table = json.loads((tmp_path / "statistics.json").read_text())
    assert {key: table["liver"][key] for key in list(table["liver"])[-4:]} == {
        "confidence": 0.4, "boundary_entropy": 0.5, "review": "yes", "reasons": [UNSURE, SMALL]
    }  # fmt: skip
    assert (table["body"]["review"], table["spleen"]["confidence"]) == ("no", None)
    with (tmp_path / "statistics.csv").open() as file:
        rows = {row["structure"]: row for row in csv.DictReader(file)}
    assert (rows["liver"]["confidence"], rows["liver"]["review"], rows["liver"]["reasons"]) == ("0.4", "yes", f"{UNSURE} {SMALL}")


def test_a_structure_in_two_pieces_is_told():
    """Beside the liver's 64 voxels lie 8 that do not touch it: a ninth of it, too much for an island."""
    from clseg.review import PIECES

    found = segmentation()
    assert PIECES not in found.review()["liver"].reasons
    found = segmentation()
    found.layers[1][7:9, 7:9, 5:7] = LIVER.id
    assert PIECES in found.review()["liver"].reasons


def test_a_map_of_confidence_is_written_and_goes_with_the_next_run(tmp_path):
    """confidence.nii.gz holds the bytes on the scan's grid and is listed; a run without one removes it."""
    sure = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    files = replace(segmentation(), confidence_map=sure).save(tmp_path)
    written = nib.load(tmp_path / "confidence.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), sure)
    np.testing.assert_allclose(written.affine, scan().affine)
    assert "confidence.nii.gz" in {file.name for file in files}
    assert "confidence.nii.gz" in json.loads((tmp_path / "run.json").read_text())["files"]
    segmentation().save(tmp_path)
    assert "confidence.nii.gz" not in files_in(tmp_path)


def test_a_preview_is_a_picture(tmp_path):
    """preview.png opens and is listed."""
    from PIL import Image

    files = segmentation().save(tmp_path, preview=True)
    with Image.open(tmp_path / "preview.png") as picture:
        assert min(picture.size) > 50
    assert tmp_path / "preview.png" in files


# ---- saving one label map ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("output", "name"), [(".", "segmentation"), ("x.nii.gz", "x"), ("x.nii", "x")])
def test_one_label_map_has_the_names_in_it_and_beside_it(tmp_path, output, name):
    """--ml into a folder or a file name: ids of the catalogue, names embedded and in labels.json."""
    files = segmentation().save(tmp_path / output, multilabel=True)
    label_map = files[0]
    assert label_map.name == (output if output != "." else "segmentation.nii.gz")
    assert files_in(tmp_path) == {label_map.name, f"{name}.labels.json", "run.json" if output == "." else f"{name}.run.json"}
    np.testing.assert_array_equal(read(label_map).array, segmentation().labels.array)
    assert read_label_names(label_map) == {a.id: a.name for a in (BODY, LIVER, SPLEEN, KIDNEY, TUMOUR)}
    assert json.loads((tmp_path / f"{name}.labels.json").read_text()) == segmentation().names


def test_statistics_beside_a_file_name_take_its_name(tmp_path):
    """x.nii.gz → x.statistics.json and x.statistics.csv."""
    segmentation().save(tmp_path / "x.nii.gz", statistics=True)
    assert {"x.nii.gz", "x.labels.json", "x.statistics.json", "x.statistics.csv", "x.run.json"} == files_in(tmp_path)


def test_the_same_result_gives_the_same_bytes(tmp_path):
    """Masks and tables of two saves are identical."""
    for name in ("a", "b"):
        segmentation().save(tmp_path / name, statistics=True)
    for file in (tmp_path / "a").iterdir():
        if file.name != "run.json":
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


# ---- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_disk_too_full_is_told_before_anything_is_written(tmp_path, monkeypatch):
    """One sentence that says how much is free; the folder stays empty."""
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OutputError, match=r"1\.0 kB are free"):
        segmentation().save(tmp_path)
    assert files_in(tmp_path) == set()


def test_a_disk_that_fills_while_writing_leaves_whole_files_alone(tmp_path, monkeypatch):
    """The second mask meets a full disk: one sentence, the first mask whole, no half file, no run.json, and yesterday's statistics are gone."""
    import os

    from clseg.io import files

    segmentation().save(tmp_path, statistics=True)
    create, made = files._create, []

    def full(part: Path, mode: str):
        made.append(part)
        return create(part, mode) if len(made) == 1 else os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")

    monkeypatch.setattr(files, "_create", full)
    with pytest.raises(OutputError, match=r"liver\.nii\.gz' cannot be written: the disk is full"):
        segmentation().save(tmp_path)
    assert files_in(tmp_path) == {"body.nii.gz", "liver.nii.gz", "gtv_liver.nii.gz"}  # the last two are whole, of the run before
    for file in tmp_path.iterdir():
        assert np.asarray(nib.load(file).dataobj).any()


@pytest.mark.parametrize("output", ["out", "out/x.nii.gz", "out/x.nii"])
def test_what_is_said_to_be_needed_is_enough(tmp_path, output):
    """The bytes written, with statistics and a preview, are fewer than the estimate before writing."""
    from clseg.output import Output
    from clseg.results import bytes_needed

    found = segmentation()
    files = found.save(tmp_path / output, statistics=True, preview=True)
    assert sum(file.stat().st_size for file in files) < bytes_needed(found.segments, Output.at(tmp_path / output, False))


def test_two_runs_may_remove_the_same_old_mask(tmp_path, monkeypatch):
    """The other run was faster between looking and removing: nothing happens."""
    (tmp_path / "spleen.nii.gz").touch()
    unlink = Path.unlink

    def after_the_other(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=True)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", after_the_other)
    segmentation().save(tmp_path)
    assert "spleen.nii.gz" not in files_in(tmp_path)


def test_an_old_mask_that_cannot_be_removed_is_an_error(tmp_path, monkeypatch):
    """Better no result than a stale one that looks like a result."""
    (tmp_path / "spleen.nii.gz").touch()

    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name == "spleen.nii.gz":
            raise PermissionError(13, "Permission denied")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=r"spleen\.nii\.gz.*Permission denied"):
        segmentation().save(tmp_path)


def test_pieces_are_measured_once(tmp_path, monkeypatch):
    """However often the review is asked for; what is handed out can be changed without harm."""
    from clseg import segmentation as module

    calls = []
    monkeypatch.setattr(module, "review", lambda *given, **more: calls.append(1) or {"liver": "a review"})
    found = segmentation()
    found.review().clear()
    assert found.review() == {"liver": "a review"}
    assert calls == [1]
