"""Facts about the model that new decoders join: its encoder, its names, what it can still take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clseg.errors import RecipeError, UnknownName, WeightsError
from clseg.manifest import FILE_NAME, Asset, Manifest, Model
from clseg.network.checkpoint import fingerprint, load
from clseg.training.base import Base
from clseg.weights import own
from tests.conftest import write_tiny_model
from tests.small_dataset import BODY, LADDER, SOLID, learn_recipe


def copied(home: Path, folder: Path, name: str, **facts: object) -> dict[Asset, Path]:
    """The decoder `tiny-lungs` under another name; a comment behind its last byte makes it another file."""
    asset = Manifest.read(home / FILE_NAME).asset("tiny-lungs")
    file = folder / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((home / asset.file).read_bytes())
    return {replace(asset, name=name, file=file.name, **{"labels": (f"{name}_organ",), **facts}): file}  # type: ignore[arg-type]


def listed(base: Base) -> list[str]:
    return [asset.name for asset in base.listing.listed(base.model)]


def test_open_reads_the_encoder(tiny_model) -> None:
    """Spec, weights and fingerprint are those of the file; the structures those of all decoders."""
    home = tiny_model()
    base = Base.open("tiny")
    checkpoint = load(home / "tiny" / "tiny-encoder.safetensors")
    assert base.key == fingerprint(checkpoint.tensors, checkpoint.spec)
    assert base.spec == checkpoint.spec
    assert all(torch.equal(tensor, base.checkpoint.tensors[name]) for name, tensor in checkpoint.tensors.items())
    assert base.structures == ("body", "lung_left", "lung_right", "liver", "spleen")
    assert base.mine == frozenset()


def test_an_unknown_model_is_refused(tiny_model) -> None:
    """A typo is answered with the nearest name."""
    tiny_model()
    with pytest.raises(UnknownName, match="did you mean tiny"):
        Base.open("tinny")


@pytest.mark.parametrize("count", [0, 2])
def test_a_model_needs_one_encoder(tiny_model, count: int) -> None:
    """Which of several a new decoder should be bound to nobody knows; the sentence says how many there are."""
    home = tiny_model()
    known = Manifest.read(home / FILE_NAME)
    encoder = known.asset("tiny-encoder")
    assets = (*known.assets, replace(encoder, name="second"))
    names = [n for n in known.model("tiny").assets if n != "tiny-encoder"] + ["tiny-encoder", "second"][:count]
    Manifest((replace(known.model("tiny"), assets=tuple(names)),), assets).write(home / FILE_NAME)
    with pytest.raises(WeightsError, match=f"one encoder, 'tiny' lists {count}"):
        Base.open("tiny")


def test_decoders_have_a_long_and_a_short_name(tiny_model) -> None:
    """`tiny-lungs` and `lungs` are the same; of what is unknown the short names are told."""
    tiny_model()
    base = Base.open("tiny")
    assert base.decoder("lungs") == base.decoder("tiny-lungs") == base.listing.asset("tiny-lungs")
    with pytest.raises(UnknownName, match="Unknown decoder 'lung'") as caught:
        base.decoder("lung")
    assert caught.value.tip == "Model 'tiny' has: trunk, lungs, abdomen."
    with pytest.raises(UnknownName):
        base.decoder("encoder")


@pytest.mark.parametrize(
    ("name", "short"), [("tiny-lungs", "lungs"), ("tiny-lungs.3", "lungs"), ("tiny-2-lungs", "lungs"), ("tiny-2-small-parts.2", "small-parts"), ("gone-lungs", "lungs")]
)
def test_short_names_begin_behind_the_model(tiny_model, name: str, short: str) -> None:
    """Models and decoders may have hyphens in their names: those that are listed say where one ends and the other begins."""
    home = tiny_model()
    known = Manifest.read(home / FILE_NAME)
    Manifest((*known.models, replace(known.model("tiny"), name="tiny-2")), known.assets).write(home / FILE_NAME)
    assert Base.open("tiny").short_name(name) == short


def test_a_lent_decoder_answers_to_its_short_name(tiny_model, tmp_path: Path) -> None:
    """A model may list decoders that carry another model's name: the part behind it is enough, unless two have the same."""
    home = tiny_model()
    own.add(Model("tiny", "d", "MIT"), copied(home, tmp_path, "other-heart"), {})
    assert Base.open("tiny").decoder("heart").name == "other-heart"
    own.add(Model("tiny", "d", "MIT"), copied(home, tmp_path, "third-heart", labels=("third_organ",)), {})
    with pytest.raises(UnknownName, match="Unknown decoder 'heart'"):
        Base.open("tiny").decoder("heart")
    assert Base.open("tiny").decoder("third-heart").name == "third-heart"


def test_what_took_a_decoders_place_answers_to_its_name(tiny_model, tmp_path: Path) -> None:
    """After an update `lungs` is `tiny-lungs.2`, and after another `tiny-lungs.3`."""
    home = tiny_model()
    own.add(Model("tiny", "d", "MIT"), copied(home, tmp_path, "tiny-lungs.2", labels=("lung_left", "lung_right"), replaces=("tiny-lungs",)), {})
    base = Base.open("tiny")
    assert {base.decoder(name).name for name in ("lungs", "tiny-lungs", "lungs.2", "tiny-lungs.2")} == {"tiny-lungs.2"}
    both = ("tiny-lungs.2", "tiny-lungs")
    own.add(Model("tiny", "d", "MIT"), copied(home, tmp_path, "tiny-lungs.3", labels=("lung_left", "lung_right"), replaces=both), {})
    assert {Base.open("tiny").decoder(name).name for name in ("lungs", "tiny-lungs.2", "tiny-lungs.3")} == {"tiny-lungs.3"}


def test_files_come_with_all_that_they_require(tiny_model, tmp_path: Path) -> None:
    """Required ones first, each once, the encoder in any case; the files are there."""
    home = tiny_model()
    own.add(Model("tiny", "d", "MIT"), copied(home, tmp_path, "tiny-x", requires=("tiny-encoder", "tiny-trunk", "tiny-lungs")), {})
    base = Base.open("tiny")
    asked = [base.listing.asset("tiny-x"), base.listing.asset("tiny-lungs")]
    assert [asset.name for asset in base.closure(asked)] == ["tiny-encoder", "tiny-trunk", "tiny-lungs", "tiny-x"]
    assert [asset.name for asset in base.closure([])] == ["tiny-encoder"]
    files = base.files(asked)
    assert set(files) == {"tiny-encoder", "tiny-trunk", "tiny-lungs", "tiny-x"}
    assert all(file.is_file() for file in files.values())
    assert base.weights(["x"]) == {name: base.listing.asset(name).sha256 for name in files}


def test_the_plan_has_the_encoders_grid(workplace: Path) -> None:
    """Spacing, patch, orientation and intensities of a plan are the encoder's; everything else is the recipe's."""
    recipe = replace(learn_recipe(workplace, BODY, LADDER), seed=99)
    base = Base.open("tiny")
    plan = base.plan(recipe, recipe.decoder)
    assert (plan.grid.spacing_mm, plan.grid.patch, plan.grid.orientation) == ((12.0, 12.0, 12.0), (16, 16, 16), "RAS")
    assert (plan.intensity.mean_hu, plan.encoder, plan.seed) == (base.spec.intensity.mean, None, 99)
    assert (plan.decoder, plan.dataset, plan.optim, plan.folder) == (recipe.decoder, recipe.dataset, recipe.optim, recipe.folder)


def test_a_decoder_is_no_deeper_than_the_encoder(workplace: Path) -> None:
    """One stage fits this encoder; two do not, and the sentence says both numbers."""
    recipe = learn_recipe(workplace, BODY)
    deep = replace(recipe.decoder[0], widths=(8, 8), kernels=(1, 1), convs=(1, 1))
    with pytest.raises(RecipeError, match="'body' has 2 stages, the encoder of 'tiny' has levels for 1"):
        Base.open("tiny").plan(recipe, (deep,))


@pytest.mark.parametrize(
    ("target", "decoder", "labels", "sentence"),
    [
        ("tiny", "lungs", ("heart",), "has a decoder 'lungs' already"),
        ("tiny", "mine", ("heart", "lung_left"), "'lung_left' of decoder 'mine' is painted by 'tiny-lungs'"),
        ("other", "trunk", ("heart",), "has a decoder 'trunk' already"),
        ("other", "mine", ("body",), "painted by 'other-trunk'"),
        ("other", "mine", ("heart",), "'other' has another encoder than 'tiny'"),
    ],
)
def test_what_a_model_cannot_take(tiny_model, own_home: Path, tmp_path: Path, target: str, decoder: str, labels: tuple[str, ...], sentence: str) -> None:
    """Names and structures that are there already, and decoders on another encoder than the model's own."""
    home = tiny_model()
    other = Manifest.read(write_tiny_model(tmp_path / "other", {"trunk": ("body",)}, name="other", seed=1) / FILE_NAME)
    Manifest.read(home / FILE_NAME).merged(other).write(home / FILE_NAME)
    with pytest.raises(RecipeError, match=sentence):
        Base.open("tiny").refuse_taken(target, decoder, labels)


def test_what_a_model_can_take(tiny_model) -> None:
    """New names and structures in the same model, known ones in a new one."""
    tiny_model()
    base = Base.open("tiny")
    base.refuse_taken("tiny", "heart", ("heart",))
    base.refuse_taken("mine", "lungs", ("lung_left",))
    assert base.holds("tiny")
    assert not base.holds("mine")


def test_a_name_that_was_replaced_is_not_free(tiny_model, tmp_path: Path) -> None:
    """Though `tiny-lungs` is listed no more, its weights still bear the name: another decoder may not."""
    home = tiny_model()
    own.add(Model("tiny", "d", "MIT"), copied(home, tmp_path, "tiny-lungs.2", labels=("lung_left",), replaces=("tiny-lungs",)), {})
    with pytest.raises(RecipeError, match="has a decoder 'lungs' already"):
        Base.open("tiny").refuse_taken("tiny", "lungs", ("heart",))


def test_what_the_run_itself_has_listed_does_not_count(tiny_model, tmp_path: Path) -> None:
    """A run that was stopped after listing its decoder finds the model as it was before, and may list it again."""
    home = tiny_model()
    file = tmp_path / "run" / "weights" / "x.safetensors"
    ((asset, _),) = copied(home, tmp_path, "tiny-x", labels=("heart",)).items()
    file.parent.mkdir(parents=True)
    content = (home / asset.file).read_bytes() if (home / asset.file).is_file() else (tmp_path / asset.file).read_bytes()
    file.write_bytes(content)
    own.add(Model("tiny", "d", "MIT"), {asset: file}, {})
    assert "heart" in Base.open("tiny").structures
    assert "heart" in Base.open("tiny", tmp_path / "another run").structures
    base = Base.open("tiny", tmp_path / "run")
    assert "tiny-x" not in listed(base)
    base.refuse_taken("tiny", "x", ("heart",))


def test_a_supporter_may_be_the_models(workplace: Path) -> None:
    """The weights that a run builds on are the encoder's and those of the supporters, no others."""
    recipe = learn_recipe(workplace, SOLID)
    base = Base.open("tiny")
    assert set(base.weights(recipe.decoder[0].supporters)) == {"tiny-encoder", "tiny-lungs"}
