"""`clseg train` and `clseg export`: a general encoder and its decoders from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.cli.watch import watched
from clseg.errors import UsageError

RunFolder = Annotated[Path | None, typer.Option("--run", help="Folder of this run. Default: runs/<recipe name>.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and what came out.")]


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; `clseg recipe new train` prints a commented one.")],
    run: RunFolder = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Train a general encoder and its decoders from partially labelled datasets."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.recipe import read_recipe
        from clseg.training.pretrain import pretrain

        plan = read_recipe(recipe)
        with watched(terminal) as reports:
            files = pretrain(plan, run or Path("runs") / plan.name, resume=resume, reports=reports)
        for part, file in files.items():
            terminal.result(f"{part}\t{file}")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `clseg train`, finished or not; or of `clseg learn`, `clseg update` or `clseg prune`, finished.")],
    folder: Annotated[Path | None, typer.Option("--into", help="Folder for the weights. Default: <run>/weights.", show_default=False)] = None,
    manifest: Annotated[Path | None, typer.Option("--manifest", help="List the weights in this manifest.", show_default=False)] = None,
    sources: Annotated[str, typer.Option("--sources", help="What stands before a file name in the manifest's sources, e.g. package:data/starter/. Default: where the files are.", show_default=False)] = "",
) -> None:
    """Write the weights of a run as files that inference loads, and list them in a manifest.

    Decoders that were learned join their model; one that was trained on or pruned takes the place of the one it was made from.
    """
    terminal = Terminal()
    with exit_codes(terminal):
        from clseg.training.enlist import enlist, is_of_learned
        from clseg.training.export import export_and_list, export_run
        from clseg.training.relist import is_of_one_decoder, relist

        into = folder or run / "weights"
        of_decoders = relist if is_of_one_decoder(run) else enlist if is_of_learned(run) else None
        if manifest is not None:
            files = (of_decoders or export_and_list)(run, into, manifest, sources=sources or _beside(manifest, into))
        elif of_decoders:
            raise UsageError(f"{run} holds decoders of a model: in which manifest are they to be listed?", tip="Name it with --manifest.")
        else:
            _, files = export_run(run, into)
        for part, file in files.items():
            terminal.result(f"{part}\t{file}")


def _beside(manifest: Path, folder: Path) -> str:
    """How a manifest names files in `folder`: relative to itself where they lie below it, else by their full address."""
    home, place = manifest.resolve().parent, folder.resolve()
    if place == home:
        return ""
    return f"{place.relative_to(home).as_posix()}/" if place.is_relative_to(home) else f"{place.as_uri()}/"
