"""`clseg check`: what is right and wrong with a scan, before anything is segmented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clseg.cli.bodypart import starter_weights
from clseg.cli.console import Terminal, exit_codes

if TYPE_CHECKING:
    from clseg.inference.preflight import Preflight


def check(
    scan: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MetaImage, or DICOM (folder, zip, multi-frame file).")],
    series: Annotated[str | None, typer.Option("--series", help="Number or UID of the DICOM series, where there are several.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of sentences.")] = False,
) -> None:
    """Look at a scan: geometry, values, orientation, coverage, and what mends each fault.

    Exit codes: 0 good, 3 usable with warnings, 1 unusable, 2 the call was wrong.

    clseg check ct.nii.gz
    """
    terminal = Terminal()
    with exit_codes(terminal):
        from clseg.inference.preflight import preflight
        from clseg.network.bodypart import load_bodypart

        found = preflight(scan, series=series, scorer=load_bodypart(starter_weights()))
        if as_json:
            terminal.result(json.dumps({"path": str(scan), **found.to_dict()}, indent=2, ensure_ascii=False))
        else:
            for line in lines(scan, found):
                terminal.result(line)
        raise typer.Exit(found.exit_code)


def lines(scan: Path, found: Preflight) -> list[str]:
    """The report for people: verdict, facts, then every finding and what mends it."""
    said = [f"{scan}: {found.verdict}", *_facts(found.facts)]
    for finding in found.findings:
        said.append(f"{finding.level}: {finding.text}")
        if finding.mend:
            said.append(f"  → {finding.mend}")
    return said


def _facts(facts: dict[str, dict[str, Any]]) -> list[str]:
    said = []
    if grid := facts.get("geometry"):
        said.append(f"geometry: {_times(grid['shape'])} voxels of {_times(grid['spacing_mm'])} mm, {_times(grid['size_mm'])} mm in all, axes {grid['orientation']}")
    if values := facts.get("values"):
        tissues = ", ".join(f"{name} {'not seen' if peak is None else f'{peak:g}'}" for name, peak in values["peaks_hu"].items())
        said.append(f"values: {values['lowest']:g} to {values['highest']:g} HU; peaks: {tissues}; contrast agent: {values['contrast']}")
    if chest := facts.get("chest"):
        lean = chest["heart_left_mm"]
        said.append(f"chest: the heart leans {abs(lean):.0f} mm to the {'left' if lean >= 0 else 'right'}, the right lung holds {chest['right_lung_share']:.0%} of the air")
    return said


def _times(numbers: list[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
