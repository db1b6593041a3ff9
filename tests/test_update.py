"""Facts about updating a decoder: old and new weigh what the recipe says, nothing else changes, and a loss is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clseg.errors import RecipeError, TrainingError, UnknownName
from clseg.io.files import sha256_of
from clseg.manifest import FILE_NAME, Asset, Manifest
from clseg.network.checkpoint import Checkpoint, fingerprint, load, save
from clseg.pipeline import segment
from clseg.recipe import UpdateRecipe
from clseg.training.average import Average, decay_for
from clseg.training.base import Base
from clseg.training.learn import learn
from clseg.training.loop import Step
from clseg.training.publish import renewed
from clseg.training.reprune import reprune
from clseg.training.run import Reports
from clseg.training.ticket import Ticket
from clseg.training.update import HEADER, UpdateRefused, decoder_recipe, next_name, open_decoder, refuse_loss, update
from clseg.weights import own
from clseg.weights.cache import fetch, manifest
from tests.small_dataset import BODY, OLD, SOLID, learn_recipe, prune_recipe, update_recipe

pytestmark = pytest.mark.usefixtures("without_plots")

NO_LADDER = "[ladder]\nstructured = []\nunstructured = []\n"


class PowerCut(Exception):
    """Ends a run without any chance to save or to tidy up."""


def run(workplace: Path, name: str = "update") -> Path:
    return workplace / "runs" / name


def short(workplace: Path, *parts: str, **changes: object) -> UpdateRecipe:
    """Three gentle steps, never refused: no case of split "val" shows the lungs, so nothing is measured."""
    recipe = update_recipe(workplace, *parts, **changes)  # type: ignore[arg-type]
    optim = replace(recipe.optim, iterations=3, rate=1e-4, warmup=0)
    return replace(recipe, optim=optim, validation=replace(recipe.validation, split="val"))


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return load(file).tensors


def old_file() -> Path:
    return fetch([manifest().asset("tiny-lungs")])["tiny-lungs"]


def mask(workplace: Path, name: str) -> np.ndarray:
    return segment(workplace / "probe.nii.gz", name, model="tiny", device="cpu", offline=True).mask(name)


# ---- what comes out ---------------------------------------------------------------------------------------------------


def test_the_new_decoder_takes_the_old_ones_place(workplace: Path, own_home: Path) -> None:
    """Listed as `.2` in its stead, with the same structures; segmentation uses it and not the old one, whose file stays."""
    before = (own_home / "tiny" / "lungs.safetensors").read_bytes()
    done = update(short(workplace), run(workplace))
    assert manifest().labels_of("tiny") == {"lung_left": ("tiny-lungs.2",), "lung_right": ("tiny-lungs.2",)}
    assert manifest().asset("tiny-lungs.2").replaces == ("tiny-lungs",)
    used = segment(workplace / "probe.nii.gz", model="tiny", device="cpu", offline=True).facts["model"]["weights"]
    assert used["tiny-lungs.2"] == sha256_of(done.result.file)
    assert "tiny-lungs" not in used
    assert (own_home / "tiny" / "lungs.safetensors").read_bytes() == before


def test_an_update_can_be_updated(workplace: Path) -> None:
    """Under its old name: the third replaces both before it."""
    update(short(workplace), run(workplace, "one"))
    update(short(workplace), run(workplace, "two"))
    assert manifest().labels_of("tiny")["lung_left"] == ("tiny-lungs.3",)
    assert manifest().asset("tiny-lungs.3").replaces == ("tiny-lungs.2", "tiny-lungs")


def test_an_update_learns(workplace: Path) -> None:
    """Forty steps on the new cases: their Dice rises, and the table says by how much."""
    recipe = update_recipe(workplace, keep=0.05)
    done = update(replace(recipe, optim=replace(recipe.optim, iterations=40)), run(workplace))
    assert {row[0] for row in done.rows} == {"new"}
    assert sum(row[-1] for row in done.rows) > 0.01
    with (run(workplace) / "update.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [HEADER, *(list(map(str, row)) for row in done.rows)]


def test_a_structure_that_is_lost_is_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one structure gains what another loses the mean may pass; whoever updates hears of the loss."""
    rows = [["new", "lung_left", 1, 0.8, 0.7, -0.1], ["new", "lung_right", 1, 0.6, 0.75, 0.15]]
    monkeypatch.setattr("clseg.training.update.compared", lambda kind, was, now: rows if kind == "new" else [])
    heard: list[str] = []
    update(short(workplace), run(workplace), reports=Reports(note=heard.append))
    assert [text for text in heard if "loses" in text] == ["warning: lung_left loses Dice on the new cases, 0.800 → 0.700, whatever the others gain"]


def test_keep_one_keeps_all(workplace: Path) -> None:
    """With keep = 1 nothing of the new weights is taken: the result is the old decoder, bit for bit."""
    before = tensors(old_file())
    done = update(update_recipe(workplace, OLD, keep=1.0), run(workplace))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(done.result.file).items())
    assert [row[0] for row in done.rows] == ["old", "old", "new", "new"]
    assert {row[-1] for row in done.rows} == {0.0}


def test_keep_nothing_keeps_nothing(workplace: Path) -> None:
    """With keep = 0 the result is the last step's weights, and no average."""
    done = update(short(workplace, keep=0.0), run(workplace))
    from safetensors.torch import load_file

    state = load_file(run(workplace) / "state.safetensors")
    made = tensors(done.result.file)
    assert all(torch.equal(tensor, state[f"network.decoders.lungs.{name}"].half()) for name, tensor in made.items())
    assert any(not torch.equal(tensor, tensors(old_file())[name]) for name, tensor in made.items())


@pytest.mark.parametrize("keep", [0.25, 0.9])
def test_old_weights_weigh_what_the_recipe_says(workplace: Path, monkeypatch: pytest.MonkeyPatch, keep: float) -> None:
    """θ = keep · old + Σ (1−α) α^(n−i) θᵢ with αⁿ = keep: computed by hand from the weights after each of the n steps."""
    seen: list[dict[str, torch.Tensor]] = []
    inner = Average.update

    def spy(self: Average, network: torch.nn.Module, step: int) -> None:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        inner(self, network, step)

    monkeypatch.setattr(Average, "update", spy)
    recipe = short(workplace, keep=keep)
    before = tensors(old_file())
    update(replace(recipe, optim=replace(recipe.optim, rate=1e-2)), run(workplace))
    alpha = decay_for(keep, 3)
    for name, tensor in tensors(run(workplace) / "stages" / "update" / "lungs.safetensors").items():
        expected = keep * before[name].float()
        for i, weights in enumerate(seen):
            expected = expected + (1 - alpha) * alpha ** (2 - i) * weights[f"decoders.lungs.{name}"]
        assert torch.allclose(tensor, expected, atol=1e-6)


def test_a_pruned_decoder_stays_pruned(workplace: Path) -> None:
    """What the ticket has set to zero is zero after the update, what lives has moved; the card still tells the pruning rate."""
    pruned = reprune("tiny", "lungs", prune_recipe(workplace, "[ladder]\nstructured = []\nunstructured = [0.7]\niterations = 1\nrecovery = 1\nallowed_loss = 1.0"), run(workplace, "prune"))
    before = tensors(pruned.files["lungs"])
    recipe = short(workplace, keep=0.1)
    done = update(replace(recipe, optim=replace(recipe.optim, rate=1e-2)), run(workplace))
    after = tensors(done.result.file)
    convolutions = [name for name, tensor in after.items() if tensor.ndim == 5]
    for name in convolutions:
        assert bool((after[name][before[name] == 0] == 0).all())
    assert any(not torch.equal(after[name], before[name]) for name in convolutions)
    assert done.result.card["pruning_rate"] == pytest.approx(0.7, abs=0.01)
    assert done.result.card["parameters_dense"] == pruned.results["lungs"].card["parameters_dense"]


def test_the_ticket_is_the_same(workplace: Path) -> None:
    """A decoder that was never pruned has no zero less or more after an update."""
    before = open_decoder(Base.open("tiny").decoder("lungs"), Base.open("tiny"))[1]
    done = update(short(workplace), run(workplace))
    count = [sum(int((t == 0).sum()) for t in one.values() if t.ndim == 5) for one in (before.tensors, tensors(done.result.file))]
    assert count[0] == count[1]


# ---- what stays -------------------------------------------------------------------------------------------------------


def test_what_the_old_decoder_supports_still_works(workplace: Path) -> None:
    """A decoder learned on the old one keeps it as its supporter: its masks are the same, bit for bit, and the proof says so."""
    learn(learn_recipe(workplace, SOLID, NO_LADDER), run(workplace, "learn"))
    before = mask(workplace, "liver"), mask(workplace, "skeleton")
    done = update(short(workplace), run(workplace))
    assert np.array_equal(mask(workplace, "liver"), before[0])
    assert np.array_equal(mask(workplace, "skeleton"), before[1])
    assert done.proof is not None
    assert done.proof.changed == {"liver": 0, "skeleton": 0}
    together = segment(workplace / "probe.nii.gz", model="tiny", device="cpu", offline=True)
    assert set(together.names) == {"lung_left", "lung_right", "liver", "skeleton"}


def test_a_supporter_of_the_same_run_stays_too(workplace: Path) -> None:
    """Where both were learned together, the supported one keeps the first version when the other is updated."""
    both = SOLID.replace('supporters = ["lungs"]', 'supporters = ["body"]') + BODY
    learn(learn_recipe(workplace, both, NO_LADDER), run(workplace, "learn"))
    before = mask(workplace, "liver")
    done = update(update_recipe(workplace, decoder="body", keep=1.0), run(workplace))
    assert np.array_equal(mask(workplace, "liver"), before)
    assert manifest().labels_of("tiny")["body"] == ("tiny-body.2",)
    assert done.proof is not None
    assert set(done.proof.changed) == {"lung_left", "lung_right", "liver", "skeleton"}


def test_a_supported_decoder_can_be_updated(workplace: Path) -> None:
    """It learns on with its supporter frozen, and is bound to the same one afterwards."""
    learned = learn(learn_recipe(workplace, SOLID, NO_LADDER), run(workplace, "learn"))
    done = update(short(workplace, decoder="solid"), run(workplace))
    old, new = load(learned.files["solid"]), load(done.result.file)
    assert new.spec == old.spec
    assert any(not torch.equal(tensor, old.tensors[name]) for name, tensor in new.tensors.items() if name.startswith("support."))
    assert mask(workplace, "liver").shape == (24, 20, 24)


def test_the_card_keeps_what_it_knew(workplace: Path) -> None:
    """Data, licence and description of a recipe without any stay those of the old decoder; what was measured is new."""
    done = update(update_recipe(workplace, OLD, licence="", description="", keep=1.0), run(workplace))
    card, old = done.result.card, load(old_file()).card
    assert (card["licence"], card["update_of"], card["kept"]) == ("CC0-1.0", sha256_of(old_file()), 1.0)
    assert card["description"] == old["description"]
    assert card["datasets"][: len(old["datasets"])] == old["datasets"]
    assert card["dice_before_and_after"] == [dict(zip(HEADER, row, strict=True)) for row in done.rows]
    assert manifest().asset("tiny-lungs.2").licence == "CC0-1.0"
    assert json.loads((run(workplace) / "weights" / "tiny-lungs.2.card.json").read_text())["proof"]["statement"] == "0 voxels changed in 0 structures"


# ---- what is refused --------------------------------------------------------------------------------------------------


def spoiled(workplace: Path, **changes: object) -> UpdateRecipe:
    """Steps so large that the decoder forgets everything."""
    recipe = update_recipe(workplace, OLD, keep=0.0, **changes)  # type: ignore[arg-type]
    return replace(recipe, optim=replace(recipe.optim, iterations=4, rate=3.0, warmup=0))


def test_a_loss_on_old_cases_is_refused(workplace: Path, own_home: Path) -> None:
    """The table shows it, the user's manifest is as it was, no weights are written; resumed it is refused again without a step."""
    before, steps = (own_home / FILE_NAME).read_bytes(), []
    with pytest.raises(UpdateRefused, match="Dice on the old cases, allowed are 0.01; nothing was changed") as caught:
        update(spoiled(workplace), run(workplace))
    rows = [row for row in caught.value.rows if row[0] == "old"]
    assert [row[1] for row in rows] == ["lung_left", "lung_right"]
    assert all(len(row) == len(HEADER) for row in rows)
    assert sum(row[5] for row in rows) / 2 < -0.01
    assert all(row[5] == pytest.approx(row[4] - row[3], abs=2e-4) for row in rows)
    assert (own_home / FILE_NAME).read_bytes() == before
    assert not (run(workplace) / "weights").exists()
    assert (run(workplace) / "update.csv").is_file()
    with pytest.raises(UpdateRefused):
        update(spoiled(workplace), run(workplace), resume=True, reports=Reports(step=steps.append))
    assert steps == []


def test_a_loss_that_is_allowed_is_not_refused() -> None:
    """Exactly the allowed amount is, on average over structures; on new cases none is allowed."""
    rows = [["old", "a", 1, 0.9, 0.875, -0.025], ["old", "b", 1, 0.5, 0.525, 0.025], ["new", "a", 1, 0.5, 0.5, 0.0]]
    refuse_loss(rows, 0.0)
    refuse_loss([["old", "a", 1, 0.75, 0.5, -0.25]], 0.25)
    with pytest.raises(UpdateRefused, match=r"loses 0.2500 Dice on the old cases, allowed are 0.2;"):
        refuse_loss([["old", "a", 1, 0.75, 0.5, -0.25]], 0.2)
    with pytest.raises(UpdateRefused, match=r"loses 0.1250 Dice on the new cases, allowed are 0;") as caught:
        refuse_loss([*rows[:2], ["new", "a", 1, 0.5, 0.375, -0.125]], 0.5)
    assert caught.value.rows[-1][0] == "new"
    refuse_loss([], 0.0)


def test_old_cases_that_show_nothing_are_refused(workplace: Path) -> None:
    """If the loss on the old cases cannot be measured it is not taken for none."""
    recipe = update_recipe(workplace, OLD.replace('lung_left = "lungs.nii.gz:1", lung_right = "lungs.nii.gz:2"', 'body = "body.nii.gz"'))
    with pytest.raises(TrainingError, match=r"No case of \[\[old\]\] in split 'train' shows a structure of the decoder 'lungs'"):
        update(recipe, run(workplace))


def test_an_unknown_decoder_is_refused(workplace: Path) -> None:
    """The sentence says what there is."""
    with pytest.raises(UnknownName, match="Unknown decoder 'heart'") as caught:
        update(short(workplace, decoder="heart"), run(workplace))
    assert "lungs" in str(caught.value.tip)


def test_a_decoder_of_another_encoder_is_refused(workplace: Path, own_home: Path) -> None:
    """After an update of the package with a new encoder, a decoder of the old one is not trained on the new one's features."""
    learn(learn_recipe(workplace, BODY, NO_LADDER), run(workplace, "learn"))
    old = load(own_home / "tiny" / "encoder.safetensors")
    other = Checkpoint("encoder", old.spec, {name: tensor + 1 for name, tensor in old.tensors.items()})
    save(own_home / "tiny" / "new.safetensors", other)
    assert fingerprint(other.tensors, other.spec) != fingerprint(old.tensors, old.spec)
    listing = Manifest.read(own_home / FILE_NAME)
    file = own_home / "tiny" / "new.safetensors"
    changed = replace(
        listing.asset("tiny-encoder"), file="tiny/new.safetensors", sources=("tiny/new.safetensors",), sha256=sha256_of(file), bytes=file.stat().st_size
    )
    Manifest(listing.models, tuple(changed if a.name == "tiny-encoder" else a for a in listing.assets)).write(own_home / FILE_NAME)
    with pytest.raises(TrainingError, match="'tiny-body' belongs to another encoder"):
        update(short(workplace, decoder="body"), run(workplace))


# ---- a killed update goes on ------------------------------------------------------------------------------------------


def mid_stage(patch: pytest.MonkeyPatch) -> Reports:
    def step(step: Step) -> None:
        if step.iteration == 3:
            raise PowerCut

    return Reports(step=step)


def before_publishing(patch: pytest.MonkeyPatch) -> Reports:
    def cut(*_: object) -> None:
        raise PowerCut

    patch.setattr("clseg.training.update.publish", cut)
    return Reports()


def just_listed(patch: pytest.MonkeyPatch) -> Reports:
    def cut(*args: object) -> None:
        own.add(*args)  # type: ignore[arg-type]
        raise PowerCut

    patch.setattr("clseg.training.publish.added", cut)
    return Reports()


@pytest.mark.parametrize("moment", [mid_stage, before_publishing, just_listed])
def test_a_killed_update_ends_as_if_it_had_not_been(
    workplace: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, moment: Callable[[pytest.MonkeyPatch], Reports]
) -> None:
    """Killed and resumed, the decoder is that of an undisturbed update, and still replaces the one that it began with."""
    monkeypatch.setattr("clseg.training.update.refuse_loss", lambda rows, allowed: None)
    recipe = update_recipe(workplace, OLD)
    recipe = replace(recipe, optim=replace(recipe.optim, iterations=5, checkpoint_every=2))
    before = (own_home / FILE_NAME).read_bytes()
    straight = update(recipe, run(workplace, "straight"))
    after = (own_home / FILE_NAME).read_bytes()
    (own_home / FILE_NAME).write_bytes(before)
    with pytest.MonkeyPatch.context() as patch:
        reports = moment(patch)
        with pytest.raises(PowerCut):
            update(recipe, run(workplace), reports=reports)
    resumed = update(recipe, run(workplace), resume=True)
    assert resumed.result.file.read_bytes() == straight.result.file.read_bytes()
    assert (resumed.rows, resumed.proof) == (straight.rows, straight.proof)
    assert (own_home / FILE_NAME).read_bytes() == after


def test_an_update_does_not_go_on_from_another_decoder(workplace: Path) -> None:
    """When the decoder was updated by another run meanwhile, a killed update is not resumed over it."""
    recipe = short(workplace)
    with pytest.raises(PowerCut):
        update(recipe, run(workplace), reports=mid_stage(None))  # type: ignore[arg-type]
    update(recipe, run(workplace, "meanwhile"))
    with pytest.raises(TrainingError, match="have changed since it was started"):
        update(recipe, run(workplace), resume=True)


# ---- small parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "following"), [("tiny-lungs", "tiny-lungs.2"), ("tiny-lungs.2", "tiny-lungs.3"), ("tiny-lungs.9", "tiny-lungs.10"), ("v1.5-lungs", "v1.5-lungs.2")]
)
def test_names_count_on(name: str, following: str) -> None:
    """From the second on with a number behind the name."""
    assert next_name(Asset(name=name, kind="decoder", file="f", bytes=1, sha256="0" * 64, licence="MIT", labels=("x",))) == following


def test_an_existing_decoder_as_a_recipe(workplace: Path) -> None:
    """Its labels, as deep as it is; open ends come from the new recipe, which may name those of other decoders too."""
    base = Base.open("tiny")
    asset = base.decoder("lungs")
    made = decoder_recipe("lungs", open_decoder(asset, base)[1], {"lung_left": "both", "trachea": "inferior"}, ["trachea"])
    assert (made.name, made.labels, made.widths, made.kernels, made.convs) == ("lungs", ("lung_left", "lung_right"), (8,), (3,), (1,))
    assert made.open_ends == {"lung_left": "both"}
    with pytest.raises(RecipeError, match="names 'lnug_left', which the model does not segment"):
        decoder_recipe("lungs", open_decoder(asset, base)[1], {"lnug_left": "both"}, ["trachea"])


def test_cards_add_up() -> None:
    """Pruning rates multiply what is left, data are joined without repeats, what is empty in the new card stays as it was."""
    old = {"pruning_rate": 0.9, "datasets": ["a"], "cases": ["1"], "licence": "MIT", "parameters_dense": 100, "pathological": True}
    new = {"pruning_rate": 0.5, "datasets": ["a", "b"], "cases": ["2"], "licence": "", "parameters_dense": 10, "flops_per_window_dense": 7, "seed": 0}
    assert renewed(old, new) == {
        "pruning_rate": 0.95, "datasets": ["a", "b"], "cases": ["1", "2"], "licence": "MIT", "parameters_dense": 100,
        "flops_per_window_dense": 7, "pathological": True, "seed": 0,
    }  # fmt: skip
    assert renewed({}, new)["pruning_rate"] == 0.5


def test_a_renewed_card_names_the_cases_of_its_own_dice() -> None:
    """Cases that the old decoder was judged on do not stand beside the Dice of the new one; without a new Dice they stay."""
    common = {"pruning_rate": 0.0, "datasets": [], "cases": [], "parameters_dense": 1, "flops_per_window_dense": 1}
    old = {**common, "held_out_cases": ["v"], "dice_on_the_models_grid": {"liver": 0.9}}
    judged = {**common, "held_out_cases": [], "training_cases_scored": ["t"], "dice_on_the_models_grid": {"liver": 0.8}}
    card = renewed(old, judged)
    assert (card["held_out_cases"], card["training_cases_scored"]) == ([], ["t"])
    assert renewed(old, {**judged, "training_cases_scored": [], "dice_on_the_models_grid": {}})["held_out_cases"] == ["v"]


def test_a_ticket_is_read_from_the_weights(workplace: Path) -> None:
    """The base decoder of these tests is dense: nothing in it is dead."""
    base = Base.open("tiny")
    from clseg.network.checkpoint import build_decoder

    ticket = Ticket.of(build_decoder(open_decoder(base.decoder("lungs"), base)[1], base.spec))
    assert ticket.alive == ticket.total
