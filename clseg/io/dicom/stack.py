"""Stack: the slices of a series in their order, on a grid that is even and straight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clseg.errors import InputError
from clseg.io.dicom.headers import Slice
from clseg.io.dicom.pixels import Decoder
from clseg.io.dicom.series import DUPLICATE_MM
from clseg.io.finding import NOTE, WARNING, Finding, Found, unheard
from clseg.spatial.straighten import evened, straightened
from clseg.volume import Volume

UNEVEN = 0.05  # share of the slice distance by which a slice may lie off an even grid without being resampled
WIDEST = 3.0  # a gap of more than so many usual distances is refused
WIDEST_MM = 10.0  # an unusual gap of more than this is refused, too
ASKEW = 1e-3  # sideways drift of the slices per mm of height from which on they are straightened; less is rounding
RAGGED = 0.1  # pixels by which single slices may lie beside the line through the first and the last
STEEPEST = 45.0  # degrees of tilt
FURTHEST_MM = 50.0  # single slices that lie further beside the others do not belong to them

_AGAIN = "Export the series again in full."


def build(slices: Sequence[Slice], place: Path, found: Found = unheard) -> Volume:
    """One Volume in HU (i along rows, j along columns, k along the normal) with a RAS+ affine.

    Slices that are there twice are used once.  Uneven distances and missing slices are filled by linear interpolation
    with a warning, up to a gap of WIDEST usual distances or WIDEST_MM.  Slices that are shifted against each other
    (gantry tilt) are moved within their planes onto a straight grid, which grows to hold them all.

    Raises InputError for fewer than two slices, larger gaps, a tilt above STEEPEST, slices that lie more than FURTHEST_MM
    beside the others, and damaged pixels.
    """
    decoder = Decoder()
    ordered, heights = in_order(_all_rescaled(slices, place, found))
    ordered, heights = _once(ordered, heights, decoder, found)
    if len(ordered) < 2:
        raise InputError(f"'{place}' holds a single slice, expected a scan of two or more.", tip="Give the folder that holds the whole series.")
    even = _is_even(heights, place, found)
    shifts_mm = _shifts(ordered, heights, place, found)

    stack = _stacked([decoder.hu(one) for one in ordered])
    origin, step = ordered[0].position, (ordered[-1].position - ordered[0].position) / (len(ordered) - 1)
    if shifts_mm is not None:
        stack, corner = straightened(stack, shifts_mm / ordered[0].pixel_mm)
        origin = origin + corner[0] * _across(ordered[0]) + corner[1] * _down(ordered[0])
        step = ordered[0].normal * (heights[-1] - heights[0]) / (len(ordered) - 1)
    if not even:
        stack = evened(stack, heights, float(np.median(np.diff(heights))))
        step = step * (len(ordered) - 1) / (len(stack) - 1)
    return Volume(stack.transpose(2, 1, 0), _affine(ordered[0], origin, step))


def _all_rescaled(slices: Sequence[Slice], place: Path, found: Found) -> Sequence[Slice]:
    """Slices that do not say how their values become HU are taken for like the others, if these agree; where none says it, values stay."""
    silent = [one for one in slices if not one.rescaled]
    rules = {(one.slope, one.intercept) for one in slices if one.rescaled}
    if not silent or not rules:
        return slices
    said = f"{len(silent)} of {len(slices)} slices in '{place}' {'does' if len(silent) == 1 else 'do'} not say how values become HU (RescaleIntercept)"
    if len(rules) > 1:
        raise InputError(f"{said}, and the others do not agree.", tip=_AGAIN)
    slope, intercept = rules.pop()
    found(Finding(WARNING, "values", f"{said}; they were scaled like the others.", _AGAIN))
    return [one if one.rescaled else replace(one, slope=slope, intercept=intercept) for one in slices]


def in_order(slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """The slices by their height (mm) along the normal of their planes."""
    normal = slices[0].normal
    ordered = sorted(slices, key=lambda one: (round(float(one.position @ normal), 3), one.instance, str(one.path)))
    return ordered, np.array([float(one.position @ normal) for one in ordered])


def first_at_every_height(heights: np.ndarray) -> np.ndarray:
    """True for the first of the slices at every height, for heights (mm) that rise."""
    return np.concatenate([[True], np.diff(heights) > DUPLICATE_MM])


def _once(ordered: list[Slice], heights: np.ndarray, decoder: Decoder, found: Found) -> tuple[list[Slice], np.ndarray]:
    """The first slice at every height."""
    first = first_at_every_height(heights)
    if first.all():
        return ordered, heights
    groups = np.cumsum(first) - 1
    keepers = [one for one, keep in zip(ordered, first, strict=True) if keep]
    copies = [(one, keepers[group]) for one, group, keep in zip(ordered, groups, first, strict=True) if not keep]
    different = sum(not np.array_equal(decoder.hu(one), decoder.hu(other)) for one, other in copies)
    text = "1 slice lies where another lies already and was left out" if len(copies) == 1 else f"{len(copies)} slices lie where others lie already and were left out"
    if different:
        found(Finding(WARNING, "slices", f"{text}; {different} of them show something else.", "Put the images that are wanted into a folder of their own."))
    else:
        found(Finding(NOTE, "slices", f"{text}; they show the same."))
    return keepers, heights[first]


def _is_even(heights: np.ndarray, place: Path, found: Found) -> bool:
    """Whether the slices lie on an even grid; gaps are told, and refused where too much is missing."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() <= UNEVEN * usual:
        return True
    said = f"The slices in '{place}' are {gaps.min():.4g} to {gaps.max():.4g} mm apart, usually {usual:.4g} mm"
    if gaps.max() > WIDEST * usual or (gaps.max() > 1.5 * usual and gaps.max() > WIDEST_MM):
        raise InputError(f"{said}, expected gaps of at most {WIDEST:g} usual distances and {WIDEST_MM:g} mm; slices are missing.", tip=_AGAIN)
    missing = int(np.round(gaps / usual - 1).clip(0).sum())
    lost = f" ({missing} seem{'s' if missing == 1 else ''} to be missing)" if missing else ""
    found(Finding(WARNING, "spacing", f"{said}{lost}; they were interpolated onto even distances.", _AGAIN))
    return False


def _shifts(ordered: list[Slice], heights: np.ndarray, place: Path, found: Found) -> np.ndarray | None:
    """How far (mm, along rows and columns) every slice lies beside the first; None for a straight stack."""
    apart = np.array([one.position - ordered[0].position for one in ordered])
    shifts = np.stack([apart @ ordered[0].row, apart @ ordered[0].column], axis=1)
    line = np.outer((heights - heights[0]) / (heights[-1] - heights[0]), shifts[-1])
    beside_mm = np.abs(shifts - line).max(axis=0)
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(shifts[-1]), heights[-1] - heights[0])))
    if np.tan(np.radians(tilt)) <= ASKEW and (beside_mm / ordered[0].pixel_mm).max() <= RAGGED:
        return None
    most = float(np.linalg.norm(shifts, axis=1).max())
    said = f"The slices in '{place}' are shifted against each other by up to {most:.1f} mm (gantry tilt of {tilt:.1f}°)"
    if tilt > STEEPEST or beside_mm.max() > FURTHEST_MM:
        raise InputError(f"{said}, expected at most {STEEPEST:g}°, and single slices at most {FURTHEST_MM:g} mm beside the others.", tip=_AGAIN)
    found(Finding(WARNING, "tilt", f"{said}; they were moved onto a straight grid, on which the results lie.", "Nothing needs to be done; `dcm2niix` would do the same."))
    return shifts


def _stacked(planes: list[np.ndarray]) -> np.ndarray:
    """Planes (rows, columns) as one array (slices, rows, columns): the smallest integers that hold them all, or float32."""
    kinds = {plane.dtype for plane in planes}
    return np.stack(planes, dtype=kinds.pop() if len(kinds) == 1 else np.float32 if np.dtype(np.float32) in kinds else np.int32)


def _affine(first: Slice, origin: np.ndarray, step: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3] = np.stack([_across(first), _down(first), step, origin], axis=1)
    affine[:2] *= -1  # DICOM is LPS, ours is RAS
    return affine + 0.0  # no negative zeros


def _across(one: Slice) -> np.ndarray:
    """From one column to the next, mm."""
    return one.row * one.pixel_mm[0]


def _down(one: Slice) -> np.ndarray:
    """From one row to the next, mm."""
    return one.column * one.pixel_mm[1]
