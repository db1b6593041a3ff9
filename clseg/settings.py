"""Settings: how scans are segmented: with which model, on what, how finely."""

from __future__ import annotations

from dataclasses import dataclass, field

from clseg.errors import UsageError
from clseg.inference.device import check_spelling, check_threads
from clseg.weights.sources import Sources

RESTORING = ("smooth", "nearest")


@dataclass(frozen=True)
class Settings:
    """`step` is the distance between windows as a share of the window; `threads` 0 leaves torch's choice.

    `restore` brings labels back to the scan with `smooth` borders or by `nearest`
    neighbour.  `confidence_map` keeps how sure the decoders are, voxel by voxel.  `offline` opens no socket; `sources` says where weights come from (a
    mirror, another manifest).

    Raises UsageError for what cannot be meant.
    """

    model: str = "starter"
    device: str = "auto"
    step: float = 0.5
    threads: int = 0
    restore: str = "smooth"
    confidence_map: bool = False
    offline: bool = False
    sources: Sources = field(default_factory=Sources)

    def __post_init__(self) -> None:
        check_spelling(self.device)
        check_threads(self.threads)
        if self.restore not in RESTORING:
            raise UsageError(f"Unknown way to restore '{self.restore}', expected {' or '.join(RESTORING)}.")
