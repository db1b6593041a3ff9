"""`clseg train` and `clseg export` as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clseg.manifest import Manifest
from tests.small_dataset import TOML, write_dataset


def clseg(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "clseg", *map(str, words)], capture_output=True, text=True, **options)


def test_train_then_export_ends_in_a_manifest(tmp_path: Path) -> None:
    """Two commands lead from a dataset to weights that a manifest lists, with stdout naming every file."""
    recipe, run = write_dataset(tmp_path), tmp_path / "runs" / "tiny"
    trained = clseg("train", recipe, "--run", run)
    assert trained.returncode == 0, trained.stderr
    parts = dict(line.split("\t") for line in trained.stdout.splitlines())
    assert set(parts) == {"encoder", "lungs", "solid", "body"}
    assert all(Path(file).is_file() for file in parts.values())
    listed = tmp_path / "home" / "weights_manifest.json"
    exported = clseg("export", run, "--into", tmp_path / "home", "--manifest", listed)
    assert exported.returncode == 0, exported.stderr
    assert set(Manifest.read(listed).labels_of("tiny")) == {"lung_left", "lung_right", "liver", "skeleton", "body"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM save the state, exit with 130, and --resume does not begin again."""
    recipe, run = write_dataset(tmp_path), tmp_path / "runs" / "tiny"
    recipe.write_text(TOML.replace("iterations = 6", "iterations = 100000").replace("checkpoint_every = 3", "checkpoint_every = 50000"))
    process = subprocess.Popen(
        [sys.executable, "-m", "clseg", "train", str(recipe), "--run", str(run)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _wait_for(lambda: (run / "metrics.csv").is_file() and len((run / "metrics.csv").read_text().splitlines()) > 1, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert (run / "state.safetensors").is_file()
    again = clseg("train", recipe, "--run", run)
    assert again.returncode == 1
    assert "--resume" in again.stderr


def test_a_recipe_with_a_typo_is_one_sentence(tmp_path: Path) -> None:
    """An unknown key ends with exit code 2, the key, and the known ones."""
    recipe = write_dataset(tmp_path)
    recipe.write_text(TOML.replace("warmup", "warmpu"))
    refused = clseg("train", recipe, "--run", tmp_path / "run")
    assert refused.returncode == 2
    assert "warmpu" in refused.stderr
    assert "Traceback" not in refused.stderr


def _wait_for(happened, process: subprocess.Popen, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.2)
