"""Measure: volume, HU statistics, place and truncation of every structure in a label map.

Each label map is read once to find the box of every structure; everything else
is computed inside that box, so the time depends on the size of the structures,
not on how many of them there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from clseg.errors import InputError
from clseg.families import Family
from clseg.intensities import of_counts, of_values
from clseg.spatial.pieces import count_pieces
from clseg.spatial.regions import Region, memory_order, regions
from clseg.spatial.runs import LabelRuns, where
from clseg.volume import Volume

Point = tuple[float, float, float]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Slices = tuple[slice, slice, slice]
Status = Literal["complete", "cut_by_fov", "absent", "out_of_range", "partial"]

_MANY = 1 << 18  # values; fewer are sorted faster than counted
_BLOCK = 1 << 20  # voxels that are counted at a time

FACES = ("left", "right", "anterior", "posterior", "superior", "inferior")


FAMILIES = "families"  # their section in the JSON form


@dataclass(frozen=True)
class Statistics:
    """What was measured of one structure; a number without meaning is None, never 0.

    `status` says how far the numbers can be trusted:
    - `complete`: the structure lies inside the scan;
    - `cut_by_fov`: it touches the faces of what was scanned in `cut_faces`, so that the
      numbers describe only the part that was scanned;
    - `absent`: not found (all numbers are None);
    - `out_of_range`: not found, because the scan does not reach its part of the
      body and nobody looked for it (all numbers are None);
    - `partial`, of families only: not all members were looked for, so that the
      numbers describe only those that were found.

    `hu_*` are over the structure's voxels (`hu_sd` is the population's: ddof 0;
    voxels that are not finite are left out).  `centroid_mm` is the mean of the
    voxel centres, RAS+ patient coordinates.  `bounding_box` holds voxel index
    ranges, half open, along i, j, k.  `components` counts 26-connected parts.
    """

    status: Status
    voxels: int | None = None
    volume_mm3: float | None = None
    volume_ml: float | None = None
    hu_mean: float | None = None
    hu_sd: float | None = None
    hu_median: float | None = None
    hu_p5: float | None = None
    hu_p95: float | None = None
    hu_min: float | None = None
    hu_max: float | None = None
    centroid_mm: Point | None = None
    bounding_box: Box | None = None
    components: int | None = None
    cut_faces: tuple[str, ...] = ()


@dataclass(frozen=True)
class FamilyStatistics(Statistics):
    """What was measured of the union of several structures, where every voxel counts once.

    `members` were looked for, found or not; `missing` belong to the family and were
    not looked for: not asked for, or out of range.
    """

    members: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def measure(
    layers: Sequence[np.ndarray | LabelRuns],
    ct: Volume,
    wanted: Mapping[str, int],
    *,
    out_of_range: Collection[str] = (),
    scanned: Slices | None = None,
) -> dict[str, Statistics]:
    """Statistics of every wanted structure, in the order of `wanted` (name → id, from 1).

    `layers` are integer label maps (arrays or runs) of the CT's shape, 0 is background; there are
    several because parents and parts overlap, and an id appears in one of them
    only.  HU are taken from `ct` as they are (any dtype; sums in float64).
    `out_of_range` names the structures that were not looked for; it explains why
    one is missing and is not heeded for one that is there.  `scanned` is the part of the
    array that holds a scan, where that is not all of it: what reaches its ends is cut there.

    Where there is no CT, `without_values` stands for it: all HU are None then.

    Raises InputError when a layer is not an integer array of the CT's shape,
    when an id is not positive or appears in two layers.
    """
    _check(layers, ct, wanted)
    axes, image = _in_memory_order(ct)
    found: dict[str, Statistics] = {}
    for layer in layers:
        labels = _Turned(layer, axes)
        there = labels.regions()
        for name, number in wanted.items():
            if number not in there:
                continue
            if name in found:
                raise InputError(f"'{name}' (id {number}) appears in two label maps, expected in one.")
            box, voxels = there[number].box, there[number].voxels
            mask = _Where(labels, box, number) if voxels >= _MANY else labels.where(number, box)
            one = _in_given_order(_measure_one(mask, box, image, voxels), axes)
            found[name] = _cut_at(one, _cut_faces(one.bounding_box, ct, scanned))
    return {
        name: found.get(name) or Statistics("out_of_range" if name in out_of_range else "absent") for name in wanted
    }


def measure_families(
    layers: Sequence[np.ndarray | LabelRuns],
    ct: Volume,
    wanted: Mapping[str, int],
    families: Sequence[Family],
    measured: Mapping[str, Statistics],
) -> dict[str, FamilyStatistics]:
    """Statistics of every family (see `clseg.families`): of the union of its members, never the sum of theirs.

    `layers`, `ct` and `wanted` are those of `measure`, `measured` is what it gave.
    """
    return {family.name: _measure_family(layers, ct, wanted, family, measured) for family in families}


def without_values(grid: Volume) -> Volume:
    """The grid as a CT in which no voxel has a value; it takes no memory."""
    return grid.like(np.broadcast_to(np.float32(np.nan), grid.shape))


def to_json(
    statistics: Mapping[str, Statistics], families: Mapping[str, FamilyStatistics] | None = None
) -> dict[str, dict[str, Any]]:
    """Plain types for a JSON file: structure → statistic → value, `None` where it has no meaning; families, if any, in a section of theirs."""
    plain = {name: _plain(one) for name, one in statistics.items()}
    return {**plain, FAMILIES: {name: _plain(one) for name, one in families.items()}} if families else plain


def to_rows(
    statistics: Mapping[str, Statistics], families: Mapping[str, FamilyStatistics] | None = None
) -> tuple[list[str], list[list[Any]]]:
    """Header and rows for a CSV file, one row per structure, then one per family; `None` becomes the empty string.

    The centroid takes three columns, the bounding box six, `cut_faces` are
    separated by blanks.  `kind` is `structure` or `family`; the last two columns
    name the members of a family, separated by semicolons.
    """
    header = ["structure", *_flat(Statistics("absent")), "kind", "members", "missing"]
    rows = [[name, *_cells(one), "structure", "", ""] for name, one in statistics.items()]
    for name, one in (families or {}).items():
        rows.append([name, *_cells(one), "family", ";".join(one.members), ";".join(one.missing)])
    return header, rows


def _in_memory_order(ct: Volume) -> tuple[tuple[int, int, int], Volume]:
    """The CT with its axes as they lie in memory (contiguous where it can be), and which axes those are."""
    axes = memory_order(ct.array)
    return axes, Volume(ct.array.transpose(axes), ct.affine[:, [*axes, 3]])


def _check(layers: Sequence[np.ndarray | LabelRuns], ct: Volume, wanted: Mapping[str, int]) -> None:
    for layer in layers:
        if layer.shape != ct.shape:
            raise InputError(f"A label map has shape {layer.shape}, the CT has {ct.shape}: they must be the same.")
        if not np.issubdtype(layer.dtype, np.integer):
            raise InputError(f"A label map holds whole numbers, this one is {layer.dtype}.")
    for name, number in wanted.items():
        if number < 1:
            raise InputError(f"The id of '{name}' is {number}, expected 1 or more (0 is background).")


class _Turned:
    """A label map with its axes in another order.  Runs stay runs where that is how they lie; otherwise they become an array."""

    def __init__(self, layer: np.ndarray | LabelRuns, axes: tuple[int, int, int]) -> None:
        if isinstance(layer, LabelRuns) and axes == (2, 1, 0):
            self._layer, self._axes = layer, axes
        else:
            self._layer, self._axes = np.ascontiguousarray(np.asarray(layer).transpose(axes)), (0, 1, 2)

    def regions(self) -> dict[int, Region]:
        """Where every label lies along the turned axes."""
        there = regions(self._layer)
        return {id: Region(tuple(one.box[axis] for axis in self._axes), one.voxels) for id, one in there.items()}  # type: ignore[misc]

    def where(self, label: int, box: tuple[slice, slice, slice]) -> np.ndarray:
        """The mask of a label in a box of the turned axes."""
        i, j, k = (box[axis] for axis in self._axes)  # (2, 1, 0) is its own inverse
        return where(self._layer, label, (i, j, k)).transpose(self._axes)


class _Where:
    """The mask `labels == number` of a box, made where it is looked at: that of a body in a long scan is never there as a whole."""

    def __init__(self, labels: _Turned, box: tuple[slice, slice, slice], number: int) -> None:
        self.labels, self.box, self.number = labels, box, number
        self.shape = tuple(part.stop - part.start for part in box)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        start = self.box[0].start
        return self.labels.where(self.number, (slice(start + first, start + last), self.box[1], self.box[2]))


_Mask = np.ndarray | _Where


def _slabs(mask: _Mask) -> Iterator[np.ndarray]:
    """The mask, some planes at a time."""
    planes = max(1, _BLOCK // max(1, math.prod(mask.shape[1:])))
    return (mask[first : first + planes] for first in range(0, len(mask), planes))


def _measure_one(mask: _Mask, box: tuple[slice, slice, slice], image: Volume, voxels: int) -> Statistics:
    """Statistics of a structure of so many voxels, as if it were complete; `mask` is its part of `box`, `box` lies in `image`."""
    volume_mm3 = voxels * image.voxel_mm3
    return Statistics(
        status="complete",
        voxels=voxels,
        volume_mm3=volume_mm3,
        volume_ml=volume_mm3 / 1000,
        **_intensities_in(mask, image.array[box], voxels),
        centroid_mm=_centroid_mm(mask, box, image.affine),
        bounding_box=tuple((s.start, s.stop) for s in box),
        components=count_pieces(mask),
    )


def _measure_family(
    layers: Sequence[np.ndarray | LabelRuns], ct: Volume, wanted: Mapping[str, int], family: Family, measured: Mapping[str, Statistics]
) -> FamilyStatistics:
    unsought = tuple(name for name in family.members if measured[name].status == "out_of_range")
    members = tuple(name for name in family.members if name not in unsought)
    found = [name for name in members if measured[name].voxels]
    if found:
        union = _measure_union(layers, ct, {wanted[name]: measured[name].bounding_box for name in found})
        union = _cut_at(union, {face for name in found for face in measured[name].cut_faces})
    else:
        union = Statistics("absent" if members else "out_of_range")
    missing = unsought + family.missing
    status = "partial" if missing and members else union.status
    return FamilyStatistics(**{**vars(union), "status": status}, members=members, missing=missing)


def _measure_union(layers: Sequence[np.ndarray | LabelRuns], ct: Volume, places: Mapping[int, Box]) -> Statistics:
    """Statistics of the voxels that have one of the ids; `places` says in which box every id lies."""
    ends = np.array(list(places.values()))  # (ids, axes, 2)
    low, high = ends[:, :, 0].min(axis=0), ends[:, :, 1].max(axis=0)
    axes, image = _in_memory_order(ct)
    union = np.zeros((high - low)[list(axes)], bool)
    given = union.transpose(np.argsort(axes))  # the same voxels along the axes of the CT
    for number, box in places.items():
        inside = given[tuple(slice(a - start, b - start) for (a, b), start in zip(box, low, strict=True))]
        for layer in layers:
            inside |= where(layer, number, tuple(slice(a, b) for a, b in box))  # type: ignore[arg-type]
    box = tuple(slice(int(low[axis]), int(high[axis])) for axis in axes)
    return _in_given_order(_measure_one(union, box, image, int(np.count_nonzero(union))), axes)


def _in_given_order(statistics: Statistics, axes: tuple[int, int, int]) -> Statistics:
    """The bounding box along the axes the caller knows: axis n of the working order is axis `axes[n]` of the CT."""
    ranges = dict(zip(axes, statistics.bounding_box, strict=True))
    return replace(statistics, bounding_box=(ranges[0], ranges[1], ranges[2]))


def _cut_faces(box: Box, ct: Volume, scanned: Slices | None) -> set[str]:
    """The patient faces of what was scanned (None: of the whole array) that the box reaches, by the patient axis nearest to each array axis."""
    ends = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
    starts = {"L": "right", "R": "left", "A": "posterior", "P": "anterior", "S": "inferior", "I": "superior"}
    touched = set()
    for code, part, (start, stop) in zip(ct.orientation, scanned or map(slice, (0, 0, 0), ct.shape), box, strict=True):  # the code is where the axis ends
        if start <= part.start:
            touched.add(starts[code])
        if stop >= part.stop:
            touched.add(ends[code])
    return touched


def _cut_at(statistics: Statistics, faces: Collection[str]) -> Statistics:
    """The same of a structure that reaches these faces."""
    return replace(statistics, status="cut_by_fov", cut_faces=tuple(face for face in FACES if face in faces)) if faces else statistics


def _intensities_in(mask: _Mask, values: np.ndarray, voxels: int) -> dict[str, float]:
    """HU statistics of the `values` in a mask of so many `voxels`; many small integers are counted, which is faster and takes no memory."""
    small = values.dtype.kind in "iu" and values.dtype.itemsize <= 2
    return _counted(mask, values) if small and voxels >= _MANY else of_values(values[mask[:]])


def _counted(mask: _Mask, values: np.ndarray) -> dict[str, float]:
    """HU statistics of integers of at most two bytes, from how often each occurs."""
    limits = np.iinfo(values.dtype)
    low, counts = int(limits.min), np.zeros(int(limits.max) - int(limits.min) + 1, np.int64)
    planes = max(1, _BLOCK // max(1, values[0].size))
    for inside, first in zip(_slabs(mask), range(0, len(values), planes), strict=True):
        part = values[first : first + planes][inside]
        counts += np.bincount(np.subtract(part, low, dtype=np.intp), minlength=counts.size)
    return of_counts(np.flatnonzero(counts) + low, counts[counts > 0])


def _centroid_mm(mask: _Mask, box: tuple[slice, slice, slice], affine: np.ndarray) -> Point:
    """Mean of the voxel centres in patient mm (voxel (i, j, k) has its centre at affine · (i, j, k, 1))."""
    parts = [(part.sum(axis=2), part.sum(axis=(0, 1))) for part in _slabs(mask)]
    columns = np.concatenate([columns for columns, _ in parts])  # (i, j)
    profiles = columns.sum(axis=1), columns.sum(axis=0), np.sum([third for _, third in parts], axis=0)
    voxel = [s.start + np.average(np.arange(len(p)), weights=p) for s, p in zip(box, profiles, strict=True)]
    x, y, z = (float(c) for c in affine[:3, :3] @ voxel + affine[:3, 3])
    return x, y, z


def _plain(one: Statistics) -> dict[str, Any]:
    lists = {
        "centroid_mm": one.centroid_mm and list(one.centroid_mm),
        "bounding_box": one.bounding_box and [list(extent) for extent in one.bounding_box],
        "cut_faces": list(one.cut_faces),
    }
    if isinstance(one, FamilyStatistics):
        lists |= {"members": list(one.members), "missing": list(one.missing)}
    return {**vars(one), **lists}


def _cells(one: Statistics) -> list[Any]:
    return ["" if value is None else value for value in _flat(one).values()]


def _flat(one: Statistics) -> dict[str, Any]:
    """Column → value: points and boxes spread over columns, faces joined."""
    xyz = ("centroid_x_mm", "centroid_y_mm", "centroid_z_mm")
    ranges = (("i0", "i1"), ("j0", "j1"), ("k0", "k1"))
    columns: dict[str, Any] = {}
    for key, value in vars(one).items():
        if key in ("members", "missing"):
            continue
        if key == "centroid_mm":
            columns |= dict(zip(xyz, value or (None, None, None), strict=True))
        elif key == "bounding_box":
            for names, extent in zip(ranges, value or ((None, None),) * 3, strict=True):
                columns |= dict(zip(names, extent, strict=True))
        else:
            columns[key] = " ".join(value) if key == "cut_faces" else value
    return columns
