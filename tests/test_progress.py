"""Facts about how progress looks on a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from clseg.cli.console import Terminal
from clseg.cli.progress import Bars


def shown(**stage: object) -> str:
    """What a terminal got to see of a stage of 2,000,000 units of which half are done."""
    screen = StringIO()
    terminal = Terminal(_err=Console(file=screen, force_terminal=True, width=160))
    with Bars(terminal).stage("Fetching", 2_000_000, **stage) as advance:
        advance(1_500_000)
        advance(-500_000)
    return screen.getvalue()


def test_bytes_are_shown_as_such():
    """A stage of bytes shows how much of how much in MB, a speed and the time left; what must come again is taken off."""
    seen = shown(unit="bytes")
    assert "1.0/2.0 MB" in seen
    assert ":" in seen  # the time left


def test_windows_are_counted():
    """Other stages count plainly."""
    assert "1000000/2000000" in shown()
