"""Facts about partial labels, from the files of a case to the gradient: what nobody annotated teaches nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clseg.recipe import Recipe
from clseg.training.cases import find_cases
from clseg.training.examples import OPEN, Example, load_example
from clseg.training.losses import deep_loss
from tests.small_dataset import tiny_recipe

SIZE = 16


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """On the scans' own grid of 6 mm; case a annotates the liver and not the skeleton, case b the reverse."""
    plain = tiny_recipe(tmp_path)
    return replace(plain, grid=replace(plain.grid, spacing_mm=(6.0, 6.0, 6.0)))


def examples(recipe: Recipe) -> dict[str, Example]:
    return {case.name: load_example(case, recipe, recipe.folder / "cache") for case in find_cases(recipe)}


def patch(example: Example, decoder: str, label: int) -> np.ndarray:
    """SIZE³ voxels of the target around the middle of a label, which are labelled and background both."""
    target = example.targets[decoder]
    middle = np.argwhere(target == label).mean(axis=0).astype(int)
    start = [int(np.clip(m - SIZE // 2, 0, n - SIZE)) for m, n in zip(middle, target.shape, strict=True)]
    return target[tuple(slice(s, s + SIZE) for s in start)]


def slopes(targets: list[np.ndarray], known: list[tuple[bool, ...]], depth: int = 3) -> list[torch.Tensor]:
    """d loss / d logits at every resolution, finest first, for random logits."""
    torch.manual_seed(0)
    logits = [torch.randn(len(targets), len(known[0]) + 1, *[SIZE // 2**i] * 3, requires_grad=True) for i in range(depth)]
    deep_loss(logits, torch.from_numpy(np.stack(targets)), torch.tensor(known)).backward()
    return [level.grad for level in logits]


def test_an_organ_that_a_case_does_not_annotate_gets_no_false_background(recipe: Recipe) -> None:
    """In one batch of a (liver) and b (skeleton) no logit of the organ that a case leaves open has a gradient there, at any depth."""
    both = examples(recipe)
    names = {"a": 1, "b": 2}
    known = [both[name].annotated["solid"] for name in names]
    assert known == [(True, False), (False, True)]
    targets = [patch(both[name], "solid", label) for name, label in names.items()]
    assert all(set(np.unique(target)) == {0, label} for target, label in zip(targets, names.values(), strict=True))
    for slope in slopes(targets, known):
        assert slope[0, 2].abs().max() == 0  # the skeleton in the case of the liver
        assert slope[1, 1].abs().max() == 0  # the liver in the case of the skeleton
        assert slope[0, 1].abs().max() > 0
        assert slope[1, 2].abs().max() > 0


def test_the_loss_does_not_depend_on_what_is_said_of_an_open_organ(recipe: Recipe) -> None:
    """Whatever the network says of the skeleton in a case that does not annotate it, the loss is the same to the last bit."""
    example = examples(recipe)["a"]
    target = torch.from_numpy(patch(example, "solid", 1))[None]
    known = torch.tensor([example.annotated["solid"]])
    torch.manual_seed(1)
    logits = torch.randn(1, 3, SIZE, SIZE, SIZE)
    other = logits.clone()
    other[:, 2] = 30 * torch.randn(SIZE, SIZE, SIZE)
    assert deep_loss([logits], target, known) == deep_loss([other], target, known)


def test_a_decoder_never_sees_a_case_that_annotates_none_of_its_organs(recipe: Recipe) -> None:
    """Case a says nothing of the body: the decoder `body` has neither target nor points there."""
    example = examples(recipe)["a"]
    assert all("body" not in table for table in (example.targets, example.annotated, example.points))


@pytest.mark.parametrize(("end", "below", "above"), [("inferior", True, False), ("superior", False, True), ("both", True, True)])
def test_beyond_an_open_end_nothing_is_learned(recipe: Recipe, end: str, below: bool, above: bool) -> None:
    """Slices beyond the open end of a liver contoured in part have no gradient at full resolution, those beyond a closed end have."""
    decoders = tuple(replace(d, open_ends={"liver": end}) if d.name == "solid" else d for d in recipe.decoder)
    example = examples(replace(recipe, decoder=decoders))["a"]
    target = example.targets["solid"].copy()
    rows = np.flatnonzero((target == 1).any(axis=(0, 1)))
    low, high = rows[0], rows[-1]
    x, y = (int(c) for c in np.argwhere(target == 1).mean(axis=0)[:2])
    column = target[x - 8 : x + 8, y - 8 : y + 8]
    for beyond, is_open, outer in ((column[:, :, low - 4 : low + 12], below, slice(0, 4)), (column[:, :, high - 11 : high + 5], above, slice(12, 16))):
        assert (beyond[:, :, outer] == (OPEN if is_open else 0)).all()
        (slope,) = slopes([beyond], [example.annotated["solid"]], depth=1)
        assert (slope[..., outer].abs().max() == 0) == is_open
        inner = slice(4, 16) if outer.start == 0 else slice(0, 12)
        assert slope[..., inner].abs().max() > 0
