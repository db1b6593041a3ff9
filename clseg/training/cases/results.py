"""Results: a folder of clseg's own results, the scans that they are of, and the masks that need no review: pseudo-labels.

`clseg -i scans/ -o results/ --stats` wrote them.  A structure counts as annotated when
its mask is there and its statistics say `"review": "no"`; all others are unknown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clseg.errors import InputError, RecipeError
from clseg.recipe import DatasetRecipe
from clseg.training.cases.case import Case, MaskFile, stem, volumes
from clseg.training.cases.split import by_name

RUN, STATISTICS = "run.json", "statistics.json"


def cases(dataset: DatasetRecipe, base: Path) -> list[Case]:
    """Every subfolder with a finished result, split by name (`val_share`).

    Raises RecipeError when there is none, InputError when a result has no statistics.
    """
    root = (base / dataset.path).resolve()
    done = sorted(file.parent for file in root.glob(f"*/{RUN}")) if root.is_dir() else []
    if not done:
        raise RecipeError(
            f"Dataset '{dataset.name}' has no results in {root}, expected a folder per scan with {RUN}, masks and statistics.",
            tip=f"clseg -i SCANS -o {root} --stats",
        )
    return [_case(folder, dataset) for folder in done]


def _case(folder: Path, dataset: DatasetRecipe) -> Case:
    scan = _told(folder / RUN).get("input")
    if not isinstance(scan, dict) or not isinstance(scan.get("path"), str):
        raise InputError(f"{folder / RUN} does not say which file was segmented, expected input.path.", tip="Segment the scan from a file.")
    if not (folder / STATISTICS).is_file():
        raise InputError(f"The results in {folder} have no {STATISTICS}, so nothing says which masks need a review.", tip="Segment the scans with --stats.")
    sure = {name for name, told in _told(folder / STATISTICS).items() if isinstance(told, dict) and told.get("review") == "no"}
    masks = tuple(MaskFile(stem(file), file) for file in volumes(folder) if stem(file) in sure)
    return Case(folder.name, by_name(folder.name, dataset.val_share), dataset, folder, Path(scan["path"]).resolve(), masks=masks)


def _told(file: Path) -> dict[str, Any]:
    """What stands in a JSON file of a result; InputError where that is not one."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}).", tip="Segment the scan again.") from error
    if not isinstance(told, dict):
        raise InputError(f"{file} holds a {type(told).__name__}, expected a table.", tip="Segment the scan again.")
    return told
