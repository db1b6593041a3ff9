"""`clseg evaluate`: Dice, surface Dice and HD95 of masks, or of a model over a recipe's held-out cases."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.errors import UsageError

Table = tuple[list[str], list[list[Any]]]


def evaluate(
    context: typer.Context,
    prediction: Annotated[Path | None, typer.Argument(help="Folder of masks or a label map.", show_default=False)] = None,
    reference: Annotated[Path | None, typer.Argument(help="The same, drawn by someone to be trusted.", show_default=False)] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Segment and score the held-out cases of this recipe instead.", show_default=False)] = None,
    cases: Annotated[Path | None, typer.Option("--cases", help="Score every row of this CSV: columns prediction and reference (paths relative to it), and case if need be.", show_default=False)] = None,
    split: Annotated[str, typer.Option("--split", help="Which cases of the recipe.")] = "val",
    model: Annotated[str, typer.Option("-m", "--model", help="Model to use with --recipe.")] = "starter",
    device: Annotated[str, typer.Option("-d", "--device", help="Device to use with --recipe.")] = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write the scores to this .json or .csv file, or the table to this .md file.", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and the scores.")] = False,
) -> None:
    """Score a segmentation against a reference: Dice, surface Dice at 3 mm, HD95 per structure.

    clseg evaluate out/ reference/

    clseg evaluate --cases results.csv -o scores.csv

    clseg evaluate --recipe recipes/starter.toml --split val -o scores.json
    """
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        if output is not None and output.suffix not in (".json", ".csv", ".md"):
            raise UsageError(f"Scores are written as .json, .csv or .md, given {output.name}.")
        if recipe is None:
            _refuse_options_of_a_recipe(context)
        given = [recipe is not None, cases is not None, prediction is not None]
        if given == [True, False, False]:
            _evaluate_recipe(recipe, split, model, device, output, terminal)
        elif given == [False, True, False]:
            _evaluate_cases(cases, output, terminal)
        elif given == [False, False, True] and reference is not None:
            _evaluate_pair(prediction, reference, output, terminal)
        else:
            raise UsageError("Expected a prediction and a reference, or --cases or --recipe alone.")


def _refuse_options_of_a_recipe(context: typer.Context) -> None:
    """UsageError for --split, --model and --device where nothing is segmented: they would mean nothing."""
    for option in ("split", "model", "device"):
        if (source := context.get_parameter_source(option)) is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{option} has no effect without --recipe.", tip="It says what is segmented; masks are compared as they are.")


def _prepare(output: Path | None) -> None:
    """Make the folder of the scores before they are computed, which may take hours."""
    from clseg.io.files import prepare_folder

    if output is not None:
        prepare_folder(output.parent)


def _evaluate_pair(prediction: Path, reference: Path, output: Path | None, terminal: Terminal) -> None:
    from clseg.cli.progress import Bars
    from clseg.evaluate import HEADER, evaluate, to_rows
    from clseg.io.files import existing

    for side in (prediction, reference):
        existing(side)
    _prepare(output)
    scores = evaluate(prediction, reference, report=Bars(terminal))
    table = [[str(r[0]), *(_number(v) for v in r[1:])] for r in to_rows(scores)]
    terminal.table("", HEADER, table)
    if output is not None:
        facts = {name: asdict(s) for name, s in scores.items()}
        _write(output, facts, (HEADER, to_rows(scores)), (HEADER, table))


def _evaluate_recipe(recipe: Path, split: str, model: str, device: str, output: Path | None, terminal: Terminal) -> None:
    from clseg.cli.progress import Bars
    from clseg.recipe import read_recipe
    from clseg.training.validate import validate

    plan = read_recipe(recipe)
    _prepare(output)
    cases = validate(plan, split=split, model=model, device=device, report=Bars(terminal))
    _tell_cases(cases, f"Model '{model}' on {len(cases)} cases of '{split}'", {"model": model, "split": split}, output, terminal)


def _evaluate_cases(table: Path, output: Path | None, terminal: Terminal) -> None:
    from clseg.cli.progress import Bars
    from clseg.evaluate import evaluate_cases
    from clseg.io.files import existing

    existing(table)
    _prepare(output)
    cases = evaluate_cases(table, report=Bars(terminal))
    _tell_cases(cases, f"{len(cases)} cases of {table.name}", {"table": str(table)}, output, terminal)


def _tell_cases(cases: dict[str, Any], title: str, about: dict[str, object], output: Path | None, terminal: Terminal) -> None:
    """One table over all cases; every case in the file."""
    from clseg.evaluate import HEADER, summarise, to_rows

    summary = summarise(cases.values())
    rows = [
        [name, str(s["cases"]), str(s["missed"]), _number(s["dice"]), _interval(s["dice_interval"]), _number(s["surface_dice"]), _number(s["hd95_mm"])]
        for name, s in summary.items()
    ]
    header = ["structure", "cases", "missed", "dice", "95 % interval", "surface dice 3 mm", "HD95 mm"]
    terminal.table(title, header, rows)
    if output is not None:
        by_case = {case: {n: asdict(s) for n, s in scores.items()} for case, scores in cases.items()}
        long = [[case, *row] for case, scores in cases.items() for row in to_rows(scores)]
        facts = {**about, "summary": summary, "cases": by_case}
        _write(output, facts, (["case", *HEADER], long), (header, rows))


def _write(output: Path, facts: dict[str, object], long: Table, short: Table) -> None:
    """All facts as JSON, the long table as CSV, or the short one as Markdown, by the file's ending."""
    from clseg.io.files import write_csv, write_json, writing

    if output.suffix == ".json":
        write_json(output, facts)
    elif output.suffix == ".csv":
        write_csv(output, *long)
    else:
        header, rows = short
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        with writing(output, "w") as file:
            file.write("".join(f"| {' | '.join(map(str, line))} |\n" for line in lines))


def _number(value: object) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(value: object) -> str:
    return "–" if value is None else f"{value[0]:.3f} to {value[1]:.3f}"  # type: ignore[index]
