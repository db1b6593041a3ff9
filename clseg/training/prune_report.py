"""Prune report: what every rung of the ladder cost and saved, as one table and one plot."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clseg.io.files import write_csv
from clseg.report.curves import Curve, plot_curves
from clseg.training.ladder import Attempt, Verdict

COLUMNS = ("rung", "kind", "target", "tau", "parameters", "flops", "bytes", "dice_before", "dice_after", "verdict")
DENSE, RECOVERED = "dense", "recovered"
DEEPEST = 4  # how many allowed losses deep the plot shows refused tries


@dataclass(frozen=True)
class Size:
    """What a decoder weighs: pruning rate τ (share of the dense non-zero weights gone), parameters (those that are not
    zero), FLOPs per window, bytes of its file."""

    tau: float
    parameters: int
    flops: int
    file_bytes: int


@dataclass(frozen=True)
class Row:
    """One line of the table; `rung` counts the rungs that were tried from 1, `dice_before` is the dense reference."""

    rung: int
    kind: str
    target: float | None
    size: Size
    dice_before: float
    dice_after: float
    verdict: str

    @property
    def cells(self) -> tuple[object, ...]:
        """In the order of COLUMNS."""
        size = self.size
        return (self.rung, self.kind, self.target, round(size.tau, 6), size.parameters, size.flops, size.file_bytes,
                round(self.dice_before, 6), round(self.dice_after, 6), self.verdict)  # fmt: skip


def rows(
    reference: float, dense: Size, tries: Iterable[tuple[Attempt, Size]], *, recovered: tuple[float, Size] | None = None
) -> list[Row]:
    """The table: the dense decoder, every try in turn, and the recovered decoder (Dice and size) if there is one."""
    table = [Row(0, DENSE, None, dense, reference, reference, DENSE)]
    number, last = 0, None
    for attempt, size in tries:
        number, last = number + (attempt.rung != last), attempt.rung
        table.append(Row(number, attempt.rung.kind, attempt.rung.target, size, reference, attempt.dice, attempt.verdict.value))
    if recovered:
        dice, size = recovered
        table.append(Row(number, RECOVERED, None, size, reference, dice, RECOVERED))
    return table


def write_table(path: str | os.PathLike[str], table: Sequence[Row]) -> None:
    """The table as CSV; see COLUMNS."""
    write_csv(path, COLUMNS, (row.cells for row in table))


def plot_pruning(path: str | os.PathLike[str], table: Sequence[Row], *, allowed_loss: float = 0.02, title: str = "") -> None:
    """Dice against pruning rate τ in percent, as in Fig. 3 of arXiv 2503.12698, as PNG.

    What was kept is joined from the dense decoder on; refused tries are rings, those
    that lost more than `DEEPEST` times `allowed_loss` at the height of just that much;
    the dashed line is the least Dice that is allowed.
    """
    kept = [row for row in table if row.verdict in (DENSE, Verdict.ACCEPTED.value)]
    refused = [row for row in table if row.verdict in (Verdict.AGAIN.value, Verdict.STOP.value)]
    recovered = [row for row in table if row.verdict == RECOVERED]
    reference, reach = table[0].dice_before, max(100 * row.size.tau for row in table)
    series = [_curve("kept", kept, "joined"), _curve("refused", refused, "hollow", reference - DEEPEST * allowed_loss), _curve("recovered", recovered, "points")]
    least = reference - allowed_loss
    series.append(Curve(f"dense - {allowed_loss:g}", (0, reach), (least, least), "dashed", (120, 120, 120)))
    drawn = [curve for curve in series if curve.x]
    plot_curves(path, drawn, "pruning rate tau (% of the dense weights removed)", "validation Dice", title=title)


def _curve(name: str, table: Sequence[Row], style: str, floor: float = 0.0) -> Curve:
    dice = [max(row.dice_after, floor) if math.isfinite(row.dice_after) else floor for row in table]
    return Curve(name, [100 * row.size.tau for row in table], dice, style)
