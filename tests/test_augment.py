"""Facts about random changes: what they may do to a patch, and that they mirror it only when they may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import RecipeError
from clseg.recipe import AugmentRecipe
from clseg.training.augment import change_intensity, in_voxels, maybe_mirrored, other_sides, random_matrix
from clseg.training.examples import IGNORE, OPEN
from clseg.volume import AIR_HU
from tests.small_dataset import tiny_recipe

OFF = AugmentRecipe(
    rotation_deg=0.0,
    scale=(1.0, 1.0),
    shift_hu=0.0,
    contrast=(1.0, 1.0),
    noise_probability=0.0,
    blur_probability=0.0,
    thick_slices_probability=0.0,
    clear_outside_probability=0.0,
)
PATCH = torch.linspace(-1000, 1000, 6 * 7 * 8).view(6, 7, 8)


def changed(hu: torch.Tensor = PATCH, body: torch.Tensor | None = None, seed: int = 0, **rule: object) -> torch.Tensor:
    return change_intensity(hu, body, np.random.default_rng(seed), replace(OFF, **rule), spacing_mm=3.0)


@given(st.integers(0, 2**32), st.floats(0, 45), st.floats(0.5, 1), st.floats(1, 2))
def test_a_patch_is_turned_and_scaled_but_never_mirrored(seed: int, degrees: float, low: float, high: float) -> None:
    """The determinant is positive, and no axis is scaled beyond the range by more than the 8 % of each axis."""
    matrix = random_matrix(np.random.default_rng(seed), AugmentRecipe(rotation_deg=degrees, scale=(low, high)))
    assert np.linalg.det(matrix) > 0
    stretch = np.linalg.norm(matrix, axis=0)
    assert low * np.exp(-0.08) - 1e-9 <= stretch.min() <= stretch.max() <= high * np.exp(0.08) + 1e-9


@given(st.integers(0, 2**32), st.floats(0, 30))
def test_right_stays_right(seed: int, degrees: float) -> None:
    """The patch's first axis keeps pointing to the patient's right, within twice the angle: two of three rotations move it."""
    matrix = random_matrix(np.random.default_rng(seed), AugmentRecipe(rotation_deg=degrees, scale=(1.0, 1.0)))
    x = matrix[:, 0] / np.linalg.norm(matrix[:, 0])
    assert x[0] >= np.cos(np.radians(2 * degrees)) - 1e-9


@given(st.integers(0, 2**32), st.tuples(*[st.floats(0.5, 8)] * 3))
def test_a_turn_is_a_turn_in_mm(seed: int, spacing: tuple[float, float, float]) -> None:
    """Two patch voxels as far apart in mm along different axes stay as far apart in the source, whatever the voxels' edges."""
    turn = random_matrix(np.random.default_rng(seed), AugmentRecipe(rotation_deg=40.0, scale=(1.0, 1.0), stretch=0.0))
    voxels = in_voxels(turn, spacing)
    steps = np.diag(1 / np.array(spacing))  # 1 mm along every axis of the patch, in voxels
    source_mm = np.array(spacing)[:, None] * (voxels @ steps)
    assert np.allclose(source_mm.T @ source_mm, np.eye(3), atol=1e-9)


def test_cubic_voxels_need_no_conversion() -> None:
    """With equal edges the matrix is the same to the last bit, so that runs begun earlier draw the same patches."""
    matrix = random_matrix(np.random.default_rng(3), AugmentRecipe())
    assert np.array_equal(in_voxels(matrix, (3.0, 3.0, 3.0)), matrix)


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPS", 0), ("SAR", 2)])
def test_a_mirror_swaps_left_and_right_half_of_the_time(orientation: str, axis: int) -> None:
    """Only the axis from side to side is turned round."""
    rng = np.random.default_rng(0)
    flips = [maybe_mirrored(np.eye(3), orientation, rng) for _ in range(200)]
    signs = np.array([np.diag(one) for one in flips])
    assert set(np.delete(signs, axis, 1).ravel()) == {1.0}
    assert 70 < (signs[:, axis] < 0).sum() < 130


def test_a_recipe_mirrors_whole_pairs_only(tmp_path: Path) -> None:
    """Both lungs in one decoder exchange their names; a left lung alone would be called left on the right side."""
    plan = tiny_recipe(tmp_path)
    mirror = replace(plan.augment, mirror=True)
    assert replace(plan, augment=mirror).augment.mirror
    lonely = replace(plan.decoder[0], labels=("lung_left",))
    with pytest.raises(RecipeError, match="'lung_left' has no partner in decoder 'lungs'"):
        replace(plan, augment=mirror, decoder=(lonely, *plan.decoder[1:]))


def test_names_in_a_mirror() -> None:
    """Pairs are exchanged; background, what has no side, and the codes for unknown stay; twice is as before."""
    table = other_sides(("mandible", "parotid_gland_left", "parotid_gland_right", "my_own_label"))
    assert table[:5].tolist() == [0, 1, 3, 2, 4]
    assert table[[IGNORE, OPEN]].tolist() == [IGNORE, OPEN]
    assert np.array_equal(table[table], np.arange(256))


def test_everything_off_changes_nothing() -> None:
    """With all probabilities 0 and ranges of no width HU come out as they went in, body known or not."""
    assert torch.equal(changed(), PATCH)
    assert torch.equal(changed(body=PATCH > 0), PATCH)


def test_contrast_and_shift_change_tissue_but_not_air() -> None:
    """Contrast 2: 50 HU becomes 100, −100 becomes −200, air stays −1000."""
    hu = torch.tensor([50.0, -100.0, -1000.0]).view(3, 1, 1)
    assert changed(hu, contrast=(2.0, 2.0)).flatten().tolist() == [100.0, -200.0, -1000.0]
    shifts = {float(changed(hu, seed=s, shift_hu=30.0)[0, 0, 0]) - 50 for s in range(20)}
    assert len(shifts) == 20
    assert max(map(abs, shifts)) <= 30


def test_the_outside_is_emptied() -> None:
    """Where the body's mask is False there is air, where it is True nothing changed; without a mask nothing happens."""
    body = PATCH > 0
    cleared = changed(body=body, clear_outside_probability=1.0)
    assert (cleared[~body] == AIR_HU).all()
    assert torch.equal(cleared[body], PATCH[body])
    assert torch.equal(changed(clear_outside_probability=1.0), PATCH)


@pytest.mark.parametrize("rule", [{"blur_probability": 1.0}, {"thick_slices_probability": 1.0}])
def test_blur_and_thick_slices_keep_a_flat_patch_flat(rule: dict) -> None:
    """A constant has nothing to be smoothed, not even at the border."""
    flat = torch.full((6, 7, 8), 40.0)
    assert torch.allclose(changed(flat, **rule), flat, atol=1e-3)


def test_blur_spreads_a_point_evenly() -> None:
    """A single voxel of 1000 HU keeps its sum, gets lower, and is symmetric along every axis."""
    point = torch.zeros(9, 9, 9)
    point[4, 4, 4] = 1000
    blurred = changed(point, blur_probability=1.0, blur_voxels=1.0)
    assert float(blurred.sum()) == pytest.approx(1000, rel=1e-4)
    assert float(blurred.max()) == float(blurred[4, 4, 4]) < 999
    for axis in range(3):
        assert torch.allclose(blurred, blurred.flip(axis), atol=1e-3)


def test_thick_slices_smooth_along_the_last_axis_only() -> None:
    """A pattern along x and y is kept; slices that alternate between 0 and 100 HU are mixed."""
    rule = {"thick_slices_probability": 1.0, "thick_slices_mm": (6.0, 6.0)}
    across = torch.arange(6.0).view(6, 1, 1) * torch.ones(6, 7, 8)
    assert torch.allclose(changed(across, **rule), across, atol=1e-3)
    stripes = (torch.arange(8) % 2 * 100.0).expand(6, 7, 8)
    assert float(changed(stripes, **rule).std()) < float(stripes.std()) / 2


def test_noise_has_the_strength_asked_for() -> None:
    """Its mean is about 0 and its standard deviation between 0 and noise_hu."""
    flat = torch.zeros(20, 20, 20)
    sds = [float(changed(flat, seed=s, noise_probability=1.0, noise_hu=25.0).std()) for s in range(10)]
    assert 0 < min(sds) < max(sds) < 26
    assert abs(float(changed(flat, noise_probability=1.0).mean())) < 2


def test_the_same_seed_gives_the_same_patch() -> None:
    """All changes at once depend on the seed alone, not on torch's global state."""
    on = {f"{what}_probability": 1.0 for what in ("noise", "blur", "thick_slices")} | {"contrast": (0.8, 1.2), "shift_hu": 30.0}
    torch.manual_seed(1)
    first = changed(seed=5, **on)
    torch.manual_seed(2)
    assert torch.equal(first, changed(seed=5, **on))
    assert not torch.equal(first, changed(seed=6, **on))
