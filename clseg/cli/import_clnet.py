"""`clseg weights import clnet`: the release of CL-Net's authors becomes a model of clseg."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.words import number_of

Heads = Annotated[list[str], typer.Option("--head", metavar="NAME", help="Only this head (decoder), and those that support it; may be repeated.", show_default=False)]
Without = Annotated[list[str], typer.Option("--without", metavar="NAME", help="Not this head; may be repeated.", show_default=False)]


def clnet(
    path: Annotated[Path, typer.Argument(help="Folder that holds `results`, a zip of it, or its *_pred_cleaned.json.", show_default=False)],
    name: Annotated[str, typer.Option("-n", "--name", help="What the model will be called: clseg -i … --model NAME.", show_default=False)],
    config: Annotated[Path | None, typer.Option("--config", help="The *_pred_cleaned.json, where it does not lie below PATH.", show_default=False)] = None,
    activation: Annotated[str, typer.Option("--activation", help="Whose code trained it, may or jan (2025): files do not say it, results differ much.")] = "may",
    head: Heads = [],  # noqa: B006 - typer makes a new list for every call
    without: Without = [],  # noqa: B006
    bodypart: Annotated[str, typer.Option("--bodypart", help="Look only where organs can be, judged by the regressor of this model, e.g. starter.", show_default=False)] = "",
    licence: Annotated[str, typer.Option("--licence", help="Licence of the weights, for manifest and card.")] = "unknown",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and what came in.")] = False,
) -> None:
    """The release of CL-Net's authors: clseg weights import clnet release/ --name clnet.

    Every head keeps its own spacing and intensities; masks are folded in, moving averages and supporters are used as the authors' program does.
    """
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.weights.importers.clnet import is_needed, parts_of, read_clnet
        from clseg.weights.importers.folder import opened
        from clseg.weights.importers.install import install, refuse_taken, regressors_of

        refuse_taken(name)
        regressors = regressors_of(bodypart) if bodypart else {}
        with opened(path, is_needed) if path.suffix != ".json" else nullcontext(path) as folder:
            imported = read_clnet(folder, config=config, activation=activation, heads=head, without=without, warn=terminal.warn)
        text = f"CL-Net, {len(imported.decoders)} heads of the authors' release"
        manifest = install(name, parts_of(imported), description=text, licence=licence, regressors=regressors)
        for asset in manifest.listed(name):
            terminal.result("\t".join((asset.name, asset.kind, number_of(len(asset.labels), "structure") if asset.labels else "", asset.file)))
        terminal.note(f"{number_of(len(manifest.labels_of(name)), 'structure')}; use them with: clseg -i ct.nii.gz -o out --model {name}")
