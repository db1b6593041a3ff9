"""The command line: the main job is the callback, everything else stands beside it."""

from __future__ import annotations

import typer

from clseg.cli.train import train

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def root() -> None:
    """clseg"""


app.command()(train)


def main() -> None:
    app()
