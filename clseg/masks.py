"""Masks: a Segmentation from masks that are there already, ours or another program's.

    read_segmentation("totalseg_out/", "ct.nii.gz").statistics()["liver"].volume_ml

No model and no torch is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from clseg.catalogue import TIP, Anatomy, Catalogue
from clseg.errors import InputError, NotHeld, UnknownName, UsageError
from clseg.io.check import check
from clseg.io.convert import to_volume
from clseg.io.files import read
from clseg.io.finding import told
from clseg.io.mask_files import LabelMap, Masks, find_masks, structures_of
from clseg.measure import without_values
from clseg.progress import SILENT, Progress
from clseg.segmentation import Segmentation
from clseg.spatial.orient import to_orientation
from clseg.spatial.regions import regions
from clseg.volume import Volume

AnyPath = str | os.PathLike[str]

SAME_GRID_MM = 0.1  # as `clseg evaluate`: more than rounding in headers, less than any voxel
MOST_NAMED = 12  # masks in a tip


def read_segmentation(
    masks: AnyPath,
    ct: Any = None,
    *,
    roi: str | Iterable[str] = ("all",),
    labels: AnyPath | None = None,
    series: str | None = None,
    report: Progress = SILENT,
) -> Segmentation:
    """The masks of a folder or a label map (see `clseg.io.mask_files.find_masks`) on the grid of their CT.

    `ct` is what `segment` takes, or None: then there are no HU, and the grid is
    that of the masks.  Names are understood as in `clseg --roi`, unknown ones are
    kept; `roi` chooses among them.  Masks may overlap.  A grid with its axes in
    another order or direction is turned.

    Raises InputError when grids differ or two masks mean the same structure,
    UsageError when `roi` asks for what is not there.
    """
    from_file = isinstance(ct, (str, os.PathLike))
    found = find_masks(masks, labels=labels, leave_out=ct if from_file else None)
    called = structures_of(found)
    catalogue = Catalogue.builtin().with_structures(called)
    wanted = _chosen(roi, catalogue, called, masks)
    scan = None if ct is None else _scan(ct, series, report)
    chosen = {a.name: called[a.name] for a in wanted}
    volumes = _Grid(scan, found)
    layers = [layer for label_map in found.maps if (layer := _layer(label_map, volumes, wanted, chosen, report)) is not None]
    wholes_first = sorted(wanted, key=lambda anatomy: catalogue.depth(anatomy.name))
    _pack(layers, found, volumes, wholes_first, chosen, report)
    unreachable = frozenset(name for name, own in chosen.items() if own in found.out_of_range)
    grid = volumes.grid
    if grid is None:
        raise InputError(f"'{masks}' holds no mask of what was asked for, and without a CT nothing says what the grid is.")
    return Segmentation(without_values(grid) if scan is None else scan, tuple(layers), wanted, unreachable)


def _chosen(roi: str | Iterable[str], catalogue: Catalogue, called: Mapping[str, str], masks: AnyPath) -> tuple[Anatomy, ...]:
    """The structures that `roi` asks for; UsageError with the masks that are there for what is not among them."""
    names = [anatomy.name for anatomy in catalogue if anatomy.name in called]
    more = f" … ({len(names)} in all)" if len(names) > MOST_NAMED else ""
    tip = f"The masks there are: {', '.join(names[:MOST_NAMED])}{more}."
    try:
        return catalogue.select(roi, among=called)
    except (NotHeld, UnknownName) as error:
        nearest = ", ".join(catalogue.nearest_among(error.name, called))
        told = f"There is no mask of '{error.name}' in '{masks}'; the nearest there are: {nearest}."
        raise UsageError(told, tip=tip if error.tip == TIP else error.tip) from error
    except UsageError as error:
        raise UsageError(error.message, tip=tip) from error


class _Grid:
    """Brings masks onto one grid: the CT's, or that of the first mask."""

    def __init__(self, scan: Volume | None, masks: Masks) -> None:
        self.grid = scan
        self._than = "the CT" if scan is not None else f"the other masks of {masks.path}"

    def fit(self, volume: Volume, path: os.PathLike[str]) -> np.ndarray:
        """The voxels in the axes of the grid; InputError when they lie elsewhere."""
        if self.grid is None:
            self.grid = volume
        turned = to_orientation(volume, self.grid.orientation)
        if not turned.same_grid(self.grid, tolerance_mm=SAME_GRID_MM):
            raise InputError(
                f"'{path}' lies on another grid than {self._than}: {_apart(turned, self.grid)}.",
                tip="Give the very scan that the masks were drawn on, or resample the masks onto it (nearest neighbour).",
            )
        return turned.array


def _apart(one: Volume, other: Volume) -> str:
    """How two grids differ, as words."""
    if one.shape != other.shape:
        return f"{_times(one.shape)} voxels of {_times(one.spacing)} mm against {_times(other.shape)} of {_times(other.spacing)} mm"
    corners = np.array([[i, j, k, 1] for i in (0, one.shape[0]) for j in (0, one.shape[1]) for k in (0, one.shape[2])])
    away = np.linalg.norm((corners @ (one.affine - other.affine).T)[:, :3], axis=1).max()
    return f"both have {_times(one.shape)} voxels, but the corners are up to {away:.3g} mm apart"


def _times(numbers: Iterable[float]) -> str:
    return " × ".join(f"{number:.4g}" for number in numbers)


def _scan(ct: Any, series: str | None, report: Progress) -> Volume:
    """The CT as `segment` would measure it; what it would refuse is measured as it is, with a warning."""
    with report.stage("Reading the CT"):
        scan = read(ct, series=series, found=told(report)) if isinstance(ct, (str, os.PathLike)) else to_volume(ct)
    try:
        checked = check(scan)
    except InputError as error:
        report.warn(f"{error.message} Intensities are those of the file.")
        return scan
    for finding in checked.findings:
        if finding.topic == "values":
            report.warn(finding.text)
    return checked.volume


def _layer(
    label_map: LabelMap, volumes: _Grid, wanted: tuple[Anatomy, ...], chosen: Mapping[str, str], report: Progress
) -> np.ndarray | None:
    """The label map with the catalogue's ids; None when nothing of it is wanted.  Ids without a name are left out, with a warning."""
    array = volumes.fit(label_map.volume, label_map.path)
    there = regions(array)
    if nameless := [id for id in there if id not in label_map.ids.values()]:
        report.warn(f"Left out, as nothing names them: {'id' if len(nameless) == 1 else 'ids'} {', '.join(map(str, nameless))} of '{label_map.path}'.")
    table = np.zeros(max([*there, 0]) + 1, np.uint16)
    for anatomy in wanted:
        id = label_map.ids.get(chosen[anatomy.name])
        if id in there:
            table[id] = anatomy.id
    return table[array] if table.any() else None


def _pack(
    layers: list[np.ndarray], found: Masks, volumes: _Grid, wanted: list[Anatomy], chosen: Mapping[str, str], report: Progress
) -> None:
    """Paint every wanted mask file into the first layer where its voxels are free, so that few layers hold many masks."""
    files = [a for a in wanted if chosen[a.name] in found.files]
    with report.stage("Reading the masks", len(files)) as advance:
        for anatomy in files:
            own = chosen[anatomy.name]
            mask = volumes.fit(found.mask(own), found.files[own])
            if there := regions(mask.view(np.uint8)):
                _paint(layers, mask, there[1].box, anatomy.id)
            advance(1)


def _paint(layers: list[np.ndarray], mask: np.ndarray, box: tuple[slice, slice, slice], id: int) -> None:
    inside = mask[box]
    layer = next((layer for layer in layers if not layer[box][inside].any()), None)
    if layer is None:
        layer = np.zeros(mask.shape, np.uint16, order="F")
        layers.append(layer)
    layer[box][inside] = id


