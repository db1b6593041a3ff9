"""Options that several commands share: where weights come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clseg.weights.sources import Sources

WEIGHTS = "Where weights come from"  # a group of --help

Mirror = Annotated[str | None, typer.Option("--mirror", metavar="URL", help="Fetch weights from below this https:// or file:// address.", rich_help_panel=WEIGHTS, show_default=False)]
OtherManifest = Annotated[
    str | None, typer.Option("--manifest", metavar="FILE|URL", help="Use this list of weights in place of the builtin one.", rich_help_panel=WEIGHTS, show_default=False)
]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Fetch from unencrypted http:// addresses of other machines, too.", rich_help_panel=WEIGHTS)]


def sources_of(mirror: str | None, manifest: str | None, allow_http: bool) -> Sources:
    """What the three options say."""
    from clseg.weights.sources import Sources

    return Sources(mirror, manifest, allow_http)
