"""The command line: the main job is the callback, everything else stands beside it."""

from __future__ import annotations

import typer

from clseg.cli import bodypart, recipe, weights, weights_import
from clseg.cli.cases import cases
from clseg.cli.check import check
from clseg.cli.console import INTERRUPTED
from clseg.cli.demo import demo
from clseg.cli.evaluate import evaluate
from clseg.cli.learn import learn, prune, update
from clseg.cli.rois import rois
from clseg.cli.segment import run
from clseg.cli.stats import stats
from clseg.cli.train import export, train
from clseg.waiting import be_considerate

TEACH = "Teach it new organs"  # a group of --help

app = typer.Typer(
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback(invoke_without_command=True)(run)
for command in (demo, rois, check, stats, evaluate):
    app.command()(command)
app.add_typer(bodypart.app, name="bodypart")
app.add_typer(weights.app, name="weights")
weights.app.add_typer(weights_import.app, name="import")
for command in (learn, update, prune, train, export, cases):
    app.command(rich_help_panel=TEACH)(command)
app.add_typer(recipe.app, name="recipe", rich_help_panel=TEACH)


def main() -> None:
    """Entry point of the `clseg` program; Ctrl-C before a command has begun ends as quietly as after."""
    be_considerate()
    try:
        app(prog_name="clseg")
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
