"""Progress: how the library tells whoever listens what it is doing; by default nobody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


class Progress:
    """Silent. The command line overrides these; the library only calls them."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """One stage of `total` units of work ("bytes", or plain numbers); the value is called with units done.

        It may be called from several threads, and with less than 0 when work must be done again.
        """
        yield lambda units: None

    def warn(self, text: str) -> None:
        """A sentence that the user should read."""

    def note(self, text: str) -> None:
        """A sentence on what was decided for the user."""

    def detail(self, text: str) -> None:
        """A sentence for those who asked for more."""


SILENT = Progress()
