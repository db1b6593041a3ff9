"""`clseg learn`, `update`, `prune` and `recipe` as a user says them: what is said where, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from clseg.cli.app import app
from clseg.cli.console import Terminal
from clseg.cli.watch import Watcher, watched
from clseg.io.files import sha256_of
from clseg.manifest import FILE_NAME
from clseg.recipe import KINDS, read_recipe
from clseg.training.loop import Step
from clseg.weights.cache import manifest
from tests.small_dataset import BODY, GROW, LADDER, OLD, SOLID, written

ROOT = Path(__file__).parents[1]
NO_LADDER = "[ladder]\nstructured = []\nunstructured = []"
MODEL = 'model = "tiny"'
UPDATE = f'{MODEL}\ndecoder = "lungs"'

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(autouse=True)
def this_process() -> Iterator[None]:
    """The signal handlers of commands go when the test ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def call(*words: object):
    """`clseg WORDS` in this process; its exit_code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="clseg")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def error_of(result) -> str:
    """The one sentence after `error:`; the rest of stderr may be tips."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error:").strip()


def run(workplace: Path, name: str = "run") -> Path:
    return workplace / "runs" / name


# ---- what is said -----------------------------------------------------------------------------------------------------


def test_learn_says_what_was_made_and_that_nothing_changed(workplace: Path) -> None:
    """stdout: Dice per structure, the new file, sha256 of everything earlier, the sentence; stderr: how far it was."""
    recipe = written(workplace, GROW, MODEL, BODY, LADDER)
    result = call("learn", recipe, "--run", run(workplace))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert f"tiny-body\t{run(workplace) / 'weights' / 'body.safetensors'}" in lines
    for name in ("tiny-encoder", "tiny-lungs"):
        assert f"{name}\tsha256 {manifest().asset(name).sha256}\tunchanged" in lines
    assert lines[-1] == "0 voxels changed in 2 structures"
    assert "pruning rate" in result.stdout
    assert "Dice on training cases, on the model's grid" in result.stdout  # the recipe has [validation] split = "train"
    assert "2 cases prepared" in result.stderr
    assert "dense  6/6" in result.stderr
    assert "body: structured 0.5, try 1" in result.stderr


def test_what_was_learned_just_works(workplace: Path) -> None:
    """Right after `learn`, `clseg -i … --roi body` writes the mask, and `clseg rois` knows it."""
    assert call("learn", written(workplace, GROW, MODEL, BODY, NO_LADDER), "--run", run(workplace), "-q").exit_code == 0
    out = workplace / "out"
    result = call("-i", workplace / "probe.nii.gz", "-o", out, "--roi", "body", "--model", "tiny", "--device", "cpu", "--offline")
    assert result.exit_code == 0, result.stderr
    assert (out / "body.nii.gz").is_file()


def test_quiet_says_results_alone(workplace: Path) -> None:
    """With -q stderr is empty, stdout is not."""
    result = call("learn", written(workplace, GROW, MODEL, BODY, NO_LADDER), "--run", run(workplace), "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "tiny-body" in result.stdout


def test_the_default_folder_is_named_after_the_recipe(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/<name> in the working folder."""
    monkeypatch.chdir(workplace)
    assert call("learn", written(workplace, GROW, MODEL, BODY, NO_LADDER), "-q").exit_code == 0
    assert (workplace / "runs" / "more" / "weights" / "body.safetensors").is_file()


def test_update_says_before_and_after(workplace: Path) -> None:
    """A table with both Dice, the new file, the proof; exit code 0."""
    recipe = written(workplace, GROW, f"{UPDATE}\nkeep = 1.0", OLD)
    result = call("update", recipe, "--run", run(workplace))
    assert result.exit_code == 0, result.stderr
    for word in ("Dice before and after", "old", "new", "lung_left", "lung_right"):
        assert word in result.stdout
    assert f"tiny-lungs.2\t{run(workplace) / 'weights' / 'lungs.safetensors'}" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1] == "0 voxels changed in 0 structures"


def test_update_without_held_out_cases_still_says_what_it_made(workplace: Path) -> None:
    """No table when nothing could be measured, but file and proof."""
    recipe = written(workplace, GROW.replace('split = "train"', 'split = "val"'), UPDATE)
    result = call("update", recipe, "--run", run(workplace))
    assert result.exit_code == 0, result.stderr
    assert "Dice before and after" not in result.stdout
    assert result.stdout.startswith("tiny-lungs.2\t")


def test_a_refused_update_shows_its_table(workplace: Path, own_home: Path) -> None:
    """Exit code 1, the table on stdout, one sentence and what to do on stderr; the user's manifest is untouched."""
    before = (own_home / FILE_NAME).read_bytes()
    recipe = written(workplace, GROW.replace("rate = 0.02", "rate = 3.0"), f"{UPDATE}\nkeep = 0.0", OLD)
    result = call("update", recipe, "--run", run(workplace))
    assert result.exit_code == 1
    assert "Dice before and after" in result.stdout
    assert "tiny-lungs.2" not in result.stdout
    assert "nothing was changed" in error_of(result)
    assert "Raise keep" in result.stderr
    assert (own_home / FILE_NAME).read_bytes() == before


def test_prune_says_rate_and_size(workplace: Path) -> None:
    """`clseg prune MODEL DECODER --recipe …`: the table with the pruning rate, the new file, the proof."""
    result = call("prune", "tiny", "lungs", "--recipe", written(workplace, GROW, "", LADDER), "--run", run(workplace))
    assert result.exit_code == 0, result.stderr
    assert "pruning rate" in result.stdout
    assert f"tiny-lungs.2\t{run(workplace) / 'weights' / 'lungs.safetensors'}" in result.stdout.splitlines()
    assert "unstructured 0.9" in result.stderr


# ---- how it ends ------------------------------------------------------------------------------------------------------

CIRCLE = SOLID.replace('["lungs"]', '["body"]') + BODY + 'supporters = ["solid"]'
REFUSED = {
    "an unknown key": (MODEL, [BODY, "[ladder]\nrungs = 3"], "rungs", 2),
    "not TOML": (MODEL, ["decoder = ["], "Cannot read the recipe", 2),
    "no decoder": (MODEL, [], "lacks 'decoder'", 2),
    "overlapping structures": (MODEL, [BODY.replace('["body"]', '["lung_left"]')], "painted by 'tiny-lungs' already", 2),
    "a name that exists": (MODEL, [BODY.replace('name = "body"', 'name = "lungs"')], "has a decoder 'lungs' already", 2),
    "a missing supporter": (MODEL, [SOLID.replace('["lungs"]', '["heart"]')], "wants the supporter 'heart'", 2),
    "a circle": (MODEL, [CIRCLE], "Supporters form a circle", 2),
    "an unknown model": ('model = "tinny"', [BODY], "Unknown model 'tinny'; did you mean tiny?", 2),
    "a mirrored side": (MODEL, [BODY.replace('["body"]', '["kidney_left"]'), "[augment]\nmirror = true"], "has no partner in decoder", 2),
    "nothing to learn from": (MODEL, [BODY.replace('"body"', '"heart"')], "heart", 1),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_recipe_that_makes_no_sense_is_one_sentence(workplace: Path, own_home: Path, case: str) -> None:
    """Exit code and sentence; nothing on stdout, nothing in the user's manifest, no weights."""
    keys, parts, sentence, code = REFUSED[case]
    before = (own_home / FILE_NAME).read_bytes()
    result = call("learn", written(workplace, GROW, keys, *parts), "--run", run(workplace))
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert sentence in error_of(result)
    assert (own_home / FILE_NAME).read_bytes() == before
    assert not (run(workplace) / "weights").exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["learn", "nowhere.toml"], 2, "There is no recipe at nowhere.toml"),
        (["update", "nowhere.toml"], 2, "There is no recipe at nowhere.toml"),
        (["prune", "tiny", "lungs", "--recipe", "nowhere.toml"], 2, "There is no recipe at nowhere.toml"),
        (["recipe", "new", "lern"], 2, "Unknown kind of recipe 'lern'; did you mean learn?"),
    ],
)
def test_what_is_not_there_is_one_sentence(words: list[str], code: int, sentence: str) -> None:
    """Exit code 2, and the name that was given."""
    result = call(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert sentence in error_of(result)


@pytest.mark.parametrize("command", ["learn", "update", "prune"])
def test_a_split_that_no_case_has_is_told_first(workplace: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 and the splits there are, before weights or scans are read; no folder is made."""
    monkeypatch.setattr("clseg.training.base.load", lambda file: pytest.fail("weights were read"))
    monkeypatch.setattr("clseg.training.inspect.contents", lambda *_: pytest.fail("a case was read"))
    keys = {"learn": (MODEL, BODY, LADDER), "update": (UPDATE,), "prune": ("", LADDER)}[command]
    recipe = written(workplace, GROW.replace('split = "train"', 'split = "vall"'), *keys)
    words = ["prune", "tiny", "lungs", "--recipe"] if command == "prune" else [command]
    result = call(*words, recipe, "--run", run(workplace))
    assert (result.exit_code, result.stdout) == (2, "")
    assert error_of(result) == "No case is in [validation] split 'vall'; the splits there are: train (2 cases), val (1 case)."
    assert not run(workplace).exists()


def test_an_unknown_decoder_is_one_sentence(workplace: Path) -> None:
    """Of `prune` and of `update`, with what there is."""
    pruned = call("prune", "tiny", "heart", "--recipe", written(workplace, GROW, "", LADDER), "--run", run(workplace))
    updated = call("update", written(workplace, GROW, UPDATE.replace("lungs", "heart")), "--run", run(workplace))
    for result in (pruned, updated):
        assert result.exit_code == 2
        assert "Unknown decoder 'heart'" in error_of(result)
        assert "Model 'tiny' has: lungs." in result.stderr


def test_a_folder_in_use_is_refused(workplace: Path) -> None:
    """Exit code 1 while another process trains there."""
    run(workplace).mkdir()
    with FileLock(run(workplace) / ".lock"):
        result = call("learn", written(workplace, GROW, MODEL, BODY), "--run", run(workplace))
    assert result.exit_code == 1
    assert "Another process is training" in error_of(result)


def test_a_full_or_missing_home_is_one_sentence(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the finished weights cannot be kept, exit code 1 says where; the run is there, and --resume ends it."""
    recipe = written(workplace, GROW, MODEL, BODY, NO_LADDER)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clseg.weights.own.shutil.copyfileobj", full)
        result = call("learn", recipe, "--run", run(workplace))
    assert result.exit_code == 1
    assert "cannot be written: the disk is full" in error_of(result)
    assert "body" not in manifest().labels_of("tiny")
    assert call("learn", recipe, "--run", run(workplace), "--resume").exit_code == 0
    assert "body" in manifest().labels_of("tiny")


def test_ctrl_c_saves_and_resume_goes_on(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT in the middle: 130, one sentence, a state; without --resume the folder is refused, with it the run ends as usual."""
    recipe = written(workplace, GROW, MODEL, BODY, LADDER)
    inner = Watcher.step

    def interrupt(self: Watcher, step: Step) -> None:
        inner(self, step)
        if (self.name, step.iteration) == ("dense", 3):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "step", interrupt)
        stopped = call("learn", recipe, "--run", run(workplace))
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "Interrupted" in error_of(stopped)
    assert (run(workplace) / "state.safetensors").is_file()
    refused = call("learn", recipe, "--run", run(workplace))
    assert refused.exit_code == 1
    assert "--resume" in refused.stderr
    resumed = call("learn", recipe, "--run", run(workplace), "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    straight = call("learn", written(workplace, GROW, f'{MODEL}\ninto = "other"', BODY, LADDER), "--run", run(workplace, "straight"), "-q")
    assert straight.exit_code == 0
    made = [sha256_of(run(workplace, name) / "stages" / "recover" / "body.safetensors") for name in ("run", "straight")]
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_goes_on(workplace: Path, number: signal.Signals) -> None:
    """A real process: a signal ends it with 130 and a state; --resume lists the decoder."""
    text = GROW.replace("iterations = 6", "iterations = 3000").replace("checkpoint_every = 2", "checkpoint_every = 2500")
    recipe = written(workplace, text, MODEL, BODY, NO_LADDER)
    command = [sys.executable, "-m", "clseg", "learn", str(recipe), "--run", str(run(workplace))]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not ((run(workplace) / "metrics.csv").is_file() and len((run(workplace) / "metrics.csv").read_text().splitlines()) > 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 voxels changed in 2 structures"


# ---- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_printed_recipe_can_be_read(kind: str, tmp_path: Path) -> None:
    """`clseg recipe new KIND > my.toml` is a recipe of that kind, with comments, and every line fits a terminal."""
    result = call("recipe", "new", kind)
    assert result.exit_code == 0
    (tmp_path / "my.toml").write_text(result.stdout)
    assert type(read_recipe(tmp_path / "my.toml", KINDS[kind])) is KINDS[kind]
    assert "  # " in result.stdout


def test_recipe_alone_shows_its_help() -> None:
    """`clseg recipe` says what can be said next."""
    result = call("recipe")
    assert "new" in result.output


# ---- watching ---------------------------------------------------------------------------------------------------------


class Listener(Terminal):
    """A terminal that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


def test_a_log_gets_a_line_per_hundred_steps() -> None:
    """And one for the last; cases are told once, when all are there."""
    terminal = Listener()
    watcher = Watcher(terminal, None)
    watcher.case(1, 2, "a")
    watcher.case(2, 2, "b")
    watcher.stage("dense", 250)
    for number in range(1, 251):
        watcher.step(Step(number, {"a": 1.0, "b": 2.0}, 0.1, 0.5))
    assert terminal.heard[0] == "2 cases prepared"
    assert [line.split("  ")[:3] for line in terminal.heard[1:]] == [["dense", f"{n}/250", "loss 1.500"] for n in (100, 200, 250)]


def test_a_terminal_gets_a_bar_per_stage() -> None:
    """The bar of a new stage begins at its beginning, the one before is put away; steps without a loss are shown, too."""
    from rich.progress import Progress

    progress = Progress(disable=True)
    watcher = Watcher(Listener(), progress)
    watcher.stage("dense", 3)
    for number in (1, 2, 3):
        watcher.step(Step(number, {"a": 1.0}, 0.1, 0.5))
    watcher.stage("recover-a", 2)
    watcher.step(Step(1, {}, 0.1, 0.5))
    assert [(task.description, task.completed, task.total, task.visible) for task in progress.tasks] == [
        ("dense, loss 1.00", 3, 3, False),
        ("recover-a, loss 0.00", 1, 2, True),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_asks_two_insist(number: signal.Signals) -> None:
    """After the first the run is asked to stop when it can; the second ends it at once."""
    with watched(Listener()) as reports:
        assert reports.stop() is False
        os.kill(os.getpid(), number)
        assert reports.stop() is True
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(0.2)
