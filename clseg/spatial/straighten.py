"""Straighten: slices that lie askew or unevenly, onto a grid that is straight and even."""

from __future__ import annotations

import numpy as np

from clseg.volume import AIR_HU


def straightened(stack: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices moved within their planes to where they belong.

    `stack` (slices, rows, columns); `shifts` (slices, 2) says how many columns and rows every slice lies beside the
    first.  The result holds every slice whole, air around it, between pixels linear; second value: column and row of
    its first pixel as the first slice counts them.
    """
    low, high = np.floor(shifts.min(axis=0) + 1e-6).astype(int), np.ceil(shifts.max(axis=0) - 1e-6).astype(int)
    count, rows, columns = stack.shape
    out = np.full((count, rows + high[1] - low[1], columns + high[0] - low[0]), AIR_HU, stack.dtype)
    for plane, source, (right, down) in zip(out, stack, shifts - low, strict=True):
        moved = _moved(_moved(source.astype(np.float32), down, plane.shape[0]).T, right, plane.shape[1]).T
        plane[...] = np.rint(moved) if stack.dtype.kind == "i" else moved
    return out, low


def evened(stack: np.ndarray, heights: np.ndarray, step: float) -> np.ndarray:
    """Slices at `heights` (mm, rising) interpolated linearly to even heights from the first to the last, about `step` apart."""
    count = max(2, round((heights[-1] - heights[0]) / step) + 1)
    out = np.empty((count, *stack.shape[1:]), stack.dtype)
    for plane, height in zip(out, np.linspace(heights[0], heights[-1], count), strict=True):
        above = int(np.clip(np.searchsorted(heights, height), 1, len(heights) - 1))
        weight = (height - heights[above - 1]) / (heights[above] - heights[above - 1])
        mixed = (1 - weight) * stack[above - 1].astype(np.float32) + weight * stack[above].astype(np.float32)
        plane[...] = np.rint(mixed) if stack.dtype.kind == "i" else mixed
    return out


def _moved(plane: np.ndarray, by: float, length: int) -> np.ndarray:
    """`plane` moved along its first axis by a distance ≥ 0 in pixels, linear, in a field of `length` with air around it."""
    whole = int(np.floor(by + 1e-6))
    part = max(0.0, by - whole)
    padded = np.pad(plane, ((1, 1), (0, 0)), constant_values=AIR_HU)
    mixed = (1 - part) * padded[1:] + part * padded[:-1]
    out = np.full((length, plane.shape[1]), AIR_HU, plane.dtype)
    out[whole : whole + len(mixed)] = mixed[: length - whole]
    return out
