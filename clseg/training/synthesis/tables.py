"""Tables: what structures are made of and what tissue looks like, and one patch's draw from them."""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import torch

from clseg.recipe import SynthesisRecipe

PHASES = ("native", "arterial", "venous")
FORMS = ("solid", "bone", "lung", "hollow", "muscle")
IDS = 256


@dataclass(frozen=True)
class Tissue:
    """`range_hu` per phase (low, high) of the mean; `fine_hu`, `coarse_hu` standard deviations of texture of about 4 and 20 mm."""

    range_hu: dict[str, tuple[float, float]]
    fine_hu: float
    coarse_hu: float


@dataclass(frozen=True)
class Structure:
    """What a structure is made of, and what lies around it where nothing is labelled.

    `shell` and `core` are tissues, `shell_mm` the shell's thickness, `branch` the
    tissue of vessels inside.  `gas` and `stool` are the largest shares of a hollow
    organ's content.  `muscle_around` is the share of muscle in the neighbourhood,
    `covered` 1 where subcutaneous fat follows at once, 0 where the muscle wall does.
    `border_mm` is how far its border may move.
    """

    form: str
    shell: str
    core: str
    shell_mm: float
    branch: str
    gas: float
    stool: float
    muscle_around: float
    covered: float
    border_mm: float


@cache
def tissues() -> dict[str, Tissue]:
    """All tissues by name."""
    found = {}
    for row in _rows("tissues.csv"):
        ranges = {phase: (float(row[f"{phase}_low"]), float(row[f"{phase}_high"])) for phase in PHASES}
        found[row["tissue"]] = Tissue(ranges, float(row["fine_hu"]), float(row["coarse_hu"]))
    return found


@cache
def structure(name: str) -> Structure:
    """The first row of the table whose pattern fits the name; the last fits all."""
    for pattern, row in _structures():
        if fnmatch.fnmatchcase(name, pattern):
            return row
    raise LookupError(name)


@cache
def _structures() -> tuple[tuple[str, Structure], ...]:
    words = ("form", "shell", "core", "branch")
    return tuple(
        (row.pop("pattern"), Structure(**{key: value if key in words else float(value) for key, value in row.items()}))
        for row in _rows("structures.csv")
    )


def _rows(name: str) -> list[dict[str, str]]:
    with files("clseg.training.synthesis").joinpath(name).open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


@dataclass(frozen=True)
class Palette:
    """One patch's draw: the phase, the mean HU of every tissue, and a value per structure id (256,).

    Id 0 (no structure) has zeros.  `branch_hu` is 0 where a structure has no vessels
    of its own; `form` indexes FORMS.
    """

    phase: str
    mean: dict[str, float]
    form: torch.Tensor
    shell_hu: torch.Tensor
    core_hu: torch.Tensor
    shell_mm: torch.Tensor
    branch_hu: torch.Tensor
    fine_hu: torch.Tensor
    coarse_hu: torch.Tensor
    gas: torch.Tensor
    stool: torch.Tensor
    muscle_around: torch.Tensor
    covered: torch.Tensor
    border_mm: torch.Tensor


def draw_palette(names: Sequence[str], rule: SynthesisRecipe, rng: np.random.Generator) -> Palette:
    """HU of this patch: a phase, a mean per tissue, and small differences between structures of one tissue."""
    shares = np.array([rule.native, rule.arterial, rule.venous])
    phase = PHASES[rng.choice(len(PHASES), p=shares / shares.sum())]
    mean = {
        name: float(rng.uniform(*one.range_hu[phase]) + rng.normal(0, rule.spread_hu))
        for name, one in tissues().items()
    }
    rows = [structure(name) for name in names]
    own = rng.normal(0, 1, (len(rows), 3))  # of each structure
    luck = rng.uniform(0, 1, (len(rows), 4))
    kinds = tissues()

    def column(values: Sequence[float]) -> torch.Tensor:
        out = torch.zeros(IDS)
        out[1 : len(names) + 1] = torch.tensor(np.asarray(values, np.float32))
        return out

    columns = zip(rows, own, luck, strict=True)
    drawn = [
        {
            "form": FORMS.index(row.form),
            "shell_hu": mean[row.shell] + 0.5 * kinds[row.shell].fine_hu * normal[0],
            "core_hu": mean[row.core] + 0.5 * kinds[row.core].fine_hu * normal[1],
            "shell_mm": row.shell_mm * np.exp(0.35 * normal[2].clip(-2, 2)),
            "branch_hu": mean[row.branch] - mean[row.core] if row.branch else 0.0,
            "fine_hu": kinds[row.core].fine_hu * (0.4 + 1.2 * chance[0]),
            "coarse_hu": kinds[row.core].coarse_hu * (0.3 + 1.4 * chance[0]),
            "gas": row.gas * chance[1] ** 2,
            "stool": row.stool * chance[2],
            "muscle_around": row.muscle_around,
            "covered": row.covered,
            "border_mm": rule.border_mm * row.border_mm * (2 * chance[3] - 1),
        }
        for row, normal, chance in columns
    ]
    return Palette(phase, mean, **{key: column([one[key] for one in drawn]) for key in drawn[0]})
