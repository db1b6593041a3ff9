"""Validation: Dice on held-out cases while training, in `validation.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clseg.io.files import write_csv
from clseg.training.loop import Learner, Step
from clseg.training.noted import VALIDATION, table
from clseg.training.score import DiceByLabel

if TYPE_CHECKING:
    from clseg.training.course import Course


class Validation:
    """Callback: scores the averaged decoders every `validation.every` steps."""

    def __init__(self, course: Course, student: Learner, stage: str) -> None:
        self.course, self.student, self.stage = course, student, stage

    def __call__(self, step: Step) -> None:
        if step.iteration % self.course.plan.validation.every:
            return
        from clseg.training.course import averaged

        scores = self.course.dice(averaged(self.student), self.student.network.helpers)
        append(self.course.run / "validation.csv", self.stage, step.iteration, scores)
        text = ", ".join(f"{name} {mean:.3f}" for name, mean in means(scores).items())
        self.course.reports.note(f"{self.stage} {step.iteration}: Dice {text}")
        self.course.encoder.to(self.student.device)


def means(scores: DiceByLabel) -> dict[str, float]:
    """Mean Dice over cases per structure."""
    return {name: sum(cases.values()) / len(cases) for name, cases in scores.items() if cases}


def append(path: Path, stage: str, iteration: int, scores: DiceByLabel) -> None:
    """Add a row per structure; rows of the same stage and iteration are replaced (a resumed run scores again)."""
    rows: list[list[object]] = [[*row] for row in table(path, VALIDATION)[1:] if row[:2] != [stage, str(iteration)]]
    rows += [[stage, iteration, name, len(scores[name]), f"{mean:.4f}"] for name, mean in means(scores).items()]
    write_csv(path, VALIDATION, rows)
