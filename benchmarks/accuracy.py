"""Accuracy over a list of cases: Dice, surface Dice at 3 mm and HD95 a structure, mean with 95 % bootstrap interval, and case by case.

    python benchmarks/accuracy.py --recipe recipes/starter.toml --split val --json accuracy.json
    python benchmarks/accuracy.py --recipe recipes/starter.toml --case openkbp/pt_101 --case lidc_idri/LIDC-IDRI-0314
    python benchmarks/accuracy.py --cases cases.csv -m mine

A CSV has the columns `case`, `reference` (masks or a label map) and either `prediction` or `ct`, which is then segmented,
paths relative to it; `kind` says who drew the reference.  Who drew the labels of a recipe's case, a human or a program,
stands in `case.json` beside its CT (`label_kind`) or in the recipe's dataset (`kind`), and here beside every number:
agreement with labels of a program proves less.  Structures whose labels are of both kinds have a line for each.
Where a structure cannot be in view (`absent` in the recipe, or an empty reference) there is no Dice, but millilitres that were painted all the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clseg.catalogue import Catalogue
from clseg.errors import ClsegError, InputError
from clseg.evaluate import evaluate
from clseg.metrics import Scores, bootstrap_interval

MEASURES = ("dice", "surface_dice", "hd95_mm")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Line:
    """One structure of one case: who drew its reference, and how well the prediction agrees."""

    case: str
    structure: str
    kind: str
    scores: Scores


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", type=Path, help="the cases of this recipe")
    what.add_argument("--cases", type=Path, help="the rows of this CSV")
    parser.add_argument("--split", default="val")
    parser.add_argument("--case", action="append", default=[], help="only this case; may be repeated")
    parser.add_argument("-m", "--model", default="starter")
    parser.add_argument("-d", "--device", default="auto")
    parser.add_argument("--json", type=Path, help="write every number here too")
    given = parser.parse_args(words)
    try:
        lines = of_recipe(given.recipe, given) if given.recipe else of_table(given.cases, given)
    except ClsegError as error:
        parser.exit(1, f"{error.message} {error.tip or ''}\n")
    shown = [line for line in lines if line.scores.reference_ml]
    summary, painted = summarised(shown), falsely_painted(lines)
    print(f"Model '{given.model}', {len({line.case for line in lines})} cases; mean with 95 % bootstrap interval of the mean over cases (seed 0).\n")
    print(summary_table(summary), "", false_table(painted), "", case_table(shown), sep="\n")
    if given.json:
        from clseg.io.files import write_json

        facts = {"model": given.model, "cases": str(given.recipe or given.cases), "split": given.split if given.recipe else None}
        write_json(given.json, {**facts, "summary": summary, "painted_where_absent": painted, "lines": [asdict(line) for line in lines]})


# --- where the cases come from


def of_recipe(path: Path, given: argparse.Namespace) -> list[Line]:
    """Every structure that a case of the recipe's split annotates, through the whole chain as a user runs it."""
    from clseg.recipe import read_recipe
    from clseg.training.cases import find_cases
    from clseg.training.validate import validate

    recipe = read_recipe(path)
    scores = validate(recipe, split=given.split, model=given.model, device=given.device, only=given.case, absent=True)
    kinds: dict[str, dict[str, str]] = {}
    for case in find_cases(recipe, given.split):
        kinds.setdefault(case.name, {}).update(kinds_beside(case.ct) if case.ct else {})
        kinds[case.name].setdefault("", case.dataset.kind or UNKNOWN)
    return [Line(case, name, kinds[case].get(name, kinds[case][""]), one) for case, found in scores.items() for name, one in found.items()]


def kinds_beside(ct: Path) -> dict[str, str]:
    """Structure → who drew it, from `case.json` beside a CT; a group there (lungs) speaks for its structures."""
    file = ct.parent / "case.json"
    told = json.loads(file.read_text(encoding="utf-8")).get("label_kind", {}) if file.is_file() else {}
    catalogue, found = Catalogue.builtin(), {}
    for name, kind in told.items():
        try:
            found.update(dict.fromkeys((anatomy.name for anatomy in catalogue.select([name])), kind))
        except ClsegError:
            found[name] = kind  # a name of the dataset's own
    return {**found, **{name: kind for name, kind in told.items() if name in catalogue}}


def of_table(path: Path, given: argparse.Namespace) -> list[Line]:
    """Every structure of the references in a CSV; InputError when a column is missing or a case comes twice."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or "reference" not in rows[0] or not {"prediction", "ct"} & set(rows[0]):
        raise InputError(f"{path} needs rows with the columns reference and prediction or ct, it has {', '.join(rows[0]) if rows else 'no row'}.")
    lines: list[Line] = []
    for row in rows:
        name = row.get("case") or row.get("prediction") or row["ct"]
        if any(line.case == name for line in lines):
            raise InputError(f"{path} names the case '{name}' twice.")
        if not given.case or name in given.case:
            lines += [Line(name, structure, row.get("kind") or UNKNOWN, one) for structure, one in _scores(row, path.parent, given).items()]
    return lines


def _scores(row: Mapping[str, str], folder: Path, given: argparse.Namespace) -> dict[str, Scores]:
    if row.get("prediction"):
        return evaluate(folder / row["prediction"], folder / row["reference"])
    from clseg import segment

    with tempfile.TemporaryDirectory() as out:
        segment(folder / row["ct"], model=given.model, device=given.device, offline=True).save(out)
        return evaluate(out, folder / row["reference"])


# --- what is shown


def summarised(lines: Iterable[Line]) -> list[dict[str, object]]:
    """Per structure and kind of label: cases, those missed by one side, and of every measure the mean and its interval, None without values."""
    groups: dict[tuple[str, str], list[Scores]] = {}
    for line in lines:
        groups.setdefault((line.structure, line.kind), []).append(line.scores)
    return [{"structure": structure, "kind": kind, **_means(scores)} for (structure, kind), scores in groups.items()]


def falsely_painted(lines: Iterable[Line]) -> list[dict[str, object]]:
    """Per structure, over the cases that do not show it: how many, in how many of them something was painted, and the most, with its case."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        if not line.scores.reference_ml:
            groups.setdefault(line.structure, []).append(line)
    return [{"structure": structure, **_most(group)} for structure, group in groups.items()]


def _most(lines: Sequence[Line]) -> dict[str, object]:
    worst = max(lines, key=lambda line: line.scores.predicted_ml)
    painted = [line for line in lines if line.scores.predicted_ml]
    return {"cases": len(lines), "painted": len(painted), "most_ml": worst.scores.predicted_ml, "case": worst.case if painted else ""}


def _means(scores: Sequence[Scores]) -> dict[str, object]:
    found: dict[str, object] = {
        "cases": sum(one.dice is not None for one in scores),
        "missed": sum(one.dice is not None and one.hd95_mm is None for one in scores),
    }
    for measure in MEASURES:
        values = [value for one in scores if (value := getattr(one, measure)) is not None]
        found[measure] = sum(values) / len(values) if values else None
        found[f"{measure}_interval"] = bootstrap_interval(values) if values else None
    return found


def summary_table(summary: Sequence[Mapping[str, object]]) -> str:
    head = ["structure", "labels", "cases", "missed", "Dice", "surface Dice 3 mm", "HD95 mm"]
    rows = [
        [one["structure"], one["kind"], one["cases"], one["missed"], *(_with_interval(one[name], one[f"{name}_interval"], digits) for name, digits in zip(MEASURES, (3, 3, 1), strict=True))]
        for one in summary
    ]
    return _markdown(head, rows)


def false_table(painted: Sequence[Mapping[str, object]]) -> str:
    head = ["structure, where it cannot be", "most in", "cases", "painted in", "most mL"]
    return _markdown(head, [[one["structure"], one["case"] or "–", one["cases"], one["painted"], _number(one["most_ml"], 1)] for one in painted])  # type: ignore[arg-type]


def case_table(lines: Sequence[Line]) -> str:
    head = ["case", "structure", "labels", "Dice", "surface Dice 3 mm", "HD95 mm", "reference mL", "predicted mL"]
    rows = [
        [line.case, line.structure, line.kind, _number(s.dice, 3), _number(s.surface_dice, 3), _number(s.hd95_mm, 1), _number(s.reference_ml, 1), _number(s.predicted_ml, 1)]
        for line in lines
        for s in (line.scores,)
    ]
    return _markdown(head, rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    numbers = len(head) - 2
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---", "---", *["---:"] * numbers], *rows))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(mean: float | None, interval: tuple[float, float] | None, digits: int) -> str:
    return "–" if mean is None or interval is None else f"{mean:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


if __name__ == "__main__":
    main()
