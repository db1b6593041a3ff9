"""`clseg demo`: the whole chain on a synthetic scan, without any data at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.cli.segment import report, segment_and_save
from clseg.errors import UsageError


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the scan and its results.")] = Path("demo"),
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show nothing but errors and the table.")] = False,
) -> None:
    """Make a synthetic torso CT, segment it with the starter model and show what came out."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.io.files import check_writable, prepare_folder
        from clseg.io.nifti import write_volume
        from clseg.phantom import phantom

        prepare_folder(output)
        check_writable(output, 50_000_000)
        ct = output / "ct.nii.gz"
        if ct.exists() and not (output / "segmentation" / "run.json").exists():
            raise UsageError(f"{ct} is there already and may be a real scan.", tip="Choose another folder with -o.")
        scan, _ = phantom()
        write_volume(ct, scan)
        outputs = {"multilabel": False, "statistics": True, "preview": True}
        result = segment_and_save(ct, output / "segmentation", ["all"], terminal, {"device": device, "offline": True}, outputs)
        _show(result, terminal)
        report(result, output, terminal)
        terminal.note(f"The scan is {ct}; look at {output / 'segmentation' / 'preview.png'} first.")
        terminal.note("The scan is made of simple shapes, so some organs are missed that a real scan would show.")


def _show(result: object, terminal: Terminal) -> None:
    rows = [
        [name, s.status, _number(s.volume_ml), _number(s.hu_mean)]
        for name, s in result.statistics().items()  # type: ignore[attr-defined]
    ]
    terminal.table("", ["structure", "status", "volume (mL)", "mean HU"], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
