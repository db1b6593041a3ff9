"""Facts about recipes: what is written is trained, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import RecipeError
from clseg.recipe import (
    KINDS,
    LearnRecipe,
    PruneRecipe,
    Recipe,
    UpdateRecipe,
    from_dict,
    likeliest_kind,
    read_recipe,
    template,
    to_dict,
)
from tests.small_dataset import TOML

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).parent
RECIPES = sorted(path for path in (HERE.parent / "recipes").glob("*.toml") if path.stem != "bodypart")
KIND_OF = {"learn": LearnRecipe, "abdomen": LearnRecipe, "gluteal": LearnRecipe, "update": UpdateRecipe, "refine": UpdateRecipe, "finish": UpdateRecipe, "widen": UpdateRecipe, "pseudo": UpdateRecipe, "prune": PruneRecipe}


def changed(path: str, value: Any) -> dict:
    """The tiny recipe as plain types with one value set; `path` is like 'decoder.0.labels'. None removes the key."""
    data = copy.deepcopy(tomllib.loads(TOML))
    *parents, last = path.split(".")
    table: Any = data
    for key in parents:
        table = table[int(key)] if key.isdigit() else table[key]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return data


def tiny() -> Recipe:
    return from_dict(tomllib.loads(TOML), HERE)


def test_what_the_file_says_is_what_the_recipe_holds(tmp_path: Path) -> None:
    """Values come from the file, the rest from the defaults, lists become tuples, and paths are relative to its folder."""
    (tmp_path / "r.toml").write_text(TOML)
    recipe = read_recipe(tmp_path / "r.toml")
    assert recipe.grid.spacing_mm == (12.0, 12.0, 12.0)
    assert [d.labels for d in recipe.decoder] == [("lung_left", "lung_right"), ("liver", "skeleton"), ("body",)]
    assert recipe.dataset[1].masks["lung_right"] == "lungs.nii.gz:2"
    assert recipe.optim.rate == 2e-3
    assert recipe.grid.orientation == "RAS"
    assert recipe.folder == tmp_path.resolve()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_can_be_read(path: Path) -> None:
    """Every recipe in recipes/ passes its own checks and says what it was trained on."""
    recipe = read_recipe(path, KIND_OF.get(path.stem.split("_")[0], Recipe))
    assert all(dataset.licence for dataset in recipe.dataset)


def test_to_dict_and_back() -> None:
    """from_dict undoes to_dict, through JSON text, and the folder is not part of it."""
    plain = json.loads(json.dumps(to_dict(tiny())))
    assert "folder" not in plain
    assert from_dict(plain, HERE) == tiny()


@given(
    rate=st.floats(1e-6, 1.0),
    iterations=st.integers(1, 10**6),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
    patch=st.tuples(*[st.integers(2, 64).map(lambda n: 2 * n)] * 3),
    absent=st.lists(st.text()),
)
def test_any_values_survive_the_round_trip(rate: float, iterations: int, name: str, patch: tuple, absent: list) -> None:
    """Numbers come back to the last bit, texts to the last letter."""
    data = changed("name", name)
    data["optim"].update(rate=rate, iterations=iterations)
    data["grid"]["patch"] = list(patch)
    data["dataset"][0]["absent"] = absent
    recipe = from_dict(data, HERE)
    assert (recipe.optim.rate, recipe.optim.iterations, recipe.grid.patch) == (rate, iterations, patch)
    assert from_dict(json.loads(json.dumps(to_dict(recipe))), HERE) == recipe


@pytest.mark.parametrize(
    ("path", "table"),
    [("learning_rate", "recipe"), ("optim.learning_rate", "recipe.optim"), ("decoder.1.width", "recipe.decoder[1]"),
     ("dataset.0.wieght", "recipe.dataset[0]"), ("augment", None)],
)  # fmt: skip
def test_an_unknown_key_is_refused(path: str, table: str | None) -> None:
    """A typo anywhere in the tree is named with its table, and the nearest key or all known ones are offered."""
    data = changed(path, 1) if table else changed(path, {"elastic": True})
    with pytest.raises(RecipeError, match="Unknown key") as caught:
        from_dict(data, HERE)
    assert f"[{table or 'recipe.augment'}]" in caught.value.message
    assert f"'{path.split('.')[-1] if table else 'elastic'}'" in caught.value.message
    assert "Known keys" in caught.value.tip or "Did you mean" in caught.value.tip


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("seed", "7", "recipe.seed' must be int, given '7'"),
        ("seed", 1.5, "recipe.seed' must be int"),
        ("seed", True, "recipe.seed' must be int"),
        ("optim.rate", "fast", "recipe.optim.rate' must be float"),
        ("optim.rate", False, "recipe.optim.rate' must be float"),
        ("name", 3, "recipe.name' must be str"),
        ("grid", 3, "recipe.grid' must be a table"),
        ("decoder", "lungs", "recipe.decoder' must be a list"),
        ("decoder.0.labels", "lung_left", r"recipe.decoder\[0\].labels' must be a list"),
        ("decoder.0.labels", ["lung_left", 2], r"recipe.decoder\[0\].labels\[1\]' must be str"),
        ("grid.patch", [16, 16], "must have 3 entries"),
        ("grid.patch", [16, 16, 16.0], "recipe.grid.patch' must be int"),
        ("dataset.1.masks", {"body": 1}, "must be a table of strings"),
        ("dataset.1.masks", [], "must be a table of strings"),
        ("decoder.1.limits", {"liver": 0.5}, r"recipe.decoder\[1\].limits.liver' must be a list"),
    ],
)
def test_a_wrong_type_is_refused(path: str, value: Any, sentence: str) -> None:
    """A value of another type is refused with its place and what it holds; numbers are never truth values."""
    with pytest.raises(RecipeError, match=sentence):
        from_dict(changed(path, value), HERE)


def test_limits_are_a_list_or_a_table() -> None:
    """A list holds for every label, a table for those that it names; both come back from plain types."""
    for limits, liver in (([0, 0.5], (0.0, 0.5)), ({"liver": [0, 0.5]}, (0.0, 0.5)), ({}, ())):
        found = from_dict(changed("decoder.1.limits", limits), HERE)
        assert found.decoder[1].limits_of("liver") == liver
        assert from_dict(to_dict(found), HERE) == found


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    """`rate = 1` is read as 1.0."""
    rate = from_dict(changed("optim.rate", 1), HERE).optim.rate
    assert isinstance(rate, float)
    assert rate == 1.0


def test_a_recipe_can_extend_another(tmp_path: Path) -> None:
    """It says only what is different: tables are joined key by key, lists and [[tables]] take the other's place, also over two steps."""
    (tmp_path / "r.toml").write_text(TOML)
    (tmp_path / "s.toml").write_text('extends = "r.toml"\nname = "second"\n[optim]\niterations = 17\n')
    (tmp_path / "t.toml").write_text('extends = "s.toml"\nseed = 9\n[[decoder]]\nname = "b"\nlabels = ["body"]\nwidths = [8]\nkernels = [3]\nconvs = [1]\n')
    first, second, third = (read_recipe(tmp_path / f"{name}.toml") for name in "rst")
    assert second == replace(first, name="second", optim=replace(first.optim, iterations=17))
    assert third == replace(second, seed=9, decoder=third.decoder)
    assert [(one.name, one.labels) for one in third.decoder] == [("b", ("body",))]
    assert len(first.decoder) > 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('extends = "r.toml"', "r.toml extends itself: r.toml → r.toml"),
        ('extends = "s.toml"', "extends itself: r.toml → s.toml → r.toml"),
        ('extends = "../other/r.toml"', "must be the name of a recipe in the same folder, given '../other/r.toml'"),
        ("extends = 3", "must be the name of a recipe in the same folder, given 3"),
        ('extends = "nowhere.toml"', "There is no recipe at .*nowhere.toml"),
        ('extends = ""', "must be the name of a recipe"),
    ],
)
def test_a_recipe_that_extends_nothing_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """Circles, recipes elsewhere (whose relative paths would mean something else) and none at all: one sentence."""
    (tmp_path / "r.toml").write_text(text)
    (tmp_path / "s.toml").write_text('extends = "r.toml"')
    with pytest.raises(RecipeError, match=sentence):
        read_recipe(tmp_path / "r.toml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    """The sentence says what it is and what was expected."""
    with pytest.raises(RecipeError, match=r"is a folder, expected a recipe: a TOML file\.$"):
        read_recipe(tmp_path)


def test_a_recipe_that_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason in words, without Python's numbers."""

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path / "r.toml"))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "r.toml")
    assert caught.value.message == f"Cannot read the recipe {tmp_path / 'r.toml'}: Permission denied."


@pytest.mark.parametrize("path", ["name", "decoder", "decoder.2.name", "decoder.0.labels", "dataset.0.name"])
def test_a_missing_key_is_named(path: str) -> None:
    """What has no default must be there."""
    with pytest.raises(RecipeError, match=f"lacks '{path.split('.')[-1]}'"):
        from_dict(changed(path, None), HERE)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("grid.patch", [16, 15, 16], r"\(16, 15, 16\) must be divisible by the product of the strides, 2"),
        ("encoder.strides", [2, 3], "product of the strides, 6"),
        ("encoder.strides", [1, 0], "must be 1 or more"),
        ("encoder.widths", [8, -8], "must be 1 or more"),
        ("grid.patch", [16, 0, 16], "must be 1 or more"),
        ("encoder.widths", [8, 16, 32], "one entry per level"),
        ("decoder", [], r"at least one \[\[decoder\]\]"),
        ("dataset", [], r"one \[\[dataset\]\]"),
        ("decoder.1.name", "lungs", r"Every decoder needs a name of its own, given \['lungs', 'lungs', 'body'\]"),
        ("dataset.1.name", "mapped", "Every dataset needs a name of its own"),
        ("decoder.1.name", "encoder", "not 'encoder'"),
        ("decoder.1.name", "../solid", "becomes a file name"),
        ("decoder.1.name", "a.b", "becomes a file name"),
        ("decoder.1.labels", ["liver", "liver"], "labels, each once"),
        ("decoder.1.labels", [], "labels, each once"),
        ("decoder.1.widths", [8, 8], "'solid' needs as many widths as kernels"),
        ("decoder.1.open_ends", {"liver": "left"}, "inferior, superior or both"),
        ("decoder.1.open_ends", {"spleen": "both"}, "must map its labels"),
        ("decoder.1.experimental", ["spleen"], "'solid' has no label 'spleen' that could be experimental"),
        ("decoder.1.unlisted", ["liver", "liver"], "experimental or unlisted structure of decoder 'solid'"),
        ("decoder.1.limits", [0.5, 0.5], r"are \[low, high\], given \[0.5, 0.5\]"),
        ("decoder.1.limits", {"liver": [0.5]}, r"are \[low, high\], given \[0.5\]"),
        ("decoder.1.limits", {"spleen": [0.1, 0.5]}, "name 'spleen', which is none of its labels"),
        ("dataset.1.masks", {"body": "body.nii.gz:one"}, "'file' or 'file:value'"),
        ("dataset.0.weight", -1.0, "weights of 0 or more"),
        ("optim.clip_norm", -1.0, "optim.rate and clip_norm must be above 0"),
        ("optim.rate", float("nan"), "must be above 0, given nan"),
        ("optim.average", 1.5, "optim.average is between 0 and 1"),
        ("optim.foreground", 3.0, "optim.foreground is between 0 and 1"),
        ("optim.weight_decay", -1.0, "optim.weight_decay is 0 or more"),
        ("seed", -7, "seed is between 0 and"),
        ("threads", -1, "threads 0 or more"),
        ("optim.precision", "int8", "float32, bfloat16 or float16"),
        ("folder", "/", "Unknown key 'folder'"),
    ],
)
def test_what_cannot_be_trained_is_refused(path: str, value: Any, sentence: str) -> None:
    """Sizes must agree, names must be unique and usable as file names; the sentence says what was given."""
    with pytest.raises(RecipeError, match=sentence):
        from_dict(changed(path, value), HERE)


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", [1.25, 0.8]), ("scale", [0.0, 1.0]), ("contrast", [1.2, 0.8]), ("noise_hu", -3.0), ("noise_probability", 5.0), ("thick_slices_mm", [0.0, 0.0]), ("stretch", 1.0)],
)
def test_augmentation_that_cannot_be_drawn_is_refused(key: str, value: Any) -> None:
    """Before training, and not at the first patch that draws it."""
    with pytest.raises(RecipeError, match=f"augment.{key}"):
        from_dict({**changed("seed", 3), "augment": {key: value}}, HERE)


def test_at_least_one_dataset_is_drawn_from() -> None:
    """When every weight is 0 there is nothing to train on."""
    data = changed("dataset.0.weight", 0)
    data["dataset"][1]["weight"] = 0
    with pytest.raises(RecipeError, match="at least one above 0"):
        from_dict(data, HERE)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", None])
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    """Broken TOML, bytes that are no text, and no file at all are RecipeErrors that name the file; exit code 2."""
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.toml") as caught:
        read_recipe(path)
    assert caught.value.exit_code == 2


def test_a_patch_of_one_bottleneck_voxel_is_refused() -> None:
    """Instance normalisation has nothing to normalise over where the bottleneck is a single voxel."""
    plain = to_dict(tiny())
    stride = int(np.prod(plain["encoder"]["strides"]))
    plain["grid"]["patch"] = [stride] * 3
    with pytest.raises(RecipeError, match="larger than the product of the strides"):
        from_dict(plain, HERE)


def test_rules_along_the_body_need_an_axis_along_the_body() -> None:
    """open_ends speaks of inferior and superior, so the last axis must point up."""
    plain = to_dict(tiny())
    label = plain["decoder"][0]["labels"][0]
    plain["decoder"][0]["open_ends"] = {label: "inferior"}
    assert from_dict(plain, HERE).decoder[0].open_ends == {label: "inferior"}
    plain["grid"]["orientation"] = "SAR"
    with pytest.raises(RecipeError, match="last axis points up"):
        from_dict(plain, HERE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_is_a_recipe_with_every_knob(kind: str, tmp_path: Path) -> None:
    """What `clseg recipe new` prints can be read as it is, holds the defaults, and names every key of every section."""
    assert template(kind).isascii()  # so that any terminal can print it
    (tmp_path / "r.toml").write_text(template(kind))
    recipe = read_recipe(tmp_path / "r.toml", KINDS[kind])
    for name, value in tomllib.loads(uncommented(template(kind))).items():
        assert name in to_dict(recipe)
        if isinstance(value, dict):
            assert value == to_dict(recipe)[name]
    missing = [key for key in keys_of(to_dict(recipe)) if not re.search(rf"^(# )?{key} = ", template(kind), re.M)]
    assert missing == []


def uncommented(text: str) -> str:
    """The template with its defaults in force; tables that are only offered stay out."""
    text = "\n\n".join(block for block in text.split("\n\n") if "\n# [[" not in block)
    return re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M)


def keys_of(data: dict[str, Any]) -> list[str]:
    """Names of all plain values in a tree of tables."""
    found = []
    for key, value in data.items():
        tables = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
        tables = [t for t in tables if isinstance(t, dict) and t]
        found += [key] if not tables and value != [] else [k for t in tables for k in keys_of(t)]
    return found


def test_supporters_in_a_circle_are_refused() -> None:
    """a ← b ← a is no order to learn in; the sentence draws the circle."""
    data = tomllib.loads(template("learn"))
    data["decoder"] = [{"name": "a", "labels": ["x"], "supporters": ["b"]}, {"name": "b", "labels": ["y"], "supporters": ["a"]}]
    with pytest.raises(RecipeError, match="circle: (a → b → a|b → a → b)"):
        from_dict(data, HERE, LearnRecipe)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ladder": {"structured": [0.5, 0.25]}}, "ladder.structured must rise"),
        ({"ladder": {"unstructured": [0.5, 1.0]}}, "ladder.unstructured must rise"),
        ({"ladder": {"multiple": [0]}}, "multiple and iterations of 1 or more"),
        ({"support": {"rate": 0.0}}, "rate above 0"),
        ({"grid": {}}, "Unknown key 'grid'"),
        ({"validation": {"cases": -1}}, "cases and every of 0 or more"),
    ],
)
def test_what_cannot_be_learned_is_refused(change: dict[str, Any], sentence: str) -> None:
    """A ladder rises, steps and rates are positive, and the grid is the encoder's, not the recipe's."""
    with pytest.raises(RecipeError, match=sentence):
        from_dict({**tomllib.loads(template("learn")), **change}, HERE, LearnRecipe)


@pytest.mark.parametrize(("key", "value"), [("keep", 1.5), ("keep", -0.1), ("allowed_loss", -1.0)])
def test_an_update_keeps_a_share(key: str, value: float) -> None:
    """`keep` is a share and `allowed_loss` no gain."""
    with pytest.raises(RecipeError, match=key):
        from_dict({**tomllib.loads(template("update")), key: value}, HERE, UpdateRecipe)


# ---- of which kind ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_keys_tell_the_kind(tmp_path: Path, kind: str) -> None:
    """Every template is of its own kind, also with a key that nobody knows."""
    path = tmp_path / "r.toml"
    path.write_text(template(kind))
    assert likeliest_kind(path) == kind
    path.write_text("sede = 3\n" + template(kind))
    assert likeliest_kind(path) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('name = "x"\n[[dataset]]\n[[decoder]]\n', "train"),  # fits learn as well
        ('name = "x"\nmodel = "starter"\n[[dataset]]\n[[decoder]]\n', "learn"),
        ('name = "x"\ndecoder = "lungs"\n[[dataset]]\n', "update"),
        ('name = "x"\n[[dataset]]\n[ladder]\n', "prune"),
    ],
)
def test_what_a_recipe_names_tells_its_kind(tmp_path: Path, text: str, kind: str) -> None:
    """New decoders are tables, one of the model is a name, none is a pruning; of kinds that fit equally the first."""
    (tmp_path / "r.toml").write_text(text)
    assert likeliest_kind(tmp_path / "r.toml") == kind


def test_keys_of_an_extended_recipe_count(tmp_path: Path) -> None:
    """A recipe that says only what is different is of the kind of the one below."""
    (tmp_path / "below.toml").write_text(template("update"))
    (tmp_path / "r.toml").write_text('extends = "below.toml"\nname = "mine"\n')
    assert likeliest_kind(tmp_path / "r.toml") == "update"


def test_what_is_no_toml_has_no_kind(tmp_path: Path) -> None:
    """The sentence is that of reading it."""
    with pytest.raises(RecipeError, match="There is no recipe at"):
        likeliest_kind(tmp_path / "r.toml")
