"""Speed and memory, side by side in one run: against nnU-Net's own predictor on the same weights, and of clseg against itself.

    python benchmarks/speed.py --smoke                    # does everything work? tiny networks and scans, a minute or two
    python benchmarks/speed.py --quick --json speed.json  # about 20 minutes on two cores
    python benchmarks/speed.py --row one --row five       # some rows alone, with large networks and scans too: hours
    python benchmarks/speed.py --quick --device cuda --peer-python python3 --row one --row device    # both sides on the GPU

Times are from the file to the written segmentation, of a fresh process; memory is the peak of its resident set.  Pairs are
run in turns, and the ratio of every pair is taken.  Both sides have the same weights, CT, step, threads and torch, and no
mirroring; nnU-Net runs without worker processes, which spares it their start and their memory (`--workers`: with one for
reading and one for writing).  The environment of nnU-Net is made at the first run; where nothing can be installed `--peer-python`
names an interpreter that holds it, and the foot of the table says what it has in other versions.  Told to stop (SIGTERM, Ctrl-C)
it shows what is finished.  What the rows compare: see `race/rows.py`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the folder `race`, also when this file is imported

from race.rows import CASES, ROOT, ROWS, Race
from race.table import Result, machine, markdown

CASED = ("one", "five", "decoders")  # rows with several cases


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    effort = parser.add_mutually_exclusive_group()
    for name, text in (("smoke", "only try everything, tiny"), ("quick", "what two cores can do in 20 minutes")):
        effort.add_argument(f"--{name}", dest="effort", action="store_const", const=name, default="full", help=text)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="this row alone; may be repeated")
    parser.add_argument("--case", help="of the rows one, five and decoders this case alone, as the table names it: 'fast, medium'")
    parser.add_argument("--repeats", type=int, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for both sides")
    parser.add_argument("--workers", action="store_true", help="nnU-Net's usual way, with worker processes")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/race", help="for scans, networks and results (some GB)")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--peer", type=Path, help="environment of nnU-Net, made when it is not there; default: a folder in --folder")
    peer.add_argument("--peer-python", metavar="PYTHON", help="an interpreter that holds nnunetv2, for machines where nothing can be installed")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="real CTs, as in shared/data")
    parser.add_argument("--json", type=Path, help="write every number here too")
    given = parser.parse_args(words)

    about = machine()
    race = race_of(given)
    if given.case and not any(getattr(race.cases, row) for row in CASED):
        parser.error(f"no row has the case '{given.case}'; there are {', '.join(sorted(cases_of(given.effort)))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: list[Result] = []
    try:
        for result in run(race, given.row or list(ROWS)):
            results.append(result)
            if given.json:
                write(given.json, about | peer_of(race), given, results)
    except KeyboardInterrupt:
        print("\nStopped; this was finished:")
        raise SystemExit(130) from None
    finally:
        print(f"\n{markdown(results)}\n\n{foot(about | peer_of(race), given, race.cases.repeats)}", flush=True)


def run(race: Race, rows: list[str]) -> Iterator[Result]:
    """Every comparison as soon as it is there."""
    for name in rows:
        print(f"{name}: {ROWS[name].__doc__}", flush=True)
        yield from ROWS[name](race)


def peer_of(race: Race) -> dict[str, object]:
    """nnU-Net's side in words, if it was asked for."""
    return {"peer": str(race.peer)} if "peer" in vars(race) else {}


def foot(about: dict[str, object], given: argparse.Namespace, repeats: int) -> str:
    """On what and how everything was run."""
    gpu = f" and {about['gpu']}" if about["gpu"] and given.device != "cpu" else ""
    settings = f"{given.device}, {given.threads} threads, step {given.step}, {repeats} pair{'s' * (repeats != 1)}"
    lines = [f"{about['cpu']}, {about['cores']} cores{gpu}; torch {about['torch']}, Python {about['python']}; {settings}."]
    if "peer" in about:
        lines.append(f"nnU-Net: {about['peer']}.")
    return "\n".join([*lines, f"Load of the machine before: {about['load_at_start']}."])


def cases_of(effort: str) -> set[str]:
    """The cases of all rows that have several, as the table names them."""
    return {", ".join(case) for row in CASED for case in getattr(CASES[effort], row)}


def race_of(given: argparse.Namespace) -> Race:
    from dataclasses import replace

    cases = CASES[given.effort]
    cases = replace(cases, repeats=given.repeats or cases.repeats)
    if given.case:
        cases = replace(cases, **{row: tuple(case for case in getattr(cases, row) if ", ".join(case) == given.case) for row in CASED})
    folder = given.folder.absolute()
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Race(
        cases,
        folder,
        given.data,
        (given.peer or folder / "peer").absolute(),
        given.threads,
        given.step,
        given.device,
        given.workers,
        lambda text: print(text, flush=True),
        given.peer_python,
    )


def write(path: Path, about: dict[str, object], given: argparse.Namespace, results: list[Result]) -> None:
    """All numbers so far, whole or not at all."""
    from clseg.io.files import write_json

    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    write_json(path, {"machine": about, "settings": settings, "results": [result.to_dict() for result in results]})


if __name__ == "__main__":
    main()
