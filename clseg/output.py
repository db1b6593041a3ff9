"""Output: where results go and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clseg.errors import UsageError

ENDINGS = (".nii.gz", ".nii")


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

    def existing(self, names: list[str]) -> list[Path]:
        """Results that a run for these structures would replace."""
        masks = [self.multilabel, self.labels] if self.multilabel else [self.folder / f"{n}.nii.gz" for n in names]
        others = [self.beside(n) for n in ("statistics.json", "statistics.csv", "preview.png", "run.json")]
        return [file for file in (*masks, *others) if file is not None and file.exists()]
