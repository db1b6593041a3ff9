"""Where voxels lie in the patient, computed apart from the code under test, and shapes painted there."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from clseg.inference.merge import FAINT, FULL, HALF, Faint, Layer
from clseg.inference.prepare import Placement
from clseg.volume import Volume

CODES = ["".join(axes) for pairs in permutations(("LR", "AP", "IS")) for axes in product(*pairs)]
_TOWARDS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def affine_of(code: str, shape, spacing, centre_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """The affine of a grid whose axes point where `code` says and whose middle lies at `centre_mm`."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([_TOWARDS[letter] for letter in code]).T * np.asarray(spacing, float)
    affine[:3, 3] = np.asarray(centre_mm) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def world(volume: Volume) -> np.ndarray:
    """Voxel centres in mm, shape (x, y, z, 3)."""
    ijk = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    return ijk @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def model_world(oriented: Volume, placement: Placement) -> np.ndarray:
    """Voxel centres of what is computed in mm: part of a lattice concentric with the oriented scan."""
    middle = (np.array(oriented.shape) - 1) / 2
    centre_mm = oriented.affine[:3, :3] @ middle + oriented.affine[:3, 3]
    directions = oriented.affine[:3, :3] / np.linalg.norm(oriented.affine[:3, :3], axis=0)
    axes = zip(placement.lattice, placement.spacing, placement.box, strict=True)
    steps = [((np.arange(n) - (n - 1) / 2) * s)[part] for n, s, part in axes]
    return np.stack(np.meshgrid(*steps, indexing="ij"), -1) @ directions.T + centre_mm


def inside_mm(points: np.ndarray, centre_mm, radius_mm: float) -> np.ndarray:
    """How far inside a ball the points lie, in mm; negative outside."""
    return radius_mm - np.linalg.norm(points - centre_mm, axis=-1)


def soft_layer(depths: dict[int, np.ndarray], softness_mm: float = 2.0) -> Layer:
    """A Layer as networks would paint it: id → depth inside in mm; probabilities rise like a sigmoid through the border.

    Structures must not overlap; each voxel goes to the deepest, with the probability that it lies inside that one.
    """
    ids = np.array([0, *depths])
    stack = np.stack(list(depths.values()))
    probability = 1 / (1 + np.exp(-stack / softness_mm))
    background = 1 - 1 / (1 + np.exp(-stack.max(axis=0) / softness_mm))
    everything = np.concatenate([background[None], probability])
    labels = ids[everything.argmax(axis=0)].astype(np.uint16)
    score = np.where(labels > 0, np.round(everything.max(axis=0) * FULL), 0).astype(np.uint8)
    return Layer(labels, score, {i: [faint(labels, i, own)] for i, own in zip(ids[1:].tolist(), probability, strict=True)})


def faint(labels: np.ndarray, number: int, probability: np.ndarray) -> Faint:
    """Where a structure of a label map did not win, its probability as a Layer keeps it."""
    value = np.minimum(np.round(probability * FULL), HALF).astype(np.uint8).ravel()
    index = np.flatnonzero((labels.ravel() != number) & (value >= FAINT))
    return Faint(index, value[index])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum()))
