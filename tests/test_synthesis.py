"""Facts about CTs made from label maps: what is painted where, and that it follows from a seed alone."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.errors import InputError, RecipeError
from clseg.recipe import SynthesisRecipe, from_dict, read_recipe, to_dict
from clseg.training.cases import find_cases
from clseg.training.cases.names import ids
from clseg.training.synthesis import Atlas, Pose, build_atlas, synthesise
from clseg.training.synthesis.deform import displacement
from clseg.training.synthesis.fields import smooth, soft, spline, tubes
from clseg.training.synthesis.scene import look
from clseg.training.synthesis.tables import FORMS, PHASES, draw_palette, structure, tissues
from clseg.volume import AIR_HU, Volume
from tests.small_dataset import tiny_recipe, without_results

SHAPE = (60, 44, 56)
MM = 2.0
NAMES = ("liver", "aorta", "lung_upper_lobe_left", "hip_left", "urinary_bladder")
BOXES = (
    (slice(6, 24), slice(8, 34), slice(30, 52)),
    (slice(26, 34), slice(8, 16), slice(0, 56)),
    (slice(36, 56), slice(8, 34), slice(30, 52)),
    (slice(6, 24), slice(8, 30), slice(6, 24)),
    (slice(36, 52), slice(12, 30), slice(6, 24)),
)
STILL = SynthesisRecipe(
    deform_mm=0.0, organs=0, border_mm=0.0, spread_hu=0.0, noise_hu=(0.0, 0.0), blur_voxels=(0.01, 0.01), streak_probability=0.0,
    cupping_hu=0.0, metal_probability=0.0, table_probability=0.0, arms_probability=0.0, crop_probability=0.0, field_probability=0.0,
    fat_mm=(20.0, 20.0), wall_mm=(8.0, 8.0),
)  # fmt: skip


def painted() -> np.ndarray:
    values = np.zeros(SHAPE, np.uint8)
    for id, box in enumerate(BOXES, start=1):
        values[box] = id
    return values


@lru_cache
def atlas(orientation: str = "RAS") -> Atlas:
    return build_atlas(Volume(painted(), np.diag([MM, MM, MM, 1.0])), NAMES, None, orientation)


def pose(one: Atlas, spacing: float = MM, shape: tuple[int, ...] | None = None, centre=(0.0, 0.0, 0.0)) -> Pose:
    whole = tuple(int(n * one.spacing_mm / spacing) for n in one.shape)
    return Pose(shape or whole, (spacing,) * 3, np.array(centre), np.eye(3))  # type: ignore[arg-type]


def made(seed: int = 0, one: Atlas | None = None, **rule: object) -> tuple[torch.Tensor, torch.Tensor]:
    """HU and ids of a whole atlas."""
    one = one or atlas()
    return synthesise(one, pose(one), replace(STILL, **rule), np.random.default_rng(seed))


# ---- tables -----------------------------------------------------------------------------------------------------------


def test_every_tissue_of_a_structure_is_in_the_table() -> None:
    """Shells, cores and branches are tissues, forms are known, and in every phase the lowest HU is not above the highest."""
    from clseg.training.synthesis.tables import _structures

    rows = [row for _, row in _structures()]
    assert {name for row in rows for name in (row.shell, row.core, row.branch) if name} <= set(tissues())
    assert {row.form for row in rows} == set(FORMS)
    assert all(low <= high for tissue in tissues().values() for low, high in tissue.range_hu.values())


def test_every_structure_has_a_row() -> None:
    """The first pattern that fits counts; a structure nobody thought of is soft tissue."""
    assert structure("vertebrae_L3").core == "spongiosa_spine"
    assert structure("kidney_cyst_left").core == "urine"
    assert structure("kidney_left").core == "kidney_medulla"
    assert structure("gizmo").core == "gland"


def test_structures_of_real_label_maps_are_known(shared: Path) -> None:
    """None of the 117 names of the TotalSegmentator label maps falls through to the last row."""
    names = json.loads((shared / "data" / "totalsegmentator_dataset" / "s0327" / "labels.json").read_text())
    assert [name for name in names if structure(name) is structure("gizmo")] == []


@pytest.mark.parametrize("phase", PHASES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_a_palette_keeps_to_the_table(phase: str, seed: int) -> None:
    """Means lie in the tissue's range of the phase that was drawn; ids of no structure have zeros."""
    shares = {name: float(name == phase) for name in PHASES}
    palette = draw_palette(NAMES, replace(STILL, **shares), np.random.default_rng(seed))
    assert palette.phase == phase
    for name, tissue in tissues().items():
        low, high = tissue.range_hu[phase]
        assert low <= palette.mean[name] <= high
    assert palette.core_hu[0] == palette.core_hu[len(NAMES) + 1] == 0
    assert palette.form[3] == FORMS.index("lung")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"native": 0.0, "arterial": 0.0, "venous": 0.0}, "one above 0"),
        ({"fat_mm": [9.0, 4.0]}, "synthesis.fat_mm"),
        ({"noise_hu": [-1.0, 4.0]}, "synthesis.noise_hu"),
        ({"table_probability": 1.5}, "synthesis.table_probability"),
        ({"deform_mm": -1.0}, "synthesis.deform_mm"),
        ({"organ_scale": [0.0, 1.0]}, "above 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, knobs: dict, said: str) -> None:
    """A recipe with shares that are all 0, a range upside down or a probability above 1 is not read."""
    facts = to_dict(tiny_recipe(tmp_path)) | {"synthesis": knobs}
    with pytest.raises(RecipeError, match=said):
        from_dict(facts, tmp_path)


def test_the_label_maps_teach_what_the_recipe_asks_of_them(shared: Path) -> None:
    """Every label below the chest of recipes/starter.toml has voxels in one of the two label maps, and the held-out CT is never drawn from."""
    plan = without_results(read_recipe(Path(__file__).parents[1] / "recipes" / "starter.toml"))
    cases = find_cases(plan)
    named = {name for case in cases if case.dataset.synthetic for name in ids(case.maps[0])}
    below = [decoder for decoder in plan.decoder if decoder.name in ("abdominal_organs", "pelvis_and_spine", "gluteal_muscles")]
    assert {label for decoder in below for label in decoder.labels} - {"sacrum"} <= named  # its S1 has a name of its own there
    assert not [case.name for case in cases if case.name.startswith("example_ct") and case.dataset.weight > 0]
    assert "example_ct" in [case.name for case in find_cases(plan, "val")]


# ---- fields and displacements -----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), wave=st.floats(4, 60))
@settings(max_examples=8)
def test_fields_are_normal_and_smooth(seed: int, wave: float) -> None:
    """Averaged over many a field has mean 0 and standard deviation 1; neighbours differ little when the wave is long."""
    fields = torch.stack([smooth((30, 30, 30), (3.0,) * 3, wave, np.random.default_rng([seed, i])) for i in range(12)])
    assert fields.std() == pytest.approx(1, abs=0.35)
    assert abs(fields.mean()) < 0.5
    assert (fields[..., 1:] - fields[..., :-1]).std() < 4.5 / wave * fields.std() + 0.05


def test_splines_are_partitions_of_one() -> None:
    """Equal knots give a flat field, whatever the numbers of knots and voxels."""
    for knots, voxels in ((4, 1), (5, 80), (30, 17)):
        assert torch.allclose(spline(knots, voxels).sum(1), torch.ones(voxels), atol=1e-6)


def test_tubes_and_soft_borders() -> None:
    """A tube is 1 where both fields are 0; a border is 0.5 at 0 mm and settled 4 mm away."""
    zero, far = torch.zeros(1), torch.ones(1)
    assert tubes(zero, zero, 0.2) == 1
    assert tubes(zero, far, 0.2) < 1e-4
    assert soft(torch.tensor([-4.0, 0.0, 4.0])).tolist() == pytest.approx([0, 0.5, 1], abs=2e-3)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_displacements_are_strong_and_do_not_fold(seed: int) -> None:
    """The determinant of the deformation is positive in all but a thousandth of the voxels; no place moves beyond what the recipe allows."""
    rule = SynthesisRecipe(deform_mm=24.0, organs=2)
    moved = displacement((40, 40, 40), (6.0,) * 3, rule, np.random.default_rng(seed)).numpy()
    slopes = np.stack([np.stack(np.gradient(one, 6.0)) for one in moved])  # (component, direction, x, y, z)
    jacobian = np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3)
    assert (np.linalg.det(jacobian) <= 0).mean() < 1e-3
    limit = 24 + 2 * (12 * 3**0.5 + 0.43 * 54)
    assert 1 < np.linalg.norm(moved, axis=0).max() < limit * 3**0.5


def test_no_displacement_where_the_recipe_wants_none() -> None:
    """deform_mm 0 and no organs: every voxel looks at its own place."""
    assert not displacement((20, 20, 20), (3.0,) * 3, STILL, np.random.default_rng(0)).abs().max() > 1e-6


# ---- atlas ------------------------------------------------------------------------------------------------------------


def test_an_atlas_holds_the_label_map() -> None:
    """At its own spacing the ids are the painted boxes, within a margin of 60 mm to the sides and none above and below."""
    one = atlas()
    assert one.shape == (SHAPE[0] + 60, SHAPE[1] + 60, SHAPE[2])
    assert np.array_equal(one.ids[30:-30, 30:-30], painted())
    assert not one.ids[:30].any()
    assert one.surface is None


def test_distances_are_in_mm() -> None:
    """In the middle of the 16 mm aorta the border is 8 mm away (± half a voxel); where nothing is, depth is negative and the nearest is known."""
    one = atlas()
    assert one.depth[30 + 29, 30 + 11, 27] / 2 == pytest.approx(7, abs=1.1)
    assert one.depth[0, 0, 0] < 0
    assert one.hull[30 + 30, 30 + 20, 40] < 0 < one.hull[0, 0, 0]
    assert one.near[30 + 25, 30 + 10, 2] == 2


def test_axes_may_point_elsewhere() -> None:
    """An LPS atlas is the RAS one turned."""
    turned, plain = atlas("LPS"), atlas()
    assert np.array_equal(turned.near, plain.near[::-1, ::-1])
    assert np.array_equal(turned.ids, plain.ids[::-1, ::-1])
    hu, ids = made(one=turned)
    assert np.array_equal(ids.numpy()[::-1, ::-1], made()[1].numpy())
    assert hu.shape == ids.shape


def test_discs_lie_between_vertebrae() -> None:
    """Two vertebrae 8 mm apart get a disc between them, which is no structure of the catalogue."""
    values = np.zeros((20, 20, 40), np.uint8)
    values[4:16, 4:16, 6:18] = 1
    values[4:16, 4:16, 22:34] = 2
    one = build_atlas(Volume(values, np.diag([MM, MM, MM, 1.0])), ("vertebrae_L1", "vertebrae_L2"))
    assert one.names == ("vertebrae_L1", "vertebrae_L2", "disc")
    assert one.ids[30 + 10, 30 + 10, 20] == 3
    assert one.ids[30 + 10, 30 + 10, 3] == 0


def test_lookup_gives_a_decoder_its_indices() -> None:
    """Names become 1 … K in the decoder's order, all others background, and what is unknown stays unknown."""
    table = atlas().lookup(("aorta", "liver", "spleen"))
    assert [int(table[id]) for id in (0, 1, 2, 3, 255)] == [0, 2, 1, 0, 255]


def test_an_empty_label_map_is_refused() -> None:
    """There is nothing to make a CT from."""
    with pytest.raises(InputError, match="1 to 250 structures"):
        build_atlas(Volume(np.zeros((8, 8, 8), np.uint8)), NAMES)


# ---- the whole --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_ct() -> None:
    """HU and ids depend on the generator alone, not on torch's global state; another seed gives another CT."""
    one = atlas()
    rule = SynthesisRecipe(metal_probability=1.0, arms_probability=1.0, streak_probability=1.0)
    torch.manual_seed(1)
    first = synthesise(one, pose(one, 4.0), rule, np.random.default_rng(5))
    torch.manual_seed(2)
    again = synthesise(one, pose(one, 4.0), rule, np.random.default_rng(5))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], synthesise(one, pose(one, 4.0), rule, np.random.default_rng(6))[1])


def test_without_deformation_ids_are_the_label_map() -> None:
    """On the atlas's own grid every voxel has the structure that it has in the atlas."""
    hu, ids = made()
    assert (hu.dtype, ids.dtype) == (torch.float32, torch.uint8)
    assert (ids.numpy() != atlas().ids).mean() < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_structures_have_the_hu_of_their_tissue(seed: int) -> None:
    """Native: liver, blood and urine lie in the ranges of the table, the lung is lung, the hip's border brighter than its middle."""
    hu, ids = made(seed, native=1.0, arterial=0.0, venous=0.0)
    deep = torch.from_numpy(atlas().depth.astype(np.float32)) / 2 > 4
    medians = {name: float(hu[(ids == id) & deep].median()) for id, name in enumerate(NAMES, start=1)}
    ranges = {"liver": "liver", "aorta": "artery", "urinary_bladder": "urine", "lung_upper_lobe_left": "lung"}
    for name, tissue in ranges.items():
        low, high = tissues()[tissue].range_hu["native"]
        assert low - 90 * (tissue == "lung") - 12 <= medians[name] <= high + 90 * (tissue == "lung") + 12
    rim = (ids == 4) & (torch.from_numpy(atlas().depth.astype(np.float32)) / 2 < 1.2)
    assert hu[rim].median() > medians["hip_left"]


def test_contrast_medium_lights_the_aorta() -> None:
    """In the arterial phase the aorta is brighter than ever without contrast medium, and brighter than the liver."""
    hu, ids = made(native=0.0, arterial=1.0, venous=0.0)
    assert hu[ids == 2].median() > 150 > hu[ids == 1].median()


def test_around_the_body_there_is_air_and_under_the_skin_fat() -> None:
    """From outside in: air, skin, fat, muscle wall; of 20 mm of fat most is below -60 HU."""
    hu, _ = made()
    hull = atlas().hull.astype(int)
    middle = slice(10, 46)  # away from the ends of the scan
    band = {name: hu[:, :, middle][torch.from_numpy((hull[:, :, middle] > a) & (hull[:, :, middle] < b))] for name, a, b in (("wall", 1, 4), ("fat", 18, 22), ("air", 58, 90))}
    assert band["air"].max() < -950
    assert (band["fat"] < -50).float().mean() > 0.7
    assert (band["wall"] > -20).float().mean() > 0.5


def test_a_couch_and_arms_lie_outside_the_body() -> None:
    """They change nothing within the skin, and something outside: the couch only behind the middle."""
    plain, _ = made()
    couch, _ = made(table_probability=1.0)
    inside = torch.from_numpy(atlas().hull.astype(int) < 5)
    assert (couch - plain)[inside].abs().max() < 1
    changed = torch.nonzero((couch - plain).abs() > 30)
    assert len(changed) > 1000
    assert changed[:, 1].max() < atlas().shape[1] / 2


def test_a_body_that_is_known_is_kept() -> None:
    """With a mask of the body air begins where the mask ends, whatever the recipe says of fat."""
    body = np.zeros(SHAPE, bool)
    body[2:58, 3:40] = True
    one = build_atlas(Volume(painted(), np.diag([MM, MM, MM, 1.0])), NAMES, body)
    assert one.shape == SHAPE
    hu, _ = made(one=one, fat_mm=(45.0, 45.0))
    assert hu[:, :1].max() < -900
    assert (hu[4:56, 6:37] > -400).float().mean() > 0.6


def test_beyond_the_label_map_nothing_is_known() -> None:
    """A patch that reaches 40 mm above the last slice: there air and id 255, below it neither."""
    one = atlas()
    top = one.shape[2] * MM / 2
    hu, ids = synthesise(one, pose(one, MM, (30, 30, 40), (0.0, 0.0, top)), STILL, np.random.default_rng(0))
    assert (ids[:, :, 20:] == 255).all()
    assert (hu[:, :, 20:] == AIR_HU).all()
    assert (ids[:, :, :20] != 255).all()


def test_a_scan_may_end_within_the_patch() -> None:
    """crop 1: some slices at one end are air and unknown, others are not."""
    _, ids = made(crop_probability=1.0)
    ends = (ids == 255).all(0).all(0)
    assert 0 < int(ends.sum()) < len(ends)
    assert bool(ends[0]) != bool(ends[-1])


def test_borders_move_by_what_a_structure_allows() -> None:
    """border_mm makes structures larger or smaller, never by more than twice the table's value, and ids follow."""
    one = atlas()
    palette = draw_palette(NAMES, replace(STILL, border_mm=1.0), np.random.default_rng(1))
    assert palette.border_mm[1:6].abs().max() > 0
    limits = torch.tensor([structure(name).border_mm for name in NAMES])
    assert (palette.border_mm[1:6].abs() <= limits).all()
    scene = look(one, pose(one), palette, STILL, np.random.default_rng(1))
    volumes = torch.bincount(scene.ids.flatten().long(), minlength=6)[1:6] / torch.bincount(torch.from_numpy(one.ids).flatten().long(), minlength=6)[1:6]
    moved = palette.border_mm[1:6].abs() > 1
    assert moved.sum() >= 2
    assert ((volumes > 1) == (palette.border_mm[1:6] > 0))[moved].all()


@pytest.mark.slow
def test_a_real_label_map_makes_a_torso(shared: Path) -> None:
    """The whole-torso label map at 3 mm: air, lung, fat, soft tissue and bone, each of them between 1 and 80 %."""
    from clseg.io.files import read

    folder = shared / "data" / "totalsegmentator_dataset" / "s0328"
    labels = read(folder / "labels.nii.gz")
    ids = json.loads((folder / "labels.json").read_text())
    one = build_atlas(labels, sorted(ids, key=ids.get))
    hu, _ = synthesise(one, pose(one, 3.0), SynthesisRecipe(), np.random.default_rng(0))
    for low, high in ((-1100, -950), (-950, -600), (-150, -50), (0, 120), (200, 1500)):
        assert 0.005 < float(((hu >= low) & (hu < high)).float().mean()) < 0.8
