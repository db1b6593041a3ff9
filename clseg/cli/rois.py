"""`clseg rois`: what can be asked for, and which weights hold it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.cli.sources import AllowHttp, OtherManifest, sources_of
from clseg.words import number_of


def rois(
    model: Annotated[str, typer.Option("-m", "--model", help="Model to list.")] = "starter",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    manifest: OtherManifest = None,
    allow_http: AllowHttp = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never open a network connection.")] = False,
) -> None:
    """List the structures of a model, their groups and the weights that hold them."""
    terminal = Terminal()
    with exit_codes(terminal):
        from clseg.catalogue import Catalogue
        from clseg.weights.cache import manifest as known

        listing = known(sources=sources_of(None, manifest, allow_http), offline=offline)
        holders = listing.labels_of(model)
        catalogue = Catalogue.builtin().with_structures(holders)
        anatomies = [a for a in catalogue if a.name in holders]
        if as_json:
            facts = [
                {"name": a.name, "id": a.id, "groups": list(a.groups), "weights": list(holders[a.name]), "synonyms": list(a.synonyms)}
                for a in anatomies
            ]
            terminal.result(json.dumps({"model": model, "structures": facts}, indent=2))
            return
        rows = [[a.name, ", ".join(a.groups), ", ".join(holders[a.name])] for a in anatomies]
        terminal.table(f"Model '{model}': {number_of(len(rows), 'structure')}", ["structure", "groups", "weights"], rows)
        terminal.note(f"Models: {', '.join(m.name for m in listing.models)}.  Groups may be asked for too: --roi head_neck")
