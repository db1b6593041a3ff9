"""Masks: what a case annotates, on the grid of its CT."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from clseg.errors import InputError
from clseg.io.files import read
from clseg.spatial.orient import to_orientation
from clseg.training.cases.case import Case, LabelMap
from clseg.training.cases.names import IGNORED, ids, joined
from clseg.volume import Volume


def read_grid(case: Case) -> Volume:
    """The CT, or the label map (ids) of a case without one: the grid on which the masks lie."""
    if case.ct is None and not case.maps:
        raise InputError(f"The {case} has neither a CT nor a label map.")
    return read(case.ct if case.ct is not None else case.maps[0].path)


def read_masks(case: Case, wanted: Collection[str], ct: Volume) -> dict[str, np.ndarray]:
    """The masks (bool, grid of `ct`) of those wanted structures that this case annotates.

    A name in a label map without a voxel counts as not annotated, for in partial
    labels nobody knows whether the organ was absent or skipped; where the dataset is
    `complete` it is absent.  An empty mask file says that the structure is absent.
    A mask file goes before a label map.
    """
    masks: dict[str, np.ndarray] = {}
    for label_map in case.maps:
        masks |= _from_map(label_map, case, wanted, ct)
    files = {file.name: file for file in case.masks}
    for name, own in _mask_names(case, wanted).items():
        if name in wanted:
            parts = [on_grid(files[part].path, ct, case) for part in own]
            values = [files[part].value for part in own]
            masks[name] = np.logical_or.reduce([p > 0 if v is None else p == v for p, v in zip(parts, values, strict=True)])
    return masks


def read_unknown(case: Case, ct: Volume) -> np.ndarray | None:
    """Voxels (bool, grid of `ct`) about which nothing is known: those that a label map calls `ignore`; None without such a label."""
    unknown = None
    for label_map in case.maps:
        table = ids(label_map)
        if IGNORED in table:
            here = on_grid(label_map.path, ct, case) == table[IGNORED]
            unknown = here if unknown is None else unknown | here
    return unknown


def named(case: Case, wanted: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Structure → the dataset's own names for it, of everything that this case may annotate.

    `wanted` holds structures that the catalogue does not know but the recipe does.
    """
    found: dict[str, tuple[str, ...]] = {}
    for label_map in case.maps:
        found |= _map_names(label_map, case, wanted)
    return found | _mask_names(case, wanted)


def on_grid(path: Path, ct: Volume, case: Case | None = None) -> np.ndarray:
    """The label map's voxels in the axes of `ct`; axes may be stored in another order, but the grid must be the CT's."""
    volume = to_orientation(read(path), ct.orientation)
    if not volume.same_grid(ct, tolerance_mm=0.5):
        of = f" ({case})" if case is not None else ""
        raise InputError(f"The labels {path} do not lie on the grid of their CT{of}: {_place(volume)} against {_place(ct)}.")
    return volume.array


def _from_map(label_map: LabelMap, case: Case, wanted: Collection[str], ct: Volume) -> dict[str, np.ndarray]:
    chosen = {name: own for name, own in _map_names(label_map, case, wanted).items() if name in wanted}
    if not chosen:
        return {}
    table, values = ids(label_map), on_grid(label_map.path, ct, case)
    masks = {}
    for name, own in chosen.items():
        parts = [values == table[part] for part in own]
        if case.dataset.complete or all(part.any() for part in parts):
            masks[name] = np.logical_or.reduce(parts)
    return masks


def _map_names(label_map: LabelMap, case: Case, wanted: Collection[str]) -> dict[str, tuple[str, ...]]:
    own = [name for name in ids(label_map) if name != IGNORED]
    return joined(own, case.dataset.rename, wanted, where=f"The names of the label map {label_map.path}")


def _mask_names(case: Case, wanted: Collection[str]) -> dict[str, tuple[str, ...]]:
    return joined([mask.name for mask in case.masks], case.dataset.rename, wanted, where=f"The mask files of {case}")


def _place(volume: Volume) -> str:
    """Shape and first voxel, for a sentence about two grids that differ."""
    x, y, z = volume.affine[:3, 3]
    return f"{' × '.join(map(str, volume.shape))} voxels of {' × '.join(f'{edge:.3g}' for edge in volume.spacing)} mm from ({x:.1f}, {y:.1f}, {z:.1f})"
