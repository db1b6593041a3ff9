"""Every fault of a scan is found before it is segmented, with what mends it and an exit code that a script can use."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from clseg.cli.app import app
from clseg.cli.bodypart import starter_weights
from clseg.errors import UsageError
from clseg.inference.preflight import Preflight, nearest_landmark, preflight
from clseg.io.files import read
from clseg.io.finding import Finding
from clseg.io.nifti import write_volume
from clseg.network.bodypart import load_bodypart
from clseg.phantom import small_phantom
from clseg.volume import Volume
from tests.dicom_files import marked, write_series

THORAX = Path(__file__).parents[2] / "shared" / "data" / "tcga_thca" / "TCGA-DE-A4MA_wholebody" / "ct.nii.gz"


def small(**changes: object) -> Volume:
    volume = small_phantom()[0]
    return Volume(changes.get("array", volume.array), changes.get("affine", volume.affine))  # type: ignore[arg-type]


def with_nan(count: int) -> Volume:
    array = small().array.astype(np.float32)
    array.ravel()[:count] = np.nan
    return small(array=array)


def sheared() -> Volume:
    affine = small().affine.copy()
    affine[1, 2] = 2.0
    return small(affine=affine)


def thick() -> Volume:
    return small(affine=small().affine @ np.diag([1, 1, 2.5, 1]))


FAULTS = {
    "good": (small(), 0, None, ""),
    "nan": (with_nan(10), 3, "values", "without a number"),
    "too many nan": (with_nan(10_000), 1, "scan", "hold no number"),
    "sheared": (sheared(), 3, "affine", "not at right angles"),
    "thick": (thick(), 3, "spacing", "15 mm long"),
    "offset": (small(array=small().array + np.int16(1024)), 1, "scan", "1024 added"),
    "shifted": (small(array=small().array + np.int16(80)), 3, "values", "peak of air"),
    "window": (small(array=small().array.clip(-160, 240)), 3, "values", "air cannot be told"),
    "thin": (small(array=small().array[:, :, 24:27]), 3, "coverage", "18 mm thick"),
    "one slice": (small(array=small().array[:, :, 24:25]), 1, "scan", "at least 2"),
    "constant": (small(array=np.zeros((9, 9, 9), np.int16)), 1, "scan", "same value"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_with_its_mend(name):
    """One fault at a time: exit code, topic and words of the finding, and that something says what to do."""
    scan, code, topic, words = FAULTS[name]
    found = preflight(scan)
    assert found.exit_code == code
    serious = [finding for finding in found.findings if finding.level != "note"]
    assert [(f.topic, words in f.text, bool(f.mend)) for f in serious if words in f.text] == ([] if topic is None else [(topic, True, True)])
    assert found.verdict == {0: "good", 3: "usable with warnings", 1: "unusable"}[code]


def test_four_dimensions_are_unusable_with_the_command_that_splits(tmp_path):
    """A 4-D NIfTI is a fault whose mend is a command."""
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 3), np.int16), np.eye(4)), tmp_path / "4d.nii.gz")
    (finding,) = preflight(tmp_path / "4d.nii.gz").findings
    assert (finding.level, "holds 3 volumes" in finding.text, "python -c" in finding.mend) == ("fault", True, True)


def test_what_the_reader_notices_is_in_the_report(tmp_path):
    """A DICOM series without Modality and with a hole: both warnings are told, and the facts are there all the same."""
    flat = small(affine=small().affine @ np.diag([1, 1, 0.5, 1]))
    write_series(tmp_path, flat, lambda k, image: False if k == 7 else delattr(image, "Modality"))
    found = preflight(tmp_path)
    assert [finding.topic for finding in found.findings] == ["modality", "spacing"]
    assert found.facts["geometry"]["shape"] == [40, 32, 48]
    assert found.facts["geometry"]["spacing_mm"] == [6.0, 6.0, 3.0]
    assert found.exit_code == 3


def test_a_wrong_path_is_a_mistake_of_the_call(tmp_path):
    """Nothing there is no unusable scan: exit code 2."""
    with pytest.raises(UsageError):
        preflight(tmp_path / "missing.nii.gz")


def test_segment_tells_the_same(tmp_path):
    """The cheap part is one source: what `segment` warns of while reading stands in the report."""
    from clseg.errors import UsageError as Stop
    from clseg.pipeline import segment
    from clseg.progress import Progress

    class Listener(Progress):
        said: list[str] = []  # noqa: RUF012

        def warn(self, text):
            self.said.append(text)

        def note(self, text):
            self.said.append(text)

    listener = Listener()
    write_series(tmp_path, thick(), marked(Modality=""))
    found = preflight(tmp_path)
    with pytest.raises(Stop, match="no series '9'"):
        segment(tmp_path, "body", offline=True, series="9", report=listener)
    segment(tmp_path, "body", offline=True, report=listener)
    for finding in found.findings:
        assert any(finding.text in sentence for sentence in listener.said), finding
    assert len(found.findings) == 2


# ---- the body ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scorer():
    return load_bodypart(starter_weights())


@pytest.fixture(scope="module")
def thorax() -> Volume:
    """A real trunk, each second voxel of each second row."""
    if not THORAX.is_file():
        pytest.skip("the shared CTs are not here")
    volume = read(THORAX)
    return Volume(volume.array[::2, ::2], volume.affine @ np.diag([2.0, 2, 1, 1]))


def test_coverage_of_a_real_trunk(thorax, scorer):
    """From the pelvis to the upper chest, in words and scores; nothing is wrong with it."""
    found = preflight(thorax, scorer=scorer)
    assert (found.exit_code, found.facts["coverage"]["from"]) == (0, "pelvis bottom")
    assert found.facts["coverage"]["highest_score"] == pytest.approx(0.7, abs=0.05)
    assert "reaches from about pelvis bottom" in found.findings[-1].text


def test_an_upside_down_trunk_is_told_and_the_mend_mends_it(thorax, scorer, tmp_path, monkeypatch):
    """Slices in reverse order are noticed; the command in the hint turns them, and then nothing is wrong."""
    monkeypatch.chdir(tmp_path)
    write_volume("scan.nii.gz", Volume(np.ascontiguousarray(thorax.array[:, :, ::-1]), thorax.affine))
    (finding,) = [f for f in preflight("scan.nii.gz", scorer=scorer).findings if f.level == "warning"]
    assert "upside down" in finding.text
    exec(finding.mend.split('"')[1])
    assert preflight("scan_turned.nii.gz", scorer=scorer).exit_code == 0


def test_a_mirrored_chest_is_suspected(scorer, shared):
    """A real CT whose heart leans 13 mm to the left passes; its mirror image is suspected, and asked to be looked at."""
    scan = read(shared / "data" / "openkbp" / "pt_96" / "ct.nii.gz")
    assert preflight(scan, scorer=scorer).exit_code == 0
    mirrored = preflight(Volume(scan.array[::-1], scan.affine), scorer=scorer)
    (finding,) = [f for f in mirrored.findings if f.level == "warning"]
    assert "left and right may be swapped" in finding.text
    assert "[::-1, :, :]" in finding.mend


def test_a_short_scan_says_that_it_cannot_tell(thorax, scorer):
    """30 mm of a trunk have no direction, said in a note."""
    found = preflight(Volume(thorax.array[:, :, 100:112], thorax.affine), scorer=scorer)
    assert "too short to tell" in found.findings[-1].text


@pytest.mark.parametrize(("score", "words"), [(0.0, "pelvis bottom"), (1.2, "head top"), (0.683, "vertebra T3 top"), (-0.4, "knee joint")])
def test_the_nearest_landmark(score, words):
    """Heights of the table of landmarks."""
    assert nearest_landmark(score) == words


def test_the_worst_finding_decides():
    """Notes are good, a warning is 3, a fault is 1 whatever else there is."""
    note, warning, fault = (Finding(level, "x", "X.") for level in ("note", "warning", "fault"))
    codes = [Preflight({}, findings).exit_code for findings in ((), (note,), (note, warning), (warning, fault, note))]
    assert codes == [0, 0, 3, 1]
    with pytest.raises(ValueError, match="not 'bad'"):
        Finding("bad", "x", "X.")


# ---- the command ------------------------------------------------------------------------------------------------------


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_says_it_in_sentences_and_in_json(tmp_path):
    """Verdict first, each finding with an arrow to its mend; the same in JSON; exit codes 3, 1 and 2."""
    write_volume(tmp_path / "thick.nii.gz", thick())
    told = run("check", tmp_path / "thick.nii.gz")
    assert told.exit_code == 3
    assert told.stdout.splitlines()[0].endswith("thick.nii.gz: usable with warnings")
    assert "warning: The voxels are 15 mm long" in told.stdout
    assert "  → Give a reconstruction with thinner slices" in told.stdout
    machine = run("check", tmp_path / "thick.nii.gz", "--json")
    report = json.loads(machine.stdout)
    assert (machine.exit_code, report["exit_code"], report["verdict"]) == (3, 3, "usable with warnings")
    assert report["geometry"]["size_mm"] == [240.0, 192.0, 720.0]
    assert {"level", "topic", "text", "mend"} == set(report["findings"][0])
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b" + bytes(99))
    assert (run("check", tmp_path / "broken.nii.gz").exit_code, run("check", tmp_path / "none.nii.gz").exit_code) == (1, 2)


def test_the_command_takes_a_series(tmp_path):
    """--series as the main command has it."""
    for number in (1, 2):
        write_series(tmp_path / str(number), small(array=small().array[:, :, : 20 + number]), series=number)
    assert "× 22 voxels" in run("check", tmp_path).stdout
    assert "× 21 voxels" in run("check", tmp_path, "--series", 1).stdout
    assert run("check", tmp_path, "--series", 5).exit_code == 2
