"""Output: where results go and what they are called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from clseg.errors import UsageError

ENDINGS = (".nii.gz", ".nii")
OTHERS = (".nrrd", ".mha", ".mhd", ".dcm", ".gz", ".bz2", ".zip", ".png", ".json", ".csv", ".npy", ".npz")  # no folder is called so


@dataclass(frozen=True)
class Output:
    """`folder` receives everything; `multilabel` is the one label map, if one is wanted; `prefix` goes before other names."""

    folder: Path
    multilabel: Path | None
    prefix: str

    @classmethod
    def at(cls, path: Path, multilabel: bool) -> Output:
        """`path` ending in .nii or .nii.gz names one label map, anything else a folder."""
        ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), None)
        if ending is None:
            if path.suffix.lower() in OTHERS and not path.is_dir():
                raise UsageError(f"The output {path} looks like a file, but label maps are written as .nii.gz or .nii.", tip="For one mask per structure give a folder.")
            if path.is_file():
                raise UsageError(f"The output {path} is a file, expected a folder or a name ending in .nii.gz.")
            return cls(path, path / "segmentation.nii.gz" if multilabel else None, "")
        if path.is_dir():
            raise UsageError(f"The output {path} is a folder, but its name says that it is one label map.")
        return cls(path.parent, path, path.name[: -len(ending)] + ".")

    @property
    def labels(self) -> Path:
        """The JSON of names and ids beside the label map."""
        stem = self.prefix.rstrip(".") or "segmentation"
        return self.folder / f"{stem}.labels.json"

    def beside(self, name: str) -> Path:
        """`statistics.json` → `statistics.json` in a folder, `x.statistics.json` beside x.nii.gz."""
        return self.folder / f"{self.prefix}{name}"

    def mask(self, name: str) -> Path:
        """The mask file of one structure."""
        return self.folder / f"{name}.nii.gz"

    @property
    def reports(self) -> list[Path]:
        """Everything that is not a mask, run.json last."""
        return [self.beside(name) for name in ("statistics.json", "statistics.csv", "confidence.nii.gz", "preview.png", "run.json")]

    def existing(self, names: list[str]) -> list[Path]:
        """Results that a run for these structures would replace or remove."""
        masks = [self.multilabel, self.labels] if self.multilabel else [self.mask(name) for name in names]
        return [file for file in dict.fromkeys((*masks, *self.reports, *self.stale(names))) if file.exists()]

    def stale(self, names: list[str]) -> list[Path]:
        """Files of an earlier run that would contradict a new one for these structures.

        Its statistics, map of confidence, preview and run.json; its one label map beside new masks, or its
        masks of these structures beside a new label map.  What else is in the folder may
        be somebody's own: a label map counts only with its names beside it, masks only
        where the earlier run.json lists them.
        """
        files = list(self.reports)
        if not self.multilabel and self.labels.exists():
            files += [self.folder / "segmentation.nii.gz", self.labels]
        elif self.multilabel and not self.prefix:
            files += [self.mask(name) for name in names if self.mask(name).name in self._listed()]
        return [file for file in files if file.is_file()]

    def _listed(self) -> list[str]:
        """The files that an earlier run.json names; none where it is missing or somebody else's."""
        try:
            run = json.loads(self.beside("run.json").read_text(encoding="utf-8"))
            return [name for name in run["files"] if isinstance(name, str)]
        except (OSError, ValueError, KeyError, TypeError):
            return []
