"""Facts about recipes/starter.mk, which leads from the data to the weights of the package: its steps are commands that exist, in an order that holds."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from clseg import recipe as recipes
from clseg.io.files import sha256_of, write_json
from clseg.recipe import LearnRecipe, PruneRecipe, Recipe, UpdateRecipe, read_recipe
from clseg.training.enlist import enlist
from clseg.training.export import list_in_manifest
from tests.test_docs import parse

ROOT = Path(__file__).parents[1]
KINDS = {"train": Recipe, "learn": LearnRecipe, "update": UpdateRecipe, "prune": PruneRecipe}


@pytest.fixture(scope="module")
def steps() -> list[list[str]]:
    """The words of every `clseg …` that make would run in a fresh checkout."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", "-B", "-f", "recipes/starter.mk"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = [part for line in done.stdout.splitlines() for part in line.split(" && ")]
    return [[word for word in shlex.split(part) if not word.startswith("CLSEG_HOME=")][1:] for part in commands if "clseg " in part and not part.startswith("touch")]


def test_every_step_is_a_command(steps: list[list[str]]) -> None:
    """Each parses as the command line would, with recipes and lists that are there."""
    for words in steps:
        parse(words)
        for word in words:
            if word.startswith("recipes/"):
                assert (ROOT / word).is_file(), word


def test_recipes_are_of_the_kind_that_their_command_wants(steps: list[list[str]]) -> None:
    """And those of `clseg update` name decoders of the starter, as it is by then."""
    there: set[str] = set()
    updated = []
    for words in steps:
        if words[0] in KINDS:
            (file,) = (word for word in words if word.endswith(".toml"))
            recipe = read_recipe(ROOT / file, KINDS[words[0]])
            if words[0] in ("train", "learn"):
                there |= {decoder.name for decoder in recipe.decoder}
            elif words[0] == "update":
                assert recipe.decoder in there
                updated.append(recipe.decoder)
    assert set(updated) == {"neuraxis", "mandible_parotids", "ribs", "abdominal_details", "heart_vessels"}


def test_every_decoder_is_trained_pruned_and_taken_over(steps: list[list[str]]) -> None:
    """The ten of the first training are pruned; whatever is trained or pruned is exported before the next step begins."""
    recipe = read_recipe(ROOT / "recipes" / "starter.toml")
    pruned = [words[2] for words in steps if words[0] == "prune"]
    assert sorted(pruned) == sorted(decoder.name for decoder in recipe.decoder)
    making = [(words[words.index("--run") + 1], then) for words, then in pairwise(steps) if words[0] in KINDS]
    assert len(making) == 1 + 2 + 7 + 10
    for run, then in making:
        assert then[:2] == ["export", run]


def test_the_recipes_list_what_the_package_lists(tmp_path: Path) -> None:
    """What `clseg export` would say of the shipped files, by their names, is what the package's manifest says of them."""
    recipe, weights = read_recipe(ROOT / "recipes" / "starter.toml"), ROOT / "clseg" / "data" / "starter"
    parts = ("encoder", *(decoder.name for decoder in recipe.decoder), "bodypart")
    files = {part: weights / f"{part}.safetensors" for part in parts}
    list_in_manifest(tmp_path / "m.json", recipe, files, sources="package:data/starter/")
    for name in ("learn_torso", "learn_aorta"):
        more = read_recipe(ROOT / "recipes" / f"{name}.toml", LearnRecipe)
        enlist(a_run(tmp_path / name, more, weights), tmp_path / "starter", tmp_path / "m.json", sources="package:data/starter/")
    assert (tmp_path / "m.json").read_text() == (ROOT / "weights_manifest.json").read_text()


def a_run(run: Path, recipe: LearnRecipe, weights: Path) -> Path:
    """What the run of `clseg learn` would have left that had made the shipped files."""
    (run / "weights").mkdir(parents=True)
    for decoder in recipe.decoder:
        shutil.copy(weights / f"{decoder.name}.safetensors", run / "weights")
    facts = {"recipe": recipes.to_dict(recipe), "folder": str(recipe.folder)}
    write_json(run / "recipe.json", facts | {"weights": {"starter-encoder": sha256_of(weights / "encoder.safetensors")}})
    write_json(run / "proof.json", {})
    return run
