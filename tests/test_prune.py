"""Facts about pruning a decoder: it climbs as far as the Dice allows, becomes smaller for real, and takes its own place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clseg.errors import RecipeError, TrainingError
from clseg.manifest import FILE_NAME
from clseg.network.checkpoint import build_decoder, load, read_header
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.spec import DecoderSpec, Level, Stage
from clseg.pipeline import segment
from clseg.recipe import LadderRecipe, PruneRecipe
from clseg.training.base import Base
from clseg.training.course import Course
from clseg.training.ladder import Ladder, Rung
from clseg.training.learn import learn
from clseg.training.loop import Step
from clseg.training.network import start_weights
from clseg.training.pretrain import load_examples
from clseg.training.prune import Climb, _masked, climb, size_of
from clseg.training.reprune import reprune
from clseg.training.run import Reports
from clseg.training.ticket import Ticket, global_l1
from clseg.training.update import decoder_recipe, open_decoder
from clseg.weights import own
from clseg.weights.cache import manifest
from tests.small_dataset import LADDER, SOLID, learn_recipe, prune_recipe

S50, U50, U90 = Rung("structured", 0.5), Rung("unstructured", 0.5), Rung("unstructured", 0.9)


class PowerCut(Exception):
    """Ends a run without any chance to save or to tidy up."""


def run(workplace: Path, name: str = "prune") -> Path:
    return workplace / "runs" / name


def table(folder: Path, name: str = "lungs") -> list[dict[str, str]]:
    with (folder / f"pruning-{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights_of(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in decoder.state_dict().items()}


@pytest.fixture
def course(workplace: Path, without_plots: None) -> Course:
    """A course of the model's own decoder `lungs`."""
    base = Base.open("tiny")
    asset = base.decoder("lungs")
    plan = base.plan(prune_recipe(workplace), (decoder_recipe("lungs", open_decoder(asset, base)[1], {}, []),))
    examples = load_examples(plan, workplace / "runs" / "cache", Reports())
    run(workplace).mkdir()
    return Course(base, plan, run(workplace), examples, examples, Reports())


@pytest.fixture
def dense(course: Course) -> Decoder:
    return build_decoder(open_decoder(course.base.decoder("lungs"), course.base)[1], course.base.spec)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[float]], None]:
    """`judge(values)`: what the held-out cases will say, one value per question; the last one is said for ever."""

    def say(values: Iterable[float]) -> None:
        answers = list(values)
        monkeypatch.setattr(Course, "mean", lambda *_: answers.pop(0) if len(answers) > 1 else answers[0])

    return say


def rule(**changes: object) -> LadderRecipe:
    plain = {"structured": (0.5,), "unstructured": (0.5, 0.9), "multiple": (2,), "iterations": 1, "recovery": 1, "rate": 1e-3, "retries": 1}
    return LadderRecipe(**{**plain, **changes})  # type: ignore[arg-type]


# ---- the climb --------------------------------------------------------------------------------------------------------


def test_without_rungs_nothing_is_pruned(course: Course, dense: Decoder) -> None:
    """The dense decoder itself comes back, and no stage is run."""
    assert climb("lungs", dense, None, rule(structured=(), unstructured=()), course) is dense
    assert not (course.run / "stages").exists()


def test_a_full_climb(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """Half the channels, then 90 % of what is left: widths are even and smaller, one weight in ten lives, τ says how many in all."""
    judge([0.9])
    before = Ticket.of(dense)
    final = climb("lungs", dense, None, rule(), course)
    stage = final.spec.stages[0]
    assert stage.convs[0] < 8
    assert stage.convs[0] % 2 == 0
    ticket = Ticket.of(final)
    assert ticket.alive == pytest.approx(ticket.total / 10, abs=1)
    assert final.spec.labels == dense.spec.labels
    assert [(row["kind"], row["target"], row["verdict"]) for row in table(course.run)] == [
        ("dense", "", "dense"), ("structured", "0.5", "accepted"), ("unstructured", "0.5", "accepted"),
        ("unstructured", "0.9", "accepted"), ("recovered", "", "recovered"),
    ]  # fmt: skip
    assert float(table(course.run)[-1]["tau"]) == pytest.approx(1 - ticket.alive / before.alive, abs=1e-6)
    flops = [int(row["flops"]) for row in table(course.run)]
    assert flops[0] > flops[1] == flops[-1]


def test_a_stage_that_is_not_there_is_passed_over(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """A decoder keeps its last stage: with a single one there is nothing coarser."""
    judge([0.9])
    assert len(dense.spec.stages) == 1
    assert climb("lungs", dense, None, rule(coarser=2, structured=(), unstructured=()), course) is dense


def test_the_finest_stage_can_go(course: Course, judge: Callable[[Iterable[float]], None]) -> None:
    """On an encoder of three levels a decoder of two stages becomes one of one, is trained and resumed as such."""
    judge([0.9])
    levels = course.base.checkpoint.spec.levels
    spec = replace(course.base.checkpoint.spec, levels=(*levels, Level(4, (2, 2, 2), (3, 3, 3), 1)))
    course.base = replace(course.base, checkpoint=replace(course.base.checkpoint, spec=spec))
    course.encoder = Encoder(spec)
    deep = Decoder(DecoderSpec((Stage(4, (4,), (3, 3, 3)), Stage(4, (4,), (3, 3, 3))), ("lung_left", "lung_right")), spec)
    start_weights(deep, 1)
    final = climb("lungs", deep, None, rule(coarser=1, structured=(), unstructured=()), course)
    assert len(final.spec.stages) == 1
    assert [row["kind"] for row in table(course.run)] == ["dense", "coarser", "recovered"]
    course.resume = True
    again = climb("lungs", deep, None, rule(coarser=1, structured=(), unstructured=()), course)
    assert all(torch.equal(a, b) for a, b in zip(final.state_dict().values(), again.state_dict().values(), strict=True))


def test_refused_rungs_leave_the_last_good_state(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """Channels are refused twice, half of the weights accepted, more refused twice: all channels are left, half of the weights."""
    judge([0.9, 0.5, 0.5, 0.9, 0.5, 0.5, 0.9])
    final = climb("lungs", dense, None, rule(), course)
    assert final.spec == dense.spec
    ticket = Ticket.of(final)
    assert ticket.alive == pytest.approx(ticket.total / 2, abs=1)
    assert [(row["kind"], row["verdict"]) for row in table(course.run)[1:]] == [
        ("structured", "again"), ("structured", "stop"), ("unstructured", "accepted"),
        ("unstructured", "again"), ("unstructured", "stop"), ("recovered", "recovered"),
    ]  # fmt: skip


@pytest.mark.parametrize(("afterwards", "kept"), [(0.89, "before"), (float("nan"), "before"), (0.9, "recovered"), (0.95, "recovered")])
def test_a_recovery_that_lost_something_is_taken_back(
    afterwards: float, kept: str, course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]
) -> None:
    """Less than before recovery: the accepted rung's weights come back, whatever a rung may lose; otherwise those that recovered."""
    judge([0.9, 0.9, afterwards])
    told: list[str] = []
    course.reports = Reports(note=told.append)
    final = climb("lungs", dense, None, rule(structured=(), unstructured=(0.5,)), course)
    accepted = build_decoder(load(course.run / "stages/prune/lungs.safetensors"), course.base.spec)
    same = all(torch.equal(a, b) for a, b in zip(final.state_dict().values(), accepted.state_dict().values(), strict=True))
    assert same == (kept == "before")
    assert any("taken back" in line for line in told) == same


def test_a_decoder_beyond_every_rung_says_so(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """Pruned to a half before, there is nothing to try for a rung of 0.4."""
    judge([0.9])
    global_l1(dense, Ticket.of(dense), 0.5).apply_(dense)
    told: list[str] = []
    course.reports = Reports(note=told.append)
    assert climb("lungs", dense, None, rule(structured=(), unstructured=(0.4,)), course) is dense
    assert told == ["lungs: it is smaller already than every rung would make it; the decoder stays as it is"]


def test_nothing_accepted_nothing_pruned(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """When even the first rungs lose too much the decoder keeps all its weights."""
    judge([0.9, 0.1])
    final = climb("lungs", dense, None, rule(retries=0), course)
    assert final.spec == dense.spec
    assert Ticket.of(final).alive == Ticket.of(final).total


def test_a_decoder_that_finds_nothing_is_not_pruned(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """A Dice of 0 cannot be lost: one sentence instead of a decoder pruned to nothing."""
    judge([0.0])
    with pytest.raises(TrainingError, match="finds nothing in the cases of the split 'train', so"):
        climb("lungs", dense, None, rule(), course)


def test_a_rung_that_removes_nothing_is_passed_over(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """Eight channels in multiples of eight cannot become fewer: no try, no row, and the next rung is tried."""
    judge([0.9])
    climb("lungs", dense, None, rule(multiple=(8,), unstructured=(0.5,)), course)
    assert [row["kind"] for row in table(course.run)] == ["dense", "unstructured", "recovered"]


def test_every_try_draws_other_patches(course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None]) -> None:
    """A retried rung is a stage of its own, by its number."""
    judge([0.9, 0.5, 0.9])
    stages: list[str] = []
    course.reports = Reports(stage=lambda name, steps: stages.append(name))
    climb("lungs", dense, None, rule(unstructured=()), course)
    assert stages == ["prune-lungs-structured-0.5-1", "prune-lungs-structured-0.5-2", "recover-lungs"]


def test_survivors_start_from_the_trained_weights(course: Course, dense: Decoder) -> None:
    """Which weights die is decided by the accepted decoder; those that live are rewound to what they were when trained."""
    accepted = build_decoder(load_of(dense, course), course.base.spec)
    start_weights(accepted, 5)
    state = Climb(Ladder((U50,), 0.9), accepted, dense, [], [])
    made = _masked(U50, state)
    assert made is not None
    student, trained, cuts = made
    assert (trained, cuts) == (dense, [])
    for name, mask in Ticket.of(student).masks.items():
        assert torch.equal(student.state_dict()[name][mask], dense.state_dict()[name][mask])
    sizes = torch.cat([weight.abs().flatten() for name, weight in accepted.state_dict().items() if weight.ndim == 5])
    alive = torch.cat([mask.flatten() for mask in Ticket.of(student).masks.values()])
    assert float(sizes[alive].min()) >= float(sizes[~alive].max())
    assert student is not dense


def load_of(decoder: Decoder, course: Course):
    from clseg.network.checkpoint import Checkpoint

    return Checkpoint("decoder", decoder.spec, weights_of(decoder), course.base.key)


@pytest.mark.parametrize("says", [[0.9], [0.9, 0.1]])
def test_the_dense_decoder_stays_as_it_is(
    course: Course, dense: Decoder, judge: Callable[[Iterable[float]], None], says: list[float]
) -> None:
    """Climbing changes no weight of the decoder that it began with, whether rungs are accepted or none is."""
    judge(says)
    before = weights_of(dense)
    climb("lungs", dense, None, rule(), course)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_sizes_are_counted(course: Course, dense: Decoder) -> None:
    """τ 0 for itself; a decoder with a dead half has τ 1/2, as many FLOPs, and a smaller file."""
    whole = size_of(dense, dense, course.base)
    assert (whole.tau, whole.parameters) == (0.0, sum(int(t.half().count_nonzero()) for t in dense.state_dict().values()))
    half = build_decoder(load_of(dense, course), course.base.spec)
    with torch.no_grad():
        for weight in half.parameters():
            if weight.ndim == 5:
                weight.view(-1)[::2] = 0.0
    size = size_of(half, dense, course.base)
    assert size.tau == pytest.approx(0.5, abs=1e-3)
    assert size.flops == whole.flops
    assert size.file_bytes < whole.file_bytes


# ---- `clseg prune` ----------------------------------------------------------------------------------------------------


def test_a_pruned_decoder_takes_its_own_place(workplace: Path, own_home: Path) -> None:
    """Listed as `.2`, smaller, sparse, for the same structures; with table and plot, and a proof that the rest stayed."""
    learned = reprune("tiny", "lungs", prune_recipe(workplace), run(workplace))
    old, new = manifest().asset("tiny-lungs"), manifest().asset("tiny-lungs.2")
    assert manifest().labels_of("tiny") == {"lung_left": ("tiny-lungs.2",), "lung_right": ("tiny-lungs.2",)}
    assert new.bytes < old.bytes / 2
    assert read_header(learned.files["lungs"])["format"] == 2
    spec = load(learned.files["lungs"]).spec
    assert spec.labels == ("lung_left", "lung_right")
    assert spec.stages[0].convs[0] < 8
    assert (run(workplace) / "pruning-lungs.csv").is_file()
    assert (run(workplace) / "pruning-lungs.png").read_bytes()[:4] == b"\x89PNG"
    assert learned.proof is not None
    assert set(learned.proof.weights) == {"tiny-encoder", "tiny-lungs"}
    used = segment(workplace / "probe.nii.gz", model="tiny", device="cpu", offline=True).facts["model"]["weights"]
    assert used["tiny-lungs.2"] == new.sha256
    card = json.loads((own_home / "models" / "tiny-lungs.2.card.json").read_text())
    assert card["pruned_from"] == old.sha256
    assert card["pruning_rate"] > 0.9
    assert card["datasets"][0]["name"] == "mapped"


@pytest.mark.usefixtures("without_plots")
def test_into_another_model_leaves_the_original(workplace: Path) -> None:
    """Both can be asked for, each under its model's name; the proof covers the original's own structures."""
    learned = reprune("tiny", "lungs", prune_recipe(workplace, LADDER, into="small"), run(workplace))
    assert manifest().labels_of("tiny")["lung_left"] == ("tiny-lungs",)
    assert manifest().labels_of("small")["lung_left"] == ("small-lungs",)
    assert learned.proof is not None
    assert learned.proof.changed == {"lung_left": 0, "lung_right": 0}
    assert set(segment(workplace / "probe.nii.gz", model="small", device="cpu", offline=True).names) == {"lung_left", "lung_right"}
    with pytest.raises(RecipeError, match="Model 'small' has a decoder 'lungs' already"):
        reprune("tiny", "lungs", prune_recipe(workplace, LADDER, into="small"), run(workplace, "again"))


@pytest.mark.usefixtures("without_plots")
def test_a_supported_decoder_can_be_pruned(workplace: Path) -> None:
    """Its support heads shrink with it, its supporter stays the same, and it works."""
    learn(learn_recipe(workplace, SOLID, "[ladder]\nstructured = []\nunstructured = []"), run(workplace, "learn"))
    learned = reprune("tiny", "solid", prune_recipe(workplace), run(workplace))
    spec = load(learned.files["solid"]).spec
    assert [one.labels for one in spec.supporters] == [("lung_left", "lung_right")]
    assert manifest().labels_of("tiny")["liver"] == ("tiny-solid.2",)
    result = segment(workplace / "probe.nii.gz", model="tiny", device="cpu", offline=True)
    assert set(result.names) == {"lung_left", "lung_right", "liver", "skeleton"}


@pytest.mark.usefixtures("without_plots")
def test_pruning_rates_add_up(workplace: Path) -> None:
    """Pruned to a half and then to a half of that, three quarters of the dense weights are gone, and the card says so."""
    half = "[ladder]\nstructured = []\nunstructured = [0.5]\niterations = 1\nrecovery = 1\nallowed_loss = 1.0"
    reprune("tiny", "lungs", prune_recipe(workplace, half), run(workplace, "one"))
    quarter = half.replace("[0.5]", "[0.75]")
    learned = reprune("tiny", "lungs", prune_recipe(workplace, quarter), run(workplace, "two"))
    assert manifest().labels_of("tiny")["lung_left"] == ("tiny-lungs.3",)
    assert learned.results["lungs"].card["pruning_rate"] == pytest.approx(0.75, abs=0.01)


def mid_rung(patch: pytest.MonkeyPatch) -> Reports:
    seen: list[Step] = []

    def step(step: Step) -> None:
        seen.append(step)
        if len(seen) == 3:
            raise PowerCut

    return Reports(step=step)


def just_listed(patch: pytest.MonkeyPatch) -> Reports:
    def cut(*args: object) -> None:
        own.add(*args)  # type: ignore[arg-type]
        raise PowerCut

    patch.setattr("clseg.training.publish.added", cut)
    return Reports()


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("moment", [mid_rung, just_listed])
def test_a_killed_pruning_ends_as_if_it_had_not_been(workplace: Path, own_home: Path, moment: Callable[[pytest.MonkeyPatch], Reports]) -> None:
    """Killed on a rung or just after listing, and resumed: the same weights and the same manifest, byte for byte."""
    recipe: PruneRecipe = prune_recipe(workplace)
    before = (own_home / FILE_NAME).read_bytes()
    straight = reprune("tiny", "lungs", recipe, run(workplace, "straight"))
    after = (own_home / FILE_NAME).read_bytes()
    (own_home / FILE_NAME).write_bytes(before)
    with pytest.MonkeyPatch.context() as patch:
        reports = moment(patch)
        with pytest.raises(PowerCut):
            reprune("tiny", "lungs", recipe, run(workplace), reports=reports)
    resumed = reprune("tiny", "lungs", recipe, run(workplace), resume=True)
    assert resumed.files["lungs"].read_bytes() == straight.files["lungs"].read_bytes()
    assert (own_home / FILE_NAME).read_bytes() == after
    assert table(run(workplace)) == table(run(workplace, "straight"))


def test_a_ladder_is_checked_before_anything_is_done(workplace: Path) -> None:
    """Rungs that fall, and shares beyond 1, are refused by the recipe."""
    for wrong in ("structured = [0.5, 0.4]", "unstructured = [1.0]"):
        with pytest.raises(RecipeError, match="must rise between 0 and 1"):
            prune_recipe(workplace, f"[ladder]\n{wrong}")
    with pytest.raises(RecipeError, match="0 or more, given -1"):
        prune_recipe(workplace, "[ladder]\ncoarser = -1")
    recipe = prune_recipe(workplace)
    assert replace(recipe, name="x").ladder == recipe.ladder
