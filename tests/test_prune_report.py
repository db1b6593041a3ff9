"""Facts about the report of a climb: one row per try, the plot shows what was kept and what was refused."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clseg.report import curves
from clseg.training import prune_report
from clseg.training.ladder import Ladder, Rung
from clseg.training.prune_report import COLUMNS, Size, plot_pruning, rows, write_table

DENSE = Size(0.0, 1000, 5_000_000, 4000)
SMALL, SPARSE, RECOVERED = Size(0.5, 500, 2_000_000, 2000), Size(0.95, 60, 2_000_000, 300), (0.905, Size(0.95, 60, 2_000_000, 300))


def tries() -> list:
    """One structured rung kept, one unstructured rung refused and then kept."""
    ladder = Ladder((Rung("structured", 0.5), Rung("unstructured", 0.9)), reference=0.9)
    for dice in (0.895, 0.7, 0.89):
        ladder.report(dice)
    return list(zip(ladder.attempts, (SMALL, SPARSE, SPARSE), strict=True))


def test_one_row_per_try_between_dense_and_recovered() -> None:
    """Rungs are numbered; a retry has the number of its rung; Dice before is the dense reference."""
    table = rows(0.9, DENSE, tries(), recovered=RECOVERED)
    assert [(row.rung, row.kind, row.target, row.verdict) for row in table] == [
        (0, "dense", None, "dense"),
        (1, "structured", 0.5, "accepted"),
        (2, "unstructured", 0.9, "again"),
        (2, "unstructured", 0.9, "accepted"),
        (2, "recovered", None, "recovered"),
    ]
    assert [row.dice_after for row in table] == [0.9, 0.895, 0.7, 0.89, 0.905]
    assert {row.dice_before for row in table} == {0.9}


def test_the_table_as_csv(tmp_path: Path) -> None:
    """Columns by name; a target that is not there and a Dice that is not a number are empty cells."""
    ladder = Ladder((Rung("structured", 0.5),), reference=0.9)
    ladder.report(math.nan)
    write_table(tmp_path / "pruning.csv", rows(0.9, DENSE, [(ladder.attempts[0], SMALL)]))
    with open(tmp_path / "pruning.csv", encoding="utf-8", newline="") as stream:
        dense, failed = csv.DictReader(stream)
    assert tuple(dense) == COLUMNS
    assert (dense["target"], dense["dice_after"], dense["parameters"], dense["flops"], dense["bytes"]) == ("", "0.9", "1000", "5000000", "4000")
    assert (failed["tau"], failed["target"], failed["dice_after"], failed["verdict"]) == ("0.5", "0.5", "", "again")


def drawn(monkeypatch: pytest.MonkeyPatch, table: list, **options) -> dict[str, curves.Curve]:
    """The curves that a plot of the table would have, by name."""
    seen: dict[str, curves.Curve] = {}
    monkeypatch.setattr(prune_report, "plot_curves", lambda path, series, *labels, **kw: seen.update({c.name: c for c in series}))
    plot_pruning("x.png", table, **options)
    return seen


def test_the_plot_tells_kept_from_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dice over τ in percent: kept tries joined from the dense decoder on, the refused apart, the limit dashed."""
    seen = drawn(monkeypatch, rows(0.9, DENSE, tries(), recovered=RECOVERED), allowed_loss=0.02)
    assert (seen["kept"].x, seen["kept"].y, seen["kept"].style) == ([0.0, 50.0, 95.0], [0.9, 0.895, 0.89], "joined")
    assert (seen["recovered"].x, seen["recovered"].y) == ([95.0], [0.905])
    assert list(seen["dense - 0.02"].y) == pytest.approx([0.88, 0.88])
    assert seen["refused"].x == [95.0]


def test_a_wreck_does_not_flatten_the_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused Dice of 0.7, or one that is not a number, is drawn four allowed losses below the dense one."""
    assert drawn(monkeypatch, rows(0.9, DENSE, tries()), allowed_loss=0.02)["refused"].y == pytest.approx([0.82])
    ladder = Ladder((Rung("structured", 0.5),), reference=0.9)
    ladder.report(math.nan)
    assert drawn(monkeypatch, rows(0.9, DENSE, [(ladder.attempts[0], SMALL)]), allowed_loss=0.02)["refused"].y == pytest.approx([0.82])


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    """A PNG of the usual size, with more than white in it; a decoder that was never pruned has one too."""
    for name, table in (("pruned.png", rows(0.9, DENSE, tries(), recovered=RECOVERED)), ("dense.png", rows(0.9, DENSE, []))):
        plot_pruning(tmp_path / name, table, title="lungs")
        picture = np.asarray(Image.open(tmp_path / name))
        assert picture.shape == (curves.SIZE_PX[1], curves.SIZE_PX[0], 3)
        assert 0.001 < (picture < 128).any(axis=-1).mean() < 0.2
