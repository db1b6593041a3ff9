"""The shape of the code: imports point one way, one module prints, nothing heavy at the top, no pickle anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "clseg"
ROOT = PACKAGE.parent

# from the ground up; a module may import its own layer and those before it
LAYERS = [
    {"errors"},
    {"volume", "words", "catalogue", "catalogue_check", "families", "addresses", "manifest", "manifest_check", "asked", "recipe", "environment", "progress", "footprint", "stopwatch", "allocator", "waiting", "cores", "data"},
    {"io", "spatial", "weights", "network"},
    {"inference", "measure", "intensities", "metrics", "radiomics", "report", "phantom", "output", "evaluate", "settings", "results", "review"},
    {"segmentation", "pipeline", "masks", "batch"},
    {"training"},
    {"cli", "__main__"},
]
RANK = {noun: rank for rank, layer in enumerate(LAYERS) for noun in layer}
LIGHT = {"numpy", "typer"}  # what may be imported at the top of any module; the standard library and clseg go without saying
ENGINES = {"network", "inference", "training"}  # whole modules that nobody imports before torch is needed

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def noun_of(module: str) -> str:
    """`clseg.io.files` → io; the package itself has no noun."""
    return module.split(".")[1] if "." in module else ""


MODULES = {module_of(file) for file in FILES}


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of the modules that an import statement brings, those inside clseg down to the file."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written out in full"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in MODULES else str(node.module)


def imports(file: Path) -> set[str]:
    """All modules that a file imports anywhere, inside functions and for type hints too."""
    return {name for node in ast.walk(tree_of(file)) for name in imported(node)}


def at_the_top(file: Path) -> set[str]:
    """Modules that are imported when the file is: not inside functions, not for type hints alone."""
    found: set[str] = set()
    waiting: list[ast.stmt] = list(tree_of(file).body)
    while waiting:
        node = waiting.pop()
        found.update(imported(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            for name in ("body", "orelse", "handlers", "finalbody"):
                for child in getattr(node, name, []):
                    waiting += child.body if isinstance(child, ast.ExceptHandler) else [child]
    return found


def each(files: list[Path] = FILES):
    return pytest.mark.parametrize("file", files, ids=[module_of(file) for file in files])


def test_every_module_has_a_layer():
    """A new noun must be given its place above."""
    assert {noun_of(module) for module in MODULES} - {""} <= set(RANK)


@each()
def test_imports_point_one_way(file):
    """No module imports from a layer above its own, not even inside a function; only the package's root is open to all."""
    mine = noun_of(module_of(file))
    if mine:
        upward = {name for name in imports(file) if name in MODULES and RANK.get(noun_of(name), 0) > RANK[mine]}
        assert upward == set()


@each([file for file in FILES if noun_of(module_of(file)) not in ("training", "cli", "")])
def test_inference_never_uses_training(file):
    """Without the folder `training` everything but its commands works."""
    assert not {name for name in imports(file) if noun_of(name) == "training"}


@each([file for file in FILES if noun_of(module_of(file)) == "training"])
def test_training_never_uses_the_command_line(file):
    """Training is a library too."""
    assert not {name for name in imports(file) if noun_of(name) == "cli"}


def test_imports_at_the_top_have_no_circles():
    """Every module can be imported first."""
    from graphlib import TopologicalSorter

    graph = {module_of(file): {name for name in at_the_top(file) if name in MODULES} - {module_of(file), "clseg"} for file in FILES}
    assert set(TopologicalSorter(graph).static_order()) >= MODULES - {"clseg"}


@each([file for file in FILES if noun_of(module_of(file)) not in ENGINES])
def test_nothing_heavy_at_the_top(file):
    """torch, nibabel, SimpleITK, scipy and the like are imported where they are used; isal is optional and light."""
    outside = {name.split(".")[0] for name in at_the_top(file)} - set(sys.stdlib_module_names) - {"clseg", "tomli", "isal"}
    assert outside <= LIGHT
    engines = {name for name in at_the_top(file) if noun_of(name) in ENGINES and "torch" in at_the_top(_file(name))}
    assert engines == set()


def _file(module: str) -> Path:
    return next(file for file in FILES if module_of(file) == module)


@each()
def test_only_the_console_prints_or_exits(file):
    """The library never writes to the terminal and never ends the process."""
    if module_of(file) == "clseg.cli.console":
        return
    calls = [node.func for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call)]
    said = {ast.unparse(call) for call in calls} & {"print", "input", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    assert said == set()


@each()
def test_no_error_is_swallowed_unseen(file):
    """No bare `except:`, and no `except Exception: pass`."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}"
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            assert not (broad and all(isinstance(part, ast.Pass) for part in node.body)), f"line {node.lineno}"


@each()
def test_no_pickle(file):
    """Weights and states are safetensors and JSON; foreign checkpoints are opened in one place, for plain content only."""
    names = {name.split(".")[0] for name in imports(file)}
    if module_of(file) == "clseg.weights.importers.pickles":
        used = {ast.unparse(node) for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute)}
        assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler"}  # the base of one that refuses
        names -= {"pickle"}
    assert not names & {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    calls = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call)]
    called = {ast.unparse(node.func) for node in calls}
    if module_of(file) == "clseg.weights.importers.pickles":
        loads = [node for node in calls if ast.unparse(node.func) == "torch.load"]
        assert [{k.arg: ast.unparse(k.value) for k in node.keywords}["weights_only"] for node in loads] == ["True"]
        called -= {"torch.load"}
    assert not called & {"torch.load", "torch.save", "torch.jit.load", "eval", "exec", "yaml.load"}
    words = {keyword.arg: ast.unparse(keyword.value) for n in ast.walk(tree_of(file)) if isinstance(n, ast.Call) for keyword in n.keywords}
    assert words.get("allow_pickle", "False") == "False"


@each()
def test_only_one_module_reads_the_environment(file):
    """Settings are found in one place."""
    if module_of(file) == "clseg.environment":
        return
    assert not {ast.unparse(node) for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute)} & {"os.environ", "os.getenv"}


@each()
def test_every_module_says_what_it_is(file):
    """The first line of every file that has code is a sentence."""
    tree = tree_of(file)
    if tree.body:
        assert (ast.get_docstring(tree) or "").split("\n")[0].strip()


def test_everything_but_training_works_without_training():
    """With `clseg.training` out of reach, the command line, the pipeline and the evaluation can be imported and listed."""
    program = "\n".join(
        [
            "import sys",
            "class Wall:",
            "    def find_spec(self, name, path=None, target=None):",
            "        if name.startswith('clseg.training'):",
            "            raise ImportError(name)",
            "sys.meta_path.insert(0, Wall())",
            "import clseg.pipeline, clseg.evaluate, clseg.segmentation, clseg.inference.merge, clseg.inference.restore",
            "import clseg.cli.app",
            "sys.argv = ['clseg', 'rois', '--json']",
            "clseg.cli.app.main()",
        ]
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert '"body"' in result.stdout
