"""The synthetic CT: its masks lie where the organs of a patient lie, and its values are those of tissues."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from clseg.errors import InputError, UnknownName
from clseg.phantom import phantom, small_phantom
from clseg.volume import Volume

COARSE_MM = (4.0, 4.0, 4.0)
NAMES = {
    "body", "lung_left", "lung_right", "trachea", "skeleton", "spinal_cord", "mandible", "parotid_gland_left",
    "parotid_gland_right", "brainstem", "esophagus", "larynx", "liver", "spleen", "kidney_left", "kidney_right",
}  # fmt: skip


@pytest.fixture(scope="module")
def torso() -> tuple[Volume, dict[str, np.ndarray]]:
    return phantom(spacing_mm=COARSE_MM)


def centre_mm(ct: Volume, mask: np.ndarray) -> np.ndarray:
    return ct.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + ct.affine[:3, 3]


def test_the_torso_holds_every_structure_on_the_grid_of_the_ct(torso) -> None:
    """The masks are the sixteen structures, boolean, none empty, of the shape of the int16 RAS CT."""
    ct, masks = torso
    assert set(masks) == NAMES
    assert ct.array.dtype == np.int16
    assert ct.orientation == "RAS"
    assert all(mask.dtype == bool and mask.shape == ct.shape and mask.any() for mask in masks.values())


def test_organs_lie_on_their_side(torso) -> None:
    """RAS: what is on the patient's right has larger x than what is on the left; the liver is on the right, the spleen left."""
    ct, masks = torso
    x = {name: centre_mm(ct, mask)[0] for name, mask in masks.items()}
    middle = x["spinal_cord"]
    assert x["liver"] > middle + 20
    assert x["spleen"] < middle - 60
    for pair in ("lung", "kidney", "parotid_gland"):
        assert x[f"{pair}_right"] > middle + 30 > middle - 30 > x[f"{pair}_left"]


def test_organs_follow_each_other_from_foot_to_head(torso) -> None:
    """From below: kidneys, liver, lungs, larynx, mandible, brain stem; the cord lies behind the oesophagus, that behind the trachea."""
    ct, masks = torso
    at = {name: centre_mm(ct, mask) for name, mask in masks.items()}
    upwards = [at[name][2] for name in ("kidney_left", "liver", "lung_left", "larynx", "mandible", "brainstem")]
    assert upwards == sorted(upwards)
    assert at["spinal_cord"][1] < at["esophagus"][1] < at["trachea"][1]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("lung_left", -900, -780), ("lung_right", -900, -780), ("trachea", -1024, -800), ("liver", 90, 130),
        ("spleen", 95, 140), ("kidney_left", 110, 190), ("kidney_right", 110, 190), ("skeleton", 250, 900),
        ("mandible", 500, 1200), ("spinal_cord", 15, 60), ("brainstem", 20, 50), ("parotid_gland_left", -60, 40),
        ("parotid_gland_right", -60, 40), ("larynx", -50, 120), ("esophagus", -100, 60), ("body", -150, 80),
    ],
)  # fmt: skip
def test_tissues_have_their_hounsfield_units(torso, name: str, low: float, high: float) -> None:
    """The median HU of every structure is that of its tissue."""
    ct, masks = torso
    assert low < np.median(ct.array[masks[name]]) < high


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("liver", 1000, 2000), ("spleen", 90, 300), ("kidney_left", 80, 200), ("lung_right", 1500, 3500), ("brainstem", 20, 45),
     ("mandible", 35, 90), ("parotid_gland_left", 15, 40), ("trachea", 25, 80), ("spinal_cord", 20, 60)],
)  # fmt: skip
def test_organs_have_the_size_of_an_adult(torso, name: str, low: float, high: float) -> None:
    """The volume of every organ in mL is one that an adult can have."""
    ct, masks = torso
    assert low < masks[name].sum() * ct.voxel_mm3 / 1000 < high


def test_everything_lies_in_one_body_and_nothing_overlaps(torso) -> None:
    """The body is one piece that holds nearly all of every structure; only body and skeleton contain others."""
    _, masks = torso
    pieces, count = ndimage.label(masks["body"])
    assert np.bincount(pieces.ravel())[1:].max() > 0.999 * masks["body"].sum(), f"{count} pieces"
    assert all((mask & masks["body"]).sum() > 0.98 * mask.sum() for mask in masks.values())
    single = sum(mask.astype(int) for name, mask in masks.items() if name not in ("body", "skeleton"))
    assert single.max() == 1
    assert (masks["skeleton"] | ~masks["mandible"]).all()


def test_air_surrounds_the_patient_and_noise_covers_it(torso) -> None:
    """A corner of the picture is air at -1000 HU with the standard deviation of a scanner's noise."""
    ct, _ = torso
    corner = ct.array[:8, -8:, -8:].astype(float)
    assert abs(corner.mean() + 1000) < 5
    assert 7 < corner.std() < 14


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others() -> None:
    """A phantom is a function of its arguments alone."""
    first, again, other = (phantom(spacing_mm=(6, 6, 6), extent="chest", seed=s) for s in (3, 3, 4))
    assert np.array_equal(first[0].array, again[0].array)
    assert all(np.array_equal(mask, again[1][name]) for name, mask in first[1].items())
    assert not np.array_equal(first[0].array, other[0].array)


def test_spacing_is_respected_and_organs_keep_their_place() -> None:
    """At another spacing the grid differs, but the liver has the same volume (within 5 %) and centre (within 3 mm)."""
    fine, coarse = (phantom(spacing_mm=s, extent="abdomen") for s in ((3, 3, 3), (5, 4, 6)))
    assert coarse[0].spacing == pytest.approx((5, 4, 6))
    volumes = [m["liver"].sum() * ct.voxel_mm3 for ct, m in (fine, coarse)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.05)
    assert np.abs(centre_mm(fine[0], fine[1]["liver"]) - centre_mm(coarse[0], coarse[1]["liver"])).max() < 3


def test_a_part_holds_only_its_structures() -> None:
    """The head and neck have no liver; the abdomen has no mandible."""
    _, head = phantom(spacing_mm=(6, 6, 6), extent="head_neck")
    _, abdomen = phantom(spacing_mm=(6, 6, 6), extent="abdomen")
    assert {"mandible", "brainstem", "larynx"} <= set(head)
    assert {"liver", "kidney_left", "spleen"} <= set(abdomen)
    assert "liver" not in head
    assert "mandible" not in abdomen


def test_what_cannot_be_made_is_refused() -> None:
    """An unknown extent and an absurd spacing are errors of the caller, before anything is painted."""
    with pytest.raises(UnknownName, match="leg"):
        phantom(extent="leg")
    for spacing in ((0.0, 1.0, 1.0), (3.0, 3.0, 40.0), (3.0, float("nan"), 3.0)):
        with pytest.raises(InputError, match="voxel edges"):
            phantom(spacing_mm=spacing)


def test_the_small_phantom_is_a_tiny_torso() -> None:
    """40 × 32 × 48 voxels of 6 mm; liver on the right, lungs above it, spine behind it."""
    ct, masks = small_phantom()
    assert ct.shape == (40, 32, 48)
    assert ct.spacing == pytest.approx((6, 6, 6))
    assert set(masks) == {"body", "lung_left", "lung_right", "skeleton", "liver"}
    at = {name: centre_mm(ct, mask) for name, mask in masks.items()}
    assert at["liver"][0] > 0
    assert at["lung_right"][0] > 0 > at["lung_left"][0]
    assert at["lung_right"][2] > at["liver"][2]
    assert at["skeleton"][1] < at["liver"][1]
