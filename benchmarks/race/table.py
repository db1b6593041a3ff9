"""Table: what a race gave, in Markdown and as plain numbers."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from race.timing import Pairs, Spread


@dataclass(frozen=True)
class Figure:
    """One number on both sides, their ratio pair by pair, and what it should be at most."""

    what: str
    unit: str
    ours: Spread
    theirs: Spread
    ratio: Spread
    goal: float | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return "–"
        return f"≤ {self.goal:g}: {'kept' if self.ratio.median <= self.goal else 'missed'}"


@dataclass(frozen=True)
class Result:
    """A comparison: its row, what was run on what, its figures, the share of equal voxels, every single run."""

    row: str
    case: str
    sides: tuple[str, str]
    figures: tuple[Figure, ...]
    agreement: float | None = None
    runs: dict[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "verdicts": [figure.verdict for figure in self.figures]}


def usual_figures(pairs: Pairs, *, seconds: float | None = None, memory: float | None = None) -> tuple[Figure, ...]:
    """Wall time, processor time and peak memory of pairs of runs, also of the GPU where it was watched; `seconds` and `memory` are the ratios wanted at most."""
    wanted = [("wall time", "s", "seconds", seconds), ("processor time", "s", "cpu_seconds", None), ("peak memory", "MiB", "peak_mib", memory)]
    if all(run.gpu_mib for run in (*pairs.ours, *pairs.theirs)):
        wanted.append(("peak memory of the GPU", "MiB", "gpu_mib", None))
    return tuple(
        Figure(what, unit, *(Spread.of([getattr(run, name) for run in side]) for side in (pairs.ours, pairs.theirs)), pairs.ratio(name), goal)
        for what, unit, name, goal in wanted
    )


def markdown(results: Sequence[Result]) -> str:
    """One line a figure; ratios are medians of pairs with the least and the largest."""
    lines = ["| row | case | number | clseg | against | ratio | goal | equal voxels |", "|---|---|---|---:|---:|---:|---|---:|"]
    for result in results:
        for number, figure in enumerate(result.figures):
            head = (result.row, f"{result.case}: {result.sides[0]} against {result.sides[1]}") if number == 0 else ("", "")
            equal = f"{100 * result.agreement:.3f} %" if number == 0 and result.agreement is not None else ""
            numbers = (f"{_shown(figure.ours.median)} {figure.unit}", f"{_shown(figure.theirs.median)} {figure.unit}", _range(figure.ratio))
            lines.append(f"| {' | '.join((*head, figure.what, *numbers, figure.verdict, equal))} |")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Where the race was run."""
    import numpy
    import torch

    import clseg

    chip = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        chip = models[0] if models else chip
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    versions = {"clseg": clseg.__version__, "torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": chip, "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform(), "load_at_start": load, **versions}


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _range(ratio: Spread) -> str:
    return f"{ratio.median:.2f}" if ratio.low == ratio.high else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
