"""Case: one scan of one dataset and the files that label it, not yet read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clseg.io.labels import sidecars
from clseg.recipe import DatasetRecipe

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")  # of files that can hold a CT, a label map or a mask


@dataclass(frozen=True)
class LabelMap:
    """A file whose voxels hold ids.

    `names`: the dataset's own name → id, or the JSON file that says so, or None where
    the label map itself knows (embedded, or in a `labels.json` beside it).
    """

    path: Path
    names: Mapping[str, int] | Path | None = None


@dataclass(frozen=True)
class MaskFile:
    """A file whose voxels of `value` (None: all above 0) are one structure, by the dataset's own name."""

    name: str
    path: Path
    value: int | None = None


@dataclass(frozen=True)
class Case:
    """One scan of one dataset.

    `ct` is None where there is only a label map (see `DatasetRecipe.synthetic`).
    `folder` is where its files lie, which may be shared with other cases.
    """

    name: str
    split: str
    dataset: DatasetRecipe
    folder: Path
    ct: Path | None
    maps: tuple[LabelMap, ...] = ()
    masks: tuple[MaskFile, ...] = ()

    def __str__(self) -> str:
        return f"case '{self.name}' of dataset '{self.dataset.name}'"

    def files(self) -> tuple[Path, ...]:
        """Every file that decides what this case is; those in a folder of its own all count."""
        if self.dataset.format == "folders":
            return tuple(sorted((file for file in self.folder.rglob("*") if file.is_file()), key=str))
        beside = [file for m in self.maps if m.names is None for file in sidecars(m.path) if file.is_file()]
        named = [self.ct, *(m.path for m in self.maps), *(m.names for m in self.maps), *beside, *(m.path for m in self.masks)]
        return tuple(sorted({path for path in named if isinstance(path, Path)}, key=str))

    def missing(self) -> tuple[Path, ...]:
        """Files that should be there and are not."""
        return tuple(file for file in self.files() if not file.exists())

    def facts(self) -> list[object]:
        """What must be the same for the same masks, as JSON types: files with their times, then everything but defaults."""
        return [*([str(file), file.stat().st_mtime_ns] for file in self.files()), *self.rules()]

    def rules(self) -> list[object]:
        """What decides about the masks beside the files, as JSON types; defaults are left out."""
        names = [[m.path.name, dict(m.names)] for m in self.maps if isinstance(m.names, Mapping)]
        masks = [[m.name, m.path.name, m.value] for m in self.masks] if self.dataset.format != "folders" else []
        changed = {"rename": self.dataset.rename, "complete": self.dataset.complete, "names": names, "masks": masks}
        return [{key: value} for key, value in changed.items() if value]


def stem(file: Path) -> str:
    """The name of a volume's file without its ending; of a folder its name."""
    return next((file.name[: -len(end)] for end in ENDINGS if file.name.lower().endswith(end)), file.name)


def volumes(folder: Path) -> list[Path]:
    """The volumes' files in a folder, by name; hidden ones are none of ours."""
    found = (file for file in folder.iterdir() if file.name.lower().endswith(ENDINGS) and not file.name.startswith("."))
    return sorted(found, key=lambda file: file.name)
