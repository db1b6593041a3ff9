"""A CT passes the checks, whatever is not one is refused in a sentence, and small faults are mended with a warning."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.errors import InputError
from clseg.io.check import AIR_HU, check
from clseg.io.files import read
from clseg.volume import Header, Volume

SHARED = Path(__file__).parents[2] / "shared"
SHAPE = (24, 24, 20)
GRID = np.diag([2.0, 2.0, 3.0, 1.0])


def torso(dtype: type = np.int16) -> np.ndarray:
    """Air around a cylinder of muscle with a rim of fat, a lung and a bone; HU with noise."""
    i, j, _ = np.indices(SHAPE)
    radius = np.hypot(i - 11.5, j - 11.5)
    hu = np.where(radius < 10, -100, -1000) + np.where(radius < 8, 150, 0)
    hu[np.hypot(i - 8, j - 12) < 3] = -800
    hu[np.hypot(i - 16, j - 12) < 2] = 700
    return (hu + np.random.default_rng(0).normal(0, 10, SHAPE)).astype(dtype)


def ct(array: np.ndarray | None = None, affine: np.ndarray = GRID, header: Header | None = None) -> Volume:
    return Volume(torso() if array is None else array, affine, header)


def test_a_clean_ct_passes_untouched():
    """A CT in HU comes back as the same object, without warnings."""
    volume = ct()
    checked = check(volume)
    assert checked.volume is volume
    assert (checked.warnings, checked.needs_orthonormal) == ((), False)


def test_every_real_ct_passes():
    """All CTs of the shared collection pass without a warning."""
    paths = sorted((SHARED / "data").glob("*/*/ct.nii.gz"))
    if not paths:
        pytest.skip("the shared CTs are not here")
    assert {str(path): check(read(path)).warnings for path in paths} == {str(path): () for path in paths}


def test_real_tight_crops_pass():
    """4 cm boxes inside the body of real CTs, with fat or a trace of it but without air, pass."""
    paths = sorted((SHARED / "data" / "soft_tissue_sarcoma").glob("*/ct.nii.gz"))[::4]
    if not paths:
        pytest.skip("the shared CTs are not here")
    random, crops = np.random.default_rng(0), 0
    for volume in map(read, paths):
        for _ in range(40):
            corner = [int(random.integers(0, length - 20)) for length in volume.shape]
            crop = volume.array[tuple(slice(start, start + 20) for start in corner)]
            if crop.min() > -250 and crop.max() > 100 and (crop < -30).mean() > 0.001:
                crops += 1
                check(Volume(crop, volume.affine))
    assert crops >= 10


def test_a_real_mr_is_refused():
    """The shared MR scan is refused, with MR in the sentence."""
    path = SHARED / "data" / "totalsegmentator_tests" / "example_mr_sm.nii.gz"
    if not path.is_file():
        pytest.skip("the shared MR scan is not here")
    with pytest.raises(InputError, match=r"not Hounsfield units.*MR"):
        check(read(path))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), fat=st.floats(0.02, 0.6), bone=st.floats(0, 0.3), noise=st.floats(1, 30))
def test_crops_without_air_pass(seed, fat, bone, noise):
    """Any mix of fat, muscle and bone without air is a CT: values from about -200 to 1500."""
    random = np.random.default_rng(seed)
    kind = random.random(SHAPE)
    hu = np.where(kind < fat, -100.0, np.where(kind > 1 - bone, random.uniform(300, 1500, SHAPE), 50.0))
    assert check(ct(np.round(hu + random.normal(0, noise, SHAPE)).astype(np.int16))).volume.shape == SHAPE


def mr(scale: float = 1.0) -> np.ndarray:
    """Background near 0 and tissue with a long bright tail, as magnitude images have."""
    random = np.random.default_rng(0)
    return np.where(torso() < -500, np.abs(random.normal(0, 8, SHAPE)), np.abs(random.normal(350, 150, SHAPE))) * scale


def undershoot(array: np.ndarray) -> np.ndarray:
    """The dark ringing that resampling with splines leaves in a hundredth of the voxels."""
    array = array.copy()
    array.ravel()[::90] = -60
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.clip((torso(float) + 160) / 400 * 255, 0, 255).astype(np.uint8), "8-bit"),
        (np.clip((torso(float) + 1000) / 2000, 0, 1).astype(np.float32), "normalised"),
        (((torso(float) - torso(float).mean()) / torso(float).std()).astype(np.float32), "normalised"),
        (np.full(SHAPE, -1000, np.int16), "every voxel has the same value"),
        (np.clip(torso() + 1024, 0, None).astype(np.uint16), "1024 added"),
        (np.clip(torso()[8:16, 15:19] + 1024, 0, None).astype(np.uint16), "1024 added"),
        (mr(), "MR or PET"),
        (mr(10), "MR or PET"),
        (undershoot(mr() * (mr() > 20)), "background is 0"),
        (np.where(torso() < -900, -2000, torso() + 1024), "1024 added"),
        (np.where(torso() < -500, 3000, -3000) + torso() % 50, "no soft tissue"),
    ],
    ids=["8-bit", "0-1", "unit variance", "constant", "offset", "offset crop", "MR", "bright MR", "resampled MR", "padded offset", "no tissue"],
)
def test_values_that_are_not_hu_are_refused(array, words):
    """The usual wrong exports are refused with the range, the likely cause and what to do."""
    with pytest.raises(InputError, match=f"values run from .* not Hounsfield units: .*{words}") as refusal:
        check(ct(array))
    assert refusal.value.tip


def test_the_hint_for_an_offset_mends_it(tmp_path, monkeypatch):
    """The command in the hint turns a CT with 1024 added into one that passes."""
    with pytest.raises(InputError) as refusal:
        check(ct((torso() + 1024).clip(0).astype(np.uint16)))
    monkeypatch.chdir(tmp_path)
    nib.save(nib.Nifti1Image((torso() + 1024).clip(0).astype(np.uint16), GRID), "scan.nii.gz")
    exec(refusal.value.tip.split('"')[1])
    assert check(read("scan_hu.nii.gz")).warnings == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_few_voxels_without_a_number_become_air(value):
    """Up to 1 % NaN or infinity is replaced by air with a warning; the array that was given stays."""
    array = torso(np.float32)
    array.ravel()[:100] = value
    checked = check(ct(array))
    assert (checked.volume.array.ravel()[:100] == AIR_HU).all()
    np.testing.assert_array_equal(checked.volume.array.ravel()[100:], array.ravel()[100:])
    assert checked.warnings == (f"100 voxels without a number (NaN or infinity) were replaced by air ({AIR_HU} HU).",)
    assert not np.isfinite(array.ravel()[:100]).any()
    assert checked.volume.array.dtype == np.float32


def test_many_voxels_without_a_number_are_refused():
    """More than 1 % NaN is no scan: 116 of 11520 voxels are too many, 115 are not."""
    array = torso(np.float32)
    array.ravel()[:115] = np.nan
    check(ct(array))
    array.ravel()[115] = np.nan
    with pytest.raises(InputError, match=r"1\.0% of the voxels hold no number"):
        check(ct(array))


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_values_beyond_16_bits_are_cut(dtype):
    """A stray huge value is cut to 16 bits with a warning."""
    array = torso(dtype)
    array[0, 0, 0], array[1, 0, 0] = 1e6, -1e6
    checked = check(ct(array))
    assert (checked.volume.array[0, 0, 0], checked.volume.array[1, 0, 0]) == (32767, -32768)
    assert [warning for warning in checked.warnings if "cut to" in warning]
    assert checked.volume.array.dtype == dtype


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_refused(axis):
    """One voxel along any axis is a slice and not a scan; two are enough."""
    with pytest.raises(InputError, match="at least 2 along every axis"):
        check(ct(np.take(torso(), [12], axis)))
    check(ct(np.take(torso(), [11, 12], axis)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("edge", [0.001, 0.04, 20.5, 2000])
def test_absurd_voxels_are_refused(axis, edge):
    """Edges below 0.05 or above 20 mm are refused along any axis."""
    affine = GRID.copy()
    affine[axis, axis] = -edge
    with pytest.raises(InputError, match=r"between 0\.05 and 20 mm"):
        check(ct(affine=affine))


def test_what_may_be_an_mr_is_doubted():
    """Bright tissue with a trace of negative values passes with a warning, for it might be a crop full of bone."""
    (warning,) = check(ct(undershoot(mr(2)))).warnings
    assert "MR" in warning


@pytest.mark.parametrize(("array", "words"), [(torso().clip(-160), "air cannot be told"), (torso().clip(None, 240), "bone cannot be told")])
def test_hu_cut_by_a_window_are_doubted(array, words):
    """HU that were cut at the ends of a window pass with a warning."""
    assert [words in warning for warning in check(ct(array)).warnings] == [True]


def test_unknown_position_is_told():
    """A file with neither qform nor sform passes with a warning about left and right."""
    (warning,) = check(ct(header=Header(None, 0, None, 0))).warnings
    assert "left and right" in warning


def test_two_positions_that_disagree_are_told():
    """qform and sform that differ by a flip give a warning; by a rounding error they do not."""
    near = GRID + 1e-4
    assert check(ct(header=Header(near, 1, GRID, 1))).warnings == ()
    (warning,) = check(ct(header=Header(GRID @ np.diag([-1, 1, 1, 1]), 1, GRID, 1))).warnings
    assert "disagree" in warning


def test_thick_and_thin_scans_are_doubted():
    """Voxels longer than 10 mm and scans thinner than 20 mm pass with a warning."""
    (thick,) = check(ct(affine=np.diag([2.0, 2, 12, 1]))).warnings
    (thin,) = check(ct(torso()[:, :, :4])).warnings
    assert ("12 mm long" in thick, "12 mm thick" in thin) == (True, True)


@pytest.mark.parametrize(("shear", "expected"), [(0.0005, False), (0.002, True), (0.3, True)])
def test_sheared_grids_are_reported(shear, expected):
    """Axes that leave the right angle by more than 1e-3 need resampling and give a warning."""
    affine = GRID.copy()
    affine[1, 2] = shear * 3
    checked = check(ct(affine=affine))
    assert (checked.needs_orthonormal, len(checked.warnings)) == (expected, int(expected))


def test_steep_grids_are_refused():
    """An axis that leaves the right angle by 44° passes, by 46° it does not: the straight grid would grow without bounds."""
    for degrees, refused in ((44, False), (46, True)):
        affine = GRID.copy()
        affine[1, 2] = 3 * np.tan(np.radians(degrees))
        if refused:
            with pytest.raises(InputError, match="right angle by 46°"):
                check(ct(affine=affine))
        else:
            assert check(ct(affine=affine)).needs_orthonormal


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), handed=st.sampled_from([-1, 1]))
def test_turned_grids_are_fine(seed, handed):
    """Rotated and left-handed grids are not sheared, whatever their voxel size."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] * handed * random.uniform(1, 6, 3)
    assert check(ct(affine=affine)).needs_orthonormal is False
