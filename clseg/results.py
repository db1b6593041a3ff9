"""Results: the files of a segmentation, written format by format into the places that `Output` names."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clseg.errors import OutputError
from clseg.io.files import AnyPath, prepare_folder, write_json
from clseg.io.formats import FORMATS, Source
from clseg.io.formats.writers import check_source, write_one, write_whole
from clseg.io.segments import Segments
from clseg.output import Output
from clseg.report.statistics import CLSEG, check_format


@dataclass(frozen=True)
class Outputs:
    """What is to be written of a segmentation.

    `multilabel` writes one label map instead of one mask per structure.  `types` are
    formats (nifti, nrrd, seg.nrrd, dicom_seg, dicom_labelmap, dicom_rtstruct), `mesh`
    surfaces (stl, obj, ply) and `label_tables` tables for other programs (itksnap,
    slicer), each one word, several with commas, or several words.  `bids` makes the
    output a BIDS dataset of derivatives and is the name of the case: that of its file
    where it is named as BIDS wants it.  `statistics` come in `stats_format` (clseg or
    totalsegmentator); `radiomics` adds its features.  `preview` is a picture.

    Raises UsageError for an unknown format of statistics; `at` for other words that are
    not known or do not go together.
    """

    multilabel: bool = False
    types: Iterable[str] | str | None = None
    mesh: Iterable[str] | str = ()
    label_tables: Iterable[str] | str = ()
    bids: str | None = None
    statistics: bool = False
    stats_format: str = CLSEG
    radiomics: bool = False
    preview: bool = False

    def __post_init__(self) -> None:
        check_format(self.stats_format)

    def at(self, path: Path) -> Output:
        """Where all this goes, and what it is called."""
        return Output.at(path, self.multilabel, types=self.types, mesh=self.mesh, label_tables=self.label_tables, bids=self.bids)


def find_source(types: Iterable[str], path: AnyPath, series: str | None = None) -> Source:
    """The DICOM series at `path`, where one of the formats refers to it; None where none does, or it is no DICOM."""
    if not any(FORMATS[type].dicom for type in types):
        return None
    from clseg.io.dicom.source import source_of

    return source_of(path, series)


def check_possible(place: Output, source: Source = None) -> None:
    """Refuse what cannot be written, before anything is: UsageError without a DICOM series or a tool that is needed, or in somebody else's dataset."""
    check_source(place.types, source)
    check_tools(place)


def check_tools(place: Output) -> None:
    """The same, apart from the series: that of each scan is known when it is read."""
    if any(FORMATS[type].highdicom for type in place.types):
        from clseg.io.dicom.seg import check_highdicom

        check_highdicom()
    if place.meshes:
        from clseg.spatial import surface

        surface.check_tools()
    if place.dataset:
        from clseg.io.bids import check_dataset

        check_dataset(place.dataset)


def write_results(segments: Segments, place: Output, source: Source = None) -> list[Path]:
    """Write masks, label maps, segmentations, label tables and surfaces; returns the files, each of which appears whole or not at all.

    A structure without a voxel gets no file, and one that an earlier run left of it is removed.
    """
    files: list[Path] = []
    for type in place.types:
        files += _masks(segments, place, type) if FORMATS[type].masks and not place.one else _whole(segments, place, type, source)
    if place.multilabel:
        files += _names(segments, place)
    files += _tables(segments, place)
    if place.meshes:
        files += _meshes(segments, place)
    return files


def bytes_needed(segments: Segments, place: Output) -> int:
    """At most about this much will be written: nothing compresses a thousandfold, a structure to a few bits per voxel, a skin to a hundred bytes per voxel on it."""
    size = segments.scan.array.size
    voxels = [there.voxels for one in segments.regions for there in one.values()]
    files = sum(len(segments.present) if FORMATS[type].masks and not place.one else max(1, len(segments.layers)) for type in place.types)
    packed = files * size // 900 + len(place.types) * sum(voxels) // 4
    plain = size * (1 if max((a.id for a in segments.wanted), default=0) < 256 else 2)
    skins = len(place.meshes) * sum(int(600 * count ** (2 / 3)) + 2000 for count in voxels)
    bits = size // segments.scan.shape[2] * sum(there.box[2].stop - there.box[2].start for one in segments.regions for there in one.values()) // 8
    unpacked = sum(FORMATS[type].dicom for type in place.types) * max(bits, plain)
    if place.named is not None and place.named.suffix.lower() == ".nii":
        unpacked += plain
    return 2_000_000 + packed + skins + unpacked  # reports and tables have room in two megabytes


def remove(files: Iterable[Path]) -> None:
    """Remove files of an earlier run, and the folder of its surfaces when that is empty then; OutputError when one cannot be."""
    for file in files:
        try:
            file.unlink(missing_ok=True)  # another run into the same folder may have been faster
        except OSError as error:
            raise OutputError(f"The result of an earlier run '{file}' cannot be removed: {error.strerror}.") from error
        if file.parent.name.endswith("meshes"):
            with suppress(OSError):  # it is not empty, or not there
                file.parent.rmdir()


def _masks(segments: Segments, place: Output, type: str) -> list[Path]:
    files = []
    for anatomy in segments.wanted:
        file = place.mask(anatomy.name, type)
        if anatomy in segments.present:
            write_one(type, file, segments, anatomy)
            files.append(file)
        elif file.is_file():
            remove([file])  # an empty structure must not keep the mask of an earlier run
    return files


def _whole(segments: Segments, place: Output, type: str, source: Source) -> list[Path]:
    file = place.whole(type)
    if write_whole(type, file, segments, source):
        return [file]
    remove([file] if file.is_file() else [])
    return []


def _names(segments: Segments, place: Output) -> list[Path]:
    """What the numbers of the label map mean: `labels.json`, or the tables of a BIDS dataset."""
    if place.dataset:
        from clseg.io.bids import write_dataset, write_sidecars

        return [*write_sidecars(place.whole("nifti"), segments.wanted), *write_dataset(place.dataset)]
    write_json(place.labels, {a.name: a.id for a in segments.wanted})
    return [place.labels]


def _tables(segments: Segments, place: Output) -> list[Path]:
    from clseg.io.formats.label_tables import TABLE_WRITERS

    for kind in place.tables:
        TABLE_WRITERS[kind](place.table(kind), segments.wanted)
    return [place.table(kind) for kind in place.tables]


def _meshes(segments: Segments, place: Output) -> list[Path]:
    """One surface per structure found and kind; a surface is made once for all kinds."""
    from clseg.io.formats.meshes import MESH_WRITERS, skin

    prepare_folder(place.mesh_folder)
    files = []
    for anatomy in segments.wanted:
        mine = {kind: place.mesh(anatomy.name, kind) for kind in place.meshes}
        if anatomy not in segments.present:
            remove(file for file in mine.values() if file.is_file())
            continue
        surface = skin(segments, anatomy)
        for kind, file in mine.items():
            MESH_WRITERS[kind](file, surface, anatomy)
        files += mine.values()
    return files
