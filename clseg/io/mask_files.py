"""Mask files: masks that some program wrote, as a folder of them or as one label map, and what they are called there.

Names are those of the files; what they mean is decided elsewhere.  Nothing is
read until `Masks.mask` or `Masks.maps` ask for voxels.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clseg.catalogue import Catalogue
from clseg.errors import InputError, UsageError
from clseg.io.dicom.headers import is_dicom
from clseg.io.files import existing, read
from clseg.io.formats import is_confidence
from clseg.io.labels import read_label_names, read_label_table
from clseg.volume import Volume

ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd")  # longer ones before those they end with
INSIDE = "segmentations"  # where TotalSegmentator's data set keeps the masks of a subject
_MOST_FIELD_BYTES = 1 << 20
_READ_FIRST = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_WHOLE = "segmentation"  # what our runs call one file of all structures

DICOM_TIP = "Masks as DICOM (SEG, RTSTRUCT) are not read: convert them first, e.g. with 3D Slicer or dcmqi's segimage2itkimage."
NAMES_TIP = (
    'Put a JSON with {"liver": 1, …} (the dataset.json of nnU-Net will do) beside it as <name>.labels.json; '
    "`clseg stats` also takes one, or a CSV with the columns id and name, with --labels."
)


@dataclass(frozen=True)
class LabelMap:
    """A label map (integers, 0 is background) and the names of its ids."""

    path: Path
    volume: Volume
    ids: Mapping[str, int]


@dataclass(frozen=True)
class Masks:
    """Masks by the names that their files give them: one file each in `files`, or ids of `maps`.

    `empty` were looked for by whoever wrote the masks, and have none; those in
    `out_of_range` were not even looked for.  Both are known from a `run.json` alone.
    """

    path: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    maps: tuple[LabelMap, ...] = ()
    empty: tuple[str, ...] = ()
    out_of_range: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that these masks say something about, be it that there is none."""
        mapped = (name for label_map in self.maps for name in label_map.ids)
        return tuple(dict.fromkeys((*self.files, *mapped, *self.empty)))

    def mask(self, name: str) -> Volume:
        """The boolean mask of one of `files`; InputError when the file holds more than one value besides 0."""
        path = self.files[name]
        volume = read(path)
        return volume.like(_binary(volume.array, path))


def find_masks(
    path: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None, leave_out: str | os.PathLike[str] | None = None
) -> Masks:
    """The masks in a folder (a mask per file, or a single label map), or the label map in a file.

    A label map's names are those of `labels` (see `read_label_table`), those inside
    it (Caret XML as TotalSegmentator embeds it, segments of 3D Slicer) or those of
    `<name>.labels.json` or `labels.json` beside it.  `leave_out` is a file that is
    no mask wherever it lies, such as the CT.  In a folder of ours a map of confidence is
    no mask, and of the same result in several formats one is read.

    Raises UsageError when nothing is there, InputError when it holds no masks or
    when nothing says what the ids mean.
    """
    place = existing(path)
    if not place.is_dir():
        return _one_map(place, labels)
    folder, files = _mask_files(place, leave_out)
    if len(files) == 1 and (labels is not None or _says_names(files[0])):
        return _one_map(files[0], labels, _run_of(folder))
    if labels is not None:
        raise UsageError(f"--labels names the ids of one label map, but {place} holds {len(files)} mask files.", tip="Give the label map itself.")
    run = _run_of(folder)
    named = _by_name(files)
    empty = tuple(name for name in run.get("empty", ()) if name not in named)
    return Masks(folder, named, empty=empty, out_of_range=frozenset(run.get("out_of_range", ())).intersection(empty))


def structures_of(found: Masks) -> dict[str, str]:
    """Structure → the files' own name for it; what the catalogue does not know, or not for sure, keeps its name.

    Raises InputError when two names mean the same structure.
    """
    called: dict[str, str] = {}
    for own in found.names:
        name = structure_called(own)
        if name in called:
            raise InputError(f"'{called[name]}' and '{own}' of {found.path} both mean {name}.", tip="Take one of them away, or rename it.")
        called[name] = own
    return called


def structure_called(own: str) -> str:
    """The one structure that another program's name means (`Hepar` → liver), else the name itself."""
    meant = Catalogue.builtin().meanings(own)
    return meant[0] if len(meant) == 1 else own


# ---- folders ----------------------------------------------------------------------------------------------------------


def _mask_files(place: Path, leave_out: str | os.PathLike[str] | None) -> tuple[Path, list[Path]]:
    """The folder that holds the masks, and its mask files by name."""
    for folder in (place, place / INSIDE):
        found = [file for file in _listed(folder) if _ending(file) and not (leave_out is not None and _same(file, leave_out))]
        if found := _once(found, _written_by_us(folder)):
            return folder, found
    raise InputError(f"There are no masks ({', '.join(ENDINGS)}) in {place}.", tip=DICOM_TIP)


def _once(files: list[Path], ours: frozenset[str]) -> list[Path]:
    """Without what a run of ours wrote besides: its map of confidence, and the same result in another format.

    Masks, which hold every structure whole, go before a segmentation with layers, and this before a label map.
    """
    results = [file for file in files if file.name in ours and not is_confidence(file)]
    masks = {file.name[: -len(_ending(file))]: file for file in sorted(results, key=_rank, reverse=True)}
    whole = masks.pop(_WHOLE, None)
    kept = {*masks.values()} or {whole}
    return [file for file in files if file.name not in ours or file in kept]


def _rank(file: Path) -> int:
    return _READ_FIRST.index(_ending(file))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"'{folder}' cannot be read: {error.strerror}.") from error


def _ending(file: Path) -> str:
    return next((ending for ending in ENDINGS if file.name.lower().endswith(ending)), "")


def _same(file: Path, other: str | os.PathLike[str]) -> bool:
    return Path(other).exists() and file.samefile(other)


def _by_name(files: list[Path]) -> dict[str, Path]:
    """Files by their names without ending; InputError when two are called the same."""
    named: dict[str, Path] = {}
    for file in files:
        name = file.name[: -len(_ending(file))]
        if name in named:
            raise InputError(f"Two files are masks of '{name}': {named[name].name} and {file.name}.", tip="Take one of them away.")
        named[name] = file
    return named


def _run_of(folder: Path, prefix: str = "", wrote: str | None = None) -> dict[str, list[str]]:
    """What a run.json of ours says was looked for; nothing where there is none, somebody else's, or one that did not write the file `wrote`."""
    try:
        run = json.loads((folder / f"{prefix}run.json").read_text(encoding="utf-8"))
        if wrote is not None and wrote not in run["files"]:
            return {}
        return {key: [name for name in run[key] if isinstance(name, str)] for key in ("empty", "out_of_range")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _written_by_us(folder: Path) -> frozenset[str]:
    """The files that run.json of ours name, x.run.json and sub-1_run.json too; nothing where there is none, or somebody else's."""
    runs = [file for file in _listed(folder) if re.search(r"(^|[._])run\.json$", file.name)]
    return frozenset(name for run in runs for name in _files_of(run))


def _files_of(run: Path) -> list[str]:
    try:
        return [name for name in json.loads(run.read_text(encoding="utf-8"))["files"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _binary(array: np.ndarray, path: Path) -> np.ndarray:
    """True where the file is not 0, when that is one value."""
    if not np.isfinite(array.sum(dtype=np.float64)):
        raise InputError(f"'{path}' holds voxels without a number (NaN or infinity), expected a mask of 0 and 1.")
    top, low = array.max(), array.min()
    there = array == top if top != 0 else np.zeros(array.shape, bool)
    if low < 0 or np.count_nonzero(array) != np.count_nonzero(there):
        raise InputError(
            f"'{path}' holds several values between {low:g} and {top:g}, expected a mask of 0 and one other.",
            tip="Take the file away if it is no mask; if it is a label map, give it alone, with --labels where it holds no names.",
        )
    return there


# ---- label maps -------------------------------------------------------------------------------------------------------


def _says_names(path: Path) -> bool:
    return bool(_slicer_fields(path) or read_label_names(path))


def _one_map(path: Path, labels: str | os.PathLike[str] | None, run: dict[str, list[str]] | None = None) -> Masks:
    if is_dicom(path):
        raise InputError(f"'{path}' is a DICOM file, expected masks as NIfTI, NRRD or MetaImage.", tip=DICOM_TIP)
    if run is None:
        run = _run_of(path.parent, path.name[: -len(_ending(path)) or None] + ".") or _run_of(path.parent, wrote=path.name)
    fields = _slicer_fields(path)
    if fields and labels is None:
        maps = _slicer_maps(path, fields)
    else:
        table = read_label_table(labels) if labels is not None else read_label_names(path)
        maps = (LabelMap(path, _whole_numbers(read(path), path), _turned(table, path)),)
    if not any(label_map.ids for label_map in maps):
        raise InputError(f"Nothing says what the ids of the label map '{path}' mean.", tip=NAMES_TIP)
    named = [name for label_map in maps for name in label_map.ids]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise InputError(f"Two segments of '{path}' are called '{twice}', expected a name of its own for each.")
    empty = tuple(name for name in run.get("empty", ()) if name not in named) if fields and labels is None else ()  # segments are those found
    return Masks(path, maps=maps, empty=empty, out_of_range=frozenset(run.get("out_of_range", ())).intersection((*named, *empty)))


def _whole_numbers(volume: Volume, path: Path) -> Volume:
    """The label map as integers; InputError for fractions, for what is negative or above 65535."""
    array = volume.array
    if array.dtype.kind == "f":
        if not np.array_equal(array, np.rint(array)):
            raise InputError(f"'{path}' holds fractions, expected a label map of whole numbers.")
        array = array.astype(np.int64)
    if array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
        tip = "This looks like a CT; masks stand behind it: clseg stats ct.nii.gz masks/" if array.min() < 0 else None
        raise InputError(f"'{path}' holds values from {array.min()} to {array.max()}, expected ids from 0 to 65535.", tip=tip)
    return volume.like(array)


def _turned(table: Mapping[int, str], path: Path) -> dict[str, int]:
    """id → name as name → id, without the background; InputError when two ids have one name."""
    ids: dict[str, int] = {}
    for id, name in table.items():
        if name in ids:
            raise InputError(f"The ids {ids[name]} and {id} of the label map '{path}' are both called '{name}', expected a name of its own for each.")
        if id > 0:
            ids[name] = id
    return ids


# ---- segments of 3D Slicer --------------------------------------------------------------------------------------------


def _slicer_fields(path: Path) -> dict[str, str]:
    """The fields of a .seg.nrrd file (`Segment0_Name` …); empty for all other files."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(_MOST_FIELD_BYTES)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    if not start.startswith(b"NRRD"):
        return {}
    head = start.split(b"\n\n")[0].split(b"\r\n\r\n")[0]  # an empty line ends it
    lines = (line.partition(":=") for line in head.decode("utf-8", "replace").splitlines())
    return {key: value.strip() for key, sign, value in lines if sign and key.startswith("Segment")}


def _slicer_maps(path: Path, fields: Mapping[str, str]) -> tuple[LabelMap, ...]:
    """A label map per layer; segments that overlap lie on different layers.

    Files of Slicer before 4.11 name no layers: every segment has one of its own, with the value 1.
    """
    layers = _layers(path)
    ids: list[dict[int, str]] = [{} for _ in layers]
    for number in sorted({int(found[1]) for key in fields if (found := re.match(r"Segment(\d+)_", key))}):
        name = fields.get(f"Segment{number}_Name") or fields.get(f"Segment{number}_ID") or f"Segment{number}"
        layer, value = _place(fields, number, name, path)
        if layer >= len(layers):
            raise InputError(f"The segment '{name}' of '{path}' is on layer {layer}, but the file has {len(layers)}, counted from 0.")
        ids[layer][value] = name
    return tuple(LabelMap(path, _whole_numbers(volume, path), _turned(table, path)) for volume, table in zip(layers, ids, strict=True))


def _place(fields: Mapping[str, str], number: int, name: str, path: Path) -> tuple[int, int]:
    """The layer of a segment and its value there."""
    value = fields.get(f"Segment{number}_LabelValue")
    layer = fields.get(f"Segment{number}_Layer", "0" if value is not None else str(number))
    try:
        return int(layer), int(value or 1)
    except ValueError as error:
        raise InputError(f"The segment '{name}' of '{path}' has the layer '{layer}' and the value '{value}', expected whole numbers.") from error


def _layers(path: Path) -> list[Volume]:
    """The label maps of a .seg.nrrd file, which keeps several layers as values of one voxel."""
    import SimpleITK as sitk

    from clseg.io.files import from_itk, read_itk

    image = read_itk(path, "NrrdImageIO")
    count = image.GetNumberOfComponentsPerPixel()
    parts = [image] if count == 1 else [sitk.VectorIndexSelectionCast(image, layer) for layer in range(count)]
    return [from_itk(part, path) for part in parts]
