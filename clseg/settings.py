"""Settings: how scans are segmented: with which model, on what, how finely."""

from __future__ import annotations

from dataclasses import dataclass, field

from clseg.errors import UsageError
from clseg.footprint import bytes_of
from clseg.inference.device import check_spelling, check_threads
from clseg.weights.sources import Sources

RESTORING = ("smooth", "nearest")
STEP = 0.5
FAST_STEP = 0.8


@dataclass(frozen=True)
class Settings:
    """`step` is the distance between windows as a share of the window; `threads` 0 leaves torch's choice.

    `fast` puts the windows FAST_STEP apart and is refused together with another step.  `max_memory` is how many bytes the process
    may hold at once, peak resident set size (None: as many as it likes), given as a number or as in `--max-memory` ("4G") and
    kept as a number; a run that cannot do with them is refused before anything is computed.
    `restore` brings labels back to the scan with `smooth` borders or by `nearest`
    neighbour.  `confidence_map` keeps how sure the decoders are, voxel by voxel.
    `offline` opens no socket; `sources` says where weights come from (a mirror,
    another manifest).

    Raises UsageError for what cannot be meant.
    """

    model: str = "starter"
    device: str = "auto"
    step: float = STEP
    threads: int = 0
    fast: bool = False
    max_memory: int | str | None = None
    restore: str = "smooth"
    confidence_map: bool = False
    offline: bool = False
    sources: Sources = field(default_factory=Sources)

    def __post_init__(self) -> None:
        check_spelling(self.device)
        check_threads(self.threads)
        if self.restore not in RESTORING:
            raise UsageError(f"Unknown way to restore '{self.restore}', expected {' or '.join(RESTORING)}.")
        if self.max_memory is not None:
            object.__setattr__(self, "max_memory", _bytes(self.max_memory))
        if self.fast and self.step not in (STEP, FAST_STEP):
            raise UsageError(f"Fast means a step of {FAST_STEP:g}, but a step of {self.step:g} was asked for.", tip="Leave out one of them.")
        if self.fast:
            object.__setattr__(self, "step", FAST_STEP)


def _bytes(max_memory: int | str) -> int:
    """`max_memory` in bytes; UsageError that names it."""
    try:
        return bytes_of(max_memory)
    except UsageError as error:
        raise UsageError(f"max_memory: {error.message}") from error
