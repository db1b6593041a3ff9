"""Facts about learning: new structures join a model at once, old ones stay, and a killed run ends as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clseg import recipe as recipes
from clseg.errors import InputError, RecipeError, TrainingError, UnknownName
from clseg.io.files import sha256_of
from clseg.manifest import FILE_NAME, Manifest
from clseg.network.checkpoint import load
from clseg.pipeline import segment
from clseg.recipe import LearnRecipe
from clseg.training.base import Base
from clseg.training.course import Course
from clseg.training.learn import Learned, check_fit, learn
from clseg.training.loop import Step
from clseg.training.run import Reports
from clseg.weights import own
from clseg.weights.cache import manifest
from tests.conftest import furnished
from tests.small_dataset import BODY, LADDER, SOLID, learn_recipe

pytestmark = pytest.mark.usefixtures("without_plots")

BOTH = SOLID.replace('supporters = ["lungs"]', 'supporters = ["lungs", "body"]') + BODY


class PowerCut(Exception):
    """Ends a run without any chance to save or to tidy up."""


def quick(workplace: Path, *parts: str, **changes: object) -> LearnRecipe:
    """A recipe without pruning, of two steps."""
    recipe = learn_recipe(workplace, *(parts or (BODY,)), "[ladder]\nstructured = []\nunstructured = []\n", **changes)
    return replace(recipe, optim=replace(recipe.optim, iterations=2))


def run(workplace: Path, name: str = "run") -> Path:
    return workplace / "runs" / name


# ---- what is learned works --------------------------------------------------------------------------------------------


def test_what_was_learned_can_be_asked_for(workplace: Path) -> None:
    """The model has the new structures and the old ones, and one call segments all of them on the scan's own grid."""
    learned = learn(quick(workplace, BOTH), run(workplace))
    assert set(learned.files) == {"solid", "body"}
    assert set(manifest().labels_of("tiny")) == {"lung_left", "lung_right", "liver", "skeleton", "body"}
    result = segment(workplace / "probe.nii.gz", model="tiny", device="cpu", offline=True)
    assert set(result.names) == {"lung_left", "lung_right", "liver", "skeleton", "body"}
    assert result.labels.shape == (24, 20, 24)
    part = segment(workplace / "probe.nii.gz", "liver", model="tiny", device="cpu", offline=True)
    assert set(part.names) == {"liver"}


def test_supporters_are_required_and_bound(workplace: Path) -> None:
    """The entry requires encoder and supporters, those of the same run under their own names; the file knows them by fingerprint."""
    learned = learn(quick(workplace, BOTH), run(workplace))
    listing = manifest()
    digits = {name: listing.asset(name).sha256[:8] for name in ("tiny-encoder", "tiny-lungs")}
    assert listing.asset("tiny-solid").requires == (f"tiny-encoder.{digits['tiny-encoder']}", f"tiny-lungs.{digits['tiny-lungs']}", "tiny-body")
    assert listing.asset("tiny-body").requires == (f"tiny-encoder.{digits['tiny-encoder']}",)
    spec = load(learned.files["solid"]).spec
    assert [one.labels for one in spec.supporters] == [("lung_left", "lung_right"), ("body",)]
    assert list(learned.results) == ["body", "solid"]


def test_a_supporter_may_have_supporters(workplace: Path) -> None:
    """Learned on what was learned on what was there: three links, listed in two runs, segmented in one call."""
    learn(quick(workplace, SOLID), run(workplace, "one"))
    learn(quick(workplace, BODY + 'supporters = ["solid"]\n[support]\niterations = 2'), run(workplace, "two"))
    result = segment(workplace / "probe.nii.gz", "body", model="tiny", device="cpu", offline=True)
    assert set(result.names) == {"body"}
    assert {name.partition(".")[0] for name in result.facts["model"]["weights"]} == {"tiny-encoder", "tiny-lungs", "tiny-solid", "tiny-body"}


def test_a_model_of_its_own_can_grow(workplace: Path) -> None:
    """With `into` the new decoders form a model; the first is as it was; the new one is a base for more."""
    learn(quick(workplace, BODY, into="mine"), run(workplace, "one"))
    assert set(manifest().labels_of("tiny")) == {"lung_left", "lung_right"}
    assert set(manifest().labels_of("mine")) == {"body"}
    solid = SOLID.replace('supporters = ["lungs"]', 'supporters = ["body"]')
    learn(quick(workplace, solid, model="mine"), run(workplace, "two"))
    assert set(manifest().labels_of("mine")) == {"body", "liver", "skeleton"}
    learn(quick(workplace, BODY.replace('"body"]', '"heart"]').replace('"body"', '"x"'), into="mine", dataset=renamed(workplace)), run(workplace, "three"))
    result = segment(workplace / "probe.nii.gz", model="mine", device="cpu", offline=True)
    assert set(result.names) == {"body", "liver", "skeleton", "heart"}


def renamed(workplace: Path):
    """The masks of the body called heart."""
    return tuple(replace(one, masks={"heart": "body.nii.gz"}) for one in learn_recipe(workplace, BODY).dataset if one.masks)


def test_experimental_structures_are_listed_apart(workplace: Path) -> None:
    """Of one decoder the model offers one structure and `_experimental` another, with encoder and the same file; nobody is given the second unasked."""
    alone = SOLID.replace('supporters = ["lungs"]', 'experimental = ["skeleton"]')
    learned = learn(quick(workplace, alone, BODY + 'experimental = ["body"]'), run(workplace))
    listing = manifest()
    assert set(listing.labels_of("tiny")) == {"lung_left", "lung_right", "liver"}
    assert listing.labels_of("tiny_experimental") == {"skeleton": ("tiny-solid_experimental",), "body": ("tiny-body_experimental",)}
    assert {asset.sha256 for asset in listing.assets if "-solid" in asset.name} == {sha256_of(learned.files["solid"])}
    assert set(segment(workplace / "probe.nii.gz", model="tiny_experimental", device="cpu", offline=True).names) == {"skeleton", "body"}
    with pytest.raises(RecipeError, match="has a decoder 'solid' already"):
        learn(quick(workplace, alone), run(workplace, "again"))
    with pytest.raises(RecipeError, match="'skeleton' of decoder 'bones' is painted by 'tiny-solid_experimental' already"):
        learn(quick(workplace, alone.replace('"liver", ', "").replace('"solid"', '"bones"')), run(workplace, "again"))


def test_unlisted_structures_are_nobodys(workplace: Path) -> None:
    learn(quick(workplace, SOLID.replace('supporters = ["lungs"]', 'unlisted = ["skeleton"]')), run(workplace))
    assert set(manifest().labels_of("tiny")) == {"lung_left", "lung_right", "liver"}
    assert [model.name for model in manifest().models if model.name.startswith("tiny")] == ["tiny"]


def test_growing_another_model_proves_that_one(workplace: Path) -> None:
    """The proof is about the model that grows, not about the one whose encoder is borrowed."""
    learn(quick(workplace, BODY, into="mine"), run(workplace, "one"))
    learned = learn(quick(workplace, SOLID, into="mine"), run(workplace, "two"))
    assert learned.proof is not None
    assert set(learned.proof.changed) == {"body"}
    assert "mine-body" in learned.proof.weights


def test_a_run_leaves_file_card_and_proof(workplace: Path, own_home: Path) -> None:
    """Card and proof lie with the run and beside the user's weights: data, licence, Dice, τ, size, hashes before and after."""
    learned = learn(learn_recipe(workplace, SOLID, LADDER), run(workplace))
    card = json.loads((run(workplace) / "weights" / "tiny-solid.card.json").read_text())
    assert card == json.loads((own_home / "models" / "tiny-solid.card.json").read_text())
    assert learned.proof is not None
    assert card["proof"] == learned.proof.to_dict() == json.loads((run(workplace) / "proof.json").read_text())
    assert card["proof"]["statement"] == "0 voxels changed in 2 structures"
    assert set(card["proof"]["weights"]) == {"tiny-encoder", "tiny-lungs"}
    assert {key: value for key, value in card.items() if key != "proof"} == load(learned.files["solid"]).card
    assert (card["licence"], card["seed"], card["cases"]) == ("CC0-1.0", 7, ["a", "b"])
    assert [one["name"] for one in card["datasets"]] == ["mapped", "masked"]
    assert set(card["dice_on_the_models_grid"]) <= {"liver", "skeleton"}
    assert (card["held_out_cases"], card["training_cases_scored"]) == ([], ["a", "b"])  # as the recipe's split says
    assert card["pruning_rate"] > 0.8
    assert card["parameters"] < card["parameters_dense"]
    assert Manifest.read(own_home / FILE_NAME).asset("tiny-solid").sha256 == sha256_of(learned.files["solid"])


def test_held_out_cases_are_those_that_nobody_learned_from(workplace: Path) -> None:
    """Judged on the split `val` a card names its case as held out, and no training case as scored."""
    recipe = quick(workplace)
    learned = learn(replace(recipe, validation=replace(recipe.validation, split="val")), run(workplace))
    card = learned.results["body"].card
    assert (card["cases"], card["held_out_cases"], card["training_cases_scored"]) == (["a", "b"], ["c"], [])


def test_pathological_is_noted(workplace: Path) -> None:
    """What the recipe says about tumours in the cases stands in the card, where merging looks for it."""
    learned = learn(quick(workplace, BODY + "pathological = true"), run(workplace))
    assert load(learned.files["body"]).card["pathological"] is True


# ---- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "a decoder that exists": (BODY.replace('name = "body"', 'name = "lungs"'), "has a decoder 'lungs' already"),
    "a structure that exists": (BODY.replace('["body"]', '["body", "lung_left"]'), "'lung_left' of decoder 'body' is painted by 'tiny-lungs' already"),
    "a structure twice": (BODY + SOLID.replace('"skeleton"', '"body"'), "painted by two decoders of the recipe, 'body' and 'solid'"),
    "a missing supporter": (SOLID.replace('["lungs"]', '["lung"]'), "'lung', which neither the recipe nor the model has"),
    "a circle": (SOLID.replace('["lungs"]', '["body"]') + BODY + 'supporters = ["solid"]', "Supporters form a circle"),
    "nothing that is listed": (BODY + 'unlisted = ["body"]', "'body' has unlisted structures alone"),
    "a supporter that is not listed": (SOLID.replace('["lungs"]', '["body"]') + BODY + 'experimental = ["body"]', "'body', none of whose structures is listed"),
    "another depth": (BODY.replace("widths = [8]", "widths = [8, 8]").replace("kernels = [1]", "kernels = [1, 1]").replace("convs = [1]", "convs = [1, 1]"), "has 2 stages, the encoder of 'tiny' has levels for 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_at_once(workplace: Path, own_home: Path, case: str) -> None:
    """One sentence before anything is trained or written: the run's folder holds nothing but its lock."""
    parts, sentence = REFUSED[case]
    before = (own_home / FILE_NAME).read_bytes()
    with pytest.raises(RecipeError, match=sentence):
        learn(quick(workplace, parts), run(workplace))
    assert (own_home / FILE_NAME).read_bytes() == before
    assert not run(workplace).exists() or {p.name for p in run(workplace).iterdir()} <= {".lock"}


def test_what_was_learned_is_not_learned_again(workplace: Path) -> None:
    """A second run of the same recipe in another folder is refused: its structures are painted already."""
    learn(quick(workplace), run(workplace, "one"))
    with pytest.raises(RecipeError, match="has a decoder 'body' already"):
        learn(quick(workplace), run(workplace, "two"))


def test_an_unknown_model_is_refused(workplace: Path) -> None:
    """With the nearest name."""
    with pytest.raises(UnknownName, match="did you mean tiny"):
        learn(quick(workplace, model="tinyy"), run(workplace))


def test_a_missing_dataset_is_refused(workplace: Path) -> None:
    """A dataset that is not there is one sentence that names it."""
    recipe = quick(workplace)
    lost = replace(recipe, dataset=(replace(recipe.dataset[1], index="nowhere/index.csv"),))
    with pytest.raises((RecipeError, TrainingError, InputError), match="nowhere"):
        learn(lost, run(workplace))


def test_supporters_come_before_what_they_support(workplace: Path) -> None:
    """Whatever the order in the recipe; supporters that the model has do not matter."""
    recipe = quick(workplace, BOTH)
    assert [d.name for d in check_fit(recipe, Base.open("tiny"))] == ["body", "solid"]
    backwards = replace(recipe, decoder=recipe.decoder[::-1])
    assert [d.name for d in check_fit(backwards, Base.open("tiny"))] == ["body", "solid"]


# ---- a killed run goes on ---------------------------------------------------------------------------------------------


def at_step(stage: str, iteration: int, error: type[BaseException] = PowerCut) -> Callable[[pytest.MonkeyPatch], Reports]:
    """Reports that end the run at one step of one stage."""

    def reports(patch: pytest.MonkeyPatch) -> Reports:
        now: list[str] = []

        def step(step: Step) -> None:
            if (now[-1], step.iteration) == (stage, iteration):
                raise error

        return Reports(stage=lambda name, steps: now.append(name), step=step)

    return reports


def asked_to_stop(stage: str) -> Callable[[pytest.MonkeyPatch], Reports]:
    """Ctrl-C as the command line hears it: `stop` says so after the first step of the stage."""

    def reports(patch: pytest.MonkeyPatch) -> Reports:
        now = [""]
        return Reports(stage=lambda name, steps: now.append(name), stop=lambda: now[-1] == stage)

    return reports


def at_call(target: str, number: int = 1) -> Callable[[pytest.MonkeyPatch], Reports]:
    """The power goes when `target` is called for the n-th time, before it has done anything."""

    def reports(patch: pytest.MonkeyPatch) -> Reports:
        module, _, name = target.rpartition(".")
        owner = {"Course": Course}.get(module, module)
        inner = getattr(Course, name) if owner is Course else getattr(__import__(module, fromlist=[name]), name)
        calls: list[int] = []

        def cut(*args: object, **kwargs: object) -> object:
            calls.append(1)
            if len(calls) == number:
                raise PowerCut
            return inner(*args, **kwargs)

        patch.setattr(owner, name, cut) if owner is Course else patch.setattr(target, cut)
        return Reports()

    return reports


def just_listed(patch: pytest.MonkeyPatch) -> Reports:
    """The power goes right after the new decoder was listed: nobody takes it back."""

    @contextmanager
    def cut(*args: object, **kwargs: object) -> Iterator[None]:
        own.add(*args, **kwargs)  # type: ignore[arg-type]
        raise PowerCut
        yield

    patch.setattr("clseg.training.publish.added", cut)
    return Reports()


SLOW = pytest.mark.slow
MOMENTS = [
    pytest.param(at_step("dense", 1), id="dense, before the first state"),
    pytest.param(at_step("dense", 5), id="dense"),
    pytest.param(at_step("dense", 5, KeyboardInterrupt), id="dense, Ctrl-C", marks=SLOW),
    pytest.param(at_call("Course.keep", 1), id="dense done, not kept", marks=SLOW),
    pytest.param(at_step("support-solid", 1), id="support, with the state of dense", marks=SLOW),
    pytest.param(asked_to_stop("support-solid"), id="support, asked to stop"),
    pytest.param(at_call("clseg.training.prune._begun"), id="before the climb", marks=SLOW),
    pytest.param(at_step("prune-solid-structured-0.5-1", 1), id="structured rung", marks=SLOW),
    pytest.param(at_call("clseg.training.prune._save", 1), id="first rung reported, not saved"),
    pytest.param(at_step("prune-solid-unstructured-0.5-1", 1), id="unstructured rung", marks=SLOW),
    pytest.param(asked_to_stop("prune-solid-unstructured-0.9-1"), id="last rung, asked to stop", marks=SLOW),
    pytest.param(at_call("clseg.training.prune._save", 3), id="last rung reported, not saved", marks=SLOW),
    pytest.param(at_step("recover-solid", 2), id="recovery", marks=SLOW),
    pytest.param(at_call("clseg.training.learn.write_decoder"), id="before the file is written", marks=SLOW),
    pytest.param(at_call("clseg.training.learn.publish"), id="before publishing", marks=SLOW),
    pytest.param(just_listed, id="just listed"),
    pytest.param(at_call("clseg.training.publish.write_json", 1), id="before the cards", marks=SLOW),
    pytest.param(at_call("clseg.training.publish.write_json", 3), id="before the proof is written", marks=SLOW),
]


def outcome(folder: Path, home: Path) -> dict[str, bytes]:
    """Everything that a run decides: stages, weights, cards, proof, the user's list and files."""
    stages = [p for part in ("stages", "weights") for p in (folder / part).rglob("*") if p.is_file()]
    found = {str(p.relative_to(folder)): p.read_bytes() for p in [*stages, folder / "proof.json"]}
    kept = [p for p in (home / "models").iterdir() if p.is_file()]
    return {**found, **{f"home/{p.name}": p.read_bytes() for p in [*kept, home / FILE_NAME]}}


@pytest.fixture(scope="module")
def straight(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    home = tmp_path_factory.mktemp("straight_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLSEG_HOME", str(home))
        workplace = furnished(tmp_path_factory.mktemp("straight"), home, trained)
        learn(learn_recipe(workplace, SOLID, LADDER), run(workplace))
    return outcome(run(workplace), home)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_if_it_had_not_been(
    workplace: Path, own_home: Path, straight: dict[str, bytes], moment: Callable[[pytest.MonkeyPatch], Reports]
) -> None:
    """Killed at any moment and resumed: stages, weights, cards, proof and the user's manifest are byte for byte those of an undisturbed run."""
    recipe = learn_recipe(workplace, SOLID, LADDER)
    with pytest.MonkeyPatch.context() as patch:
        reports = moment(patch)
        with pytest.raises((PowerCut, KeyboardInterrupt)):
            learn(recipe, run(workplace), reports=reports)
    learn(recipe, run(workplace), resume=True)
    assert outcome(run(workplace), own_home) == straight


def test_a_finished_run_stays_as_it_is(workplace: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed on another day, nothing is trained, and no byte of weights, cards and manifest changes."""
    recipe, steps = quick(workplace), []
    first = learn(recipe, run(workplace))
    before = outcome(run(workplace), own_home)
    monkeypatch.setattr("clseg.training.card.datetime", Tomorrow)
    again = learn(recipe, run(workplace), resume=True, reports=Reports(step=steps.append))
    assert steps == []
    assert outcome(run(workplace), own_home) == before
    assert again.proof == first.proof


class Tomorrow:
    """The module `datetime` on another day."""

    class date:
        @staticmethod
        def today() -> Tomorrow.date:
            return Tomorrow.date()

        def isoformat(self) -> str:
            return "2999-12-31"


def test_a_run_is_not_begun_twice_in_a_folder(workplace: Path) -> None:
    """Without --resume a folder with stages is refused."""
    learn(quick(workplace), run(workplace))
    with pytest.raises(TrainingError, match="holds a run already"):
        learn(quick(workplace, SOLID), run(workplace))


@pytest.mark.parametrize("change", [{"seed": 8}, {"into": "elsewhere"}, {"probe": ""}])
def test_a_run_is_never_resumed_with_another_recipe(workplace: Path, change: dict[str, object]) -> None:
    """Any other knob is refused, and the run is left as it was."""
    recipe = quick(workplace)
    with pytest.raises(PowerCut):
        learn(recipe, run(workplace), reports=at_step("dense", 2)(None))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="started with another recipe"):
        learn(replace(recipe, **change), run(workplace), resume=True)  # type: ignore[arg-type]
    assert json.loads((run(workplace) / "recipe.json").read_text())["recipe"] == recipes.to_dict(recipe)


def test_a_label_file_that_changed_is_told_when_a_run_goes_on(workplace: Path, trained: Path) -> None:
    """Whoever resumes hears that the run goes on with other cases than it began with."""
    (workplace / "dataset").unlink()
    shutil.copytree(trained / "dataset", workplace / "dataset")
    recipe, told = quick(workplace), []
    with pytest.raises(PowerCut):
        learn(recipe, run(workplace), reports=at_step("dense", 2)(None))  # type: ignore[arg-type]
    os.utime(workplace / "dataset" / "b" / "body.nii.gz", ns=(1, 1))
    learn(recipe, run(workplace), resume=True, reports=Reports(note=told.append))
    assert [line for line in told if "1 changed (masked/b)" in line and line.startswith("warning: The cases are not those")]


def test_a_run_begun_anew_looks_anew(workplace: Path) -> None:
    """What a run that saved nothing has seen of the model does not count for the next one in its folder: the model has grown meanwhile."""
    with pytest.raises(PowerCut):
        learn(quick(workplace, SOLID), run(workplace), reports=at_step("dense", 1)(None))  # type: ignore[arg-type]
    learn(quick(workplace), run(workplace, "meanwhile"))
    learned: Learned = learn(quick(workplace, SOLID), run(workplace))
    assert learned.proof is not None
    assert set(learned.proof.changed) == {"lung_left", "lung_right", "body"}
