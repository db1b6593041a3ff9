"""Orientation: turn a volume to any of the 48 axis orders by flips and permutations alone, and turn results back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clseg.errors import InputError, UsageError
from clseg.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clseg.spatial.crop import Box

_PAIRS = ("LR", "PA", "IS")


def to_orientation(volume: Volume, code: str = "RAS") -> Volume:
    """The same voxels with axes that point (as nearly as the grid allows) where `code` says, e.g. 'RAS' or 'LPS'.

    Nothing is interpolated: every value keeps its place in the patient.  The array is a view where the axes had to be
    turned, and the volume itself where not; a turned volume has no header, for its grid is no longer that of the file.

    Raises UsageError when `code` is not one of the 48 orders.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff

    turn = _turn(volume, code)
    if _is_identity(turn):
        return volume
    return Volume(apply_orientation(volume.array, turn), volume.affine @ inv_ornt_aff(turn, volume.shape))


def undo_orientation(array: np.ndarray, like: Volume, code: str = "RAS") -> np.ndarray:
    """Bring an array from the axes of `to_orientation(like, code)` back to those of `like` (a view, of shape like.shape).

    Raises InputError when the array does not have the shape that `like` has in those axes.
    """
    from nibabel.orientations import apply_orientation

    turn = _turn(like, code)
    to_axis = turn[:, 0].astype(int)
    expected = tuple(like.shape[axis] for axis in np.argsort(to_axis))
    if array.shape != expected:
        raise InputError(f"Expected an array of shape {expected} in {code} axes for this scan of shape {like.shape}, given {array.shape}.")
    back = np.stack([np.argsort(to_axis), turn[np.argsort(to_axis), 1]], axis=1)
    return apply_orientation(array, back)


def axis_order(like: Volume, code: str = "RAS") -> tuple[int, int, int]:
    """For every axis of `like` the axis of `to_orientation(like, code)` that it became."""
    i, j, k = (int(axis) for axis in _turn(like, code)[:, 0])
    return i, j, k


def box_before(like: Volume, box: Box, code: str = "RAS") -> Box:
    """The box along the axes of `like` of what `box` is along those of `to_orientation(like, code)`."""
    found = []
    for length, (axis, sign) in zip(like.shape, _turn(like, code), strict=True):
        part = box[int(axis)]
        found.append(part if sign > 0 else slice(length - part.stop, length - part.start))
    return tuple(found)  # type: ignore[return-value]


def _turn(volume: Volume, code: str) -> np.ndarray:
    """nibabel's orientation transform: for every axis of the volume its place in `code` and its sign, shape (3, 2)."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    letters = _axes(code)
    return ornt_transform(io_orientation(volume.affine), axcodes2ornt(letters))


def _axes(code: str) -> Sequence[str]:
    if sorted(next((n for n, pair in enumerate(_PAIRS) if letter in pair), -1) for letter in code) != [0, 1, 2]:
        raise UsageError(f"Unknown orientation '{code}', expected one letter each of R/L, A/P and S/I, such as RAS or LPS.")
    return code


def _is_identity(turn: np.ndarray) -> bool:
    return bool((turn == [[0, 1], [1, 1], [2, 1]]).all())
