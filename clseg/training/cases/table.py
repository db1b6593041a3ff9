"""Table: a CSV with a row per case and the paths of its files."""

from __future__ import annotations

from pathlib import Path

from clseg.errors import InputError, RecipeError
from clseg.recipe import DatasetRecipe
from clseg.training.cases.case import Case, LabelMap, MaskFile, stem, volumes
from clseg.training.cases.names import checked, meanings
from clseg.training.cases.split import by_name, read_table

SEPARATOR = ";"


def cases(dataset: DatasetRecipe, base: Path) -> list[Case]:
    """The rows of the table; paths are relative to it or absolute.

    `label`: one or several paths with `;` between them, each a label map, a mask file
    called like its structure, or a folder of such masks.  `names`: a JSON file of
    name and id, or `liver=1;spleen=2`.
    """
    index = (base / dataset.index).resolve()
    if not index.is_file():
        raise RecipeError(f"Dataset '{dataset.name}' has no index at {index}.")
    what = f"The index {index}"
    rows = read_table(index, {"ct", "label"}, what)
    return [_case(row, dataset, index.parent, f"{what}, line {line},") for line, row in enumerate(rows, start=2)]


def _case(row: dict[str, str], dataset: DatasetRecipe, root: Path, where: str) -> Case:
    if not row["label"]:
        raise RecipeError(f"{where} names no label, expected the path of a label map, a mask or a folder of masks.")
    if not row["ct"] and not dataset.synthetic:
        raise RecipeError(f"{where} names no CT, expected its path.", tip="With synthetic = true CTs are made from the label maps.")
    ct = root / row["ct"] if row["ct"] else None
    paths = [root / path.strip() for path in row["label"].split(SEPARATOR) if path.strip()]
    name = row.get("case") or stem(ct or paths[0])
    names = _names(row.get("names", ""), root, where)
    masks = [mask for path in paths for mask in _masks(path, names, dataset)]
    maps = tuple(LabelMap(path, names) for path in paths if not path.is_dir() and all(mask.path != path for mask in masks))
    return Case(name, row.get("split") or by_name(name, dataset.val_share), dataset, root, ct, maps, tuple(masks))


def _names(cell: str, root: Path, where: str) -> dict[str, int] | Path | None:
    """What the column `names` says: nothing, `liver=1;spleen=2`, or the path of a JSON file."""
    if not cell:
        return None
    if "=" not in cell:
        return root / cell
    table: dict[str, object] = {}
    for pair in filter(None, map(str.strip, cell.split(SEPARATOR))):
        name, equals, id = (part.strip() for part in pair.partition("="))
        if not (name and equals and id.isdigit()) or name in table:
            raise RecipeError(f"{where} has names '{cell}', expected each structure once with its id, like liver=1;spleen=2.")
        table[name] = int(id)
    try:
        return checked(table, f"{where} has names that")
    except InputError as error:
        raise RecipeError(error.message) from error


def _masks(path: Path, names: object, dataset: DatasetRecipe) -> list[MaskFile]:
    """The masks that a path stands for: those in a folder, a file called like a structure, or none."""
    if path.is_dir():
        return [MaskFile(stem(file), file) for file in volumes(path)]
    own = stem(path)
    is_mask = names is None and (own in dataset.rename or len(meanings(own)) == 1)
    return [MaskFile(own, path)] if is_mask else []
