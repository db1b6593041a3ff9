"""Contents: what is in the files of one case, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from clseg.errors import ClsegError, InputError
from clseg.io.check import check
from clseg.spatial.orient import to_orientation
from clseg.training.cases import Case, LabelMap, named, on_grid, read_grid
from clseg.training.cases.names import IGNORED, ids, joined
from clseg.training.sides import Place, swapped, unusual
from clseg.volume import Volume

TISSUE_HU = -300  # warmer is body, not air or lung
STEP = 4  # every fourth voxel is enough to find the middle of the body, and to know a CT again


@dataclass
class Contents:
    """What a case annotates and where it lies, and sentences about its faults.

    `annotated`: structures about which the case says something, present or absent.
    `places`: those of them that were read and have voxels.  `empty`: structures that
    are named without a voxel.  `names`: structure → the dataset's own names.
    `likeness`: the same for the same scan, however it is stored; empty where it was not read.
    """

    case: Case
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    annotated: set[str] = field(default_factory=set)
    places: dict[str, Place] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    likeness: str = ""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def contents(case: Case, wanted: Collection[str] = ()) -> Contents:
    """Read a case: its CT, its label maps and the masks of `wanted` structures (of none: all); faults become sentences."""
    found = Contents(case)
    lost = case.missing()
    if lost:
        found.errors += [f"{file} is missing." for file in lost]
        return found
    try:
        found.names = named(case, wanted)
        grid = read_grid(case)
        found.likeness = likeness(grid, step=STEP if case.ct is not None else 1)
        if case.ct is not None:
            found.warnings += check(grid).warnings
    except ClsegError as error:
        found.errors.append(error.message)
        return found
    for part in (*case.maps, None):
        try:
            _read_map(part, found, wanted, grid) if part is not None else _read_masks(found, wanted, grid)
        except ClsegError as error:
            found.errors.append(error.message)
    _judge_sides(found, grid)
    return found


def likeness(scan: Volume, *, step: int) -> str:
    """What every `step`-th voxel of a scan says, as whole numbers in the patient's axes, hashed.

    Compression, the type of the voxels, the order of the axes and the rest of the header do not
    count.  The noise of a CT makes a few voxels enough; of a label map every one should be asked.
    """
    voxels = to_orientation(scan).array
    digest = hashlib.sha256(repr(voxels.shape).encode())
    for slab in voxels[::step]:
        digest.update(_rounded(slab[::step, ::step]).tobytes())
    return digest.hexdigest()


def _rounded(slab: np.ndarray) -> np.ndarray:
    """The same as int32; what is no number is 0."""
    if slab.dtype.kind == "f":
        slab = np.rint(np.nan_to_num(slab).clip(-1e9, 1e9))
    return slab.astype(np.int32)


def _read_map(label_map: LabelMap, found: Contents, wanted: Collection[str], grid: Volume) -> None:
    case = found.case
    table = ids(label_map)
    values = _whole(on_grid(label_map.path, grid, case), label_map)
    places = _places(grid.like(values))
    foreign = sorted(set(places) - set(table.values()))
    if foreign:
        found.errors.append(f"{label_map.path.name} holds {'ids' if len(foreign) > 1 else 'the id'} {_some(foreign)}, which nobody names; named are {_some(sorted(table.values()))}.")
    own = [name for name in table if name != IGNORED]
    for structure, parts in joined(own, case.dataset.rename, wanted, where=f"The names of {label_map.path}").items():
        seen = [places[table[part]] for part in parts if table[part] in places]
        if seen:
            found.places[structure] = _together(seen)
        if len(seen) < len(parts):
            found.empty.add(structure)
        if len(seen) == len(parts) or case.dataset.complete:
            found.annotated.add(structure)


def _read_masks(found: Contents, wanted: Collection[str], grid: Volume) -> None:
    """Masks that no decoder wants are not read, only counted."""
    case = found.case
    files = {mask.name: mask for mask in case.masks}
    for structure, parts in joined(files, case.dataset.rename, wanted, where=f"The mask files of {case}").items():
        found.annotated.add(structure)
        if wanted and structure not in wanted:
            continue
        found.places.pop(structure, None)
        found.empty.discard(structure)
        seen = []
        for mask in (files[part] for part in parts):
            values = on_grid(mask.path, grid, case)
            inside = values > 0 if mask.value is None else values == mask.value
            seen += _places(grid.like(inside.astype(np.uint8))).values()
        if seen:
            found.places[structure] = _together(seen)
        else:
            found.empty.add(structure)


def _judge_sides(found: Contents, grid: Volume) -> None:
    sentence = swapped(found.places)
    if sentence:
        (found.warnings if found.case.dataset.trust_sides else found.errors).append(sentence)
    elif not found.case.dataset.trust_sides and found.places:
        found.warnings += unusual(found.places, _middle_mm(grid, is_ct=found.case.ct is not None))


def _whole(values: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """The values as whole numbers of 0 or more."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise InputError(f"{label_map.path} holds values that are no ids, expected whole numbers.", tip="Resample labels with nearest neighbours.")
        values = values.astype(np.int32)
    if values.min() < 0:
        raise InputError(f"{label_map.path} holds the id {values.min()}, expected 0 or more.")
    return values


def _places(volume: Volume) -> dict[int, Place]:
    """Id → place, of every id above 0 with a voxel; the grid's own axes must be near the patient's."""
    turned = to_orientation(volume)
    values = turned.array
    size = int(values.max()) + 1
    voxels, moment = np.zeros(size, np.int64), np.zeros(size)
    for x, slab in enumerate(values):
        here = np.bincount(slab.ravel(), minlength=size)
        voxels += here
        moment += x * here
    start, edge = turned.affine[0, 3], turned.spacing[0]
    return {int(id): Place(int(voxels[id]), float(start + edge * moment[id] / voxels[id])) for id in np.flatnonzero(voxels) if id > 0}


def _together(places: list[Place]) -> Place:
    voxels = sum(place.voxels for place in places)
    return Place(voxels, sum(place.x_mm * place.voxels for place in places) / voxels)


def _middle_mm(grid: Volume, *, is_ct: bool) -> float:
    """x of the middle of the body (of all that is labelled, without a CT), RAS+ mm as in `_places`."""
    turned = to_orientation(grid)
    inside = turned.array[::STEP, ::STEP, ::STEP] > (TISSUE_HU if is_ct else 0)
    weights = inside.sum(axis=(1, 2))
    if not weights.any():
        weights = np.ones(len(weights))
    return float(turned.affine[0, 3] + STEP * turned.spacing[0] * np.average(np.arange(len(weights)), weights=weights))


def _some(values: Collection[object]) -> str:
    shown = [str(value) for value in values][:8]
    return ", ".join(shown) + (" …" if len(values) > len(shown) else "")
