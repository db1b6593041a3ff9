"""`clseg weights import …`: models that other programs trained become models of clseg."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.cli.import_clnet import clnet
from clseg.errors import UsageError
from clseg.words import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clseg.weights.importers.install import Part
    from clseg.weights.importers.nnunet import Training

app = typer.Typer(help="Make a model of another program a model of clseg: nnU-Net v2, TotalSegmentator, CL-Net.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="Folder of the model, or a zip of it.", show_default=False)]
Name = Annotated[str, typer.Option("-n", "--name", help="What the model will be called: clseg -i … --model NAME.", show_default=False)]
Licence = Annotated[str, typer.Option("--licence", help="Licence of the weights, for manifest and card.")]
Folds = Annotated[str, typer.Option("--folds", help="all, or some, e.g. 0 or 0,1; several are averaged.")]
File = Annotated[str, typer.Option("--checkpoint", help="File in every fold_*.")]
Configuration = Annotated[str, typer.Option("--configuration", help="3d_fullres or 3d_lowres, where there are several.", show_default=False)]
MIRROR_HELP = "Average over the flips that the training allows, as nnU-Net does by itself: 8 times the work."
Mirror = Annotated[bool, typer.Option("--mirror/--no-mirror", help=MIRROR_HELP)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and what came in.")]


@app.callback()
def weights_import() -> None:
    """Make a model of another program a model of clseg."""


@app.command()
def nnunet(
    path: Source,
    name: Name,
    folds: Folds = "all",
    configuration: Configuration = "",
    checkpoint: File = "checkpoint_final.pth",
    mirror: Mirror = False,
    licence: Licence = "unknown",
    quiet: Quiet = False,
) -> None:
    """An nnU-Net v2 model: clseg weights import nnunet …/nnUNetTrainer__nnUNetPlans__3d_fullres --name mine.

    PlainConvUNet and ResidualEncoderUNet, 3d_fullres and 3d_lowres, one CT channel, one number per structure.
    """
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.weights.importers.folder import opened
        from clseg.weights.importers.install import refuse_taken
        from clseg.weights.importers.nnunet import find_trainings, is_needed, read_training

        refuse_taken(name)
        with opened(path, is_needed) as folder:
            training = _only(find_trainings(folder, folds=folds, checkpoint=checkpoint, configuration=configuration))
            parts = read_training(training, mirror=mirror)
        _install(name, parts, f"nnU-Net v2 {training.title}, {training.configuration}", licence, terminal)


@app.command()
def totalsegmentator(
    paths: Annotated[list[Path], typer.Argument(help="Folder that holds Dataset291_… and others, or zips of them.", show_default=False)],
    name: Name,
    datasets: Annotated[str, typer.Option("--datasets", help="all, or some by number, e.g. 291,292.")] = "all",
    folds: Folds = "all",
    configuration: Configuration = "",
    checkpoint: File = "checkpoint_final.pth",
    licence: Licence = "unknown",
    quiet: Quiet = False,
) -> None:
    """TotalSegmentator's own weights, all parts as one model: clseg weights import totalsegmentator ~/.totalsegmentator --name total.

    A part that adds no structure to finer ones (297 at 3 mm beside 291 to 295) becomes a model of its own, NAME-297.
    """
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.weights.importers.folder import opened
        from clseg.weights.importers.install import refuse_taken
        from clseg.weights.importers.nnunet import find_trainings, is_needed
        from clseg.weights.importers.totalsegmentator import chosen, models_of, number_of, read_trainings

        refuse_taken(name)
        with ExitStack() as stack:
            folders = [stack.enter_context(opened(path, is_needed)) for path in paths]
            there = [one for folder in folders for one in find_trainings(folder, folds=folds, checkpoint=checkpoint, configuration=configuration)]
            found = chosen(there, datasets)
            for suffix, trainings in models_of(found).items():
                text = f"TotalSegmentator {', '.join(map(number_of, trainings))}"
                _install(f"{name}-{suffix}" if suffix else name, read_trainings(trainings), text, licence, terminal)


app.command()(clnet)


def _only(trainings: Sequence[Training]) -> Training:
    """The one training; UsageError with what to choose from when there are several."""
    if len(trainings) == 1:
        return trainings[0]
    configurations = sorted({one.configuration for one in trainings})
    if len(configurations) == len(trainings):
        raise UsageError(f"There are the configurations {', '.join(configurations)}.", tip="Choose one with --configuration.")
    shown = ", ".join(str(one.folder) for one in trainings)
    raise UsageError(f"There are {len(trainings)} models, expected one: {shown}.", tip="Name the folder of one of them.")


def _install(name: str, parts: Sequence[Part], text: str, licence: str, terminal: Terminal) -> None:
    from clseg.weights.importers.install import install

    manifest = install(name, parts, description=text, licence=licence)
    for asset in manifest.listed(name):
        held = number_of(len(asset.labels), "structure") if asset.labels else ""
        terminal.result(f"{asset.name}\t{asset.kind}\t{held}\t{asset.file}")
    terminal.note(f"{number_of(len(manifest.labels_of(name)), 'structure')}; use them with: clseg -i ct.nii.gz -o out --model {name}")
