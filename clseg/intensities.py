"""Intensities: mean, spread and percentiles of the HU of a structure's voxels, exact and without copies of them in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def of_counts(values: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """HU statistics of rising whole numbers, each as often as `counts` says; sums are exact."""
    voxels = int(counts.sum())
    mean = int((values * counts).sum()) / voxels
    ranks = (voxels - 1) * np.array([5, 50, 95]) / 100
    lower, upper = (values[np.searchsorted(np.cumsum(counts), rank.astype(int), side="right")] for rank in (np.floor(ranks), np.ceil(ranks)))
    p5, median, p95 = (float(p) for p in lower + (upper - lower) * (ranks - np.floor(ranks)))
    return {
        "hu_mean": mean,
        "hu_sd": float(np.sqrt((np.square(values - mean) * counts).sum() / voxels)),
        "hu_median": median,
        "hu_p5": p5,
        "hu_p95": p95,
        "hu_min": float(values[0]),
        "hu_max": float(values[-1]),
    }


def of_values(values: np.ndarray) -> dict[str, float]:
    """HU statistics of a non-empty 1-D array, nothing when none of its values is finite."""
    if np.issubdtype(values.dtype, np.floating):
        values = values[np.isfinite(values)]
    if not values.size:
        return {}
    mean = float(values.mean(dtype=np.float64))
    p5, median, p95 = _percentiles(values, (5, 50, 95))
    return {
        "hu_mean": mean,
        "hu_sd": _deviation(values, mean),
        "hu_median": median,
        "hu_p5": p5,
        "hu_p95": p95,
        "hu_min": float(values.min()),
        "hu_max": float(values.max()),
    }


def _percentiles(values: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Percentiles with linear interpolation between neighbours, in float64.

    np.percentile subtracts the neighbours in the array's own dtype, where int16
    overflows, or else needs a float64 copy of all values.
    """
    ranks = (values.size - 1) * np.asarray(percents) / 100
    below, above = np.floor(ranks).astype(int), np.ceil(ranks).astype(int)
    lower, upper = np.partition(values, np.unique([below, above]))[np.stack([below, above])].astype(np.float64)
    return [float(p) for p in lower + (upper - lower) * (ranks - below)]


def _deviation(values: np.ndarray, mean: float, block: int = 1 << 22) -> float:
    """Population standard deviation, in blocks and in one array: a float64 copy of a whole body would take a gigabyte."""
    total, squares = 0.0, np.empty(min(block, values.size), np.float64)
    for start in range(0, values.size, block):
        part = values[start : start + block]
        away = np.subtract(part, mean, out=squares[: part.size], dtype=np.float64)
        total += np.square(away, out=away).sum()
    return float(np.sqrt(total / values.size))
