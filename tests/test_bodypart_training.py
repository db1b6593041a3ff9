"""Body-part training: order without labels, landmarks for the scale, ranges from what was learnt, and an honest measure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import RecipeError, TrainingError
from clseg.inference.bodypart import score_scan
from clseg.io.files import read
from clseg.network.bodypart import BodypartSpec, load_bodypart
from clseg.recipe import read_recipe, to_dict
from clseg.recipe.bodypart import BodypartRecipe
from clseg.training import bodypart as training
from clseg.training.ranges import SLACK, View, range_of, ranges
from clseg.training.run import Reports
from clseg.training.slices import BODY_MM, SliceBatch, SliceDraws, SliceScan, known_landmarks, landmarks_of, read_by_eye
from tests.small_dataset import write_dataset
from tests.test_bodypart_scores import Brightness

TOML = """
name = "small"
seed = 3
threads = 1
landmarks = "by_eye.csv"

[[dataset]]
name = "phantoms"
index = "dataset/index.csv"
cases = ["*"]
masks = { lung_left = "lungs.nii.gz:1", lung_right = "lungs.nii.gz:2" }

[scorer]
widths = [8, 16]
size = 32
spacing_mm = 12.0

[augment]
crop_probability = 0.0

[optim]
iterations = 120
batch = 3
rate = 1e-2
warmup = 5
average = 0.9
checkpoint_every = 60
"""


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training sets torch's threads and denormals for the process; other tests shall not notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


BY_EYE = "case,landmark,z_mm\nc,lung_left_bottom,120\n"


def small_recipe(folder: Path, **optim: int) -> BodypartRecipe:
    """Three phantoms, one of them for validation, and a recipe that learns their order in seconds."""
    if not (folder / "small.toml").is_file():
        write_dataset(folder)
        (folder / "small.toml").write_text(TOML)
        (folder / "by_eye.csv").write_text(BY_EYE)
    recipe = read_recipe(folder / "small.toml", BodypartRecipe)
    return dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, **optim))


def made_up(name: str = "a", n: int = 40, *, step: float = 5.0, bottom_mm: float = 0.0, landmarks: dict[str, float] | None = None) -> SliceScan:
    """A scan of 8 × 8 pixels whose brightness grows with height in the body: 0 at the pelvis bottom, 255 at the head top."""
    z = (np.arange(n) * step).astype(np.float32)
    grey = np.clip((z + bottom_mm) / BODY_MM * 255, 0, 255).round().astype(np.uint8)
    slices = np.broadcast_to(grey[:, None, None], (n, 8, 8)).copy()
    body = np.packbits(np.ones((n, 8, 8), bool), axis=-1)
    return SliceScan(name, "made_up", 1.0, slices, body, z, {}, landmarks or {})


def bright_scorer(**facts: float) -> Brightness:
    return Brightness(dataclasses.replace(BodypartSpec(widths=(4,), size=8, smooth_mm=0.0), **facts))


# ---- order --------------------------------------------------------------------------------------------------------


def batch_of(z: list[float], scan: list[int], body: list[float]) -> SliceBatch:
    return SliceBatch(torch.zeros(len(z), 1, 8, 8), torch.tensor(scan), torch.tensor(z), torch.tensor(body))


def test_scores_of_one_per_ten_centimetres_have_no_loss() -> None:
    """α = 1 and β = 0.01/mm: the loss is zero where a score rises by 1 per 100 mm, whatever it begins at."""
    rule = BodypartRecipe.__dataclass_fields__["order"].default_factory()
    z = torch.tensor([0.0, 30.0, 250.0])
    assert float(training.order_errors(7 + z / 100, z, rule).max()) == pytest.approx(0, abs=1e-12)


def test_the_loss_of_two_slices_can_be_done_by_hand() -> None:
    """Equal scores 100 mm apart: (sigmoid(1) − 0.5)² for both pairs, nothing for a slice with itself."""
    rule = BodypartRecipe.__dataclass_fields__["order"].default_factory()
    batch = batch_of([0.0, 100.0], [0, 0], [float("nan")] * 2)
    expected = (1 / (1 + np.exp(-1)) - 0.5) ** 2 / 2
    assert float(training.within(torch.zeros(2), batch, rule)) == pytest.approx(expected, rel=1e-5)


def test_slices_of_different_scans_are_compared_in_the_body_alone() -> None:
    """`within` never compares two scans, `across` compares only placed ones, by their height in the body."""
    rule = BodypartRecipe.__dataclass_fields__["order"].default_factory()
    nan = float("nan")
    raw = torch.tensor([0.0, 1.0, 3.0])
    apart = batch_of([0.0, 0.0, 0.0], [0, 1, 2], [0.0, 100.0, 300.0])
    assert float(training.within(raw, apart, rule)) == 0
    assert float(training.across(raw, apart, rule)) == pytest.approx(0, abs=1e-12)
    unplaced = batch_of([0.0, 0.0, 0.0], [0, 1, 2], [nan, nan, 300.0])
    loss = training.across(raw.requires_grad_(), unplaced, rule)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(raw.grad).all()


def test_draws_repeat_and_stay_in_range(tmp_path: Path) -> None:
    """The same iteration gives the same batch, another one another; slices stay in [-1, 1], heights in the scan."""
    recipe = small_recipe(tmp_path)
    recipe = dataclasses.replace(recipe, scorer=dataclasses.replace(recipe.scorer, size=8, widths=(4,)))
    scans = [made_up("a", bottom_mm=100, landmarks={"pelvis_bottom": -100.0}), made_up("b", 30)]
    draws = SliceDraws(scans, recipe)
    one, again, other = draws.batch(1), draws.batch(1), draws.batch(2)
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (3 * 8, 1, 8, 8)
    assert float(one.images.abs().max()) <= 1
    assert float(one.z_mm.max()) <= 195
    placed = ~one.body_mm.isnan() | ~other.body_mm.isnan()
    assert placed.any()
    assert torch.allclose(one.body_mm[~one.body_mm.isnan()], one.z_mm[~one.body_mm.isnan()] + 100)


def test_scans_of_one_slice_are_not_drawn(tmp_path: Path) -> None:
    """There is no order in a single slice; a recipe of nothing else is refused."""
    recipe = small_recipe(tmp_path)
    assert SliceDraws([made_up(n=1), made_up(n=2)], recipe).shares.tolist() == [0, 1]
    with pytest.raises(RecipeError, match="two slices"):
        SliceDraws([made_up(n=1)], recipe)


# ---- landmarks ----------------------------------------------------------------------------------------------------


def test_the_table_of_landmarks_runs_from_feet_to_head() -> None:
    """0 is the pelvis bottom, 1 the head top, every edge is known, and names are unique."""
    table = {landmark.name: landmark for landmark in known_landmarks()}
    assert len(table) == len(known_landmarks())
    assert table["pelvis_bottom"].height == 0
    assert table["head_top"].height == 1
    assert table["knee_joint"].height < 0
    for landmark in known_landmarks():
        assert (landmark.edge in ("bottom", "top")) == bool(landmark.structures), landmark.name


def test_a_landmark_at_the_end_of_a_scan_is_not_seen() -> None:
    """Hips that begin at the first slice may go on below; their crest in the middle counts; the higher side decides."""
    z = np.arange(10) * 5.0
    left, right = np.zeros(10, bool), np.zeros(10, bool)
    left[:5], right[:4] = True, True
    assert landmarks_of({"hip_left": left, "hip_right": right}, z) == {"iliac_crest_top": 20.0}


def test_a_scan_is_placed_by_the_median_of_its_landmarks() -> None:
    """A pelvis bottom at 50 mm means that the scan begins 50 mm below; one stray landmark of three changes nothing."""
    assert made_up(landmarks={"pelvis_bottom": 50.0}).bottom_mm == -50
    crest = 50 + 0.253 * BODY_MM
    assert made_up(landmarks={"pelvis_bottom": 50.0, "iliac_crest_top": crest, "head_top": 0.0}).bottom_mm == pytest.approx(-50)
    assert made_up().bottom_mm is None


@pytest.mark.parametrize("text", ["case,landmark\na,knee_joint\n", "case,landmark,z_mm\na,left_ear,3\n", "case,landmark,z_mm\na,knee_joint,high\n"])
def test_landmarks_read_by_eye_are_checked(tmp_path: Path, text: str) -> None:
    """A missing column, an unknown landmark and a height that is no number are refused."""
    recipe = small_recipe(tmp_path)
    (tmp_path / "by_eye.csv").write_text(text)
    with pytest.raises(RecipeError, match=r"by_eye\.csv"):
        read_by_eye(recipe)


# ---- scale and measure --------------------------------------------------------------------------------------------


def placed_scans() -> list[SliceScan]:
    """Three scans of one body with landmarks at their nominal heights."""
    nominal = {landmark.name: landmark.height * BODY_MM for landmark in known_landmarks()}
    scans = []
    for name, bottom in (("pelvis", 0.0), ("chest", 300.0), ("head", 600.0)):
        seen = {k: mm - bottom for k, mm in nominal.items() if 5 < mm - bottom < 190}
        scans.append(made_up(name, bottom_mm=bottom, landmarks=seen))
    return scans


def test_landmarks_give_back_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are 3·height − 1 get gain 1/3 and offset 1/3, whatever legs say."""

    class Line(Brightness):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x) - 1

    monkeypatch.setattr(training, "_with", lambda scorer, **facts: Line(dataclasses.replace(scorer.spec, **facts)))
    leg = made_up("leg", bottom_mm=300.0, landmarks={"ankle_joint": 100.0})
    spec = training.calibrate(Line(bright_scorer().spec), [*placed_scans(), leg]).spec
    assert spec.gain == pytest.approx(1 / 3, rel=0.01)
    assert spec.offset == pytest.approx(1 / 3, rel=0.01)
    assert spec.slope[0] < 1 / BODY_MM < spec.slope[1]


def test_one_false_landmark_hardly_moves_the_line() -> None:
    """Of eleven points on a line one is moved by half the body: the line keeps its slope within a tenth, least squares loses more."""
    x = np.linspace(0, 1, 11)
    y = 2 * x + 1
    y[9] -= 0.5
    gain, offset = training._line(list(x), list(y))
    assert gain == pytest.approx(2, rel=0.1)
    assert abs(gain - 2) < abs(np.polyfit(x, y, 1)[0] - 2) / 2
    assert offset == pytest.approx(1, abs=0.03)


def test_without_landmarks_there_is_no_scale() -> None:
    """Order alone cannot say where the pelvis begins."""
    with pytest.raises(TrainingError, match="at least two landmarks"):
        training.calibrate(training.averaged(_untrained()), [SliceScan(**{**made_up().__dict__, "slices": np.zeros((40, 32, 32), np.uint8)})])


def _untrained():
    from clseg.training.loop import learner

    recipe = BodypartRecipe(name="x", dataset=(_dataset(),), scorer=dataclasses.replace(_scorer(), widths=(4,), size=32))
    return learner(training.Ordering(recipe), recipe.optim)


def _dataset():
    from clseg.recipe import DatasetRecipe

    return DatasetRecipe("d", "index.csv")


def _scorer():
    from clseg.recipe.bodypart import ScorerRecipe

    return ScorerRecipe()


def test_a_perfect_scorer_has_no_error() -> None:
    """Brightness that is height: correlation 1 and landmarks within the rounding of a grey level (3.5 mm)."""
    result = training.evaluate(placed_scans(), bright_scorer(), placed_scans())
    assert all(case["spearman"] > 0.999 for case in result["cases"].values())
    assert result["summary"]["landmark_error_mm"]["mean"] < 3
    assert result["summary"]["landmark_deviation_mm"]["mean"] < 1e-6
    assert result["summary"]["spearman_below_0_98"] == []


def test_an_offset_is_an_error_in_mm() -> None:
    """Scores that are all 0.05 too high miss every landmark by 44 mm, though the order is right."""
    result = training.evaluate(placed_scans(), bright_scorer(offset=0.05))
    assert result["summary"]["landmark_error_mm"]["median"] == pytest.approx(0.05 * BODY_MM, abs=4)
    assert result["summary"]["spearman_min"] > 0.999


def test_a_scan_upside_down_is_seen() -> None:
    """Slices in reverse order have a correlation of −1."""
    scan = placed_scans()[0]
    turned = dataclasses.replace(scan, slices=scan.slices[::-1].copy())
    assert training.evaluate([turned], bright_scorer())["summary"]["spearman_min"] < -0.999


# ---- the whole ----------------------------------------------------------------------------------------------------


def test_training_learns_the_order_of_phantoms(tmp_path: Path) -> None:
    """From three painted scans to a file that puts the slices of the unseen one in order."""
    run = tmp_path / "run"
    file = training.train_bodypart(small_recipe(tmp_path, iterations=160), run)
    results = json.loads((run / "evaluation.json").read_text())
    assert results["validation"]["cases"]["c"]["spearman"] > 0.8
    assert (run / "metrics.csv").read_text().splitlines()[0].endswith("order,across")
    scores = score_scan(read(tmp_path / "dataset" / "c" / "ct.nii.gz"), load_bodypart(file))
    assert len(scores.values) == 48
    again = training.evaluate(training.load_scans(small_recipe(tmp_path), run / "cache", Reports(), "val"), load_bodypart(file))
    assert again["cases"]["c"]["spearman"] == pytest.approx(results["validation"]["cases"]["c"]["spearman"], abs=1e-9)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Stopped after a few steps and resumed, or never stopped: the same bytes but for nothing."""
    recipe = small_recipe(tmp_path, iterations=60)
    whole = training.train_bodypart(recipe, tmp_path / "whole")
    steps: list[int] = []
    stopping = Reports(step=lambda step: steps.append(step.iteration), stop=lambda: len(steps) >= 25)
    with pytest.raises(KeyboardInterrupt):
        training.train_bodypart(recipe, tmp_path / "parts", reports=stopping)
    parts = training.train_bodypart(recipe, tmp_path / "parts", resume=True)
    assert whole.read_bytes() == parts.read_bytes()


def test_a_recipe_survives_a_round_trip(tmp_path: Path) -> None:
    """What run folders store is what was read."""
    from clseg.recipe.reader import from_dict

    recipe = small_recipe(tmp_path)
    assert from_dict(to_dict(recipe), recipe.folder, BodypartRecipe) == recipe


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("widths = [8, 16]", "widths = [8, 16, 32, 64, 128, 256]"),
        ("size = 32", "sise = 32"),
        ("rate = 1e-2", "rate = 0.0"),
        ('name = "small"', 'name = "a/b"'),
        ("[augment]", "[order]\nslices = 1\n[augment]"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str) -> None:
    """Unknown keys and impossible numbers are errors before anything is read."""
    small_recipe(tmp_path)
    (tmp_path / "small.toml").write_text(TOML.replace(old, new))
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "small.toml", BodypartRecipe)


def test_the_recipe_of_the_starter_can_be_read() -> None:
    """recipes/bodypart.toml and its landmarks name nothing unknown."""
    recipe = read_recipe(Path(__file__).parents[1] / "recipes" / "bodypart.toml", BodypartRecipe)
    assert read_by_eye(recipe)


# ---- ranges -------------------------------------------------------------------------------------------------------

SCORES = np.linspace(0, 1, 101)


def seen(low: float, high: float, name: str = "liver", scores: np.ndarray = SCORES) -> View:
    return View(scores, {name: (scores >= low - 1e-9) & (scores <= high + 1e-9)})


def test_a_range_is_a_quarter_wider_on_either_side() -> None:
    """Four cases from 0.4 to 0.6: percentiles 0.401 and 0.599, extent 0.198, so 0.3515 to 0.6485."""
    low, high = range_of([seen(0.4, 0.6)] * 4, "liver")
    assert low == pytest.approx(0.401 - 0.25 * 0.198, abs=1e-6)
    assert high == pytest.approx(0.599 + 0.25 * 0.198, abs=1e-6)


def test_few_cases_get_a_wider_margin() -> None:
    """One case: half its extent on either side."""
    low, high = range_of([seen(0.4, 0.6)], "liver")
    assert (low, high) == (pytest.approx(0.401 - 0.5 * 0.198), pytest.approx(0.599 + 0.5 * 0.198))


def test_what_the_scan_cuts_is_open() -> None:
    """A liver at the scan's last slice may go on: nobody knows its upper end, while the lower one is known."""
    low, high = range_of([seen(0.4, 1.0)] * 4, "liver")
    assert low is not None
    assert high is None


def test_what_contours_reach_in_part_is_open() -> None:
    """`open_ends` of a recipe open the range at that end, or both."""
    views = [seen(0.4, 0.6, "esophagus")] * 4
    assert range_of(views, "esophagus", open_end="both") == (None, None)
    low, high = range_of(views, "esophagus", open_end="inferior")
    assert low is None
    assert high is not None


def test_one_whole_case_tells_an_end_that_others_cut() -> None:
    """Cut cases are left out where they are cut, not averaged in."""
    low, high = range_of([seen(0.4, 1.0), seen(0.4, 0.7), seen(0.4, 0.7), seen(0.4, 0.7)], "liver")
    assert high == pytest.approx(0.6985 + 0.25 * np.mean([0.594, 0.297, 0.297, 0.297]), abs=1e-3)
    assert low < 0.4


def test_lesions_may_lie_a_deviation_beyond() -> None:
    """[min − SD, max + SD] over all slices, even where the scan ends."""
    low, high = range_of([seen(0.4, 0.6, "tumour")] * 3, "tumour", lesion=True)
    spread = np.tile(SCORES[40:61], 3).std()
    assert (low, high) == (pytest.approx(0.4 - spread), pytest.approx(0.6 + spread))


def test_a_decoder_covers_all_its_structures_or_is_unbounded() -> None:
    """The union of its organs; one organ that no case shows makes the range unknown."""
    views = [View(SCORES, {**seen(0.2, 0.3, "a").present, **seen(0.6, 0.7, "b").present})] * 3
    found = ranges(views, {"both": ["a", "b"], "unknown": ["a", "c"], "open": ["a", "b"]}, open_ends={})
    assert found["both"][0] < 0.2
    assert found["both"][1] > 0.7
    assert found["unknown"] is None
    assert ranges(views, {"open": ["a", "b"]}, open_ends={"b": "superior"})["open"][1] is None


@given(st.lists(st.tuples(st.floats(0.05, 0.9), st.floats(0.01, 0.5)), min_size=1, max_size=6))
def test_no_case_that_was_learnt_from_is_cut(cases: list[tuple[float, float]]) -> None:
    """Whatever the cases, the range reaches beyond every one's percentiles by the regressor's error."""
    views = [seen(low, min(0.98, low + extent)) for low, extent in cases]
    views = [view for view in views if view.present["liver"].any()]
    if not views:
        return
    low, high = range_of(views, "liver")
    for view in views:
        inside = view.scores[view.present["liver"]]
        assert low is None or low <= np.percentile(inside, 0.5) - SLACK + 1e-9
        assert high is None or high >= np.percentile(inside, 99.5) + SLACK - 1e-9


def test_limits_are_the_least_that_a_range_covers() -> None:
    """A range is never narrower than the limits; an end that no case shows is there, and open without them."""
    from clseg.training.ranges import _limited

    assert _limited((0.0, None), (0.1, 0.9)) == (0.0, 0.9)
    assert _limited((0.2, 0.4), (0.1, 0.9)) == (0.1, 0.9)
    assert _limited(None, (0.1, 0.9)) == (0.1, 0.9)
    assert _limited((None, 0.4), ()) == (None, 0.4)
    assert _limited(None, ()) is None


def test_labels_of_one_decoder_have_ranges_of_their_own() -> None:
    """Limits by label hold for that label alone; the decoder's range goes from the lowest to the highest."""
    from clseg.recipe import DecoderRecipe
    from clseg.training.ranges import DecoderRange, _of_decoder

    decoder = DecoderRecipe("neck", ("larynx", "esophagus"), limits={"larynx": (0.7, 0.9), "esophagus": (0.3, 0.8)})
    found = _of_decoder(decoder, {"larynx": (0.72, None), "esophagus": None})
    assert found == DecoderRange((0.3, 0.9), {"larynx": (0.7, 0.9), "esophagus": (0.3, 0.8)})
    assert found.apart == found.labels
    assert DecoderRange((0.3, 0.9), {"liver": (0.3, 0.9)}).apart == {}


def test_a_list_of_limits_holds_for_every_label() -> None:
    """[0.3, 0.9] is the least for both, and one that is seen beyond is wider."""
    from clseg.recipe import DecoderRecipe
    from clseg.training.ranges import _of_decoder

    decoder = DecoderRecipe("neck", ("larynx", "esophagus"), limits=(0.3, 0.9))
    found = _of_decoder(decoder, {"larynx": (0.2, 0.4), "esophagus": (0.5, 0.6)})
    assert (found.whole, found.labels) == ((0.2, 0.9), {"larynx": (0.2, 0.9), "esophagus": (0.3, 0.9)})


def test_bounds_that_new_cases_cannot_tell_are_those_that_are_known() -> None:
    """An open end keeps the known bound, a label that was never seen its whole range; what is told is not touched."""
    from clseg.training.ranges import DecoderRange

    known = DecoderRange((0.2, 1.1), {"a": (0.25, 1.1), "b": (0.7, 1.0)})
    new = DecoderRange((None, 1.2), {"a": (None, 1.2), "b": None})
    assert new.completed(known) == DecoderRange((0.2, 1.2), {"a": (0.25, 1.2), "b": (0.7, 1.0)})
    assert new.completed(DecoderRange()) == new


def test_ranges_are_joined_label_by_label() -> None:
    """Each bound is the further one, an open one stays open, and a label that one side does not know has no range of its own."""
    from clseg.training.ranges import DecoderRange

    old = DecoderRange((0.2, 0.8), {"a": (0.2, 0.5), "b": (0.4, 0.8)})
    assert old.joined(DecoderRange((0.1, 0.6), {"a": (0.3, 0.6)})) == DecoderRange((0.1, 0.8), {"a": (0.2, 0.6)})
    assert old.joined(DecoderRange((0.1, None), {"a": None, "b": (0.1, None)})) == DecoderRange((0.1, None), {"a": None, "b": (0.1, None)})
