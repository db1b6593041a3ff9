"""Scans in memory become the same Volume as their files."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from clseg.errors import InputError, UsageError
from clseg.io.convert import to_volume
from clseg.io.files import read
from clseg.volume import Volume

AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
HU = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 60


def test_a_volume_is_itself():
    """Nothing is copied."""
    volume = Volume(HU, AFFINE)
    assert to_volume(volume) is volume


def test_a_nibabel_image_is_like_its_file(tmp_path):
    """Voxels, affine, qform and sform with their codes, on disk or not, scaled or not."""
    image = nib.Nifti1Image(HU, AFFINE)
    image.header.set_slope_inter(2, -10)
    nib.save(image, tmp_path / "ct.nii.gz")
    from_file, from_disk, fresh = read(tmp_path / "ct.nii.gz"), to_volume(nib.load(tmp_path / "ct.nii.gz")), to_volume(nib.Nifti1Image(HU, AFFINE))
    np.testing.assert_array_equal(from_disk.array, from_file.array)
    np.testing.assert_array_equal(fresh.array, HU)
    assert from_disk.same_grid(from_file)
    assert (from_disk.header.qform_code, from_disk.header.sform_code) == (from_file.header.qform_code, from_file.header.sform_code)
    np.testing.assert_allclose(from_disk.header.sform, from_file.header.sform)


def test_a_simpleitk_image_is_like_its_file(tmp_path):
    """Axes are turned from (k, j, i), patient coordinates from LPS to RAS."""
    image = sitk.GetImageFromArray(HU.transpose(2, 1, 0))
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((10, 20, 30))
    sitk.WriteImage(image, str(tmp_path / "ct.mha"))
    volume = to_volume(image)
    np.testing.assert_array_equal(volume.array, HU)
    assert volume.same_grid(read(tmp_path / "ct.mha"))
    np.testing.assert_allclose(volume.affine[:3, 3], [-10, -20, 30])


def test_an_array_with_its_affine():
    """A pair is taken as it is; float64 becomes float32; a fourth axis of length 1 goes."""
    np.testing.assert_array_equal(to_volume((HU, AFFINE)).affine, AFFINE)
    assert to_volume((HU.astype(float)[..., None], AFFINE.tolist())).array.dtype == np.float32


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ((np.zeros((4, 5, 6, 2)), np.eye(4)), "holds 2 volumes"),
        ((HU.astype(complex), np.eye(4)), "complex"),
        ((HU, np.zeros((4, 4))), "invertible"),
        ((HU[0], np.eye(4)), "3 dimensions"),
        ((HU, "x"), "4 x 4 matrix of numbers"),
        ((np.zeros((3, 4, 5, 1, 0)), np.eye(4)), "no voxels"),
        (nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), "holds 2 volumes"),
        (sitk.GetImageFromArray(np.zeros((4, 5), np.int16)), "2-D"),
    ],
)
def test_what_is_no_scan_is_refused(image, words):
    """Four dimensions, complex numbers, an affine that is none or cannot be inverted, empty and flat pictures."""
    with pytest.raises(InputError, match=words):
        to_volume(image)


@pytest.mark.parametrize("image", [HU, 7, None, (1, 2), [HU, AFFINE], (HU, AFFINE, 1)])
def test_other_things_are_a_mistake_of_the_call(image):
    """An array without its affine is not guessed at."""
    with pytest.raises(UsageError, match="cannot be made of"):
        to_volume(image)
