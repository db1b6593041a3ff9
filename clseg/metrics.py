"""Metrics: how well a predicted mask agrees with a reference mask.

A surface here is the set of mask voxels with at least one of their six face
neighbours outside the mask (beyond the image counts as outside), placed at the
voxel centres; every surface voxel weighs the same.  Distances between surfaces
are exact between these centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clseg.errors import InputError
from clseg.volume import Spacing


@dataclass(frozen=True)
class Scores:
    """Agreement of one structure in one case; None where there is nothing to compare.

    |                   | dice | surface_dice | hd95_mm |
    |-------------------|------|--------------|---------|
    | both masks empty  | None | None         | None    |
    | one mask empty    | 0    | 0            | None    |
    | neither empty     | 0…1  | 0…1          | ≥ 0     |
    """

    dice: float | None
    surface_dice: float | None
    hd95_mm: float | None
    reference_ml: float
    predicted_ml: float


def score(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing, *, tolerance_mm: float = 3.0) -> Scores:
    """Dice, surface Dice at `tolerance_mm` and HD95 of two masks of one shape (True or non-zero is inside).

    `spacing` is the voxel's edge along each array axis in mm.
    - Dice: 2·|P ∩ R| / (|P| + |R|).
    - Surface Dice: the share of both surfaces that lies within `tolerance_mm` (inclusive) of the other one
      (Nikolov et al. 2018, arXiv 1809.04430, with surface voxels in place of surface elements).
    - HD95: the larger of the two directed 95th percentiles of surface distances.

    Raises InputError when the shapes differ or a spacing is not positive.
    """
    _check(prediction, reference, spacing)
    voxel_ml = float(np.prod(spacing)) / 1000
    n_predicted, n_true = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    volumes_ml = {"reference_ml": n_true * voxel_ml, "predicted_ml": n_predicted * voxel_ml}
    if not n_predicted and not n_true:
        return Scores(None, None, None, **volumes_ml)
    if not n_predicted or not n_true:
        return Scores(0.0, 0.0, None, **volumes_ml)

    box = _joint_box(prediction, reference)
    predicted, true = (np.ascontiguousarray(mask[box] != 0) for mask in (prediction, reference))
    to_true, to_predicted = _surface_distances(predicted, true, spacing)
    return Scores(
        dice=2 * int(np.count_nonzero(predicted & true)) / (n_predicted + n_true),
        surface_dice=_share_within(to_true, to_predicted, tolerance_mm),
        hd95_mm=float(max(np.percentile(to_true, 95), np.percentile(to_predicted, 95))),
        **volumes_ml,
    )


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, repeats: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: how far it moves when the cases are drawn again.

    The same seed gives the same interval.  Raises InputError when there are no
    values or one of them is not a finite number (leave out cases without a score).
    """
    cases = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if not cases.size or not np.isfinite(cases).all():
        raise InputError(f"A bootstrap interval needs at least one value and only finite ones, given {list(values)}.")
    drawn = np.random.default_rng(seed).integers(cases.size, size=(repeats, cases.size))
    low, high = np.percentile(cases[drawn].mean(axis=1), [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _check(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> None:
    if prediction.shape != reference.shape:
        raise InputError(
            f"The prediction has shape {prediction.shape}, the reference {reference.shape}: expected one shape."
        )
    if len(spacing) != prediction.ndim or not all(0 < edge < np.inf for edge in spacing):
        raise InputError(f"The spacing must be {prediction.ndim} positive lengths in mm, given {tuple(spacing)}.")


def _joint_box(first: np.ndarray, second: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around both masks, at least one of which is not empty."""
    together = np.logical_or(first, second)
    box = []
    for axis in range(together.ndim):
        filled = np.flatnonzero(together.any(axis=tuple(other for other in range(together.ndim) if other != axis)))
        box.append(slice(filled[0], filled[-1] + 1))
    return tuple(box)


def _surface_distances(first: np.ndarray, second: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """For every surface voxel of each mask, the distance in mm to the other mask's surface.

    Neighbours are looked up in a k-d tree of surface voxels: for the body in a
    whole CT this takes a second and little memory, a distance transform twenty.
    """
    from scipy.spatial import cKDTree

    points = [np.argwhere(_surface(mask)) * np.asarray(spacing) for mask in (first, second)]
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face neighbour outside: the mask minus its erosion."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        here, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        kept[1:] &= here[:-1]
        kept[:-1] &= here[1:]
        kept[[0, -1]] = False  # beyond the array is outside
    return mask & ~inside


def _share_within(first_mm: np.ndarray, second_mm: np.ndarray, tolerance_mm: float) -> float:
    """Share of all distances not above the tolerance; a micrometre forgives rounding at exactly the tolerance."""
    distances = np.concatenate([first_mm, second_mm])
    return float(np.mean(distances <= tolerance_mm + 1e-3))
