"""`clseg cases` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import typer
from typer.testing import CliRunner, Result

from clseg.cli.cases import cases
from tests.small_dataset import BODY, GROW, LADDER, write_dataset, written

app = typer.Typer()
app.command()(cases)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_sound_dataset_is_listed(tmp_path: Path) -> None:
    """Structures are rows, datasets are columns, train and val stand in the cells; the exit code is 0."""
    result = run(write_dataset(tmp_path))
    assert result.exit_code == 0, result.output
    lines = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in result.stdout.splitlines() if line.startswith("│")}
    assert lines["(all cases)"] == ["1 / 0", "1 / 1"]
    assert lines["liver"] == ["1 / 0", "–"]
    assert lines["body"] == ["–", "1 / 1"]
    assert "3 cases, 0 errors, 1 warnings" in result.stderr


def test_json_says_the_same(tmp_path: Path) -> None:
    """--json is one document on stdout."""
    result = run(write_dataset(tmp_path), "--json")
    facts = json.loads(result.stdout)
    assert facts["cases"] == {"mapped": {"train": 1}, "masked": {"train": 1, "val": 1}}
    assert facts["structures"]["liver"] == {"mapped": {"train": 1}}
    assert [one["severity"] for one in facts["findings"]] == ["warning"]


def test_errors_end_with_exit_code_1(tmp_path: Path) -> None:
    """A mirrored label map stands in the table and in the exit code, with --json too."""
    recipe = write_dataset(tmp_path)
    path = tmp_path / "dataset" / "a" / "labels.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[::-1].copy(), image.affine), path)
    result = run(recipe)
    assert result.exit_code == 1
    assert "mirrored" in result.stdout
    as_json = run(recipe, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["findings"][0]["case"] == "a"


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """The kinds of recipes are offered; the exit code is that of a wrong call."""
    result = run(write_dataset(tmp_path), "--kind", "teach")
    assert result.exit_code == 2
    assert "given 'teach'" in result.stderr


def test_the_kind_of_a_recipe_need_not_be_said(tmp_path: Path) -> None:
    """A recipe of `clseg learn` is understood, and it is said as what; a typo in it is told as one of its own kind."""
    write_dataset(tmp_path)
    recipe = written(tmp_path, GROW, 'model = "tiny"', BODY, LADDER)
    result = run(recipe)
    assert result.exit_code == 0, result.output
    assert "is a recipe of the kind 'learn'; --kind says otherwise" in result.stderr
    assert "3 cases, 0 errors" in result.stderr
    typo = run(written(tmp_path, GROW, 'modell = "tiny"', BODY, LADDER))
    assert typo.exit_code == 2
    assert "Unknown key 'modell'" in typo.stderr
    assert "Did you mean 'model'?" in typo.stderr


def test_a_kind_that_is_said_counts(tmp_path: Path) -> None:
    """With --kind train the same recipe is refused as one of `clseg train`."""
    write_dataset(tmp_path)
    result = run(written(tmp_path, GROW, 'model = "tiny"', BODY, LADDER), "--kind", "train")
    assert result.exit_code == 2
    assert "Unknown key" in result.stderr
