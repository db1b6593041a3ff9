"""`clseg bodypart`: train the body-part regressor, and ask it how high in the body the slices of a scan lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.cli.watch import watched

app = typer.Typer(
    help="How high in the body every slice of a scan lies: 0 = pelvis bottom, 1 = head top.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

REVERSED = -0.5  # correlation of score and height below which a scan's header is doubted


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; recipes/bodypart.toml is a commented example.")],
    run: Annotated[Path | None, typer.Option("--run", help="Folder of this run. Default: runs/<recipe name>.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and what came out.")] = False,
) -> None:
    """Learn the order of slices, calibrate with landmarks, measure on held-out scans.

    clseg bodypart train recipes/bodypart.toml
    """
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.recipe import read_recipe
        from clseg.recipe.bodypart import BodypartRecipe
        from clseg.training.bodypart import train_bodypart

        plan = read_recipe(recipe, BodypartRecipe)  # type: ignore[type-var]
        folder = run or Path("runs") / plan.name
        with watched(terminal) as reports:
            file = train_bodypart(plan, folder, resume=resume, reports=reports)
        _note(terminal, folder / "evaluation.json", "training" if plan.validation_split == plan.split else "held-out")
        terminal.result(f"bodypart\t{file}")


@app.command()
def score(
    ct: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MetaImage, or a DICOM folder.")],
    weights: Annotated[Path | None, typer.Option("-w", "--weights", help="Weights of a regressor. Default: the starter's.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write slice, z_mm and score to this .csv file.", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and the scores.")] = False,
) -> None:
    """Print the score of every slice, from the feet up: slice number, height in mm, score.

    clseg bodypart score ct.nii.gz
    """
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.errors import UsageError
        from clseg.inference.bodypart import head_first, score_scan
        from clseg.io.check import check
        from clseg.io.files import prepare_folder, read, write_csv
        from clseg.network.bodypart import load_bodypart

        if output is not None and output.suffix != ".csv":
            raise UsageError(f"Scores are written as .csv, given {output.name}.")
        scan = read(ct)
        if output is not None:
            prepare_folder(output.parent)
        checked = check(scan)
        for warning in checked.warnings:
            terminal.warn(warning)
        scores = score_scan(checked.volume, load_bodypart(weights or starter_weights()))
        direction = head_first(scores.raw)
        if direction < REVERSED:
            terminal.warn(f"Scores fall where the header says up (correlation {direction:.2f}): the slices may be in reverse order.")
        rows = [[index, f"{z:.1f}", f"{value:.4f}"] for index, (z, value) in enumerate(zip(scores.z_mm, scores.values, strict=True))]
        if output is not None:
            write_csv(output, ["slice", "z_mm", "score"], rows)
        for row in rows if output is None else []:
            terminal.result("\t".join(map(str, row)))


def starter_weights() -> Path:
    """The weights that come with the package."""
    from importlib.resources import files

    from clseg.errors import WeightsError

    path = Path(str(files("clseg.data").joinpath("starter", "bodypart.safetensors")))
    if not path.is_file():
        raise WeightsError(f"The body-part regressor is not at {path}.", tip="Name its weights with --weights.")
    return path


def _note(terminal: Terminal, evaluation: Path, judges: str) -> None:
    """One line on the scans that judge, which are held out or not; all of them stand in the file."""
    import json

    summary = json.loads(evaluation.read_text(encoding="utf-8"))["validation"]["summary"]
    told = [f"{summary['scans']} {judges} scans"]
    if summary["spearman_min"] is not None:
        told.append(f"Spearman {summary['spearman_median']:.3f}, lowest {summary['spearman_min']:.3f}")
    if summary["landmark_error_mm"]:
        told.append(f"landmarks off by {summary['landmark_error_mm']['mean']:.0f} mm")
    terminal.note(f"{'; '.join(told)} ({evaluation})")
