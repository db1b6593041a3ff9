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
LEAST_MM2 = 2500.0  # of tissue, for a slice to have a middle
SEEN = 3 / 8  # of a window's edge: as far from its centre a window needs no other beside it; at 1/4 two of them meet

Band = tuple[float, float]


def middles(hu: np.ndarray, spacing: Spacing) -> np.ndarray:
    """Per slice of `hu` (x, y, z) the voxel along x that has half of the tissue on either side, float64; nan where there is hardly any."""
    profile = np.count_nonzero(hu > TISSUE_HU, axis=1)  # (x, z)
    total = profile.sum(axis=0)
    half = (np.cumsum(profile, axis=0) < total / 2).sum(axis=0).astype(float)
    half[total * spacing[0] * spacing[1] < LEAST_MM2] = np.nan
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


def windows_across(starts: Sequence[int], patch: int, band: Band | None) -> list[int]:
    """The fewest of the windows that begin at `starts` (rising) that see all of a band, each as far as SEEN of its edge from its centre.

    What no window sees so, at the ends of the scan, is left to the nearest.  Of windows
    that are as good the one whose centre is nearest to the middle of what is left of
    the band is taken; without a band all are needed.
    """
    if band is None:
        return list(starts)
    reach, half = patch * SEEN, (patch - 1) / 2
    low, high = band
    chosen: list[int] = []
    while left := [start for start in starts if not chosen or start > chosen[-1]]:
        able = [start for start in left if abs(start + half - low) <= reach] or [min(left, key=lambda start: abs(start + half - low))]
        whole = [start for start in able if start + half + reach >= high]
        if whole:
            return [*chosen, min(whole, key=lambda start: abs(start + half - (low + high) / 2))]
        chosen.append(able[-1])
        low = able[-1] + half + reach
    return chosen
