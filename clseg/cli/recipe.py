"""`clseg recipe new`: a commented recipe with every knob."""

from __future__ import annotations

from typing import Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.errors import UnknownName

app = typer.Typer(help="Recipes: what a training run is told.", no_args_is_help=True)


@app.callback()
def recipes() -> None:
    """Recipes: what a training run is told."""


@app.command()
def new(kind: Annotated[str, typer.Argument(help="train, learn, update, prune or bodypart.")]) -> None:
    """Print a commented recipe with every knob, its default and its unit: clseg recipe new learn > my.toml."""
    terminal = Terminal()
    with exit_codes(terminal):
        from difflib import get_close_matches

        from clseg.recipe import KINDS, template

        if kind not in KINDS:
            raise UnknownName("kind of recipe", kind, tuple(get_close_matches(kind, KINDS, 1)), tip=f"Known: {', '.join(KINDS)}.")
        terminal.result(template(kind).rstrip())
