"""`clseg weights …`: weights on this machine."""

from __future__ import annotations

import typer

app = typer.Typer(help="Weights on this machine.", no_args_is_help=True)


@app.callback()
def weights() -> None:
    """Weights on this machine."""
