"""What the documents say can be typed and run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

from clseg.cli.app import app
from clseg.io.nifti import write_volume
from clseg.phantom import small_phantom
from clseg.volume import Volume

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "MODEL_CARD.md", "LOG.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
WRITTEN = [document for document in DOCUMENTS if document.is_file()]
ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "do", "done", "then", "fi", "(", ")"}


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str) -> Iterator[list[str]]:
    """The words after `clseg` of every command in a shell block, loops and pipes taken apart."""
    for line in block.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        reader.commenters = "#"
        reader.whitespace_split = True
        words: list[str] = []
        for word in [*reader, ";"]:
            if word in ENDS or set(word) <= set("|&;<>()"):
                if words and os.path.basename(words[0]) == "clseg":
                    yield words[1:]
                words = []
            else:
                words.append(word)


def typed() -> list[tuple[str, list[str]]]:
    return [
        (document.name, words) for document in WRITTEN for language in ("bash", "sh", "console") for b in blocks(document, language) for words in commands(b)
    ]


NOTHING = pytest.param(None, None, marks=pytest.mark.skip("no document shows such a command yet"))


def shown_as(value: object) -> str:
    """How a test of a command is called."""
    return " ".join(value) if isinstance(value, list) else str(value)


def parse(words: list[str]) -> str:
    """Parse as the program would, without running anything; a wrong option raises. Returns the command's name, `clseg` for the main job."""
    program = typer.main.get_command(app)
    context = program.make_context("clseg", ["1" if re.fullmatch(r"\$[A-Z_]+", word) else word for word in words])  # $SLURM_CPUS_PER_TASK
    names = [context.info_name]
    while rest := rest_of(context):  # down through the groups: weights → fetch
        name, command, arguments = context.command.resolve_command(context, rest)
        context = command.make_context(name, arguments, parent=context)
        names.append(context.info_name)
    return names[1] if len(names) > 1 else names[0]


def rest_of(context: object) -> list[str]:
    """The words of a group's context that belong to its subcommand; none for a command."""
    if not hasattr(context.command, "resolve_command"):
        return []
    protected = context._protected_args if hasattr(context, "_protected_args") else context.protected_args
    return [*protected, *context.args]


def is_there(words: list[str]) -> bool:
    """False for `clseg weights import KIND` in a program that does not have this importer (yet)."""
    weights = typer.main.get_command(app).commands["weights"].commands
    importers = weights["import"].commands if "import" in weights else {}
    asked = words[2] if words[:2] == ["weights", "import"] else None
    return asked not in ("nnunet", "totalsegmentator", "clnet") or asked in importers


def test_the_readers_of_blocks_read():
    """Comments, loops, pipes, continued lines and paths are taken apart as a shell would."""
    block = 'for f in *.nii; do\n  clseg -i "$f" -o "out/$f" -q\ndone\npip install . && .venv/bin/clseg demo # first\nclseg rois \\\n  --json | head > x\nls\n'
    assert list(commands(block)) == [["-i", "$f", "-o", "out/$f", "-q"], ["demo"], ["rois", "--json"]]


@pytest.mark.parametrize("words", [["--nonsense"], ["rois", "--nonsense"], ["segmnt"], ["--step", "7"], ["weights", "ftch"], ["weights", "fetch", "--rio", "x"]])
def test_the_parser_refuses_what_the_program_refuses(words):
    """So that a document that is wrong is noticed."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (the class is typer's own, by the version)
        parse(words)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("document", "words"), typed() or [NOTHING], ids=shown_as)
def test_every_command_in_the_documents_exists(document, words):
    """Every `clseg …` in a shell block is understood: subcommand, options and their values."""
    if words is not None and not is_there(words):
        pytest.skip(f"this program has no importer for {words[2]}")
    assert parse(words) == (words[0] if words and not words[0].startswith("-") else "clseg")


def test_the_readme_shows_commands():
    """The reader finds how to run the main job and the demo."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README.md yet")
    shown = [words for name, words in typed() if name == "README.md"]
    assert any({"-i", "-o"} <= set(words) for words in shown)
    assert ["demo"] in [words[:1] for words in shown]
    assert "not a medical device" in readme.read_text(encoding="utf-8").lower()


@pytest.mark.parametrize(("document", "words"), [t for t in typed() if any(w.startswith("recipes/") for w in t[1])] or [NOTHING], ids=shown_as)
def test_recipes_that_are_named_are_there(document, words):
    """A recipe in a command can be read as one."""
    from clseg.recipe import KINDS, Recipe, likeliest_kind, read_recipe

    for word in words:
        if word.startswith("recipes/"):
            name = words[words.index("--kind") + 1] if "--kind" in words else likeliest_kind(ROOT / word) if words[0] == "cases" else words[0]
            kind = KINDS.get(name, Recipe)
            assert read_recipe(ROOT / word, kind).name


@pytest.mark.parametrize("document", WRITTEN, ids=lambda d: d.name)
def test_links_into_the_repository_lead_somewhere(document):
    """Every relative link and picture of a document exists."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.fixture
def shell(tmp_path: Path):
    """`shell(block, folder)`: what a shell block prints when it is run in the folder; it must succeed."""
    bin = tmp_path / "bin" / "clseg"
    bin.parent.mkdir()
    bin.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clseg "$@"\n')
    bin.chmod(0o755)
    settings = {**os.environ, "PATH": f"{bin.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "CLSEG_HOME": str(tmp_path / "home")}

    tidy = "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"  # a server that a failed block has left running

    def run(block: str, folder: Path) -> str:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", f"{tidy}\n{block}"], cwd=folder, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.slow
def test_the_page_about_weights_can_be_followed(shell, tmp_path: Path):
    """Every `sh` block of docs/weights.md runs as it stands and in its order, with another port and a small scan."""
    volume, _ = small_phantom()
    write_volume(tmp_path / "ct.nii.gz", Volume(np.asfortranarray(volume.array[8:32, 4:24, 10:32]), volume.affine))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shown = blocks(ROOT / "docs" / "weights.md", "sh")
    assert len(shown) >= 4
    told = "".join(shell(block.replace("8917", port), tmp_path) for block in shown)
    assert "weight files are whole" in told
    assert "lung_left" in told
    assert (tmp_path / "out" / "run.json").is_file()
    assert (tmp_path / "www" / "weights_manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_walk_through_learning_can_be_walked(shell, shared: Path, tmp_path: Path):
    """Every shell block of docs/learning.md runs as it stands and in its order, on recipes with few steps and a small probe."""
    place = tmp_path / "clseg"
    shutil.copytree(ROOT / "recipes", place / "recipes")
    (tmp_path / "shared").symlink_to(shared)
    volume, _ = small_phantom()
    write_volume(place / "recipes" / "probe.nii.gz", volume)
    for recipe in (place / "recipes").glob("*_*.toml"):
        recipe.write_text(shortened(recipe.read_text(encoding="utf-8")), encoding="utf-8")
    shown = blocks(ROOT / "docs" / "learning.md", "sh")
    assert len(shown) >= 7
    told = ""
    for block in shown:
        told += shell(block, place)
    assert told.count("0 voxels changed in") == 5
    assert len(list((tmp_path / "home" / "models").glob("starter-*.card.json"))) == 5


def shortened(text: str) -> str:
    """A recipe with a handful of steps, one pruning rung where the decoder is trained already, and the small probe.

    Three steps improve nothing, so an update keeps all of the old weights: it must not be refused.
    """
    text = re.sub(r"^keep = .*", "keep = 1.0", text, flags=re.MULTILINE)
    text = re.sub(r"^iterations = \d+", "iterations = 3", text, flags=re.MULTILINE)
    text = re.sub(r"^recovery = \d+", "recovery = 2", text, flags=re.MULTILINE)
    rungs = "[0.4]" if 'name = "prune' in text else "[]"
    text = re.sub(r"^structured = .*", f"structured = {rungs}", text, flags=re.MULTILINE)
    text = re.sub(r"^unstructured = .*", "unstructured = []", text, flags=re.MULTILINE)
    text = re.sub(r"^allowed_loss = .*", "allowed_loss = 1.0", text, flags=re.MULTILINE)
    return text.replace("\nseed =", '\nprobe = "probe.nii.gz"\nthreads = 2\nseed =', 1)


def python_blocks() -> list[str]:
    readme = ROOT / "README.md"
    return [block for block in blocks(readme, "python") if "segment(" in block] if readme.is_file() else []


@pytest.mark.parametrize("block", python_blocks() or [None], ids=lambda b: None if b is None else "README")
def test_python_in_the_readme_runs(block, tiny_model, tmp_path, monkeypatch):
    """The example works as it stands, with a small scan and a tiny model in place of the true ones."""
    if block is None:
        pytest.skip("there is no Python example in README.md yet")
    from clseg import pipeline

    tiny_model({"chest": ("lung_left", "lung_right", "skeleton")})
    volume, _ = small_phantom()
    write_volume(tmp_path / "ct.nii.gz", Volume(np.asfortranarray(volume.array[8:32, 4:24, 10:32]), volume.affine))
    original = pipeline.segment
    monkeypatch.setattr(pipeline, "segment", lambda image, **options: original(image, **{**options, "model": "tiny"}))
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert any(tmp_path.iterdir())
