"""Outline: closed lines around what a plane's mask holds, half-way between pixels inside and pixels outside."""

from __future__ import annotations

import numpy as np

Outline = np.ndarray
"""Points (n, 2) of a closed line, in pixels along both axes; the first is not repeated at the end."""


def outlines(mask: np.ndarray) -> list[Outline]:
    """One line around every piece of a boolean mask (i, j), its holes joined to it by channels without width ("keyholes").

    Pixels that touch at a corner only are separate pieces.  The centres of pixels inside lie within a line (at most on a
    channel), those outside lie outside all lines, and lines never cross: every rule of filling gives the mask back.
    A line encloses half a pixel less than the pixels of its piece, for it cuts corners.  Points on straight runs are left out.
    """
    padded = np.pad(mask, 1)
    lines = _lines(padded)
    at = {point: number for number, line in enumerate(lines) for point in map(tuple, line.tolist())}
    rings = {number: line for number, line in enumerate(lines) if _area(line) > 0}
    home = {number: number for number in rings}
    for number, door in sorted(_doors(lines, rings), key=lambda hole: hole[1]):  # from the left: what is met was joined before
        met = _met(padded, door)
        home[number] = home[at[met]]
        rings[home[number]] = _joined(rings[home[number]], met, lines[number], door)
    return [_bends(ring) / 2 - 1 for ring in rings.values()]


def _lines(padded: np.ndarray) -> list[np.ndarray]:
    """Points of all lines as twice their coordinates, whole numbers; around pieces they turn one way, around holes the other."""
    from skimage.measure import find_contours

    found = find_contours(padded.astype(float), 0.5, fully_connected="low", positive_orientation="high")
    return [np.rint(line[:-1] * 2).astype(int) for line in found]


def _area(line: np.ndarray) -> float:
    """Above 0 for a line around a piece, below for one around a hole."""
    following = np.roll(line, -1, axis=0)
    return float((line[:, 0] * following[:, 1] - line[:, 1] * following[:, 0]).sum())


def _doors(lines: list[np.ndarray], rings: dict[int, np.ndarray]) -> list[tuple[int, tuple[int, int]]]:
    """Every hole with its leftmost point: half-way between a pixel of the piece and the hole's pixel to the right of it."""
    return [(number, min(map(tuple, line.tolist()))) for number, line in enumerate(lines) if number not in rings]


def _met(padded: np.ndarray, door: tuple[int, int]) -> tuple[int, int]:
    """The point of another line that is met when one goes left from a door, through pixels of the piece only."""
    row = padded[: door[0] // 2 + 1, door[1] // 2]
    return 2 * int(np.flatnonzero(~row)[-1]) + 1, door[1]


def _joined(ring: np.ndarray, met: tuple[int, int], hole: np.ndarray, door: tuple[int, int]) -> np.ndarray:
    """Along the ring to `met`, through the door, around the hole and back."""
    here = int(np.flatnonzero((ring == met).all(axis=1))[0])
    around = np.roll(hole, -int(np.flatnonzero((hole == door).all(axis=1))[0]), axis=0)
    return np.concatenate([ring[: here + 1], around, around[:1], ring[here:]])


def _bends(ring: np.ndarray) -> np.ndarray:
    """The points at which the direction changes."""
    come, go = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    straight = (come[:, 0] * go[:, 1] == come[:, 1] * go[:, 0]) & ((come * go).sum(axis=1) > 0)
    return ring[~straight]
