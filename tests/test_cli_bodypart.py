"""`clseg bodypart train` and `clseg bodypart score` as a user runs them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clseg.cli.bodypart import app
from clseg.network.bodypart import BodypartSpec, SliceScorer, load_bodypart, save_bodypart
from clseg.phantom import small_phantom
from clseg.volume import Volume
from tests.small_dataset import write_nifti
from tests.test_bodypart_training import TOML, small_recipe

PROGRAM = [sys.executable, "-c", "from clseg.cli.bodypart import app; app()"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A scorer that says how bright a slice is on average: the sum of what passes a convolution of ones."""
    import torch

    scorer = SliceScorer(BodypartSpec(widths=(1,), size=16, spacing_mm=20.0, smooth_mm=0.0))
    with torch.no_grad():
        scorer.levels[0][0].weight.fill_(1 / 9)
        scorer.head.weight.copy_(torch.tensor([[1.0, 0.0]]))
        scorer.head.bias.zero_()
    save_bodypart(tmp_path / "weights.safetensors", scorer)
    return tmp_path / "weights.safetensors"


def growing(path: Path, sign: int = 1) -> Path:
    """A CT of 12 slices whose body gets wider towards the head (`sign` 1) or the feet."""
    hu = np.full((24, 24, 12), -1000, np.int16)
    for z in range(12):
        half = 5 + (z if sign > 0 else 11 - z) // 2
        hu[12 - half : 12 + half, 6:18, z] = 60
        hu[:, :, z] += (z if sign > 0 else 11 - z) * 3
    write_nifti(path, hu, Volume(hu, np.diag([10.0, 10.0, 5.0, 1.0])))
    return path


def test_score_prints_a_line_per_slice(tmp_path: Path, weights: Path) -> None:
    """Slice, height in mm and score, from the feet up, on stdout."""
    result = CliRunner().invoke(app, ["score", str(growing(tmp_path / "ct.nii.gz")), "-w", str(weights)])
    assert result.exit_code == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(k) for k in range(12)]
    assert [float(row[1]) for row in rows] == [5.0 * k for k in range(12)]
    assert float(rows[-1][2]) > float(rows[0][2])
    assert "reverse order" not in result.stderr


def test_score_writes_a_table(tmp_path: Path, weights: Path) -> None:
    """With -o the lines go to a CSV, whose folder is made, and stdout stays empty."""
    result = CliRunner().invoke(app, ["score", str(growing(tmp_path / "ct.nii.gz")), "-w", str(weights), "-o", str(tmp_path / "new" / "s.csv")])
    assert (result.exit_code, result.stdout) == (0, "")
    rows = list(csv.DictReader((tmp_path / "new" / "s.csv").open()))
    assert list(rows[0]) == ["slice", "z_mm", "score"]
    assert len(rows) == 12


def test_score_doubts_a_header_that_is_upside_down(tmp_path: Path, weights: Path) -> None:
    """Scores that fall towards the head are told on stderr, and the lines come all the same."""
    result = CliRunner().invoke(app, ["score", str(growing(tmp_path / "ct.nii.gz", -1)), "-w", str(weights)])
    assert result.exit_code == 0
    assert "reverse order" in result.stderr
    assert len(result.stdout.splitlines()) == 12


def test_score_needs_a_scan_and_weights_that_are_some(tmp_path: Path, weights: Path) -> None:
    """A missing scan, a file that holds no weights and another ending than .csv are one sentence each."""
    ct = str(growing(tmp_path / "ct.nii.gz"))
    for words, code in ((["none.nii.gz", "-w", str(weights)], None), ([ct, "-w", ct], 1), ([ct, "-o", "a.txt", "-w", str(weights)], 2)):
        result = CliRunner().invoke(app, ["score", *words])
        assert result.exit_code != 0
        assert code is None or result.exit_code == code
        assert "error:" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_train_ends_in_weights_that_score(tmp_path: Path) -> None:
    """One command leads from scans to a file, named on stdout; held-out scans are summed up on stderr."""
    small_recipe(tmp_path)
    recipe = tmp_path / "small.toml"
    recipe.write_text(TOML.replace("iterations = 120", "iterations = 60"))
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    trained = subprocess.run([*PROGRAM, "train", str(recipe), "--run", str(run)], capture_output=True, text=True, env=environment)
    assert trained.returncode == 0, trained.stderr
    part, file = trained.stdout.strip().split("\t")
    assert part == "bodypart"
    assert load_bodypart(Path(file)).spec.gain > 0
    assert "1 held-out scans; Spearman" in trained.stderr
    again = subprocess.run([*PROGRAM, "train", str(recipe), "--run", str(run)], capture_output=True, text=True, env=environment)
    assert again.returncode == 1
    assert "--resume" in again.stderr


def test_the_starters_regressor_tells_head_from_feet(shared: Path) -> None:
    """The weights that come with the package order a real scan that they have not seen."""
    from clseg.inference.bodypart import head_first, score_scan
    from clseg.io.files import read

    file = Path(__file__).parents[1] / "clseg" / "data" / "starter" / "bodypart.safetensors"
    if not file.is_file():
        pytest.skip("the starter has no body-part regressor yet")
    scan = read(shared / "data" / "openkbp" / "pt_101" / "ct.nii.gz")
    scores = score_scan(scan, load_bodypart(file))
    assert head_first(scores.values) > 0.98
    assert scores.values.min() > 0.4
    upside_down = Volume(scan.array, scan.affine @ np.diag([1.0, 1.0, -1.0, 1.0]))
    assert head_first(score_scan(upside_down, load_bodypart(file)).raw) < -0.9


def test_a_phantom_has_a_score_per_slice(weights: Path) -> None:
    """The synthetic torso is scored like any scan."""
    from clseg.inference.bodypart import score_scan

    ct, _ = small_phantom()
    assert score_scan(ct, load_bodypart(weights)).values.shape == (48,)
