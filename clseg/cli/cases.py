"""`clseg cases`: what a recipe's cases annotate, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.errors import UsageError

if TYPE_CHECKING:
    from clseg.training.inspect import Findings


def cases(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe of a training.")],
    kind: Annotated[str | None, typer.Option("--kind", help="Which command the recipe is for: train, learn, update or prune. Default: the one that its keys fit.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also list structures that no decoder of the recipe learns.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and what was found.")] = False,
) -> None:
    """Check all cases of a recipe and list which structures they annotate; exit code 1 when there are errors."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.cli.progress import Bars
        from clseg.recipe import KINDS, likeliest_kind, read_recipe
        from clseg.training.inspect import inspect_cases

        if kind is None:
            kind = likeliest_kind(recipe)
            terminal.note(f"By its keys {recipe} is a recipe of the kind '{kind}'; --kind says otherwise")
        if kind not in KINDS:
            raise UsageError(f"The kind of a recipe is {', '.join(KINDS)}, given '{kind}'.")
        findings = inspect_cases(read_recipe(recipe, KINDS[kind]), report=Bars(terminal))
        if as_json:
            terminal.result(json.dumps(_plain(findings), indent=2, ensure_ascii=False))
        else:
            _show(findings, terminal, everything=everything)
        if findings.errors:
            raise typer.Exit(1)


def _show(findings: Findings, terminal: Terminal, *, everything: bool) -> None:
    datasets = list(dict.fromkeys(dataset for dataset, _ in findings.cases))
    splits = list(dict.fromkeys(split for _, split in findings.cases if split))
    shown = [name for name in findings.structures if everything or not findings.learned or name in findings.learned]
    counts = {"(all cases)": findings.cases, **{name: findings.structures[name] for name in shown}}
    rows = [[name, *(_cell(count, dataset, splits) for dataset in datasets)] for name, count in counts.items()]
    terminal.table(f"Cases that annotate a structure ({' / '.join(splits)})", ["structure", *datasets], rows)
    if len(shown) < len(findings.structures):
        terminal.note(f"{len(findings.structures) - len(shown)} more structures are annotated that no decoder learns; --all lists them")
    for dataset, own, structure in findings.mapped:
        terminal.note(f"{dataset}: '{own}' is {structure}")
    if findings.found:
        terminal.table("Findings", ["severity", "dataset", "case", "what"], [[f.severity, f.dataset, f.case, f.sentence] for f in findings.found])
    total = sum(findings.cases.values())
    terminal.note(f"{total} cases, {len(findings.errors)} errors, {len(findings.warnings)} warnings")


def _cell(counts: Mapping[tuple[str, str], int], dataset: str, splits: Sequence[str]) -> str:
    """`95 / 20`, or a dash where there is nothing."""
    numbers = [counts.get((dataset, split), 0) for split in splits]
    return " / ".join(map(str, numbers)) if any(numbers) else "–"


def _plain(findings: Findings) -> dict[str, object]:
    return {
        "cases": _nested(findings.cases),
        "structures": {name: _nested(counts) for name, counts in findings.structures.items()},
        "mapped": [{"dataset": dataset, "name": own, "structure": structure} for dataset, own, structure in findings.mapped],
        "findings": [asdict(one) for one in findings.found],
    }


def _nested(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """dataset → split → number."""
    plain: dict[str, dict[str, int]] = {}
    for (dataset, split), count in counts.items():
        plain.setdefault(dataset, {})[split] = count
    return plain
