"""The main job: `clseg -i ct.nii.gz -o out/`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clseg.cli.batch import Many, job_of, segment_many
from clseg.cli.console import Terminal, exit_codes
from clseg.cli.sources import WEIGHTS, AllowHttp, Mirror, OtherManifest, sources_of
from clseg.errors import UsageError
from clseg.inference.device import MOST_THREADS
from clseg.output import Output

RESULTS, STATISTICS, MANY, COMPUTING = "Results", "Statistics", "Many scans", "Computing"  # the groups of --help

if TYPE_CHECKING:
    from clseg.segmentation import Segmentation
    from clseg.weights.sources import Sources


def given_path(text: str) -> Path:
    """A path that was really given: an empty one, as from an unset variable of a shell, would mean the present folder."""
    if not str(text).strip():
        raise typer.BadParameter("it is empty; is a variable of your shell unset?")
    return Path(text)


def amount(text: str) -> int:
    """An amount of memory: 4G, 4GiB, 4096M or bytes."""
    from clseg.footprint import bytes_of

    try:
        return bytes_of(text)
    except UsageError as error:
        raise typer.BadParameter(error.message) from error


def run(
    context: typer.Context,
    input: Annotated[Path | None, typer.Option("-i", "--input", parser=given_path, metavar="PATH", help="CT: NIfTI, NRRD, MetaImage, or DICOM (folder, zip, multi-frame file); or many: a folder of them, a quoted pattern, a list (.txt, .csv).", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", parser=given_path, metavar="PATH", help="Folder for one mask per structure, or x.nii.gz for one label map (x.nrrd, x.seg.nrrd too). Of many scans each gets a folder in it.", show_default=False)] = None,
    roi: Annotated[list[str] | None, typer.Option("-r", "--roi", metavar="NAMES", help="Groups and structures, e.g. chest or liver,spleen; may be repeated. Default: all.", show_default=False)] = None,
    series: Annotated[str | None, typer.Option("--series", metavar="SERIES", help="Number or UID of the DICOM series, where there are several.", show_default=False)] = None,
    multilabel: Annotated[bool, typer.Option("--ml", help="One label map instead of one mask per structure.", rich_help_panel=RESULTS)] = False,
    output_type: Annotated[list[str] | None, typer.Option("--output-type", metavar="TYPES", help="nifti, nrrd, seg.nrrd, dicom_seg, dicom_labelmap or dicom_rtstruct; several with commas. Default: nifti.", rich_help_panel=RESULTS, show_default=False)] = None,
    mesh: Annotated[list[str] | None, typer.Option("--mesh", metavar="KINDS", help="Surfaces too: stl, obj or ply.", rich_help_panel=RESULTS, show_default=False)] = None,
    label_tables: Annotated[list[str] | None, typer.Option("--label-tables", metavar="PROGRAMS", help="Names and colours of the label map for other programs: itksnap or slicer.", rich_help_panel=RESULTS, show_default=False)] = None,
    bids: Annotated[bool, typer.Option("--bids", help="Make the output folder a BIDS dataset of derivatives.", rich_help_panel=RESULTS)] = False,
    subject: Annotated[str | None, typer.Option("--subject", metavar="NAME", help="Name of the case in it, e.g. sub-01_ses-2. Default: from the input's name.", rich_help_panel=RESULTS, show_default=False)] = None,
    save_confidence: Annotated[bool, typer.Option("--save-confidence", help="Write confidence.nii.gz: how sure the network is, voxel by voxel.", rich_help_panel=RESULTS)] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Write preview.png, an overlay in three planes.", rich_help_panel=RESULTS)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite/--no-overwrite", help="Replace results that are there already.", rich_help_panel=RESULTS)] = True,
    stats: Annotated[bool, typer.Option("--stats", help="Write statistics.json and .csv: volumes, HU, completeness, and what to look at.", rich_help_panel=STATISTICS)] = False,
    stats_format: Annotated[str, typer.Option("--stats-format", metavar="FORMAT", help="Of --stats: clseg, or totalsegmentator (volume and intensity, as its readers expect).", rich_help_panel=STATISTICS)] = "clseg",
    radiomics: Annotated[bool, typer.Option("--radiomics", help="With --stats: also first-order and shape features, named as PyRadiomics does.", rich_help_panel=STATISTICS)] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what an earlier run has finished.", rich_help_panel=MANY)] = False,
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", help="In N processes of this machine.", rich_help_panel=MANY, min=1, max=MOST_THREADS, show_default=False)] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", metavar="ADDRESS", help="On the workers of this Dask scheduler, e.g. tcp://host:8786.", rich_help_panel=MANY, show_default=False)] = None,
    model: Annotated[str, typer.Option("-m", "--model", metavar="NAME", help="Model to use; see `clseg rois`.")] = "starter",
    device: Annotated[str, typer.Option("-d", "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=COMPUTING)] = "auto",
    step: Annotated[float, typer.Option("--step", metavar="SHARE", help="Distance between windows as a share of the window, 0.1 to 1.", rich_help_panel=COMPUTING, min=0.1, max=1.0)] = 0.5,
    fast: Annotated[bool, typer.Option("--fast", help="Fewer windows, somewhat coarser results: a step of 0.8.", rich_help_panel=COMPUTING)] = False,
    max_memory: Annotated[int | None, typer.Option("--max-memory", parser=amount, metavar="SIZE", help="Most memory that a process may use, e.g. 4G; -v shows the plan.", rich_help_panel=COMPUTING, show_default=False)] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="CPU threads; 0 leaves the choice to torch.", rich_help_panel=COMPUTING, min=0, max=MOST_THREADS)] = 0,
    restore: Annotated[str, typer.Option("--restore", metavar="HOW", help="Back to the scan's voxels with smooth borders, or by nearest neighbour: smooth or nearest.", rich_help_panel=COMPUTING)] = "smooth",
    offline: Annotated[bool, typer.Option("--offline", help="Never open a network connection.", rich_help_panel=WEIGHTS)] = False,
    mirror: Mirror = None,
    manifest: OtherManifest = None,
    allow_http: AllowHttp = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show seconds and memory of every stage.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """[bold]clseg[/bold]: whole-body CT segmentation that keeps learning (CL-Net, arXiv 2503.12698).

    clseg -i ct.nii.gz -o out/ --roi chest --stats

    clseg -i scans/ -o out/ --stats --resume

    Not a medical device: for research only, not for diagnosis or treatment.
    """
    if context.invoked_subcommand is not None:
        with exit_codes(Terminal()):
            refuse_options_before(context)
        return
    terminal = Terminal(quiet=quiet, verbose=verbose)
    with exit_codes(terminal):
        if version:
            from clseg import __version__

            terminal.result(f"clseg {__version__}")
            return
        if input is None and output is None:
            terminal.result(context.get_help())
            raise typer.Exit(2 if len(sys.argv) > 1 else 0)
        if input is None or output is None:
            missing = "-i/--input" if input is None else "-o/--output"
            raise UsageError(f"{missing} is missing.", tip="clseg -i ct.nii.gz -o out/")
        check_statistics(stats, stats_format, radiomics)
        if fast and (source := context.get_parameter_source("step")) is not None and source.name == "COMMANDLINE":
            raise UsageError("--fast chooses the step, but --step was given too.", tip="Leave out one of them.")
        names = list(roi or ["all"])
        given = sources_of(mirror, manifest, allow_http)
        sources = known(given, offline)
        options = {"model": model, "device": device, "step": step, "threads": threads, "restore": restore}
        options |= {"fast": fast, "max_memory": max_memory, "confidence_map": save_confidence, "offline": offline, "sources": sources, "series": series}
        outputs = {"multilabel": multilabel, "types": output_type, "mesh": mesh or (), "label_tables": label_tables or (), "bids": case_name(input, bids, subject)}
        outputs |= {"statistics": stats, "stats_format": stats_format, "radiomics": radiomics, "preview": preview}
        many = Many(resume, cluster, workers)
        if (cases := many.cases(input, output, names, model, sources)) is not None:
            segment_many(cases, job_of(output, names, options, outputs, many, given), many, terminal, overwrite=overwrite, profile=profile)
            return
        place = place_of(output, outputs)
        check_call(input, place, names, model, device, overwrite, sources)
        source = source_of_dicom(input, series, place)
        result = segment_and_save(input, output, names, terminal, options, outputs, source=source)
        report(result, output, terminal)
        if stats:
            report_review(result, terminal)
        if profile:
            show_profile(place.beside("run.json"), terminal)


def refuse_options_before(context: typer.Context) -> None:
    """UsageError for options of the main job in front of a subcommand: they would mean nothing there."""
    sources = {p.opts[0]: context.get_parameter_source(p.name or "") for p in context.command.params}
    if said := [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]:
        subcommand = context.invoked_subcommand
        raise UsageError(
            f"{said[0]} stands before '{subcommand}', where it has no effect.",
            tip=f"Options of a command follow it: `clseg {subcommand} --help` shows them.",
        )


def check_statistics(stats: bool, stats_format: str, radiomics: bool) -> None:
    """UsageError for options of statistics without --stats, and for an unknown format."""
    from clseg.report.statistics import CLSEG, check_format

    check_format(stats_format)
    if not stats and (radiomics or stats_format != CLSEG):
        raise UsageError(f"{'--radiomics' if radiomics else '--stats-format'} has no effect without --stats.", tip="Add --stats.")


def known(sources: Sources, offline: bool) -> Sources:
    """The sources with their manifest read, so that it is fetched once."""
    from clseg.weights.cache import manifest

    return replace(sources, manifest=manifest(sources=sources, offline=offline))


def case_name(input: Path, bids: bool, subject: str | None) -> str | None:
    """What the case is called in a BIDS dataset; None where none is written."""
    if subject is not None and not bids:
        raise UsageError("--subject names a case in a BIDS dataset, but none is written.", tip="Add --bids.")
    if subject is not None and not subject.strip():
        raise UsageError("--subject is empty; is a variable of your shell unset?")
    return (subject or _own_name(input.absolute())) if bids else None


def _own_name(scan: Path) -> str:
    """The name that tells a scan from others: that of its folder where every scan is called ct.nii.gz, as in a batch."""
    from clseg.batch.case import CT_NAMES, title_of

    name = scan.name or scan.resolve().name
    return scan.parent.name if title_of(scan).lower() in CT_NAMES and scan.parent.name else name


def place_of(output: Path, outputs: dict[str, Any]) -> Output:
    """Where the results go."""
    from clseg.results import Outputs

    return Outputs(**outputs).at(output)


def source_of_dicom(input: Path, series: str | None, place: Output) -> Any:
    """The DICOM series that results refer to, where some do; what cannot be written is refused."""
    from clseg.results import check_possible, find_source

    source = find_source(place.types, input, series)
    check_possible(place, source)
    return source


def check_call(input: Path, place: Output, roi: list[str], model: str, device: str, overwrite: bool, sources: Sources) -> None:
    """Refuse what is wrong with the call before anything heavy is loaded, read or made."""
    from clseg.asked import asked
    from clseg.inference.device import check_spelling
    from clseg.io.files import check_writable, existing
    from clseg.weights.cache import manifest

    wanted = asked(manifest(sources=sources), model, roi)
    existing(input)
    found = place.existing([a.name for a in wanted])
    if any(file.samefile(input) for file in found):
        raise UsageError(f"The output would replace the input {input}.", tip="Choose another output.")
    if found and not overwrite:
        raise UsageError(f"{found[0]} is there already.", tip="Choose another output, or allow --overwrite.")
    check_spelling(device)
    check_writable(place.folder, 1_000_000)


def segment_and_save(
    input: Path, output: Path, roi: list[str], terminal: Terminal, options: dict[str, Any], outputs: dict[str, Any], source: Any = None
) -> Segmentation:
    """Segment one scan and write its results; `source` is the DICOM series that they refer to, where some do."""
    from clseg.cli.progress import Bars
    from clseg.pipeline import segment

    bars = Bars(terminal)
    result = segment(input, roi, report=bars, **options)
    result = replace(result, facts={**result.facts, "command": [without_secrets(word) for word in sys.argv[1:]]}, source=source)
    with bars.stage("Writing"):
        result.save(output, **outputs)
    return result


def without_secrets(word: str) -> str:
    """A word of the command; an address in it loses user, password and query."""
    from clseg.weights.download import shown

    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{shown(value)}" if "://" in value else word


def report(result: Segmentation, output: Path, terminal: Terminal) -> None:
    """What was found, in one sentence, and where it is."""
    found, wanted = len(result.present), len(result.wanted)
    seconds = sum(lap.seconds for lap in result.stopwatch.laps)
    terminal.note(f"{found} of {wanted} structures found in {seconds:.1f} s, written to {output}")
    missing = [a.name for a in result.wanted if a not in result.present]
    if absent := [name for name in missing if name not in result.out_of_range]:
        terminal.note(f"looked for and not found: {', '.join(absent)}")
    if beyond := [name for name in missing if name in result.out_of_range]:
        terminal.note(f"not looked for, as the scan does not reach their part of the body: {', '.join(beyond)}")


def report_review(result: Segmentation, terminal: Terminal) -> None:
    """Which structures somebody should look at, in one line."""
    doubtful = [name for name, one in result.review().items() if one.review]
    names = f" ({', '.join(doubtful)}): see review and reasons in the statistics" if doubtful else ""
    terminal.note(f"review: {len(doubtful)} of {len(result.present)} structures{names}")


def show_profile(run: Path, terminal: Terminal) -> None:
    """The stages of a run.json as a table on stderr: seconds, their share, and the highest memory of the process so far."""
    stages = json.loads(run.read_text(encoding="utf-8"))["stages"]
    total = sum(one["seconds"] for one in stages)
    rows = [_profile_row(one["stage"], one["seconds"], total, one["peak_memory_mib"]) for one in stages]
    peak = max((one["peak_memory_mib"] or 0 for one in stages), default=0)
    terminal.aside("", ["stage", "seconds", "share", "peak MiB so far"], [*rows, _profile_row("all", total, total, peak or None)])


def _profile_row(stage: str, seconds: float, total: float, peak_mib: float | None) -> list[str]:
    return [stage, f"{seconds:.2f}", f"{seconds / total:.0%}" if total else "–", "–" if peak_mib is None else f"{peak_mib:.0f}"]
