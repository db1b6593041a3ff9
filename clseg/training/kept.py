"""Kept: arrays that take long to make, in a file of the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from clseg.errors import TrainingError
from clseg.io.files import writing


def kept(path: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the `.npz` file at `path`; where it is not there or is damaged they are made, and written."""
    arrays = arrays_in(path)
    if arrays is not None:
        return arrays
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        np.savez_compressed(file, **made)
    arrays = arrays_in(path)
    if arrays is None:
        raise TrainingError(f"{path} was written and cannot be read, expected prepared arrays.", tip="Look after the disk, or choose another folder with --run.")
    return arrays


def arrays_in(path: Path) -> dict[str, np.ndarray] | None:
    """All arrays of an `.npz` file; None where there is none that can be read whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except MemoryError:
        raise
    except Exception:  # damaged files bring errors of every kind
        return None
