"""Facts about patches: what is drawn, and that image and labels stay together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from clseg.errors import TrainingError
from clseg.recipe import (
    AugmentRecipe,
    DatasetRecipe,
    DecoderRecipe,
    EncoderRecipe,
    GridRecipe,
    IntensityRecipe,
    OptimRecipe,
    Recipe,
)
from clseg.training.examples import IGNORE, Example
from clseg.training.patches import Patch, Patches
from clseg.training.synthesis import build_atlas
from clseg.volume import Volume

SIZE = 48
PATCH = 16
STAY = AugmentRecipe(
    shift_hu=0.0, contrast=(1.0, 1.0), noise_probability=0.0, blur_probability=0.0, thick_slices_probability=0.0, clear_outside_probability=0.0
)  # fmt: skip
TURN = replace(STAY, rotation_deg=30.0, scale=(0.8, 1.25))
STRAIGHT = replace(STAY, rotation_deg=0.0, scale=(1.0, 1.0), stretch=0.0)


def recipe(augment: AugmentRecipe = TURN, *decoders: str, **optim: float) -> Recipe:
    """Decoders with two labels each, datasets 'one' and 'two', intensities that are passed on as HU."""
    return Recipe(
        name="t",
        decoder=tuple(DecoderRecipe(name, (f"{name}_1", f"{name}_2")) for name in decoders or ("d",)),
        dataset=(DatasetRecipe("one", index="i.csv"), DatasetRecipe("two", index="i.csv", weight=3.0)),
        seed=11,
        encoder=EncoderRecipe(strides=(1, 2, 2, 2, 1)),
        grid=GridRecipe(patch=(PATCH,) * 3),
        intensity=IntensityRecipe(-2000.0, 2000.0, 0.0, 1.0),
        augment=augment,
        optim=OptimRecipe(batch=2, **{"foreground": 1.0, "negatives": 0.0, **optim}),
    )


def example(target: np.ndarray, hu: np.ndarray | None = None, point: int = SIZE // 2, dataset: str = "one") -> Example:
    """One decoder 'd', both labels annotated, one point where patches are centred."""
    hu = target.astype(np.int16) * 100 if hu is None else hu
    points = (np.full((1, 3), point, np.int16), np.zeros((0, 3), np.int16))
    return Example("case", dataset, hu, {"d": target}, {"d": (True, True)}, {"d": points})


def halves(axis: int) -> np.ndarray:
    """Label 1 below the middle of an axis, label 2 above; uint8."""
    return 1 + (np.indices((SIZE,) * 3)[axis] >= SIZE // 2).astype(np.uint8)


def draw(patches: Patches, seed: int) -> Patch:
    return patches.patch(np.random.default_rng(seed))


def both(one: Example, plan: Recipe, device: str = "cpu") -> Patches:
    return Patches([one, replace(one, dataset="two")], plan, device)


@pytest.fixture(scope="module")
def split() -> list[Patches]:
    """Per axis a source of patches around the border between label 1 and label 2."""
    return [both(example(halves(axis)), recipe()) for axis in range(3)]


def test_a_patch_follows_from_seed_and_iteration(split: list[Patches]) -> None:
    """The same iteration gives the same batch again, in any order; another iteration, place or seed gives another."""
    first, again = split[0].batch(5), both(example(halves(0)), recipe()).batch(5)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.targets["d"], other.targets["d"])
    assert not torch.equal(first[0].image, split[0].batch(6)[0].image)
    assert not torch.equal(first[0].image, first[1].image)
    reseeded = Patches([e for mine in split[0].by_dataset.values() for e in mine], replace(recipe(), seed=12))
    assert not torch.equal(first[0].image, reseeded.batch(5)[0].image)


def test_shapes_and_types(split: list[Patches]) -> None:
    """Image float32 with one channel, targets uint8 without, both of the patch's size; annotation beside them."""
    patch = draw(split[0], 0)
    assert (patch.image.dtype, tuple(patch.image.shape)) == (torch.float32, (1, PATCH, PATCH, PATCH))
    assert (patch.targets["d"].dtype, tuple(patch.targets["d"].shape)) == (torch.uint8, (PATCH,) * 3)
    assert patch.annotated == {"d": (True, True)}


@pytest.mark.parametrize("axis", [0, 1, 2])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_labels_stay_with_the_image(split: list[Patches], axis: int, seed: int) -> None:
    """HU painted as 100 × label: however the patch is turned and scaled, HU above 150 is label 2 and below it label 1."""
    patch = draw(split[axis], seed)
    hu, target = patch.image[0], patch.targets["d"]
    clear = (hu - 150).abs() > 0.01  # half-way between two voxels either label is right
    assert set(target.unique().tolist()) == {1, 2}
    assert torch.equal((hu > 150)[clear], (target == 2)[clear])


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_left_stays_left(split: list[Patches], seed: int) -> None:
    """x grows to the patient's right in every patch: the right half (label 2) always lies at larger x."""
    x = torch.arange(PATCH).view(-1, 1, 1).expand(PATCH, PATCH, PATCH).float()
    target = draw(split[0], seed).targets["d"]
    assert x[target == 2].mean() > x[target == 1].mean() + PATCH / 4


def test_beyond_the_scan_there_is_air_and_nothing_is_known() -> None:
    """Around a corner of a scan of 1000 HU: targets are 255 outside, and a voxel further out the image is air."""
    full = example(np.ones((SIZE,) * 3, np.uint8), np.full((SIZE,) * 3, 1000, np.int16), point=0)
    patch = draw(both(full, recipe(STRAIGHT)), 3)
    hu, target = patch.image[0].numpy(), patch.targets["d"].numpy()
    assert set(np.unique(target)) == {1, IGNORE}
    outside = target == IGNORE
    assert outside.mean() > 0.3
    assert (hu[binary_erosion(outside, np.ones((3, 3, 3)), border_value=1)] == -1024).all()
    assert (hu[binary_erosion(~outside, np.ones((3, 3, 3)), border_value=1)] == pytest.approx(1000, abs=1e-2))


def test_unknown_voxels_stay_unknown() -> None:
    """255 in an example is 255 in the patch, never mixed with its neighbours."""
    target = np.where(halves(2) == 2, IGNORE, 1).astype(np.uint8)
    found = draw(both(example(target), recipe()), 0).targets["d"]
    assert set(found.unique().tolist()) == {1, IGNORE}


def test_datasets_are_drawn_by_their_weight() -> None:
    """Weights 1 and 3: a quarter of 400 patches comes from the first (±5 standard deviations)."""
    small = {name: np.full((4, 4, 4), hu, np.int16) for name, hu in (("one", 100), ("two", 200))}
    cases = [example(np.ones((4, 4, 4), np.uint8), hu, point=2, dataset=name) for name, hu in small.items()]
    source = Patches(cases, recipe(STRAIGHT))
    share = np.mean([float(draw(source, seed).image.max()) < 150 for seed in range(400)])
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5


def test_patches_are_centred_on_structures() -> None:
    """With foreground 1 a single labelled voxel is in every patch (jitter is a fifth of the patch)."""
    target = np.zeros((SIZE,) * 3, np.uint8)
    target[30:32, 10:12, 20:22] = 1
    point = (np.array([[30, 10, 20]], np.int16), np.zeros((0, 3), np.int16))
    one = replace(example(target), points={"d": point})
    source = both(one, recipe(STRAIGHT))
    assert all((draw(source, seed).targets["d"] == 1).any() for seed in range(20))


def several() -> Example:
    """Decoder 'a' has something to find, 'b' is known to be absent, 'c' is known to be background somewhere."""
    target = halves(0)
    point = (np.full((1, 3), SIZE // 2, np.int16),) * 2
    above = np.where(halves(2) == 2, 0, IGNORE).astype(np.uint8)
    yes = (True, True)
    return Example("case", "one", target.astype(np.int16), {"a": target, "b": None, "c": above}, dict.fromkeys("abc", yes), {"a": point, "b": (), "c": ()})


def test_decoders_with_nothing_to_find_learn_now_and_then() -> None:
    """negatives 0: never beside one that has; 1: always; an absent decoder's target is background everywhere."""
    assert set(draw(both(several(), recipe(TURN, *"abc")), 0).targets) == {"a"}
    patch = draw(both(several(), recipe(TURN, *"abc", negatives=1.0)), 0)
    assert set(patch.targets) == {"a", "b", "c"}
    assert not patch.targets["b"].any()
    assert patch.annotated["b"] == (True, True)
    assert set(patch.targets["c"].unique().tolist()) == {0, IGNORE}


def test_a_patch_always_teaches_something() -> None:
    """When no decoder has anything to find all of them learn background."""
    one = replace(several(), targets={"b": None}, points={"b": ()}, annotated={"b": (True, True)})
    assert set(draw(both(one, recipe(TURN, *"abc")), 0).targets) == {"b"}


def test_cases_that_teach_nothing_are_left_out() -> None:
    """An example without targets is never drawn, and a dataset of nothing else is refused by name."""
    useful = example(halves(0))
    empty = Example("empty", "two", useful.hu, {}, {}, {})
    source = Patches([useful, empty, replace(useful, dataset="two")], recipe())
    assert [e.name for e in source.by_dataset["two"]] == ["case"]
    with pytest.raises(TrainingError, match="dataset 'two' annotates"):
        Patches([useful, empty], recipe())


def test_the_body_decides_what_is_outside() -> None:
    """With clear_outside 1 everything but label 1 of the decoder `body` becomes air in the image."""
    target = np.where(halves(0) == 2, 1, 0).astype(np.uint8)
    one = replace(example(target, np.full((SIZE,) * 3, 40, np.int16)), targets={"body": target}, annotated={"body": (True, True)})
    one = replace(one, points={"body": one.points["d"]})
    patch = draw(both(one, recipe(replace(TURN, clear_outside_probability=1.0), "body")), 1)
    inside = patch.targets["body"] == 1
    assert inside.any()
    assert (patch.image[0][~inside] == -1024).all()
    assert torch.allclose(patch.image[0][inside], torch.tensor(40.0), atol=1e-3)


def test_a_mirrored_patch_has_its_labels_mirrored_with_it() -> None:
    """HU painted as 100 × label stays so; label 2, always on the right otherwise, lies on the left in about half of the patches."""
    source = both(example(halves(0)), recipe(replace(STRAIGHT, mirror=True)))
    right = []
    for seed in range(24):
        patch = draw(source, seed)
        hu, target = patch.image[0], patch.targets["d"]
        clear = (hu - 150).abs() > 0.01
        assert torch.equal((hu > 150)[clear], (target == 2)[clear])
        right.append(bool((target[-1] == 2).all()))
    assert 6 < sum(right) < 18


def test_a_dataset_that_is_not_to_be_mirrored_is_not() -> None:
    """Label 2 lies on the right in every patch of 'one', which says mirror = false, though the recipe mirrors."""
    plan = recipe(replace(STRAIGHT, mirror=True))
    plan = replace(plan, dataset=tuple(replace(d, mirror=False, weight=1.0 if d.name == "one" else 0.0) for d in plan.dataset))
    source = Patches([example(halves(0))], plan)
    assert all((draw(source, seed).targets["d"][-1] == 2).all() for seed in range(12))


def test_left_stays_left_in_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both lungs as labels the left half of every patch is the left lung, mirrored or not; what is annotated changes sides too."""
    plan = replace(recipe(replace(STRAIGHT, mirror=True)), decoder=(DecoderRecipe(name="d", labels=("lung_left", "lung_right")),))
    source = both(example(halves(0)), plan)
    turned = 0
    for seed in range(24):
        patch = draw(source, seed)
        hu, target = patch.image[0], patch.targets["d"]
        assert (target[0] == 1).all()
        assert (target[-1] == 2).all()
        turned += bool((hu[-1] < 150).all())
    assert 6 < turned < 18
    half_known = replace(example(halves(0)), annotated={"d": (True, False)})
    seen = {draw(both(half_known, plan), seed).annotated["d"] for seed in range(24)}
    assert seen == {(True, False), (False, True)}


def test_turns_are_turns_where_voxels_are_no_cubes() -> None:
    """A ball of 24 mm in voxels of 2 × 2 × 4 mm is a ball in every turned patch: as wide in mm along all axes."""
    spacing = np.array([2.0, 2.0, 4.0])
    away = (np.indices((SIZE,) * 3) - SIZE // 2) * spacing[:, None, None, None]
    ball = (np.linalg.norm(away, axis=0) < 12).astype(np.uint8)
    turn = replace(STRAIGHT, rotation_deg=45.0)
    plan = replace(recipe(turn), grid=GridRecipe(spacing_mm=(2.0, 2.0, 4.0), patch=(PATCH,) * 3))
    for seed in range(8):
        places = np.argwhere(draw(both(example(ball), plan), seed).targets["d"].numpy() == 1) * spacing
        widths = np.sqrt(np.linalg.eigvalsh(np.cov(places.T)))
        assert widths.max() / widths.min() < 1.2


def synthetic() -> Example:
    """A label map of two boxes side by side, without a CT; decoder 'd' wants both, and a third that is absent."""
    values = np.zeros((SIZE,) * 3, np.uint8)
    values[8:24, 10:38, 10:38] = 1
    values[24:40, 10:38, 10:38] = 2
    atlas = build_atlas(Volume(values, np.diag([3.0, 3.0, 3.0, 1.0])), ("d_1", "d_2"))
    target = np.pad(values, ((20, 20), (20, 20), (0, 0)))  # the atlas's margin of 60 mm
    point = np.array([[SIZE // 2 + 20, SIZE // 2 + 20, SIZE // 2]], np.int16)
    return Example("case", "one", None, {"d": target}, {"d": (True, True)}, {"d": (point, point)}, atlas)


@pytest.fixture(scope="module")
def made_up() -> Patches:
    return both(synthetic(), recipe())


def test_a_synthetic_case_gives_patches_like_any_other(made_up: Patches) -> None:
    """Image and target of the patch's shape; the target shows both boxes, label 2 to the right of label 1."""
    patch = draw(made_up, 3)
    assert tuple(patch.image.shape) == (1, *(PATCH,) * 3)
    target = patch.targets["d"]
    assert target.dtype == torch.uint8
    x = torch.arange(PATCH).view(-1, 1, 1).expand(target.shape).float()
    assert x[target == 2].mean() > x[target == 1].mean()


def test_synthetic_patches_follow_from_seed_and_iteration(made_up: Patches) -> None:
    """The same iteration gives the same CT again, to the last bit; another a different one."""
    first, again, other = made_up.batch(4), made_up.batch(4), made_up.batch(5)
    assert torch.equal(first[1].image, again[1].image)
    assert torch.equal(first[1].targets["d"], again[1].targets["d"])
    assert not torch.equal(first[1].image, other[1].image)
