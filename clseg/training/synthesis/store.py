"""Store: the atlas of a case, made once from its label files and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clseg.catalogue import ROOT
from clseg.errors import InputError
from clseg.io.files import read
from clseg.training.cases import Case, MaskFile, named, on_grid
from clseg.training.cases.names import ids
from clseg.training.kept import kept
from clseg.training.synthesis.atlas import MOST, SPACING_MM, Atlas, build_atlas
from clseg.volume import Volume

FIELDS = ("near", "depth", "hull", "surface")
ATLAS_FORMAT = 1  # raised when the same files give another atlas


def load_atlas(case: Case, orientation: str, wanted: Collection[str], cache: Path) -> Atlas:
    """The atlas of `case`, from the cache when it is there, made and cached otherwise.

    All structures that the case labels are in it, not only the `wanted` ones, which
    settle what is meant where the catalogue knows a name differently.
    """
    structures = named(case, wanted)
    stored = kept(cache / f"{_key(case, orientation, structures)}.npz", lambda: _arrays(_make(case, orientation, structures)))
    fields = {name: stored[name] for name in FIELDS if name in stored}
    names, spacing_mm = tuple(stored["names"].tolist()), float(stored["spacing_mm"])
    return Atlas(names, **{"surface": None, **fields}, spacing_mm=spacing_mm, orientation=orientation)


def _arrays(atlas: Atlas) -> dict[str, np.ndarray]:
    fields = {name: getattr(atlas, name) for name in FIELDS if getattr(atlas, name) is not None}
    return {"names": np.array(atlas.names), "spacing_mm": np.array(atlas.spacing_mm), **fields}


def _key(case: Case, orientation: str, structures: Mapping[str, tuple[str, ...]]) -> str:
    facts = ["atlas", ATLAS_FORMAT, case.name, case.facts(), orientation, SPACING_MM, sorted(structures.items())]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _make(case: Case, orientation: str, structures: Mapping[str, tuple[str, ...]]) -> Atlas:
    """All label maps and masks of a case as one label map; `body` is the outline, no structure."""
    if not case.maps and not case.masks:
        raise InputError(f"The {case} has no label map, from which a CT could be synthesised.")
    grid = read(case.maps[0].path if case.maps else case.masks[0].path)
    names = [name for name in structures if name != ROOT]
    if not 0 < len(names) <= MOST:
        raise InputError(f"The {case} labels {len(names)} structures, expected 1 to {MOST} to synthesise a CT from.")
    painting = Painting(grid, structures, names)
    for label_map in case.maps:
        painting.add_map(on_grid(label_map.path, grid, case), ids(label_map))
    painting.add_masks({mask: on_grid(mask.path, grid, case) for mask in case.masks})
    return build_atlas(grid.like(painting.values), names, painting.outline, orientation)


@dataclass
class Painting:
    """A label map in the making: `values` hold 1 + the place in `names`; `outline` is the body, once something shows it."""

    grid: Volume
    structures: Mapping[str, tuple[str, ...]]
    names: Sequence[str]
    outline: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.values = np.zeros(self.grid.shape, np.uint8)

    def add_map(self, found: np.ndarray, table: Mapping[str, int]) -> None:
        """A label map with its own names and ids; ids that nobody named are no structure."""
        found = found.astype(np.int64)
        turn = np.zeros(max(int(found.max()), *table.values()) + 1, np.uint8)
        for id, name in enumerate(self.names, start=1):
            turn[[table[own] for own in self.structures[name] if own in table]] = id
        mine = turn[found]
        self.values = np.where(mine > 0, mine, self.values)
        body = [table[own] for own in self.structures.get(ROOT, ()) if own in table]
        if body:
            self._show(np.isin(found, body) | (mine > 0))

    def add_masks(self, files: Mapping[MaskFile, np.ndarray]) -> None:
        """Masks, smaller ones over larger ones, so that parts stay visible in their wholes."""
        masks = {file: array > 0 if file.value is None else array == file.value for file, array in files.items()}
        for file, mask in sorted(masks.items(), key=lambda item: -int(item[1].sum())):
            name = next(name for name, own in self.structures.items() if file.name in own)
            if name == ROOT:
                self._show(mask)
            else:
                self.values[mask] = 1 + self.names.index(name)

    def _show(self, body: np.ndarray) -> None:
        self.outline = body if self.outline is None else self.outline | body
