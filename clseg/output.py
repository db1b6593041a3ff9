"""Output: where results go and what they are called."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clseg.errors import UsageError
from clseg.io.formats import CONFIDENCE, FILE_NAMES, FORMATS, LABEL_TABLES, MESHES, chosen

OTHERS = (".mha", ".mhd", ".dcm", ".gz", ".bz2", ".zip", ".png", ".json", ".csv", ".npy", ".npz", ".stl", ".obj", ".ply")  # no folder is called so
STATISTICS = ("statistics.json", "statistics.csv", "radiomics.csv")
REPORTS = (*STATISTICS, CONFIDENCE, "preview.png", "run.json")


@dataclass(frozen=True)
class Output:
    """`folder` receives everything; `stem` is what one label map is called without its ending, `prefix` goes before other names.

    `types` are the formats of masks; `one` puts them into one label map instead of one file per structure; formats that
    hold a whole segmentation always are one file.  `meshes` are the kinds of surfaces, `tables` those of label tables.
    `named` is the file that the user named, `dataset` the BIDS dataset that all this belongs to.
    """

    folder: Path
    stem: str = "segmentation"
    prefix: str = ""
    one: bool = False
    types: tuple[str, ...] = ("nifti",)
    meshes: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    named: Path | None = None
    dataset: Path | None = None

    @classmethod
    def at(
        cls,
        path: Path,
        multilabel: bool = False,
        *,
        types: Iterable[str] | str | None = None,
        mesh: Iterable[str] | str = (),
        label_tables: Iterable[str] | str = (),
        bids: str | None = None,
    ) -> Output:
        """`path` with the ending of a format (.nii.gz, .nii, .nrrd, .seg.nrrd) names one file, anything else a folder.

        `types` are formats (the one of the file's name, or nifti, where none is said), `bids` is the name of the case in
        a BIDS dataset at `path`.  Words may be several with commas between them.  Raises UsageError for words that are
        not known and for what does not go together.
        """
        formats = chosen(types, FORMATS, "output type")
        kinds = {"meshes": chosen(mesh, MESHES, "kind of mesh"), "tables": chosen(label_tables, LABEL_TABLES, "label table")}
        if bids is not None:
            return cls._in_dataset(path, bids, formats, **kinds)
        ending = _ending(path)
        if not ending:
            _refuse_file(path)
            place = cls(path, one=multilabel, types=formats or ("nifti",), **kinds)
        else:
            _refuse_folder(path, FILE_NAMES[ending], formats)
            stem = path.name[: -len(ending)]
            place = cls(path.parent, stem, f"{stem}.", True, formats or (FILE_NAMES[ending],), **kinds, named=path)
        if place.tables and not place.multilabel:
            raise UsageError("Label tables say what the numbers of a label map mean, but none is written.", tip="Add --ml, or leave --label-tables out.")
        return place

    @classmethod
    def _in_dataset(cls, path: Path, case: str, formats: tuple[str, ...], *, meshes: tuple[str, ...], tables: tuple[str, ...]) -> Output:
        from clseg.io.bids import CaseName

        if path.name.lower().endswith((*FILE_NAMES, *OTHERS)) and not path.is_dir():
            raise UsageError(f"The output {path} looks like a file, expected the folder of a BIDS dataset.")
        if formats not in ((), ("nifti",)) or tables:
            raise UsageError("A BIDS dataset holds label maps as NIfTI with a table of its own.", tip="Leave --output-type and --label-tables out, or --bids.")
        name = CaseName.of(case)
        return cls(path / name.folder, f"{name.stem}_dseg", f"{name.stem}_", True, ("nifti",), meshes, dataset=path)

    # ---- names --------------------------------------------------------------------------------------------------------

    @property
    def multilabel(self) -> Path | None:
        """The one label map, if one is wanted; the first format's where there are several."""
        return next((self.whole(type) for type in self.types if FORMATS[type].masks), None) if self.one else None

    @property
    def labels(self) -> Path:
        """The JSON of names and ids beside the label map."""
        return self.folder / f"{self.stem}.labels.json"

    @property
    def mesh_folder(self) -> Path:
        return self.beside("meshes")

    @property
    def reports(self) -> list[Path]:
        """Everything that is not a mask, run.json last."""
        return [self.beside(name) for name in REPORTS]

    def whole(self, type: str) -> Path:
        """The file of a format that holds all structures."""
        if self.named and FILE_NAMES[_ending(self.named)] == type:
            return self.named
        return self.folder / f"{self.stem}{FORMATS[type].ending}"

    def mask(self, name: str, type: str = "nifti") -> Path:
        """The mask file of one structure."""
        return self.folder / f"{name}{FORMATS[type].ending}"

    def mesh(self, name: str, kind: str) -> Path:
        """The surface of one structure."""
        return self.mesh_folder / f"{name}{MESHES[kind]}"

    def table(self, kind: str) -> Path:
        """A label table beside the label map."""
        return self.folder / f"{self.stem}{LABEL_TABLES[kind]}"

    def beside(self, name: str) -> Path:
        """`statistics.json` → `statistics.json` in a folder, `x.statistics.json` beside x.nii.gz."""
        return self.folder / f"{self.prefix}{name}"

    def within(self, file: Path) -> str:
        """How run.json names a file: relative to the folder that it lies in, with slashes."""
        import os.path

        return Path(os.path.relpath(file, self.folder)).as_posix()

    @property
    def statistics(self) -> list[Path]:
        """The files of statistics, of which some are written."""
        return [self.beside(name) for name in STATISTICS]

    # ---- what is there ------------------------------------------------------------------------------------------------

    def existing(self, names: Sequence[str]) -> list[Path]:
        """Results that a run for these structures would replace or remove."""
        return [file for file in dict.fromkeys((*self._made(names), *self.reports, *self.stale(names))) if file.exists()]

    def stale(self, names: Sequence[str]) -> list[Path]:
        """Files of an earlier run that would contradict a new one for these structures.

        Its statistics, map of confidence, preview and run.json; its files in formats that this run does not write: one label map beside
        masks, masks of these structures beside a label map, segmentations, surfaces of these structures, label tables.
        What else is in the folder may be somebody's own: only files that the earlier run.json lists count, and
        where there is none, a label map with its names beside it.
        """
        listed, made = self._listed(), set(self._made(names))
        ours = [file for file in self._possible(names) if file not in made and self.within(file) in (listed or ())]
        if listed is None and not self.multilabel and self.labels.exists():
            ours += [self.folder / f"{self.stem}.nii.gz", self.labels]
        return [file for file in (*self.reports, *ours) if file.is_file()]

    def _made(self, names: Iterable[str]) -> Iterator[Path]:
        """What this run may write, reports apart."""
        for type in self.types:
            if FORMATS[type].masks and not self.one:
                yield from (self.mask(name, type) for name in names)
            else:
                yield self.whole(type)
        if self.multilabel:
            yield from [self.whole("nifti").with_name(f"{self.stem}{e}") for e in (".tsv", ".json")] if self.dataset else [self.labels]
        yield from (self.table(kind) for kind in self.tables)
        yield from (self.mesh(name, kind) for name in names for kind in self.meshes)

    def _possible(self, names: Sequence[str]) -> Iterator[Path]:
        """What any run into this place may have written for these structures, reports apart."""
        yield from (self.folder / f"{self.stem}{format.ending}" for format in FORMATS.values())
        yield from (self.table(kind) for kind in LABEL_TABLES)
        yield self.labels
        if not self.prefix:
            yield from (self.mask(name, type) for name in names for type, format in FORMATS.items() if format.masks)
        yield from (self.mesh(name, kind) for name in names for kind in MESHES)

    def _listed(self) -> set[str] | None:
        """The files that an earlier run.json names; none of them where it is somebody else's, None where there is none."""
        try:
            run = json.loads(self.beside("run.json").read_text(encoding="utf-8"))
            return {name for name in run["files"] if isinstance(name, str)}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return set()


def _ending(path: Path) -> str:
    """The ending of a format that the file is called with, empty for none; `.seg.nrrd` is no `.nrrd`."""
    return next((ending for ending in FILE_NAMES if path.name.lower().endswith(ending)), "")


def _refuse_file(path: Path) -> None:
    """UsageError for a file's name, or a file, where a folder is meant."""
    if path.suffix.lower() in OTHERS and not path.is_dir():
        raise UsageError(
            f"The output {path} looks like a file, but label maps are written as .nii.gz, .nii, .nrrd or .seg.nrrd.",
            tip="For one mask per structure give a folder; --output-type and --mesh name other formats.",
        )
    if path.is_file():
        raise UsageError(f"The output {path} is a file, expected a folder or a name ending in .nii.gz.")


def _refuse_folder(path: Path, type: str, formats: tuple[str, ...]) -> None:
    """UsageError for a folder where a file is meant, and for a file of a format that is not wanted."""
    if path.is_dir():
        raise UsageError(f"The output {path} is a folder, but its name says that it is one label map.")
    if formats and type not in formats:
        raise UsageError(
            f"The output {path} is called like {type}, which --output-type {','.join(formats)} leaves out.",
            tip=f"Add {type} to the types, or call the output otherwise; a folder takes all of them.",
        )
