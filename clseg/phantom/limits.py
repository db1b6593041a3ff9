"""Limits: surfaces that organs of several parts share: the cavity, the diaphragm, the vertebral column."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from clseg.phantom.scene import SIDES, rows, table
from clseg.phantom.shapes import Distance, Shape, barrel

CAVITY_POWER = 2.3  # of the rounded rectangle that its cross-section is


def cavity() -> Shape:
    """The inside of the ribs and of the abdominal wall."""
    return barrel(table("outline.toml")["cavity"], CAVITY_POWER)


@lru_cache
def vertebrae() -> dict[str, dict[str, float]]:
    """Level (C1 … L5) → the columns of vertebrae.csv, from above."""
    return {row.pop("level"): {key: float(value) for key, value in row.items()} for row in rows("vertebrae.csv")}


def column(name: str) -> np.ndarray:
    """One column of vertebrae.csv, from below, as z must rise for interpolation."""
    return np.asarray([row[name] for row in vertebrae().values()])[::-1]


def canal_y(z: float) -> float:
    """y of the centre of the spinal canal at a height."""
    return float(np.interp(z, column("z"), column("y"))) - float(np.interp(z, column("z"), column("half_depth"))) - 9.5


def behind_the_spine(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Negative where the long muscles of the back lie, a wedge from the vertebrae to the angles of the ribs."""
    spine = np.interp(z.ravel(), column("z"), column("y")).astype(np.float32)
    return (y - spine + 18 + np.clip(np.abs(x) - 18, 0, None) * np.float32(0.62)) * np.float32(0.85)


def beside_the_heart(side: str) -> Distance:
    """One side of the mediastinum, which is wide at the spine and narrow behind the sternum."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        half_width = (17 - np.clip((y - 60) * 0.14, 0, 9)).astype(np.float32)
        return np.maximum(half_width - np.float32(SIDES[side]) * x, 3 - behind_the_spine(x, y, z))

    return distance


def above_the_diaphragm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _dome(x, y) - z


def below_the_diaphragm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return z - _dome(x, y) + 3


def _dome(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height of the diaphragm (z in mm): two domes, the right one higher, falling to the back and the sides."""
    across = (np.abs(x) - 68) / 70
    across = np.where(across < 0, 0.35, 1.0) * across**2
    behind = (y - 62) / 78
    return (-47 + 5 * np.tanh(x / 30) - 34 * (across + behind**2)).astype(np.float32)
