"""Sideways: how far from the middle of the body a decoder's organs lie, and which windows of a row therefore have to be computed.

The cord, the trachea or the oesophagus are never found in a flank.  A decoder's
checkpoint may say how far to the left and to the right of the middle its organs were
seen; then a row of windows is computed only as far as that.  It chooses windows, not
voxels: what a window sees it may paint, so an organ is lost only where it lies
outside of all windows that were chosen, about a window's half from where it is expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clseg.volume import Spacing

if TYPE_CHECKING:
    from clseg.network.checkpoint import Sideways

TISSUE_HU = -300.0  # fat is about -100 HU
LEAST_MM2 = 2500.0  # of the body, for a slice to have a middle
CUT_MM = 60.0  # of depth at the scan's left or right face: there the body goes on, where a couch may
ACROSS = 7 / 16  # of a window's edge: as far from its centre a window needs no other beside it; ranges to the sides have some to spare
ALONG = 1 / 4  # the same from foot to head, where it is no farther than to the nearest window anyway

Band = tuple[float, float]


def middles(hu: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Per slice of `hu` (x, y, z) the voxel along x that has half of the body on either side, float64.

    The body reaches from the first to the last tissue of every line along y, so that
    lungs and bowel gas count like the liver beside them.  Where there is hardly any, or
    the scan cuts it at its left or right face, nobody knows its middle: nan.
    """
    tissue = hu > TISSUE_HU
    thick = hu.shape[1] - tissue.argmax(axis=1) - tissue[:, ::-1].argmax(axis=1)  # (x, z)
    thick[~tissue.any(axis=1)] = 0
    total = thick.sum(axis=0)
    half = (np.cumsum(thick, axis=0) < total / 2).sum(axis=0).astype(float)
    cut = np.maximum(thick[0], thick[-1]) * spacing[1] >= CUT_MM
    half[cut | (total * spacing[0] * spacing[1] < LEAST_MM2)] = np.nan
    return half


def bands(middle: np.ndarray, sideways: Sideways | None, spacing_x: float, orientation: str = "RAS") -> np.ndarray | None:
    """Lowest and highest voxel along x (2, slices) that can hold a decoder's organs; None where nothing is known of it.

    `middle` comes from `middles`, in slices without a middle the band is nan; `sideways` is in mm to the patient's right.
    """
    sign = {"R": 1, "L": -1}.get(orientation[0])
    if sideways is None or sign is None:
        return None
    offsets = sorted(sign * bound / spacing_x for bound in sideways)
    return middle + np.array(offsets)[:, None]


def hull(band: np.ndarray | None) -> Band | None:
    """From the lowest to the highest voxel of some slices of a band; None where no slice has one."""
    if band is None or not np.isfinite(band).any():
        return None
    return float(np.nanmin(band[0])), float(np.nanmax(band[1]))


def windows_seeing(starts: Sequence[int], patch: int, band: Band | None, seen: float) -> list[int]:
    """Those of the windows that begin at `starts` (rising) that see a band: from the last that sees its lower end to the first that sees its upper one.

    A window sees as far as the share `seen` of its edge from its centre, the outermost to the ends
    of the scan.  Where each of several sees all of the band, the one whose centre is
    nearest to the middle of it is taken; without a band all are needed.
    """
    if band is None:
        return list(starts)
    low, high = band
    centres = [start + (patch - 1) / 2 for start in starts]
    first = max((i for i, centre in enumerate(centres) if centre - patch * seen <= low), default=0)
    last = min((i for i, centre in enumerate(centres) if centre + patch * seen >= high), default=len(centres) - 1)
    if first <= last:
        chosen = starts[first : last + 1]
        return [start for start in chosen if start <= high and start + patch > low] or list(chosen)
    return [min(starts[last : first + 1], key=lambda start: abs(start + (patch - 1) / 2 - (low + high) / 2))]
