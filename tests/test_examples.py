"""Facts about examples: what each decoder is told about each voxel, and the cache that keeps it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clseg import recipe as recipes
from clseg.errors import InputError
from clseg.recipe import Recipe
from clseg.training import examples
from clseg.training.cases import find_cases
from clseg.training.examples import IGNORE, OPEN, POINTS, Example, load_example
from clseg.training.synthesis import store
from tests.small_dataset import LABEL_IDS, scan, tiny_recipe, write_nifti


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The tiny recipe on the scans' own grid of 6 mm, so that nothing is interpolated."""
    plain = tiny_recipe(tmp_path)
    return replace(plain, grid=replace(plain.grid, spacing_mm=(6.0, 6.0, 6.0)))


def loaded(recipe: Recipe, which: str) -> Example:
    return load_example(next(c for c in find_cases(recipe) if c.name == which), recipe, recipe.folder / "cache")


def with_dataset(recipe: Recipe, index: int, **changes: object) -> Recipe:
    datasets = list(recipe.dataset)
    datasets[index] = replace(datasets[index], **changes)
    return replace(recipe, dataset=tuple(datasets))


def with_decoder(recipe: Recipe, index: int, **changes: object) -> Recipe:
    decoders = list(recipe.decoder)
    decoders[index] = replace(decoders[index], **changes)
    return replace(recipe, decoder=tuple(decoders))


def truth(name: str, like: np.ndarray, structure: str) -> np.ndarray:
    """A true mask cut as the example was: the body's box fills the scan but for its x and y margins."""
    ct, masks = scan(name)
    cut = [(n - m) // 2 for n, m in zip(ct.shape, like.shape, strict=True)]
    return masks[structure][tuple(slice(c, c + n) for c, n in zip(cut, like.shape, strict=True))]


def test_hu_and_labels_lie_on_one_grid(recipe: Recipe) -> None:
    """On the scan's own spacing HU and labels are the scan's, voxel by voxel."""
    one = loaded(recipe, "a")
    ct = scan("a")[0]
    cut = [(n - m) // 2 for n, m in zip(ct.shape, one.hu.shape, strict=True)]
    assert one.hu.dtype == np.int16
    assert np.array_equal(one.hu, ct.array[tuple(slice(c, c + n) for c, n in zip(cut, one.hu.shape, strict=True))])
    assert np.array_equal(one.targets["lungs"] == 1, truth("a", one.hu, "lung_left"))
    assert np.array_equal(one.targets["lungs"] == 2, truth("a", one.hu, "lung_right"))
    assert set(np.unique(one.targets["lungs"])) == {0, 1, 2}


def test_a_decoder_learns_where_one_of_its_labels_is_annotated(recipe: Recipe) -> None:
    """Case a: liver yes, skeleton unknown, body not at all. Case b: skeleton yes, liver unknown."""
    a, b = loaded(recipe, "a"), loaded(recipe, "b")
    assert a.annotated == {"lungs": (True, True), "solid": (True, False)}
    assert b.annotated == {"lungs": (True, True), "solid": (False, True), "body": (True,)}
    assert set(a.targets) == set(a.annotated) == set(a.points)
    assert (a.name, a.dataset) == ("a", "mapped")


def test_absent_structures_are_true_background(recipe: Recipe) -> None:
    """`absent` makes the skeleton known; a decoder whose labels are all absent gets a target of None and no points."""
    one = loaded(with_dataset(recipe, 0, absent=("skeleton", "body")), "a")
    assert one.annotated["solid"] == (True, True)
    assert one.targets["body"] is None
    assert one.points["body"] == ()
    assert one.annotated["body"] == (True,)


def test_part_of_a_decoder_absent_teaches_that_part(recipe: Recipe) -> None:
    """One label is absent and nothing is annotated: the decoder learns that it is nowhere, and of the other nothing."""
    lone = loaded(with_dataset(with_decoder(recipe, 2, labels=("body", "spleen")), 0, absent=("spleen",)), "a")
    assert lone.targets["body"] is None
    assert lone.annotated["body"] == (False, True)
    assert lone.points["body"] == ()


def slices_with(one: Example, decoder: str, value: int) -> list[int]:
    return np.flatnonzero((one.targets[decoder] == value).any(axis=(0, 1))).tolist()


def test_absent_above_a_landmark(recipe: Recipe) -> None:
    """Above the lung's lowest slice there is no body (by decree), below nothing is known; there are no points."""
    one = loaded(with_dataset(recipe, 0, absent_above={"body": "lung_left"}), "a")
    lowest = int(np.flatnonzero(truth("a", one.hu, "lung_left").any(axis=(0, 1)))[0])
    assert 0 < lowest < one.hu.shape[2] - 1
    assert slices_with(one, "body", IGNORE) == list(range(lowest))
    assert slices_with(one, "body", 0) == list(range(lowest, one.hu.shape[2]))
    assert one.annotated["body"] == (True,)
    assert one.points["body"] == ()


def test_absent_above_takes_the_highest_of_several_landmarks(recipe: Recipe) -> None:
    """Two labels with two landmarks: background begins where it is true for both."""
    plan = with_decoder(recipe, 2, labels=("body", "spleen"))
    one = loaded(with_dataset(plan, 0, absent_above={"body": "liver", "spleen": "lung_left"}), "a")
    lungs, liver = (int(np.flatnonzero(truth("a", one.hu, n).any(axis=(0, 1)))[0]) for n in ("lung_left", "liver"))
    assert liver < lungs
    assert slices_with(one, "body", 0)[0] == lungs


@pytest.mark.parametrize("landmark", ["spleen", "body"])
def test_a_landmark_that_is_not_seen_tells_nothing(recipe: Recipe, landmark: str) -> None:
    """A landmark that the case does not annotate, or whose mask is empty, teaches no background."""
    ct = scan("b")[0]
    write_nifti(recipe.folder / "dataset" / "b" / "body.nii.gz", np.zeros(ct.shape, np.uint8), ct)
    plan = with_dataset(with_decoder(recipe, 0, labels=("spleen",)), 1, absent_above={"spleen": landmark})
    assert "lungs" not in loaded(plan, "b").targets


def test_absent_above_is_not_used_where_the_structure_is_annotated(recipe: Recipe) -> None:
    """A lung that is contoured is taken as contoured, whatever the rule says."""
    plain = loaded(recipe, "a").targets["lungs"]
    ruled = loaded(with_dataset(recipe, 0, absent_above={"lung_left": "liver", "lung_right": "liver"}), "a").targets["lungs"]
    assert np.array_equal(plain, ruled)


@pytest.mark.parametrize(("end", "below", "above"), [("inferior", True, False), ("superior", False, True), ("both", True, True)])
def test_open_ends_are_open(recipe: Recipe, end: str, below: bool, above: bool) -> None:
    """Background beyond the open end of a contoured structure is 254; within its extent and beyond a closed end it is 0."""
    one = loaded(with_decoder(recipe, 1, open_ends={"liver": end}), "a")
    rows = slices_with(one, "solid", 1)
    low, high = rows[0], rows[-1]
    expected = [z for z in range(one.hu.shape[2]) if (z < low and below) or (z > high and above)]
    assert low > 0
    assert high < one.hu.shape[2] - 1
    assert slices_with(one, "solid", OPEN) == expected
    assert (one.targets["solid"][:, :, expected] == OPEN).all()
    assert (one.targets["solid"] == 1).sum() == truth("a", one.hu, "liver").sum()


def test_other_labels_beyond_an_open_end_stay(recipe: Recipe) -> None:
    """Only background is forgotten: the right lung keeps its label beyond an open end of the left."""
    folder = recipe.folder / "dataset" / "b"
    ct, masks = scan("b")
    lungs = masks["lung_left"].astype(np.uint8) + 2 * masks["lung_right"].astype(np.uint8)
    lungs[:, :, 35:][lungs[:, :, 35:] == 1] = 0  # contoured only in part
    write_nifti(folder / "lungs.nii.gz", lungs, ct)
    one = loaded(with_decoder(recipe, 0, open_ends={"lung_left": "superior"}), "b")
    assert (one.targets["lungs"] == 2).sum() == masks["lung_right"].sum()
    assert slices_with(one, "lungs", 2)[-1] > slices_with(one, "lungs", 1)[-1] == 34
    assert slices_with(one, "lungs", OPEN)[0] == 35


def test_points_lie_in_their_structure(recipe: Recipe) -> None:
    """Patch centres are voxels of the label they stand for, at least POINTS and fewer than twice as many."""
    one = loaded(recipe, "b")
    for label, points in enumerate(one.points["lungs"], start=1):
        assert (one.targets["lungs"][tuple(points.T)] == label).all()
    body = one.points["body"][0]
    assert POINTS <= len(body) < 2 * POINTS
    assert np.ptp(body, axis=0).min() > 20
    assert len(one.points["solid"][0]) == 0


def test_a_voxel_is_a_label_when_it_fills_half(recipe: Recipe) -> None:
    """On a grid of 12 mm structures keep their volume within 10 %."""
    coarse = replace(recipe, grid=replace(recipe.grid, spacing_mm=(12.0, 12.0, 12.0)))
    one = loaded(coarse, "a")
    for label, name in enumerate(("lung_left", "lung_right"), start=1):
        assert (one.targets["lungs"] == label).sum() * 8 == pytest.approx(scan("a")[1][name].sum(), rel=0.1)


def same(one: Example, other: Example) -> bool:
    return (
        np.array_equal(one.hu, other.hu)
        and one.annotated == other.annotated
        and one.targets.keys() == other.targets.keys()
        and all(np.array_equal(one.targets[d], other.targets[d]) for d in one.targets)
        and all(np.array_equal(p, q) for d in one.points for p, q in zip(one.points[d], other.points[d], strict=True))
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of cases that were made from their scans, in turn; the cache adds none."""
    names: list[str] = []
    make = examples._arrays

    def counted(case: examples.Case, recipe: Recipe) -> dict[str, np.ndarray]:
        names.append(case.name)
        return make(case, recipe)

    monkeypatch.setattr(examples, "_arrays", counted)
    return names


def test_the_cache_is_used(recipe: Recipe, made: list[str]) -> None:
    """The second time the scan is not read, and the example is the same."""
    first = loaded(recipe, "a")
    assert same(first, loaded(recipe, "a"))
    assert made == ["a"]


@pytest.mark.parametrize("change", ["decoder", "grid", "masks", "absent_above", "ct", "body"])
def test_the_cache_is_not_used_when_the_example_would_differ(recipe: Recipe, made: list[str], change: str) -> None:
    """Other decoders, another grid, other masks or rules and a CT or mask that was written again make a new example."""
    loaded(recipe, "b")
    other = {
        "decoder": lambda: with_decoder(recipe, 0, labels=("lung_right", "lung_left")),
        "grid": lambda: replace(recipe, grid=replace(recipe.grid, spacing_mm=(12.0, 6.0, 6.0))),
        "masks": lambda: with_dataset(recipe, 1, masks={"body": "body.nii.gz"}),
        "absent_above": lambda: with_dataset(recipe, 1, absent_above={"liver": "lung_left"}),
    }.get(change, lambda: recipe)()
    if change in ("ct", "body"):
        os.utime(recipe.folder / "dataset" / "b" / f"{change}.nii.gz", ns=(1, 1))
    loaded(other, "b")
    assert made == ["b", "b"]


def test_a_truncated_file_of_the_cache_is_made_anew(recipe: Recipe, made: list[str]) -> None:
    """As a power cut of the disk leaves it: the case is prepared again, and the example is the same."""
    first = loaded(recipe, "a")
    (file,) = (recipe.folder / "cache").glob("*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    assert same(first, loaded(recipe, "a"))
    assert same(first, loaded(recipe, "a"))
    assert made == ["a", "a"]


def test_swapped_labels_are_swapped_in_the_target(recipe: Recipe) -> None:
    """After a change of the decoders the cached example of the old ones is not mistaken for the new."""
    old = loaded(recipe, "a").targets["lungs"]
    new = loaded(with_decoder(recipe, 0, labels=("lung_right", "lung_left")), "a").targets["lungs"]
    assert np.array_equal(old == 1, new == 2)
    assert (old == 1).any()


def test_training_knobs_leave_the_cache_alone(recipe: Recipe, made: list[str]) -> None:
    """Rate, seed, augmentation and `absent` do not change the arrays that are kept."""
    loaded(recipe, "a")
    tuned = replace(recipe, seed=99, optim=replace(recipe.optim, rate=1.0))
    loaded(with_dataset(tuned, 0, absent=("skeleton",)), "a")
    assert made == ["a"]


def test_the_first_format_has_no_number_in_its_key(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples cached before formats were counted are still found; another format finds none of them."""
    case = next(c for c in find_cases(recipe) if c.name == "a")
    facts = [case.name, case.facts(), {"spacing_mm": [6.0] * 3, "patch": [16] * 3, "orientation": "RAS"}]
    assert recipes.to_dict(recipe)["grid"] == facts[2]
    keys = []
    for format in (1, 2):
        monkeypatch.setattr(examples, "EXAMPLE_FORMAT", format)
        keys.append(examples._key(case, recipe))
    datasets = [case.dataset.ct, case.dataset.labels, case.dataset.masks, case.dataset.absent_above]
    facts += [[[d.name, d.labels, d.open_ends] for d in recipe.decoder], datasets]
    assert keys[0] == hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
    assert keys[1] != keys[0]


def test_a_sheared_scan_is_learned_upright(recipe: Recipe) -> None:
    """A scan whose slices slide along y by 1 mm each: the lungs keep their volume and the CT is still cold where they are."""
    folder = recipe.folder / "dataset" / "a"
    for file in ("ct.nii.gz", "labels.nii.gz"):
        image = nib.load(folder / file)
        affine = image.affine.copy()
        affine[1, 2] += 1.0
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / file)
    one = loaded(recipe, "a")
    lungs = one.targets["lungs"] > 0
    true = sum(int(scan("a")[1][name].sum()) for name in ("lung_left", "lung_right"))
    assert lungs.sum() == pytest.approx(true, rel=0.05)
    assert np.median(one.hu[lungs]) < -500
    rows = [np.flatnonzero(lungs[:, :, z].any(axis=0)).mean() for z in np.flatnonzero(lungs.any(axis=(0, 1)))[[2, -3]]]
    upright = scan("a")[1]["lung_left"] | scan("a")[1]["lung_right"]
    plain = [np.flatnonzero(upright[:, :, z].any(axis=0)).mean() for z in np.flatnonzero(upright.any(axis=(0, 1)))[[2, -3]]]
    assert rows[1] - rows[0] > plain[1] - plain[0] + 1  # the slices slide forwards, upwards


def test_ignored_voxels_are_unknown(recipe: Recipe) -> None:
    """What a label map calls `ignore` is 255 for every decoder that learns there."""
    folder = recipe.folder / "dataset" / "a"
    (folder / "labels.json").write_text(json.dumps({**{k: v for k, v in LABEL_IDS.items() if k != "liver"}, "ignore": LABEL_IDS["liver"]}))
    one = loaded(recipe, "a")
    assert (one.targets["lungs"] == IGNORE).sum() == scan("a")[1]["liver"].sum()


# ---- synthetic cases --------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(recipe: Recipe) -> Recipe:
    """Case a as a label map without a CT."""
    (recipe.folder / "dataset" / "a" / "ct.nii.gz").unlink()
    return with_dataset(recipe, 0, synthetic=True)


def test_a_label_map_without_a_ct_is_an_example(mapped: Recipe) -> None:
    """There is an atlas in place of HU; targets and points are those of the label map; a name without a voxel is absent."""
    one = loaded(mapped, "a")
    assert one.hu is None
    assert set(one.atlas.names) == {"lung_left", "lung_right", "liver", "skeleton"}
    target = one.targets["lungs"]
    assert target.shape == one.shape(mapped.grid.spacing_mm)
    for label, name in enumerate(("lung_left", "lung_right"), start=1):
        assert (target == label).sum() == pytest.approx(scan("a")[1][name].sum(), rel=0.05)
        assert (target[tuple(one.points["lungs"][label - 1].T)] == label).all()
    assert one.annotated == {"lungs": (True, True), "solid": (True, True)}
    assert "body" not in one.targets


def test_atlases_are_kept(mapped: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another decoder uses the atlas that is there; another label map, or the body's mask beside it, needs a new one."""
    names: list[str] = []
    make = store._make
    monkeypatch.setattr(store, "_make", lambda case, *rest: names.append(case.name) or make(case, *rest))
    first = loaded(mapped, "a")
    again = loaded(with_decoder(mapped, 0, labels=("lung_right", "lung_left")), "a")
    assert np.array_equal(first.atlas.near, again.atlas.near)
    assert np.array_equal(first.targets["lungs"] == 1, again.targets["lungs"] == 2)
    assert names == ["a"]
    ct, masks = scan("a")
    write_nifti(mapped.folder / "dataset" / "a" / "body.nii.gz", masks["body"], ct)
    outlined = loaded(with_dataset(mapped, 0, masks={"body": "body.nii.gz"}), "a")
    assert names == ["a", "a"]
    assert first.atlas.surface is None
    assert (outlined.atlas.surface < 0).sum() == pytest.approx(masks["body"].sum(), rel=0.1)


def test_smaller_masks_lie_over_larger_ones(mapped: Recipe) -> None:
    """A part given as a mask of its own stays visible in the whole, whatever comes first."""
    ct, masks = scan("a")
    part = masks["liver"].copy()
    part[:, :, : int(np.flatnonzero(part.any(axis=(0, 1))).mean())] = False
    write_nifti(mapped.folder / "dataset" / "a" / "part.nii.gz", part, ct)
    plan = with_dataset(mapped, 0, masks={"spleen": "part.nii.gz"})
    one = loaded(with_decoder(plan, 1, labels=("liver", "spleen")), "a")
    solid = one.targets["solid"]
    assert (solid == 2).sum() == pytest.approx(part.sum(), rel=0.1)
    assert (solid == 1).sum() == pytest.approx(masks["liver"].sum() - part.sum(), rel=0.1)


def test_a_case_without_a_ct_needs_synthesis(mapped: Recipe) -> None:
    """Without `synthetic` a case that has only a label map is refused by name."""
    case = next(c for c in find_cases(mapped) if c.name == "a")
    with pytest.raises(InputError, match=r"case 'a' .* has no CT"):
        load_example(replace(case, dataset=replace(case.dataset, synthetic=False)), mapped, mapped.folder / "cache")
