"""The errors that `clseg` raises on purpose.

    ClsegError                    exit code 1: something failed
    ├── UsageError                exit code 2: the words of the call are wrong
    │   ├── UnknownName           a structure, group, model or decoder nobody knows
    │   └── NotHeld               a structure or group that is known, but not there
    ├── InputError                the scan or label map cannot be used
    ├── OutputError               the result cannot be written (place, rights, disk)
    ├── WeightsError              weights are missing, damaged or do not fit together
    │   └── OfflineError          they would have to be downloaded, and that is forbidden
    ├── RecipeError               a training recipe does not make sense (exit code 2)
    └── TrainingError             training cannot go on

Every message is one sentence that says what was given and what was expected;
`tip` says what to do next.  Only `clseg.cli.console` turns them into text and
exit codes; the library never prints.
"""

from __future__ import annotations


class ClsegError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, tip: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip


class UsageError(ClsegError):
    """The call itself is wrong: an option, a path or a name."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not known; `nearest` holds what may have been meant."""

    def __init__(self, kind: str, name: str, nearest: tuple[str, ...] = (), *, tip: str | None = None) -> None:
        meant = f"; did you mean {' or '.join(nearest)}?" if nearest else "."
        super().__init__(f"Unknown {kind} '{name}'{meant}", tip=tip)
        self.name = name
        self.nearest = nearest


class NotHeld(UsageError):
    """A structure or group that a model does not hold; `nearest` holds what may be asked for instead."""

    def __init__(self, name: str, nearest: tuple[str, ...] = (), *, tip: str | None = None) -> None:
        instead = f"the nearest it holds: {', '.join(nearest)}" if nearest else "it holds none at all"
        super().__init__(f"The model does not hold '{name}'; {instead}.", tip=tip)
        self.name = name
        self.nearest = nearest


class InputError(ClsegError):
    """The scan or label map cannot be used."""


class OutputError(ClsegError):
    """The result cannot be written."""


class WeightsError(ClsegError):
    """Weights are missing, damaged or do not belong together."""


class OfflineError(WeightsError):
    """Weights are not on this machine and downloading is forbidden."""


class RecipeError(ClsegError):
    """A training recipe is not usable."""

    exit_code = 2


class TrainingError(ClsegError):
    """Training cannot start or go on."""
