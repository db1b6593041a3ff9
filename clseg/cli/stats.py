"""`clseg stats`: statistics of masks that are there already, from whatever program; no model is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.errors import UsageError

if TYPE_CHECKING:
    from clseg.measure import Statistics
    from clseg.report.statistics import Measured

EXAMPLE = "clseg stats ct.nii.gz masks/ -o out/"
HEADER = ["structure", "mL", "HU mean", "HU sd", "status"]


def stats(
    scan: Annotated[Path | None, typer.Argument(metavar="CT", help="The scan of the masks: NIfTI, NRRD, MetaImage, or DICOM (folder, zip, multi-frame file).", show_default=False)] = None,
    masks: Annotated[Path | None, typer.Argument(metavar="SEG", help="A folder of masks, or one label map.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for statistics.json and .csv. Default: only show them.", show_default=False)] = None,
    roi: Annotated[list[str] | None, typer.Option("-r", "--roi", metavar="NAMES", help="Only these groups and structures; may be repeated. Default: all.", show_default=False)] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="JSON or CSV that names the ids of a label map, where it does not itself.", show_default=False)] = None,
    series: Annotated[str | None, typer.Option("--series", help="Number or UID of the DICOM series, where there are several.", show_default=False)] = None,
    no_ct: Annotated[bool, typer.Option("--no-ct", help="There is no CT: give the masks alone, for volumes without HU.")] = False,
    stats_format: Annotated[str, typer.Option("--stats-format", metavar="FORMAT", help="clseg, or totalsegmentator (volume and intensity, as its readers expect).")] = "clseg",
    radiomics: Annotated[bool, typer.Option("--radiomics", help="Also first-order and shape features, named as PyRadiomics does.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors (and what --json prints).")] = False,
) -> None:
    """Measure masks that are there already: ours, TotalSegmentator's, 3D Slicer's, nnU-Net's, your own.

    clseg stats ct.nii.gz totalseg_out/ -o out/

    clseg stats dicom_folder/ prediction.nii.gz --labels dataset.json --roi kidneys

    clseg stats --no-ct masks/ --json
    """
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.cli.progress import Bars
        from clseg.masks import read_segmentation
        from clseg.report.statistics import check_format, to_json

        check_format(stats_format)
        ct, folder = _places(scan, masks, no_ct, series)
        if output is not None:
            _refuse_file(output)
        result = read_segmentation(folder, ct, roi=list(roi or ["all"]), labels=labels, series=series, report=Bars(terminal))
        measured = result.measured(radiomics=radiomics)
        files = [] if output is None else result.save_statistics(output, stats_format=stats_format, measured=measured)
        if as_json:
            terminal.result(json.dumps(to_json(measured, format=stats_format), indent=2, ensure_ascii=False))
        elif not quiet:
            _show(measured, terminal)
        if files:
            terminal.note(f"{sum(bool(one.voxels) for one in measured.structures.values())} of {len(measured.structures)} structures measured, written to {', '.join(map(str, files))}")


def _refuse_file(output: Path) -> None:
    """UsageError for the name of a table: statistics are several files."""
    if output.suffix.lower() in (".csv", ".json"):
        raise UsageError(f"Statistics are several files, given {output.name}, expected a folder.", tip=f"-o {output.with_suffix('')}/ writes statistics.json and statistics.csv into it.")


def _places(scan: Path | None, masks: Path | None, no_ct: bool, series: str | None) -> tuple[Path | None, Path]:
    """The CT, if there is one, and the masks."""
    if no_ct and series is not None:
        raise UsageError("--series chooses the CT, but with --no-ct there is none.", tip="Leave one of them out.")
    if no_ct:
        if scan is None or masks is not None:
            raise UsageError("With --no-ct the masks are the only path.", tip="clseg stats --no-ct masks/ -o out/")
        return None, scan
    if scan is None or masks is None:
        raise UsageError("Expected a CT and its masks.", tip=f"{EXAMPLE}; where there is no CT: clseg stats --no-ct masks/ -o out/")
    return scan, masks


def _show(measured: Measured, terminal: Terminal) -> None:
    """One row per structure that was found and per family; the others in a sentence."""
    there = {name: one for name, one in measured.structures.items() if one.voxels}
    together = {name: one for name, one in measured.families.items() if one.voxels}
    terminal.table("", HEADER, [_row(name, one) for name, one in there.items()])
    if together:
        terminal.table("taken together", ["family", *HEADER[1:]], [_row(name, one) for name, one in together.items()])
    for status, words in (("absent", "looked for and not found"), ("out_of_range", "not looked for, as the scan does not reach their part of the body")):
        if missing := [name for name, one in measured.structures.items() if one.status == status]:
            terminal.note(f"{words}: {', '.join(missing)}")


def _row(name: str, one: Statistics) -> list[str]:
    hu = ["–" if value is None else f"{value:.1f}" for value in (one.hu_mean, one.hu_sd)]
    cut = f" ({', '.join(one.cut_faces)})" if one.cut_faces else ""
    return [name, f"{one.volume_ml:.2f}", *hu, f"{one.status}{cut}"]
