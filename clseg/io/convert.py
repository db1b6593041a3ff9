"""Convert: scans that are in memory already (nibabel, SimpleITK, an array with its affine) as a Volume."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from clseg.errors import InputError, UsageError
from clseg.volume import Header, Volume

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

_CALLED = "the image"


def to_volume(image: Any) -> Volume:
    """A Volume of a nibabel image, a SimpleITK image or a pair (array (i, j, k) in HU, affine 4×4 to RAS+ mm); a Volume is itself.

    Raises UsageError for anything else, InputError for what is not one 3-D scan of plain numbers.
    """
    if isinstance(image, Volume):
        return image
    if _is(image, "nibabel.spatialimages", "SpatialImage"):
        return _from_nibabel(image)
    if _is(image, "SimpleITK", "Image"):
        from clseg.io.files import from_itk

        return from_itk(image, _CALLED)
    if isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], np.ndarray):
        return _plain(image[0], image[1])
    raise UsageError(
        f"A scan cannot be made of {type(image).__name__}.", tip="Give a path, a Volume, a nibabel or SimpleITK image, or (array, affine) with the affine in RAS+ mm."
    )


def _is(image: Any, module: str, name: str) -> bool:
    """Whether it is an instance of a class of a library, which is not loaded to find out: what is not loaded has no instances."""
    return module in sys.modules and isinstance(image, getattr(sys.modules[module], name))


def _from_nibabel(image: SpatialImage) -> Volume:
    if image.affine is None:
        raise InputError("The nibabel image has no affine, expected one to RAS+ mm.")
    volume = _plain(np.asanyarray(image.dataobj), image.affine)
    if not hasattr(image, "get_qform"):
        return volume
    (qform, qform_code), (sform, sform_code) = image.get_qform(coded=True), image.get_sform(coded=True)
    return Volume(volume.array, volume.affine, Header(qform, int(qform_code), sform, int(sform_code)))


def _plain(array: np.ndarray, affine: Any) -> Volume:
    from clseg.io.nifti import float32_or_integer, refuse_many_volumes

    if array.size == 0:
        raise InputError(f"The image has no voxels: its shape is {array.shape}.")
    refuse_many_volumes(array.shape, _CALLED)
    try:
        place = np.asarray(affine, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"The affine must be a 4 x 4 matrix of numbers, given {type(affine).__name__}.", tip="Give the affine to RAS+ mm.") from error
    return Volume(float32_or_integer(array.reshape(array.shape[:3]), _CALLED), place)
