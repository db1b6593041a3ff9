"""The command line: what it says where, how it ends, and that nothing half done is left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import clseg
from clseg.cli.app import app
from clseg.errors import OutputError
from clseg.io.nifti import write_mask, write_volume
from clseg.phantom import small_phantom
from clseg.volume import Volume

ROOT = Path(__file__).parents[1]
LABELS = {"body", "lung_left", "lung_right", "liver", "spleen"}


@pytest.fixture
def tiny(tiny_model) -> Path:
    return tiny_model()


@pytest.fixture(scope="session")
def ct(tmp_path_factory) -> Path:
    """A small torso as a file."""
    volume, _ = small_phantom()
    path = tmp_path_factory.mktemp("scan") / "ct.nii.gz"
    write_volume(path, Volume(np.asfortranarray(volume.array[8:32, 4:24, 10:32]), volume.affine))
    return path


def call(*words: object):
    """`clseg WORDS` in this process; its exit_code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="clseg")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "clseg", *map(str, words)]


def process(*words: object, **options) -> subprocess.CompletedProcess[str]:
    """`clseg WORDS` as a user runs it."""
    return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def error_of(result) -> str:
    """The one sentence after `error:`; the rest of stderr may be tips."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error:").strip()


# ---- help and version -------------------------------------------------------------------------------------------------


def test_version_is_said_on_stdout():
    """`clseg --version` → clseg 0.1.0, exit 0."""
    result = process("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"clseg {clseg.__version__}\n", "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_option_and_the_warning(flag):
    """Options, subcommands, and that it is not a medical device."""
    result = call(flag)
    assert result.exit_code == 0
    for word in ("--input", "--output", "--roi", "--ml", "--stats", "--device", "--step", "--offline", "demo", "rois", "evaluate", "train"):
        assert word in result.stdout
    assert "Not a medical device" in result.stdout


def test_help_is_in_groups():
    """What belongs together stands together, in the order in which one needs it; no option takes a Python type."""
    shown = call("--help").stdout
    groups = ["Options", "Results", "Statistics", "Many scans", "Computing", "Where weights come from", "Commands", "Teach it new organs"]
    assert re.findall(r"^╭─ (.+?) ─", shown, re.MULTILINE) == groups
    assert "list[str]" not in shown


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["rois", "--help"], ["evaluate", "--help"], ["train", "--help"]])
def test_help_and_version_load_nothing_heavy(words):
    """Neither torch nor numpy's friends are imported, so they answer at once."""
    program = "\n".join(
        [
            "import sys",
            f"sys.argv = ['clseg', *{words!r}]",
            "from clseg.cli.app import main",
            "try:",
            "    main()",
            "except SystemExit as end:",
            "    heavy = {'torch', 'SimpleITK', 'scipy', 'skimage', 'nibabel', 'PIL', 'requests'} & set(sys.modules)",
            "    print(end.code, sorted(heavy), file=sys.stderr)",
        ]
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.strip() in ("0 []", "None []")


def test_help_and_version_are_fast():
    """Below half a second on a quiet machine: the best of three processor times."""
    def seconds(word: str) -> float:
        before = os.times()
        process(word)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    for word in ("--help", "--version"):
        assert min(seconds(word) for _ in range(3)) < 0.5


def test_nothing_said_is_answered_with_help():
    """`clseg` alone shows what it can do."""
    result = process()
    assert result.returncode == 0
    assert "--input" in result.stdout


# ---- the main job -----------------------------------------------------------------------------------------------------


def test_one_mask_per_structure_in_a_folder(tiny, ct, tmp_path):
    """Masks on the grid of the scan and run.json; the summary goes to stderr, stdout stays empty."""
    result = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert re.search(r"of 5 structures found in .* s, written to", result.stderr)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert names(tmp_path / "out") == {f"{name}.nii.gz" for name in run["structures"]} | {"run.json"}
    assert set(run["structures"]) | set(run["empty"]) == LABELS
    scan = nib.load(ct)
    for name in run["structures"]:
        mask = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        for code in ("qform_code", "sform_code"):
            assert mask.header[code] == scan.header[code]


def test_the_run_manifest_holds_the_command_and_the_stages(tiny, ct, tmp_path, monkeypatch):
    """What was typed, what it was applied to, how long every stage took."""
    words = ["-i", str(ct), "-o", str(tmp_path), "-m", "tiny", "--roi", "lungs"]
    monkeypatch.setattr(sys, "argv", ["clseg", *words])
    call(*words)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["command"] == words
    assert run["input"]["path"] == str(ct)
    assert [stage["stage"] for stage in run["stages"]] == ["read", "weights", "prepare", "locate", "segment", "clean", "restore", "write"]
    assert all(stage["seconds"] >= 0 for stage in run["stages"])


def test_what_was_not_found_and_what_was_not_looked_for_are_two_things(tmp_path, capsys):
    """An absent spleen was looked for; a kidney beyond the scan was not."""
    from clseg.catalogue import Catalogue
    from clseg.cli.console import Terminal
    from clseg.cli.segment import report
    from clseg.segmentation import Segmentation

    liver, spleen, kidney = (Catalogue.builtin()[name] for name in ("liver", "spleen", "kidney_left"))
    layer = np.full((3, 3, 3), liver.id, np.uint16)
    report(Segmentation(Volume(layer), (layer,), (spleen, kidney, liver), frozenset({"kidney_left"})), tmp_path, Terminal())
    said = capsys.readouterr().err
    assert "1 of 3 structures found" in said
    assert "looked for and not found: spleen\n" in said
    assert "not looked for, as the scan does not reach their part of the body: kidney_left\n" in said


def test_statistics_end_with_what_to_look_at(tiny, ct, tmp_path):
    """With --stats the last note counts the structures that the table marks; random weights are never sure of all."""
    result = call("-i", ct, "-o", tmp_path, "-m", "tiny", "--stats", "--save-confidence")
    table = json.loads((tmp_path / "statistics.json").read_text())
    table.pop("families", None)  # they are not judged
    doubtful = [name for name, one in table.items() if one["review"] == "yes"]
    assert doubtful
    found = sum(one["voxels"] is not None for one in table.values())
    assert f"review: {len(doubtful)} of {found} structures ({', '.join(doubtful)})" in result.stderr
    assert "confidence.nii.gz" in names(tmp_path)


def test_without_statistics_nothing_is_reviewed(tiny, ct, tmp_path):
    """Neither note nor map."""
    assert "review" not in call("-i", ct, "-o", tmp_path, "-m", "tiny").stderr
    assert "confidence.nii.gz" not in names(tmp_path)


def test_quiet_says_nothing(tiny, ct, tmp_path):
    """-q: nothing on stdout, nothing on stderr, the masks are there."""
    result = call("-i", ct, "-o", tmp_path, "-m", "tiny", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert "run.json" in names(tmp_path)


def test_verbose_names_the_stages(tiny, ct, tmp_path):
    """-v in a pipe: one line per stage instead of bars."""
    stderr = call("-i", ct, "-o", tmp_path, "-m", "tiny", "-v").stderr
    assert [stage for stage in ("Reading", "Loading weights", "Segmenting", "Restoring", "Writing") if stage not in stderr] == []


def test_too_little_memory_ends_with_2_and_nothing_is_written(tiny, ct, tmp_path):
    """The sentence names the least that would do, the tip what to change; that least does, and -v shows the plan."""
    refused = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--max-memory", "1M")
    assert refused.exit_code == 2
    assert not (tmp_path / "out" / "run.json").exists()
    said = " ".join(refused.stderr.split())
    assert "does not fit into 1 MiB of memory" in said
    assert "tip: Raise --max-memory" in said
    least = re.search(r"at least ([0-9.]+) (MiB|GiB)", said)
    enough = f"{int(float(least[1]) * {'MiB': 1, 'GiB': 1024}[least[2]]) + 64}M"  # this process may have grown since
    done = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--max-memory", enough, "--fast", "-v")
    assert done.exit_code == 0
    assert "Memory: " in done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["step"], run["fast"], run["max_memory"]) == (0.8, True, int(enough[:-1]) * 2**20)


def test_a_profile_shows_the_stages_of_the_run_manifest(tiny, ct, tmp_path):
    """--profile: a table on stderr with the stages, seconds and memory that run.json holds, and their sum; nothing on stdout."""
    result = call("-i", ct, "-o", tmp_path, "-m", "tiny", "--profile", "--stats")
    assert (result.exit_code, result.stdout) == (0, "")
    stages = json.loads((tmp_path / "run.json").read_text())["stages"]
    rows = {words[0]: words[1:] for line in result.stderr.splitlines() if len(words := re.sub("[│┃|]", " ", line).split()) == 4}
    assert list(rows) == [*(one["stage"] for one in stages), "all"]
    assert [rows[one["stage"]][0] for one in stages] == [f"{one['seconds']:.2f}" for one in stages]
    assert float(rows["all"][0]) == pytest.approx(sum(one["seconds"] for one in stages), abs=0.01)
    if os.name != "nt":
        assert [rows[one["stage"]][2] for one in stages] == [f"{one['peak_memory_mib']:.0f}" for one in stages]


def test_a_profile_is_quiet_when_all_is(tiny, ct, tmp_path):
    """-q goes before --profile."""
    result = call("-i", ct, "-o", tmp_path / "x.nii.gz", "-m", "tiny", "--profile", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_a_profile_without_memory_has_dashes(tmp_path, capsys):
    """Windows does not say how much memory was used, and no time at all has no shares."""
    from clseg.cli.console import Terminal
    from clseg.cli.segment import show_profile

    (tmp_path / "run.json").write_text(json.dumps({"stages": [{"stage": "read", "seconds": 0.0, "peak_memory_mib": None}]}))
    show_profile(tmp_path / "run.json", Terminal())
    lines = [re.sub("[│┃|]", " ", line).split() for line in capsys.readouterr().err.splitlines()]
    assert ["read", "0.00", "–", "–"] in lines
    assert ["all", "0.00", "–", "–"] in lines


@pytest.mark.parametrize("way", ["smooth", "nearest"])
def test_how_labels_are_restored_is_noted(tiny, ct, tmp_path, way):
    """--restore smooth or nearest: done, and said in run.json."""
    assert call("-i", ct, "-o", tmp_path, "-m", "tiny", "--restore", way).exit_code == 0
    assert json.loads((tmp_path / "run.json").read_text())["restore"] == way


def test_warnings_go_to_stderr(tiny, ct, tmp_path):
    """A scan of a few slices is segmented, with a word of doubt."""
    image = nib.load(ct)
    nib.save(image.slicer[:, :, 8:11], tmp_path / "thin.nii.gz")
    result = call("-i", tmp_path / "thin.nii.gz", "-o", tmp_path / "out", "-m", "tiny")
    assert result.exit_code == 0
    assert "warning: The scan is only 18 mm thick" in result.stderr


def test_statistics_and_preview_are_written_when_asked_for(tiny, ct, tmp_path):
    """--stats and --preview add three files; roi takes groups and lists."""
    call("-i", ct, "-o", tmp_path, "-m", "tiny", "--stats", "--preview", "-r", "chest", "-r", "liver,spleen")
    assert {"statistics.json", "statistics.csv", "preview.png", "run.json"} <= names(tmp_path)
    assert set(json.loads((tmp_path / "statistics.json").read_text())) == LABELS - {"body"} | {"families"}


@pytest.mark.parametrize(("output", "expected"), [("out", "out/segmentation"), ("x.nii.gz", "x")])
def test_one_label_map(tiny, ct, tmp_path, output, expected):
    """--ml, or a file name: one label map with names."""
    assert call("-i", ct, "-o", tmp_path / output, "-m", "tiny", "--ml").exit_code == 0
    table = json.loads((tmp_path / f"{expected}.labels.json").read_text())
    assert set(table) == LABELS
    ids = np.unique(np.asarray(nib.load(tmp_path / f"{expected}.nii.gz").dataobj))
    assert set(ids) <= {0, *table.values()}
    assert len(ids) > 2


def test_a_loop_over_scans_keeps_the_results_of_both(tiny, ct, tmp_path):
    """for ct in a b; clseg -i $ct -o results/$ct --stats: two label maps, two tables, two run manifests."""
    for name in ("a", "b"):
        assert call("-i", ct, "-o", tmp_path / "results" / f"{name}.nii.gz", "-m", "tiny", "--stats").exit_code == 0
    parts = ("nii.gz", "labels.json", "statistics.json", "statistics.csv", "run.json")
    assert names(tmp_path / "results") == {f"{name}.{part}" for name in ("a", "b") for part in parts}


def test_results_are_replaced_unless_forbidden(tiny, ct, tmp_path):
    """Twice the same call works; with --no-overwrite the second is refused, and nothing is touched."""
    words = ["-i", ct, "-o", tmp_path, "-m", "tiny"]
    assert call(*words).exit_code == 0
    assert call(*words).exit_code == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    refused = call(*words, "--no-overwrite")
    assert refused.exit_code == 2
    assert "is there already" in error_of(refused)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    assert call("-i", ct, "-o", tmp_path / "new", "-m", "tiny", "--no-overwrite").exit_code == 0


# ---- calls that are wrong ---------------------------------------------------------------------------------------------


@pytest.fixture
def never_loads(monkeypatch):
    """Refusals come before anything heavy: loading weights is a failure."""
    from clseg import Segmenter

    monkeypatch.setattr(Segmenter, "_load", lambda *_: pytest.fail("weights were loaded"))


def refused(code: int, *words: object) -> str:
    """The error's sentence of a call that must end with `code`; nothing on stdout."""
    result = call(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    return error_of(result)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/closed/out"), "error: '/closed/out' cannot be used: permission denied."),
        (OSError(errno.EIO, "Input/output error", "/broken/ct.nii.gz"), "error: '/broken/ct.nii.gz' cannot be used: input/output error."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/own"), "error: Something went wrong that should not: FileNotFoundError"),
        (PermissionError("nobody knows of what"), "error: Something went wrong that should not: PermissionError"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ours(capsys, error, said):
    """Rights and broken disks are told by the file; what is lost, or nameless, is a fault to be reported.  Exit code 1."""
    from clseg.cli.console import Terminal, exit_codes

    with pytest.raises(typer.Exit) as caught, exit_codes(Terminal()):
        raise error
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.usefixtures("tiny", "never_loads")
class TestRefusals:
    """Every wrong call ends with one sentence, the right exit code and no result."""

    def test_a_typo_gets_suggestions(self, ct, tmp_path):
        """livre → liver; nothing is made at the output."""
        said = refused(2, "-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--roi", "livre")
        assert said.startswith("Unknown structure or group 'livre'; did you mean liver")
        assert not (tmp_path / "out").exists()

    def test_a_typo_is_told_before_the_scan_is_looked_for(self, tmp_path):
        """Names first: the missing file is not mentioned."""
        assert "livre" in refused(2, "-i", tmp_path / "no.nii.gz", "-o", tmp_path / "out", "-m", "tiny", "-r", "livre")

    def test_a_structure_the_model_does_not_hold(self, ct, tmp_path):
        """Known, but not in this model."""
        assert "does not hold 'brain'" in refused(2, "-i", ct, "-o", tmp_path / "out", "-m", "tiny", "-r", "brain")

    def test_an_unknown_model(self, ct, tmp_path):
        """The nearest is offered."""
        assert "did you mean tiny" in refused(2, "-i", ct, "-o", tmp_path / "out", "-m", "tinny")

    def test_a_missing_file(self, tmp_path):
        """Exit 2: the path in the call is wrong, and the sentence holds it whole, however long."""
        path = tmp_path / ("deep_folder_" * 12) / "no.nii.gz"
        assert refused(2, "-i", path, "-o", tmp_path / "out", "-m", "tiny") == f"There is no file or folder '{path}'."

    @pytest.mark.parametrize(("given", "missing"), [("-i", "-o/--output"), ("-o", "-i/--input")])
    def test_half_a_call(self, tmp_path, given, missing):
        """An input without an output, or the other way round."""
        assert missing in refused(2, given, tmp_path / "x.nii.gz")

    def test_a_file_that_is_no_scan(self, tmp_path):
        """Exit 1: it is there and cannot be used."""
        (tmp_path / "ct.nii.gz").write_text("hello")
        assert "text file" in refused(1, "-i", tmp_path / "ct.nii.gz", "-o", tmp_path / "out", "-m", "tiny")

    def test_half_a_scan(self, ct, tmp_path):
        """A download that was cut off."""
        (tmp_path / "ct.nii.gz").write_bytes(ct.read_bytes()[:2000])
        assert "incomplete" in refused(1, "-i", tmp_path / "ct.nii.gz", "-o", tmp_path / "out", "-m", "tiny")

    @pytest.mark.parametrize("values", ["mr", "picture", "normalised"])
    def test_what_is_not_hu(self, tmp_path, values):
        """MR, 8-bit pictures and normalised values."""
        random = np.random.default_rng(0).random((24, 24, 24))
        array = {"mr": random * 900, "picture": random * 255, "normalised": random}[values].astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "x.nii.gz")
        assert "not Hounsfield units" in refused(1, "-i", tmp_path / "x.nii.gz", "-o", tmp_path / "out", "-m", "tiny")

    def test_a_true_mr(self, shared, tmp_path):
        """The MR example of TotalSegmentator."""
        path = shared / "data" / "totalsegmentator_tests" / "example_mr_sm.nii.gz"
        assert "not Hounsfield units" in refused(1, "-i", path, "-o", tmp_path / "out", "-m", "tiny")

    def test_a_series_over_time(self, tmp_path):
        """Four volumes in one file."""
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 4), np.int16), np.eye(4)), tmp_path / "x.nii.gz")
        assert "4 volumes" in refused(1, "-i", tmp_path / "x.nii.gz", "-o", tmp_path / "out", "-m", "tiny")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere, and Windows has other rights")
    def test_a_folder_without_rights(self, ct, tmp_path):
        """Exit 1, before anything is computed."""
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "permission denied" in refused(1, "-i", ct, "-o", tmp_path / "locked" / "out", "-m", "tiny")

    def test_an_output_that_cannot_be_made(self, ct, tmp_path, monkeypatch):
        """The same where the test may write everywhere: the refusal comes from the check before the run."""
        from clseg.io import files

        def refuse(path: object, need_bytes: int) -> None:
            raise OutputError(f"'{path}' cannot be written: permission denied.")

        monkeypatch.setattr(files, "check_writable", refuse)
        assert "permission denied" in refused(1, "-i", ct, "-o", tmp_path / "out", "-m", "tiny")

    def test_an_output_below_a_file(self, ct, tmp_path):
        """A file stands where the folder should be."""
        (tmp_path / "file").write_text("x")
        assert f"'{tmp_path / 'file'}' is a file" in refused(2, "-i", ct, "-o", tmp_path / "file" / "out", "-m", "tiny")

    def test_a_name_that_is_too_long(self, ct, tmp_path):
        """What the system will not have is no fault of ours: a sentence, not a call to report it."""
        assert re.search("(?i)file name too long", refused(1, "-i", ct, "-o", tmp_path / ("n" * 300), "-m", "tiny"))

    def test_blanks_between_names(self, ct, tmp_path):
        """`liver spleen` is answered with the commas that are missing."""
        said = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--roi", "liver spleen")
        assert said.exit_code == 2
        assert "Commas stand between names: liver,spleen" in said.stderr

    @pytest.mark.parametrize(
        ("words", "meant"),
        [
            (["ct.nii.gz", "out"], "A scan is given with -i"),
            (["-i", "a.nii.gz", "b.nii.gz", "-o", "out"], "-i takes one path"),
            (["-i", "a.nii.gz", "-o", "out", "-r", "liver,", "spleen"], "--roi liver,spleen"),
            (["-i", "a.nii.gz", "-o", "out", "-r", "liver", "stat"], "No such command 'stat'"),
            (["nonsense"], "No such command 'nonsense'"),
        ],
    )
    def test_a_word_that_is_no_command(self, words, meant):
        """A scan without -i, a second one, a blank in a list of structures: the sentence says how it is written."""
        said = call(*words)
        assert said.exit_code == 2
        assert meant in " ".join(re.sub("[│╭╮╰╯─]", " ", said.stderr).split())

    def test_the_input_as_output(self, ct, tmp_path):
        """The scan is never replaced by its own segmentation, by whatever name it is called."""
        copy = tmp_path / "ct.nii.gz"
        copy.write_bytes(ct.read_bytes())
        for output in (copy, tmp_path / "." / "ct.nii.gz"):
            assert "would replace the input" in refused(2, "-i", copy, "-o", output, "-m", "tiny")
        (tmp_path / "liver.nii.gz").write_bytes(ct.read_bytes())
        assert "would replace the input" in refused(2, "-i", tmp_path / "liver.nii.gz", "-o", tmp_path, "-m", "tiny")
        assert copy.read_bytes() == ct.read_bytes()

    def test_a_disk_that_is_full(self, ct, tmp_path, monkeypatch):
        """Told before the work, not after it."""
        import shutil

        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
        assert "too full" in refused(1, "-i", ct, "-o", tmp_path / "out", "-m", "tiny")

    def test_another_way_to_restore(self, ct, tmp_path):
        """Both ways that there are are named."""
        said = refused(2, "-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--restore", "linear")
        assert said == "Unknown way to restore 'linear', expected smooth or nearest."
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("words", [["--step", "0"], ["--step", "2"], ["--threads", "-1"], ["--threads", "many"], ["--max-memory", "much"], ["--max-memory", "0"], ["--fast", "--step", "0.5"], ["--nonsense"], ["segmnt"]])
    def test_options_that_make_no_sense(self, ct, tmp_path, words):
        """Exit 2, in the words of the option."""
        result = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny", *words)
        assert result.exit_code == 2
        assert words[0] in result.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-i", "text.nii.gz"], 1),
        (["-i", "picture.nii.gz"], 1),
        (["-i", "nowhere.nii.gz"], 2),
        (["-i", "text.nii.gz", "-d", "gpu"], 2),
        (["-i", "text.nii.gz", "-d", "cuda:99"], 1),
    ],
)
def test_bad_input_is_refused_before_torch_and_before_the_folder(tmp_path, words, code):
    """A text file, a picture, nothing at all, a device that cannot be: torch is not imported, and no output folder is made."""
    (tmp_path / "text.nii.gz").write_text("hello")
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 255, (24, 24, 24)).astype(np.uint8), np.eye(4)), tmp_path / "picture.nii.gz")
    program = "\n".join(
        [
            "import sys",
            f"sys.argv = ['clseg', *{words!r}, '-o', 'deep/out', '-m', 'tiny']",
            "from clseg.cli.app import main",
            "try:",
            "    main()",
            "except SystemExit as end:",
            "    print(end.code, 'torch' in sys.modules)",
        ]
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [str(code), "False"], result.stderr
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["-i", "a", "rois"], "-i"),
        (["--roi", "liver", "rois", "--json"], "-r"),
        (["-q", "evaluate", "a", "b"], "-q"),
        (["--no-overwrite", "demo"], "--overwrite"),
        (["-m", "starter", "rois"], "-m"),
    ],
)
def test_options_before_a_subcommand_are_refused(words, option):
    """They would be dropped in silence, even where they say what is the default anyway."""
    said = refused(2, *words)
    assert said.startswith(f"{option} stands before '")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(ct, tmp_path, device):
    """Exit 2, and no other device is taken instead."""
    assert device in refused(2, "-i", ct, "-o", tmp_path / "out", "-m", "tiny", "-d", device)


def test_the_environment_may_be_wrong_too(monkeypatch, ct, tmp_path):
    """CLSEG_OFFLINE=maybe is a usage error, not a guess."""
    monkeypatch.setenv("CLSEG_OFFLINE", "maybe")
    assert "CLSEG_OFFLINE" in refused(2, "-i", ct, "-o", tmp_path / "out")


def test_a_fault_nobody_foresaw_is_one_sentence(tiny, ct, tmp_path, monkeypatch):
    """A defect of the program ends with exit 1 and without a traceback; -v shows where it was."""
    from clseg.inference import infer

    def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody thought of [this]")

    monkeypatch.setattr(infer, "infer", broken)
    words = ["-i", ct, "-o", tmp_path / "out", "-m", "tiny"]
    result = call(*words)
    assert result.exit_code == 1
    assert "ZeroDivisionError: nobody thought of [this]" in error_of(result)
    loud = CliRunner().invoke(app, [*map(str, words), "-v"])
    assert loud.exit_code == 1
    assert "in broken" in loud.stderr


def test_too_little_memory_is_one_sentence(tiny, ct, tmp_path, monkeypatch):
    """A MemoryError is no defect of the program."""
    from clseg.inference import infer

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(infer, "infer", broken)
    assert "memory" in refused(1, "-i", ct, "-o", tmp_path / "out", "-m", "tiny")


# ---- formats ----------------------------------------------------------------------------------------------------------


def test_several_formats_of_one_run(tiny, ct, tmp_path):
    """Masks as NIfTI and NRRD and one Slicer segmentation; run.json lists all files that are there."""
    result = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--output-type", "nifti,seg.nrrd", "--output-type", "nrrd")
    assert result.exit_code == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    masks = {f"{name}{ending}" for name in run["structures"] for ending in (".nii.gz", ".nrrd")}
    assert masks
    assert names(tmp_path / "out") == {*masks, "segmentation.seg.nrrd", "run.json"} == set(run["files"])


def test_the_name_of_the_output_chooses_the_format(tiny, ct, tmp_path):
    """-o x.seg.nrrd writes that file and x.run.json; -o y.nrrd --ml a label map, its names and its tables."""
    assert call("-i", ct, "-o", tmp_path / "a" / "x.seg.nrrd", "-m", "tiny").exit_code == 0
    assert names(tmp_path / "a") == {"x.seg.nrrd", "x.run.json"}
    assert call("-i", ct, "-o", tmp_path / "b" / "y.nrrd", "-m", "tiny", "--label-tables", "itksnap,slicer").exit_code == 0
    assert names(tmp_path / "b") == {"y.nrrd", "y.labels.json", "y.itksnap.txt", "y.ctbl", "y.run.json"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--output-type", "nfiti"), "did you mean nifti"),
        (("--mesh", "vtk"), "Unknown kind of mesh 'vtk'"),
        (("--label-tables", "slicer"), "none is written"),
        (("--subject", "sub-01"), "none is written"),
        (("--bids", "--output-type", "nrrd"), "label maps as NIfTI"),
    ],
)
def test_words_that_are_not_known_or_do_not_go_together_are_refused(tiny, ct, tmp_path, words, told):
    """Exit code 2 before the scan is read, and nothing is written."""
    assert told in refused(2, "-i", ct, "-o", tmp_path / "out", "-m", "tiny", *words)
    assert not (tmp_path / "out").exists()


def test_meshes_without_their_tool_are_refused_before_the_scan_is_read(tiny, ct, tmp_path, monkeypatch):
    """The extra is named, nothing is written."""
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    result = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--mesh", "stl")
    assert result.exit_code == 2
    assert "clseg[mesh]" in result.stderr
    assert not (tmp_path / "out").exists()


def test_scans_that_are_all_called_ct_are_cases_of_their_folders(tiny, ct, tmp_path):
    """p1/ct.nii.gz and p2/ct.nii.gz in one dataset are sub-p1 and sub-p2: the second does not replace the first."""
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ct.nii.gz").write_bytes(ct.read_bytes())
        assert call("-i", tmp_path / folder / "ct.nii.gz", "-o", tmp_path / "out", "-m", "tiny", "--bids").exit_code == 0
    assert {folder.name for folder in (tmp_path / "out").glob("sub-*")} == {"sub-p1", "sub-p2"}


def test_an_empty_subject_is_refused(tiny, ct, tmp_path):
    """--subject "$UNSET" would put every patient into one folder."""
    assert "--subject is empty" in refused(2, "-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--bids", "--subject", " ")


def test_a_bids_dataset_takes_its_case_from_the_file_name(tiny, ct, tmp_path):
    """sub-01_ses-2_ct.nii.gz → sub-01/ses-2/anat/sub-01_ses-2_desc-clseg_dseg.nii.gz with table, sidecar and reports; a second case goes beside it."""
    (tmp_path / "sub-01_ses-2_ct.nii.gz").write_bytes(ct.read_bytes())
    for words in (("-i", tmp_path / "sub-01_ses-2_ct.nii.gz"), ("-i", ct, "--subject", "sub-02")):
        assert call(*words, "-o", tmp_path / "out", "-m", "tiny", "--bids", "--stats").exit_code == 0
    written = {str(file.relative_to(tmp_path / "out").as_posix()) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    ends = ("dseg.nii.gz", "dseg.tsv", "dseg.json", "statistics.json", "statistics.csv", "run.json")
    assert written == {
        "dataset_description.json",
        ".bidsignore",
        *(f"sub-01/ses-2/anat/sub-01_ses-2_desc-clseg_{end}" for end in ends),
        *(f"sub-02/anat/sub-02_desc-clseg_{end}" for end in ends),
    }


# ---- interruptions and neighbours -------------------------------------------------------------------------------------


def test_ctrl_c_while_writing_leaves_no_half_file(tiny, ct, tmp_path, monkeypatch):
    """The signal comes in the middle of the second mask: exit 130, the first mask whole, of the second nothing, no run.json."""
    from clseg.io import nifti

    calls = []
    original = nifti.gzipped

    def interrupted(pieces):
        calls.append(1)
        for index, piece in enumerate(original(pieces)):
            if len(calls) == 2 and index == 0:
                signal.raise_signal(signal.SIGINT)
            yield piece

    monkeypatch.setattr(nifti, "gzipped", interrupted)
    result = call("-i", ct, "-o", tmp_path, "-m", "tiny")
    assert result.exit_code == 130
    assert "Interrupted" in error_of(result)
    left = names(tmp_path)
    assert len(left) == 1
    nib.load(tmp_path / left.pop()).get_fdata()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_during_a_run_leaves_nothing(tiny, tmp_path):
    """A real process, interrupted while it segments: exit 130, no traceback, not even a folder."""
    volume, _ = small_phantom()
    write_volume(tmp_path / "ct.nii.gz", Volume(np.asfortranarray(volume.array.repeat(3, 0).repeat(3, 1).repeat(3, 2)), volume.affine))
    words = ["-i", tmp_path / "ct.nii.gz", "-o", tmp_path / "out", "-m", "tiny", "-v", "--step", "0.1"]
    with subprocess.Popen(command(*words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        said = ""
        while "Segmenting" not in said:
            line = running.stderr.readline()
            assert line, said
            said += line
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        out, rest = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_into_one_folder_do_not_disturb_each_other(tiny, ct, tmp_path):
    """Both end well, every file is whole and what one run alone gives, nothing is left over."""
    assert call("-i", ct, "-o", tmp_path / "alone", "-m", "tiny").exit_code == 0
    for name in LABELS - {f.name.split(".")[0] for f in (tmp_path / "alone").iterdir()}:
        (tmp_path / "both").mkdir(exist_ok=True)
        (tmp_path / "both" / f"{name}.nii.gz").touch()  # an old mask that both will want to remove
    words = command("-i", ct, "-o", tmp_path / "both", "-m", "tiny")
    together = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in together:
        out, err = one.communicate(timeout=120)
        assert (one.returncode, out) == (0, ""), err
        assert "Traceback" not in err
    assert names(tmp_path / "both") == names(tmp_path / "alone")
    for file in (tmp_path / "alone").glob("*.nii.gz"):
        assert file.read_bytes() == (tmp_path / "both" / file.name).read_bytes()


@pytest.mark.slow
def test_the_main_job_as_a_process(tiny, ct, tmp_path):
    """What a user types: exit 0, stdout empty, masks there, no network needed."""
    result = process("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "--offline", "--stats")
    assert (result.returncode, result.stdout) == (0, "")
    assert "Traceback" not in result.stderr
    assert {"run.json", "statistics.json"} <= names(tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="there is no head on Windows")
def test_a_reader_that_goes_away_is_no_error(tiny):
    """`clseg rois | head -1` ends without a word on stderr."""
    line = f"{sys.executable} -m clseg rois --json -m tiny | head -n 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "{\n", "")


# ---- the other commands -----------------------------------------------------------------------------------------------


def test_rois_as_json(tiny):
    """Every structure with its id, groups and the weights that hold it."""
    result = call("rois", "--json", "-m", "tiny")
    listing = json.loads(result.stdout)
    assert listing["model"] == "tiny"
    assert {one["name"]: one["weights"] for one in listing["structures"]}["lung_left"] == ["tiny-lungs"]
    assert {one["name"] for one in listing["structures"]} == LABELS
    assert result.stderr == ""


def test_rois_as_a_table(tiny):
    """The table is the result and goes to stdout; the hint below goes to stderr."""
    result = call("rois", "-m", "tiny")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in LABELS)
    assert "starter" in result.stderr
    assert "starter" not in result.stdout


def test_rois_of_the_model_that_is_shipped():
    """Without a word about models: the starter, listed without loading any weights."""
    listing = json.loads(call("rois", "--json").stdout)
    assert listing["model"] == "starter"
    assert "body" in {one["name"] for one in listing["structures"]}


def test_rois_of_an_unknown_model():
    """Exit 2."""
    assert "Unknown model" in refused(2, "rois", "-m", "nothing_like_it")


def test_evaluate_shows_scores_and_writes_them(tiny, ct, tmp_path):
    """A result against itself: Dice 1 in the table on stdout, in JSON and in CSV."""
    call("-i", ct, "-o", tmp_path / "a", "-m", "tiny")
    found = json.loads((tmp_path / "a" / "run.json").read_text())["structures"]
    for ending in ("json", "csv"):
        result = call("evaluate", tmp_path / "a", tmp_path / "a", "-o", tmp_path / f"scores.{ending}")
        assert result.exit_code == 0
        assert all(name in result.stdout for name in found)
        assert "1.000" in result.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {name: one["dice"] for name, one in scores.items()} == dict.fromkeys(found, 1.0)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == len(found) + 1


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b", "-o", "scores.txt"], ["a", "b", "--recipe", "r.toml"], ["nowhere", "nowhere"]])
def test_evaluate_refuses_what_it_cannot_compare(words):
    """Half a pair, both ways at once, another ending, folders that are not there: exit 2."""
    result = call("evaluate", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert error_of(result)


@pytest.mark.parametrize("option", ["--split", "--model", "--device"])
def test_evaluate_refuses_options_that_mean_nothing_for_masks(tmp_path, option):
    """What says how to segment says nothing about two folders of masks: exit 2, not silence."""
    assert f"{option} has no effect without --recipe." in refused(2, "evaluate", tmp_path, tmp_path, option, "cpu")


def test_evaluate_makes_the_folder_of_the_scores(tmp_path):
    """-o new/scores.csv is written; a folder that cannot be made is told before anything is computed."""
    write_mask(tmp_path / "liver.nii.gz", np.ones((4, 4, 4), bool), Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)))
    assert call("evaluate", tmp_path, tmp_path, "-o", tmp_path / "new" / "scores.csv").exit_code == 0
    assert (tmp_path / "new" / "scores.csv").is_file()
    result = call("evaluate", tmp_path, tmp_path, "-o", tmp_path / "liver.nii.gz" / "scores.csv")
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("recipe", ["nowhere.toml", "broken.toml"])
def test_training_refuses_a_recipe_that_is_none(tmp_path, recipe):
    """Missing or not TOML: one sentence, exit 2 for a wrong recipe."""
    (tmp_path / "broken.toml").write_text("a = = b")
    result = call("train", tmp_path / recipe)
    assert result.exit_code == 2
    assert recipe in error_of(result)


@pytest.mark.slow
def test_demo_segments_a_scan_of_its_own(tmp_path):
    """A synthetic scan, masks, statistics, a picture and a table on stdout, with the weights that are shipped."""
    result = process("demo", "-o", tmp_path / "demo")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "demo" / "ct.nii.gz").is_file()
    assert {"run.json", "statistics.json", "statistics.csv", "preview.png"} <= names(tmp_path / "demo" / "segmentation")
    assert "body" in result.stdout
    assert "Traceback" not in result.stderr


def test_an_empty_path_is_not_the_present_folder(tmp_path, monkeypatch):
    """`-o "$UNSET"` in a loop: exit 2, and nothing is written where the shell stands."""
    monkeypatch.chdir(tmp_path)
    for words in (("-i", "", "-o", "out"), ("-i", "ct.nii.gz", "-o", "")):
        result = call(*words)
        assert result.exit_code == 2
        assert "it is empty" in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.stl", "out.MHA", "out.zip", "out.nii.bz2"])
def test_a_file_name_of_another_format_is_no_folder(tmp_path, name):
    """Label maps are NIfTI or NRRD; a folder called so would surprise everybody."""
    (tmp_path / "ct.nii.gz").write_bytes(b"anything")
    assert "written as .nii.gz, .nii, .nrrd or .seg.nrrd" in refused(2, "-i", tmp_path / "ct.nii.gz", "-o", tmp_path / name)
    assert names(tmp_path) == {"ct.nii.gz"}


def test_absurdly_many_threads_are_refused(tmp_path):
    """OpenMP would die of them without a word."""
    result = call("-i", "ct.nii.gz", "-o", tmp_path, "--threads", "100000")
    assert result.exit_code == 2
    assert "1024" in result.stderr


def test_a_reader_that_has_seen_enough_is_no_failure():
    """`clseg rois | head -1`: exit code 0."""
    program = f"set -o pipefail; {' '.join(command('rois'))} | head -1 > /dev/null"
    assert subprocess.run(["bash", "-c", program], cwd=ROOT, timeout=120).returncode == 0


# ---- streams ----------------------------------------------------------------------------------------------------------


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of sh in which $CLSEG is the program."""
    program = f"{sys.executable} -m clseg"
    return subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, timeout=300, env={**os.environ, "CLSEG": program, **environment})


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_answers_come_through_in_every_encoding(ct, encoding):
    """What an encoding lacks is spelt; a scan that is good stays good for the script that asks."""
    done = shell(f"$CLSEG check {ct}", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode in (0, 3), done.stderr
    assert b"voxels of" in done.stdout
    assert b"Unicode" not in done.stderr


def test_closed_streams_do_not_matter(tiny, ct, tmp_path):
    """A daemon without stdout and stderr gets its masks; nothing that is printed ends up in them."""
    done = shell(f"$CLSEG -i {ct} -o {tmp_path / 'out'} -m tiny -d cpu --roi lungs >&- 2>&- <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert names(tmp_path / "out") == {"lung_left.nii.gz", "lung_right.nii.gz", "run.json"}
    assert nib.load(tmp_path / "out" / "lung_left.nii.gz").get_fdata().any()
    assert shell("$CLSEG rois >&-").returncode == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [("-h", 141), ("weights -h", 141), ("bogus 2>&1", 2), ("rois nonsense 2>&1", 2), ("cases nothing.toml 2>&1", 2), ("weights path lost 2>&1", 2), ("rois", 0)],
)
def test_a_pipe_that_nobody_reads_ends_quietly(words: str, code: int):
    """Help ends as programs do whose reader has gone (141), an error with its own code; nothing is said of it."""
    done = shell(f"{{ $CLSEG {words}; echo $? >&2; }} | true")
    *said, ended = done.stderr.decode().split("\n")[:-1]
    assert int(ended) == code
    assert said == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", ["-h", "weights -h"])
def test_help_on_a_full_disk_is_a_sentence(words: str):
    """As with every other output."""
    done = shell(f"$CLSEG {words} > /dev/full")
    assert done.returncode == 1
    assert b"The output cannot be written: no space left on device." in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_a_sentence():
    """No fault of ours, exit code 1."""
    done = shell("$CLSEG rois > /dev/full")
    assert done.returncode == 1
    assert b"The output cannot be written: no space left on device." in done.stderr


def test_sigterm_leaves_nothing_half_written(tiny, ct, tmp_path):
    """A scheduler's way of stopping a scan in the middle of a write: exit code 143, one sentence, no temporary file."""
    slow = (
        "import sys, time, clseg.io.files as files; from clseg.cli.app import main; real = files._to_disk\n"
        "def wait(stream):\n    print('writing', flush=True); time.sleep(60)\n"
        "files._to_disk = wait; sys.argv = ['clseg', *sys.argv[1:]]; main()"
    )
    words = ["-i", str(ct), "-o", str(tmp_path / "out"), "-m", "tiny", "-d", "cpu"]
    running = subprocess.Popen([sys.executable, "-c", slow, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "writing\n"
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "no half-written file is left behind" in said
    assert not list((tmp_path / "out").iterdir())
