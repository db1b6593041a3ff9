"""Predictions are compared with references structure by structure, whether they are folders of masks or label maps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clseg.errors import ClsegError, InputError, UsageError
from clseg.evaluate import HEADER, evaluate, evaluate_cases, summarise, to_rows
from clseg.io.nifti import write_mask, write_volume
from clseg.metrics import Scores
from clseg.progress import Progress
from clseg.volume import Volume

SHAPE = (20, 20, 20)
GRID = Volume(np.zeros(SHAPE, np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))


def cube(x: int, n: int = 4) -> np.ndarray:
    """A cube of n³ voxels from (x, 5, 5)."""
    mask = np.zeros(SHAPE, bool)
    mask[x : x + n, 5 : 5 + n, 5 : 5 + n] = True
    return mask


def folder(path, **masks: np.ndarray):
    path.mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        write_mask(path / f"{name}.nii.gz", mask, GRID)
    return path


def label_map(path, masks: dict[str, np.ndarray], *, names: str = "embedded"):
    """One file with ids 1, 2, …; its names embedded, beside it, or nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(SHAPE, np.uint8)
    for number, mask in enumerate(masks.values(), start=1):
        array[mask] = number
    table = {number: (name, (1, 2, 3)) for number, name in enumerate(masks, start=1)}
    write_mask(path, array, GRID, labels=table if names == "embedded" else None)
    if names == "beside":
        path.with_name("labels.json").write_text(json.dumps({name: number for number, name in enumerate(masks, start=1)}))
    return path


def test_scores_by_hand(tmp_path):
    """A cube of 4 voxels shifted by 1: Dice 2·48/128 = 0.75; identical cubes: 1; volumes in mL of 8 mm³ voxels."""
    ours = folder(tmp_path / "ours", liver=cube(5), spleen=cube(12))
    theirs = folder(tmp_path / "theirs", liver=cube(6), spleen=cube(12))
    scores = evaluate(ours, theirs)
    assert scores["liver"].dice == pytest.approx(0.75)
    assert scores["liver"].hd95_mm == pytest.approx(2.0)
    assert (scores["spleen"].dice, scores["spleen"].surface_dice, scores["spleen"].hd95_mm) == (1.0, 1.0, 0.0)
    assert scores["liver"].reference_ml == pytest.approx(0.512)


MASKS = {"liver": cube(5), "spleen": cube(12)}
KINDS = ["folder", "embedded", "beside", "one_in_folder"]


def source(path, kind: str, masks: dict[str, np.ndarray]):
    if kind == "folder":
        return folder(path, **masks)
    if kind == "one_in_folder":
        label_map(path / "segmentation.nii.gz", masks)
        return path
    return label_map(path / "map.nii.gz", masks, names=kind)


@pytest.mark.parametrize("ours", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_every_kind_of_source_says_the_same(tmp_path, ours, theirs):
    """Folders of masks and label maps, names embedded or beside: the same scores in the reference's order."""
    prediction = source(tmp_path / "ours", ours, {"spleen": cube(12), "liver": cube(6)})
    scores = evaluate(prediction, source(tmp_path / "theirs", theirs, MASKS))
    assert list(scores) == ["liver", "spleen"]
    assert [s.dice for s in scores.values()] == pytest.approx([0.75, 1.0])


def test_a_mask_missing_from_a_folder_was_predicted_empty(tmp_path):
    """Empty structures are not written, so no file means no voxel: Dice 0, no distance."""
    scores = evaluate(folder(tmp_path / "ours", liver=cube(5)), folder(tmp_path / "theirs", **MASKS))
    assert (scores["spleen"].dice, scores["spleen"].hd95_mm, scores["spleen"].predicted_ml) == (0.0, None, 0.0)


class Told(Progress):
    """Notes what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("options", [{"multilabel": True}, {"types": "seg.nrrd"}, {"types": "nrrd"}, {"types": "nifti,seg.nrrd"}])
def test_a_map_of_confidence_and_other_formats_change_no_score(tmp_path, options):
    """A saved result with confidence.nii.gz beside it against itself is perfect: 1.0, and not predicted empty."""
    from clseg.catalogue import Catalogue
    from clseg.segmentation import Segmentation

    liver = Catalogue.builtin()["liver"]
    result = Segmentation(GRID, (cube(5).astype(np.uint16) * liver.id,), (liver,))
    result.save(tmp_path / "ours", **options)
    write_volume(tmp_path / "ours" / "confidence.nii.gz", GRID.like(np.arange(GRID.array.size, dtype=np.int16).reshape(GRID.shape)))
    run = json.loads((tmp_path / "ours" / "run.json").read_text())
    (tmp_path / "ours" / "run.json").write_text(json.dumps({**run, "files": [*run["files"], "confidence.nii.gz"]}))
    assert evaluate(tmp_path / "ours", folder(tmp_path / "theirs", liver=cube(5)))["liver"].dice == 1.0


def test_what_a_run_was_never_asked_for_is_not_scored(tmp_path):
    """run.json lists liver and, empty, spleen: both are scored; the kidney of the reference is left out, and that is said."""
    ours = folder(tmp_path / "ours", liver=cube(5))
    (ours / "run.json").write_text(json.dumps({"structures": ["liver"], "empty": ["spleen"]}))
    told = Told()
    scores = evaluate(ours, folder(tmp_path / "theirs", **MASKS, kidney_left=cube(0)), report=told)
    assert {name: one.dice for name, one in scores.items()} == {"liver": 1.0, "spleen": 0.0}
    assert told.said == ["Not scored, as the prediction was never asked for them: kidney_left."]


def test_a_mask_of_an_earlier_run_is_not_part_of_this_one(tmp_path):
    """spleen.nii.gz is there, but the run was asked for the liver alone."""
    ours = folder(tmp_path / "ours", **MASKS)
    (ours / "run.json").write_text(json.dumps({"structures": ["liver"], "empty": []}))
    assert list(evaluate(ours, folder(tmp_path / "theirs", **MASKS))) == ["liver"]


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"structures": ["liver"]}'])
def test_a_run_json_of_another_program_says_nothing(tmp_path, content):
    """Then any structure may have been asked for, as without one, and nothing is left out."""
    ours = folder(tmp_path / "ours", liver=cube(5))
    (ours / "run.json").write_text(content)
    told = Told()
    assert list(evaluate(ours, folder(tmp_path / "theirs", **MASKS), report=told)) == list(MASKS)
    assert told.said == []


def test_a_name_missing_from_a_label_map_is_not_scored(tmp_path):
    """A label map names all it was asked for; what it does not name it never looked for."""
    scores = evaluate(label_map(tmp_path / "ours.nii.gz", {"liver": cube(5)}), folder(tmp_path / "theirs", **MASKS))
    assert list(scores) == ["liver"]


def test_names_of_other_programs_are_understood(tmp_path):
    """`Hepar` and `Liver` are both the liver: Dice 1, not 0 as for two structures; two files for one structure are refused."""
    ours, theirs = folder(tmp_path / "ours", Hepar=cube(5)), folder(tmp_path / "theirs", Liver=cube(5))
    assert {name: one.dice for name, one in evaluate(ours, theirs).items()} == {"liver": 1.0}
    folder(ours, liver=cube(5))
    with pytest.raises(InputError, match="both mean liver"):
        evaluate(ours, theirs)


def test_what_the_reference_does_not_know_is_left_out(tmp_path):
    """Partial labels: unknown is not background."""
    scores = evaluate(folder(tmp_path / "ours", **MASKS), folder(tmp_path / "theirs", liver=cube(5)))
    assert list(scores) == ["liver"]


def test_a_saved_result_can_be_evaluated(tmp_path):
    """What `Segmentation.save` writes, with or without one label map, is a source."""
    from clseg.catalogue import Catalogue
    from clseg.segmentation import Segmentation

    liver, spleen = (Catalogue.builtin()[name] for name in MASKS)
    layer = np.where(cube(5), liver.id, 0).astype(np.uint16)
    result = Segmentation(GRID, (layer,), (liver, spleen))
    result.save(tmp_path / "masks")
    result.save(tmp_path / "map.nii.gz")
    for saved in (tmp_path / "masks", tmp_path / "map.nii.gz"):
        scores = evaluate(saved, folder(tmp_path / "theirs", **MASKS))
        assert (scores["liver"].dice, scores["spleen"].dice) == (1.0, 0.0)


def test_different_grids_are_refused(tmp_path):
    """The same shape 5 mm apart is another scan."""
    ours = folder(tmp_path / "ours", liver=cube(5))
    shifted = GRID.affine.copy()
    shifted[0, 3] = 5
    (tmp_path / "theirs").mkdir()
    write_mask(tmp_path / "theirs" / "liver.nii.gz", cube(5), Volume(GRID.array, shifted))
    with pytest.raises(InputError, match="different grids"):
        evaluate(ours, tmp_path / "theirs")


def test_nothing_in_common_is_an_error(tmp_path):
    """A label map of lungs against masks of livers."""
    with pytest.raises(InputError, match="no structure in common"):
        evaluate(label_map(tmp_path / "ours.nii.gz", {"lung_left": cube(5)}), folder(tmp_path / "theirs", liver=cube(5)))


@pytest.mark.parametrize("make", [lambda p: p / "nowhere", lambda p: p, lambda p: label_map(p / "x.nii.gz", MASKS, names="none")])
def test_a_source_without_names_is_an_error(tmp_path, make):
    """Nothing there, an empty folder, a label map without names: one sentence each."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ClsegError) as caught:
        evaluate(make(empty), folder(tmp_path / "theirs", **MASKS))
    assert str(empty) in caught.value.message


def test_rows_follow_the_header():
    """None stays None, for an empty cell."""
    rows = to_rows({"liver": Scores(0.5, 0.25, None, 1.0, 2.0)})
    assert len(rows[0]) == len(HEADER)
    assert rows == [["liver", 0.5, 0.25, None, 1.0, 2.0]]


def test_the_summary_is_over_cases_that_have_a_score():
    """Dice 0.8 and 0.6 and one case with nothing to compare: 2 cases, mean 0.7, an interval around it."""
    nothing = Scores(None, None, None, 0.0, 0.0)
    cases = [{"liver": Scores(0.8, 1.0, 2.0, 1, 1)}, {"liver": Scores(0.6, 0.5, 4.0, 1, 1)}, {"liver": nothing, "spleen": nothing}]
    summary = summarise(cases)
    assert (summary["liver"]["cases"], summary["liver"]["missed"]) == (2, 0)
    assert summary["liver"]["dice"] == pytest.approx(0.7)
    assert summary["liver"]["hd95_mm"] == pytest.approx(3.0)
    low, high = summary["liver"]["dice_interval"]
    assert 0.6 <= low < 0.7 < high <= 0.8
    assert summary["spleen"] == {"cases": 0, "missed": 0, "dice": None, "dice_interval": None, "surface_dice": None, "hd95_mm": None}


def test_misses_are_counted():
    """One liver found, one missed, one invented: HD95 is that of the first alone, and two misses say so; Dice is over all three."""
    cases = [Scores(0.9, 0.9, 2.0, 1, 1), Scores(0.0, 0.0, None, 1, 0), Scores(0.0, 0.0, None, 0, 1)]
    summary = summarise([{"liver": one} for one in cases])["liver"]
    assert (summary["cases"], summary["missed"]) == (3, 2)
    assert summary["dice"] == pytest.approx(0.3)
    assert summary["hd95_mm"] == 2.0


def test_a_file_that_is_no_mask_is_an_error(tmp_path):
    """A text file called liver.nii.gz."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "liver.nii.gz").write_text("not a mask")
    with pytest.raises((InputError, UsageError), match=r"liver\.nii\.gz"):
        evaluate(tmp_path / "ours", folder(tmp_path / "theirs", **MASKS))


def test_a_table_of_cases_is_scored_row_by_row(tmp_path):
    """Paths are relative to the CSV, a row without a case is called by its prediction, and every row has its own scores."""
    for name, x in (("a", 5), ("b", 6)):
        folder(tmp_path / "ours" / name, liver=cube(x))
    folder(tmp_path / "theirs", liver=cube(5))
    (tmp_path / "t.csv").write_text("case,prediction,reference\none,ours/a,theirs\n,ours/b,theirs\n")
    found = evaluate_cases(tmp_path / "t.csv")
    assert {case: scores["liver"].dice for case, scores in found.items()} == {"one": 1.0, "ours/b": pytest.approx(0.75)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lacks prediction, reference"),
        ("prediction,truth\na,b\n", "lacks reference"),
        ("prediction,reference\n", "lacks prediction, reference"),
        ("case,prediction,reference\nx,a,b\nx,c,d\n", "case 'x' twice"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, sentence):
    """No row, another column or one name for two cases: one sentence."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        evaluate_cases(tmp_path / "t.csv")


def test_axes_of_another_order_or_direction_are_turned(tmp_path):
    """The same mask stored from the other end, or with its axes exchanged, agrees with itself; a shifted one is told apart in words."""
    masks = folder(tmp_path / "ours", liver=cube(3))
    flipped = Volume(np.zeros(SHAPE, np.uint8), GRID.affine @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    (tmp_path / "theirs").mkdir()
    write_mask(tmp_path / "theirs" / "liver.nii.gz", np.asfortranarray(cube(3)[::-1]), flipped)
    assert evaluate(masks, tmp_path / "theirs")["liver"].dice == 1
    write_mask(tmp_path / "theirs" / "liver.nii.gz", cube(3), Volume(GRID.array, np.diag([2.0, 2.0, 3.0, 1.0])))
    with pytest.raises(InputError, match=r"20 × 20 × 20 voxels of 2 × 2 × 2 mm from \(0, 0, 0\) predicted, 20 × 20 × 20 voxels of 2 × 2 × 3 mm"):
        evaluate(masks, tmp_path / "theirs")
