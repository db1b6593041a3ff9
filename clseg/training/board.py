"""Board: losses for TensorBoard, when the extra `clseg[tensorboard]` is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clseg.training.loop import Step


class Board:
    """Callback: writes every 20th step to `<run>/tensorboard/<stage>`; silent where TensorBoard is not installed."""

    every = 20

    def __init__(self, run: Path, stage: str) -> None:
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(run / "tensorboard" / stage))

    def __call__(self, step: Step) -> None:
        if self.writer is not None and step.iteration % self.every == 0:
            for name, loss in step.losses.items():
                self.writer.add_scalar(f"loss/{name}", loss, step.iteration)
            self.writer.add_scalar("rate", step.rate, step.iteration)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
