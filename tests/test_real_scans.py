"""The shipped starter model on a real head and neck: the same organs however the scan is stored, left on the left."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clseg import Segmentation, segment
from clseg.io.files import read
from clseg.spatial.orient import to_orientation
from tests.conftest import SHARED
from tests.lattice import dice

pytestmark = pytest.mark.slow

SCRAPS_ML = 3.0  # what is smaller at the border of a scan is no measure
SAME = 0.97  # Dice of an organ in a flipped or permuted copy
LARGE = 20  # voxels; a handful more or less is no measure


@pytest.fixture(scope="module")
def ct() -> Path:
    """The first head and neck CT that was held out from training."""
    index = SHARED / "data" / "index.csv"
    if not index.is_file():
        pytest.skip(f"the real scans are not on this machine (expected in {SHARED / 'data'})")
    with index.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val" and row["body_part"] == "head_neck"]
    cases = [SHARED / "data" / row["case"] / "ct.nii.gz" for row in rows if "spinal_cord" in (SHARED / "data" / row["case"] / "labels.json").read_text()]
    return cases[0]


@pytest.fixture(scope="module")
def found(ct: Path) -> Segmentation:
    return segment(ct, offline=True)


def in_ras(result: Segmentation) -> dict[str, np.ndarray]:
    """Every mask with axes to the Right, Anterior and Superior."""
    return {name: to_orientation(result.scan.like(result.mask(name)), "RAS").array for name in result.names}


def test_the_body_and_organs_are_found(found):
    """A head and neck holds at least the body, bones, and what the starter knows of the neck."""
    assert {"body", "skeleton", "spinal_cord", "mandible"} <= {anatomy.name for anatomy in found.present}


def test_masks_lie_on_the_grid_of_the_file(ct, found, tmp_path):
    """Shape, affine, qform, sform and their codes are those of the file that was read."""
    found.save(tmp_path)
    scan = nib.load(ct)
    assert found.present
    for anatomy in found.present:
        mask = nib.load(tmp_path / f"{anatomy.name}.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        for kind in ("qform", "sform"):
            given, code = getattr(scan.header, f"get_{kind}")(coded=True)
            written, same_code = getattr(mask.header, f"get_{kind}")(coded=True)
            assert same_code == code
            if code > 0:  # otherwise the numbers mean nothing
                np.testing.assert_allclose(written, given, atol=1e-4)


@pytest.mark.parametrize("code", ["LAS", "SRA", "PIL"])
def test_flipped_and_permuted_copies_give_the_same_organs(ct, found, code):
    """The same patient stored along other axes: every organ with Dice of at least 0.97, on the grid of the copy."""
    copy = to_orientation(read(ct), code)
    other = segment(copy, offline=True)
    assert other.labels.same_grid(copy, tolerance_mm=0)
    expected, masks = in_ras(found), in_ras(other)
    compared = {name: dice(masks[name], mask) for name, mask in expected.items() if mask.sum() > LARGE}
    assert compared
    assert {name: value for name, value in compared.items() if value < SAME} == {}


CHEST = "lidc_idri/LIDC-IDRI-0314"
COPIES = {
    "a chest of 2 mm in slices of 4 mm": (CHEST, (1.0, 1.0, 2.0), 0.965),  # larynx 0.968, all others SAME
    "a head of 4.7 mm in voxels half as wide": ("", (0.5, 0.5, 1.0), 0.96),
    "a head in slices of 6 mm, coarser than the model's grid": ("", (1.0, 1.0, 2.0), 0.93),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_with_other_voxel_sizes_give_the_same_organs(ct, kind):
    """On the copy's voxels organs agree with the original's result by 0.97 on average, in the chest every single one by nearly that."""
    from benchmarks.copies import agreement, copied

    case, factor, least = COPIES[kind]
    scan = to_orientation(read(SHARED / "data" / case / "ct.nii.gz" if case else ct), "RAS")
    found = agreement(scan, copied(scan, factor), least_ml=SCRAPS_ML)
    assert len(found) >= 11
    assert np.mean(list(found.values())) >= SAME
    assert {name: value for name, value in found.items() if value < least} == {}


def test_left_stays_left(found):
    """World x grows to the patient's right: the left parotid gland lies at smaller x than the right one, by centimetres."""
    statistics = {side: found.statistics()[f"parotid_gland_{side}"] for side in ("left", "right")}
    assert {side: one.voxels is not None for side, one in statistics.items()} == {"left": True, "right": True}
    x = {side: one.centroid_mm[0] for side, one in statistics.items()}
    assert x["right"] - x["left"] > 40


def test_two_runs_give_the_same_bytes(ct, found, tmp_path):
    """Every mask and the label map of a second run are the same files."""
    again = segment(ct, offline=True)
    for name, result in (("first", found), ("second", again)):
        result.save(tmp_path / name)
        result.save(tmp_path / name / "map.nii.gz")
    first = sorted(file.name for file in (tmp_path / "first").glob("*.nii.gz"))
    assert first == sorted(file.name for file in (tmp_path / "second").glob("*.nii.gz"))
    for file in first:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_a_dicom_series_is_segmented_on_its_own_grid():
    """Twenty original slices of an abdomen, as a scanner wrote them."""
    series = SHARED / "data" / "totalsegmentator_tests" / "example_ct_dicom" / "series"
    if not series.is_dir():
        pytest.skip(f"the DICOM series is not on this machine (expected in {series})")
    result = segment(series, roi=["body"], offline=True)
    assert result.labels.same_grid(read(series), tolerance_mm=0)
    inside = result.scan.array[result.mask("body")]
    assert inside.size > 0.1 * result.scan.array.size
    assert np.median(inside) > -150


def test_a_thigh_gets_nothing_of_the_head_or_chest():
    """A held-out thigh: lungs, trachea, larynx, parotids and brainstem are out of range and paint nothing; body and bones are found."""
    index = SHARED / "data" / "index.csv"
    if not index.is_file():
        pytest.skip(f"the real scans are not on this machine (expected in {SHARED / 'data'})")
    with index.open(encoding="utf-8") as file:
        case = next(row["case"] for row in csv.DictReader(file) if row["split"] == "val" and row["case"].startswith("soft_tissue"))
    result = segment(SHARED / "data" / case / "ct.nii.gz", offline=True)
    found = {anatomy.name for anatomy in result.present}
    assert {"body", "skeleton"} <= found
    assert found & {"lung_left", "lung_right", "trachea", "larynx", "parotid_gland_left", "parotid_gland_right", "brainstem"} == set()
    assert {"lung_left", "larynx", "brainstem"} <= result.out_of_range
