"""The command line: the main job is the callback, everything else stands beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from clseg.cli import bodypart, recipe, weights, weights_import
from clseg.cli.cases import cases
from clseg.cli.check import check
from clseg.cli.console import Terminal, code_of, code_of_failure
from clseg.cli.demo import demo
from clseg.cli.evaluate import evaluate
from clseg.cli.learn import learn, prune, update
from clseg.cli.rois import rois
from clseg.cli.segment import run
from clseg.cli.stats import stats
from clseg.cli.streams import code_of_end, end_on_sigterm, sound_streams
from clseg.cli.train import export, train
from clseg.waiting import be_considerate

TEACH = "Teach it new organs"  # a group of --help


class Group(TyperGroup):
    """The commands, and for words that are none but clearly something else, what they should have been."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and (meant := meaning_of(args[0], ctx.params)):
            ctx.fail(meant)
        return super().resolve_command(ctx, args)


def meaning_of(word: str, given: Mapping[str, Any]) -> str:
    """What should have been said instead of a word that is no command, by the options before it; nothing where nobody knows."""
    from clseg.batch.case import SCAN_ENDINGS
    from clseg.catalogue import Catalogue

    if given.get("roi") and Catalogue.builtin().meanings(word.strip(",")):
        names = ",".join(name.strip(",") for name in (*given["roi"], word))
        return f"'{word}' is no command. Several structures are one word, with commas: --roi {names}"
    if not (os.path.exists(word) or word.lower().endswith(SCAN_ENDINGS)):
        return ""
    if given.get("input"):
        return f"'{word}' is no command, and -i takes one path. Give many scans as their folder, a list, or a pattern in quotes: -i 'scans/*.nii.gz'"
    return f"'{word}' is no command. A scan is given with -i, the place for its results with -o: clseg -i ct.nii.gz -o out/"


app = typer.Typer(
    cls=Group,
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
    """Entry point of the `clseg` program; Ctrl-C before a command has begun ends as quietly as after, and so does help that nobody reads."""
    sound_streams()
    end_on_sigterm()
    be_considerate()
    try:
        app(prog_name="clseg")
    except KeyboardInterrupt as error:
        raise SystemExit(code_of(error)) from None
    except SystemExit as end:
        raise SystemExit(code_of_end(end)) from None
    except OSError as error:  # help that cannot be printed
        raise SystemExit(code_of_failure(error, Terminal())) from None
