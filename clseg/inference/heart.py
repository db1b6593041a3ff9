"""Heart: which side of the chest it leans to, the one thing that tells left from right without knowing an organ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clseg.volume import Volume

CHEST = (0.44, 0.66)  # body-part scores between the lungs' bottom and top
HEART = 0.58  # scores up to which the heart lies between them
LEAST_MM = 100.0  # of chest, or nothing can be told
CLEAR_MM = 10.0  # of 59 real scans one leans further to the right, and its right lung is the larger one
_COARSE_MM = 4.0
_LUNG_HU = -500
_LEAST_ROWS = 200


@dataclass(frozen=True)
class Chest:
    """`heart_left_mm`: how far left of the body's middle the space between the lungs lies; `right_share`: of the air in both lungs."""

    heart_left_mm: float
    right_share: float

    @property
    def swapped(self) -> bool:
        """The heart leans clearly to the right, and the right lung is not the larger one: left and right may be swapped."""
        return self.heart_left_mm < -CLEAR_MM and self.right_share < 0.515


def look_at_chest(upright: Volume, scores: np.ndarray) -> Chest | None:
    """What the lungs of a scan in RAS axes say, with the score of every slice; None where too little chest is in view."""
    rows = np.flatnonzero((scores > CHEST[0]) & (scores < CHEST[1]))
    if len(rows) * upright.spacing[2] < LEAST_MM:
        return None
    steps = [max(1, round(_COARSE_MM / edge)) for edge in upright.spacing]
    gaps, right, left = [], 0, 0
    for k in rows[:: steps[2]]:
        found = _lungs(upright.array[:: steps[0], :: steps[1], k])
        if found is None:
            continue
        lungs, middle = found
        x = np.arange(len(lungs))
        right, left = right + int(lungs[x > middle].sum()), left + int(lungs[x < middle].sum())
        if scores[k] < HEART:
            gaps += _gaps(lungs, middle)
    if len(gaps) < _LEAST_ROWS / max(1, steps[2]) or not right or not left:
        return None
    return Chest(-float(np.mean(gaps)) * steps[0] * upright.spacing[0], right / (right + left))


def _lungs(plane: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Air inside the body in an axial plane (x, y), and the x of the body's middle; None without a body."""
    from scipy import ndimage

    parts, _ = ndimage.label(plane < _LUNG_HU)
    outside = np.isin(parts, np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])))
    bodies, count = ndimage.label(~(outside & (plane < _LUNG_HU)))
    if not count:
        return None
    body = bodies == 1 + int(np.bincount(bodies.ravel())[1:].argmax())
    columns = np.flatnonzero(body.any(axis=1))
    return body & (plane < _LUNG_HU), (columns[0] + columns[-1]) / 2


def _gaps(lungs: np.ndarray, middle: float) -> list[float]:
    """Per row with lung on both sides the middle of the widest gap between them, from the body's middle, in pixels to the right."""
    found = []
    for row in lungs.T:
        at = np.flatnonzero(row)
        if at.size and at[0] < middle < at[-1]:
            widths = np.diff(at)
            widest = int(widths.argmax())
            if widths[widest] > 3:
                found.append((at[widest] + at[widest + 1]) / 2 - middle)
    return found
