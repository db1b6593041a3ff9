"""`clseg stats` and the options of statistics of the main command, as a user calls them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clseg.cli.app import app
from clseg.io.nifti import write_mask, write_volume
from clseg.phantom import small_phantom
from clseg.volume import Volume
from tests.test_masks import LIVER, SPLEEN, box, scan

ROOT = Path(__file__).parents[1]


def call(*words: object):
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="clseg")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def ct(tmp_path) -> Path:
    write_volume(tmp_path / "ct.nii.gz", scan())
    return tmp_path / "ct.nii.gz"


@pytest.fixture
def masks(tmp_path) -> Path:
    """A folder as TotalSegmentator writes it: kidneys of 8 and 4 voxels (96 and 48 mm³), an empty liver."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, array in {"kidney_left": LIVER, "kidney_right": box(slice(8, 9)), "liver": np.zeros_like(LIVER)}.items():
        write_mask(folder / f"{name}.nii.gz", array, scan())
    return folder


def test_statistics_of_a_folder(ct, masks, tmp_path):
    """Files as `clseg --stats` writes them, a table with the families on stdout, the absent liver named on stderr."""
    result = call("stats", ct, masks, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"statistics.json", "statistics.csv"}
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (written["kidney_left"]["volume_mm3"], written["kidney_left"]["hu_mean"]) == (pytest.approx(96), 75)
    assert written["families"]["kidneys"]["volume_mm3"] == pytest.approx(144)
    assert "kidneys" in result.stdout
    assert "looked for and not found: liver" in result.stderr
    assert "2 of 3 structures measured" in result.stderr


def test_the_files_that_were_written_are_named(ct, masks, tmp_path):
    """`-o x.nii.gz` writes x.statistics.json and .csv: the note names these, not a label map that nobody wrote."""
    result = call("stats", ct, masks, "-o", tmp_path / "x.nii.gz")
    assert result.exit_code == 0
    note = result.stderr.replace("\n", "")
    assert note.endswith(f"written to {tmp_path / 'x.statistics.json'}, {tmp_path / 'x.statistics.csv'}")


def test_numbers_for_a_pipe(ct, masks):
    """--json prints what statistics.json would hold, and nothing else; no file is written."""
    before = set(masks.parent.rglob("*"))
    result = call("stats", ct, masks, "--json", "-q", "--roi", "kidneys")
    assert list(json.loads(result.stdout)) == ["kidney_left", "kidney_right", "families"]
    assert set(masks.parent.rglob("*")) == before


def test_volumes_without_a_ct(masks):
    """--no-ct takes the masks alone: volumes, and HU null."""
    found = json.loads(call("stats", "--no-ct", masks, "--json", "-q").stdout)
    assert (found["kidney_right"]["volume_mm3"], found["kidney_right"]["hu_mean"]) == (pytest.approx(48), None)
    assert found["families"]["kidneys"]["hu_mean"] is None


def test_totalsegmentators_format(ct, masks, tmp_path):
    """{"kidney_left": {"volume": 96, "intensity": 75}, …}; a table of clseg's format left there goes, as it would contradict."""
    out = tmp_path / "out"
    assert call("stats", ct, masks, "-o", out, "--radiomics").exit_code == 0
    assert {file.name for file in out.iterdir()} == {"statistics.json", "statistics.csv", "radiomics.csv"}
    assert call("stats", ct, masks, "-o", out, "--stats-format", "totalsegmentator").exit_code == 0
    assert {file.name for file in out.iterdir()} == {"statistics.json"}
    written = json.loads((out / "statistics.json").read_text())
    assert written == {
        "kidney_left": {"volume": pytest.approx(96), "intensity": 75.0},
        "kidney_right": {"volume": pytest.approx(48), "intensity": 75.0},
        "liver": {"volume": 0.0, "intensity": 0.0},
    }


def test_radiomics_have_a_table(ct, masks, tmp_path):
    """radiomics.csv: four voxels of 12 mm³, mean 75, energy 2·100² + 2·50²; nothing for the empty liver."""
    call("stats", ct, masks, "-o", tmp_path / "out", "--radiomics")
    with (tmp_path / "out" / "radiomics.csv").open(newline="") as table:
        rows = {row["structure"]: row for row in csv.DictReader(table)}
    kidney = {name.removeprefix("original_"): value for name, value in rows["kidney_right"].items()}
    assert (float(kidney["shape_VoxelVolume"]), float(kidney["firstorder_Mean"]), float(kidney["firstorder_Energy"])) == (pytest.approx(48), 75, 25000)
    assert rows["liver"]["original_shape_VoxelVolume"] == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ct.nii.gz"], "Expected a CT and its masks"),
        ([], "Expected a CT and its masks"),
        (["--no-ct", "ct.nii.gz", "masks"], "the masks are the only path"),
        (["ct.nii.gz", "nowhere"], "There is no file or folder"),
        (["ct.nii.gz", "masks", "--stats-format", "excel"], "expected clseg or totalsegmentator"),
        (["ct.nii.gz", "masks", "--roi", "aorta"], "There is no mask of 'aorta' in "),
        (["ct.nii.gz", "masks", "-o", "ct.nii.gz/out"], "'ct.nii.gz' is a file"),
        (["ct.nii.gz", "masks", "-o", "out.csv"], "Statistics are several files, given out.csv, expected a folder."),
        (["--no-ct", "masks", "--series", "3"], "--series chooses the CT, but with --no-ct there is none."),
    ],
)
def test_wrong_calls_end_with_2_and_a_sentence(ct, masks, monkeypatch, words, said):
    """One sentence says what is wrong, nothing is written."""
    monkeypatch.chdir(ct.parent)
    result = call("stats", *words)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not list(ct.parent.rglob("statistics*"))


def test_masks_of_another_scan_end_with_1(masks, tmp_path):
    """The grids differ: what, by how much, and what to do."""
    write_volume(tmp_path / "other.nii.gz", Volume(scan().array, np.diag([2.0, 2.0, 3.0, 1.0])))
    result = call("stats", tmp_path / "other.nii.gz", masks, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "apart" in result.stderr
    assert "tip: Give the very scan" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_nameless_label_map_ends_with_1_and_can_be_named(ct, tmp_path):
    """--labels is the way out that the tip names."""
    write_mask(tmp_path / "seg.nii.gz", LIVER * 3 + SPLEEN, scan())
    (tmp_path / "names.csv").write_text("id,name\n3,liver\n1,spleen\n")
    result = call("stats", ct, tmp_path / "seg.nii.gz")
    assert result.exit_code == 1
    assert "--labels" in result.stderr
    named = call("stats", ct, tmp_path / "seg.nii.gz", "--labels", tmp_path / "names.csv", "--json", "-q")
    assert {name: one["voxels"] for name, one in json.loads(named.stdout).items()} == {"spleen": 8, "liver": 8}


def test_a_table_without_ids_is_told_by_what_it_begins_with(ct, tmp_path):
    """The sentence shows the first line, not an error of Python's lists."""
    write_mask(tmp_path / "map.nii.gz", LIVER, scan())
    (tmp_path / "names.csv").write_text("organ,colour\nliver,red\n")
    result = call("stats", ct, tmp_path / "map.nii.gz", "--labels", tmp_path / "names.csv")
    assert result.exit_code == 1
    assert "is not a table of ids and names: its first line is organ,colour" in " ".join(result.stderr.split())


def test_torch_is_not_needed(ct, masks):
    """With torch out of reach the masks are measured all the same."""
    program = "import sys; sys.modules['torch'] = None; from clseg.cli.app import main; sys.argv[0] = 'clseg'; main()"
    words = ["stats", str(ct), str(masks), "--json", "-q", "--radiomics"]
    result = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kidney_left"]["voxels"] == 8


# ---- beside the main command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def torso(tmp_path_factory) -> Path:
    volume, _ = small_phantom()
    path = tmp_path_factory.mktemp("scan") / "ct.nii.gz"
    write_volume(path, Volume(np.asfortranarray(volume.array[8:32, 4:24, 10:32]), volume.affine))
    return path


def test_our_own_masks_give_the_same_numbers(tiny_model, torso, tmp_path):
    """`clseg -i ct -o out --stats`, then `clseg stats ct out -o again`: all is the same to the last byte, apart from what only the network knew."""
    tiny_model()
    assert call("-i", torso, "-o", tmp_path / "out", "-m", "tiny", "--stats", "--radiomics").exit_code == 0
    assert call("stats", torso, tmp_path / "out", "-o", tmp_path / "again", "--radiomics").exit_code == 0
    out, again = tmp_path / "out", tmp_path / "again"
    assert (again / "radiomics.csv").read_bytes() == (out / "radiomics.csv").read_bytes()
    header = (out / "statistics.csv").read_text().splitlines()[0].split(",")
    measured = header.index("confidence")
    assert header[measured:] == ["confidence", "boundary_entropy", "review", "reasons"]
    first, second = ([row[:measured] for row in csv.reader((place / "statistics.csv").open())] for place in (out, again))
    assert first == second
    ours, theirs = (json.loads((place / "statistics.json").read_text()) for place in (out, again))
    assert ours["lung_left"]["confidence"] is not None
    assert theirs["lung_left"]["confidence"] is None
    assert without_judgement(ours) == without_judgement(theirs)
    assert sum(one.get("voxels") is not None for one in ours.values()) > 2


def without_judgement(statistics: dict) -> dict:
    known = ("confidence", "boundary_entropy", "review", "reasons")
    return {name: {key: value for key, value in one.items() if key not in known} for name, one in statistics.items()}


def test_the_main_command_writes_totalsegmentators_format(tiny_model, torso, tmp_path):
    """--stats --stats-format totalsegmentator: volume and intensity per structure, no CSV."""
    tiny_model()
    assert call("-i", torso, "-o", tmp_path / "out", "-m", "tiny", "--stats", "--stats-format", "totalsegmentator").exit_code == 0
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert {tuple(one) for one in written.values()} == {("volume", "intensity")}
    assert not (tmp_path / "out" / "statistics.csv").exists()


@pytest.mark.parametrize(("words", "said"), [(["--radiomics"], "--radiomics has no effect"), (["--stats-format", "totalsegmentator"], "--stats-format has no effect"), (["--stats", "--stats-format", "excel"], "Unknown format")])
def test_options_of_statistics_need_them(torso, tmp_path, words, said):
    """Without --stats they would silently do nothing."""
    result = call("-i", torso, "-o", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert said in result.stderr
