"""The only place that prints, and the only place that turns errors into exit codes.

Results go to stdout, everything else (progress, warnings, errors) to stderr.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clseg.cli.streams import Terminated
from clseg.errors import ClsegError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM, as shells expect
OF_THE_SYSTEM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EIO, errno.ESTALE)  # no faults of clseg


@dataclass
class Terminal:
    """How much this run says: `quiet` shows errors alone, `verbose` adds details."""

    quiet: bool = False
    verbose: bool = False
    _err: Console | None = field(default=None, repr=False)

    @property
    def err(self) -> Console:
        from rich.console import Console

        if self._err is None:
            self._err = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())  # a log keeps its lines whole
        return self._err

    @property
    def lively(self) -> bool:
        """Whether bars and spinners make sense."""
        return not self.quiet and self.err.is_terminal

    def result(self, text: str) -> None:
        """One line of the answer, for pipes."""
        print(text)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """A table on stdout; numbers are right-aligned."""
        from rich.console import Console

        class Pipe(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # `… | head` is no failure: see exit_codes

        plain = not sys.stdout.isatty()
        Pipe(width=160 if plain else None, highlight=False).print(_table(title, header, rows))

    def aside(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """A table that is not the answer: on stderr, and not when quiet."""
        if not self.quiet:
            self.err.print(_table(title, header, rows))

    def note(self, text: str) -> None:
        if not self.quiet:
            self.err.print(text, markup=False)

    def detail(self, text: str) -> None:
        if self.verbose and not self.quiet:
            self.err.print(text, markup=False, style="dim")

    def warn(self, text: str) -> None:
        if not self.quiet:
            self.err.print(f"[yellow]warning:[/yellow] {_escape(text)}")

    def error(self, text: str, tip: str | None = None) -> None:
        self.err.print(f"[red]error:[/red] {_escape(text)}")
        if tip:
            self.err.print(f"[cyan]tip:[/cyan] {_escape(tip)}")

    def unexpected(self, error: Exception) -> None:
        """An error that nobody foresaw: a sentence, and with `verbose` where it happened."""
        if self.verbose:
            from traceback import format_exception

            self.err.print("".join(format_exception(error)), markup=False)
        tip = "This is a fault of clseg; please report it, with the output of the same command and -v where it has one."
        self.error(f"Something went wrong that should not: {type(error).__name__}: {error}", None if self.verbose else tip)

    @contextmanager
    def progress(self, unit: str = "") -> Iterator[Progress | None]:
        """Bars on stderr, or None when they would only litter a log; of "bytes" they show the speed, too."""
        if not self.lively:
            yield None
            return
        from rich.progress import Progress

        with Progress(*_columns(unit), console=self.err, transient=True) as progress:
            yield progress


def code_of(interruption: KeyboardInterrupt) -> int:
    """The exit code of a program that was told to stop."""
    return TERMINATED if isinstance(interruption, Terminated) else INTERRUPTED


def code_of_failure(error: Exception, terminal: Terminal) -> int:
    """The exit code of an error outside of all commands, which is told as within them."""
    import typer

    try:
        with exit_codes(terminal):
            raise error
    except typer.Exit as end:
        return end.exit_code


@contextmanager
def exit_codes(terminal: Terminal) -> Iterator[None]:
    """Turn every error raised on purpose into one sentence and an exit code.

    0 done · 1 failed · 2 the call was wrong · 130 interrupted · 143 ended by SIGTERM.
    """
    import typer

    try:
        yield
    except ClsegError as error:
        terminal.error(error.message, error.tip)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        terminal.error("Interrupted; no half-written file is left behind.")
        raise typer.Exit(code_of(error)) from error
    except BrokenPipeError as error:  # `clseg rois | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from error
    except (typer.Exit, typer.Abort):
        raise
    except MemoryError as error:
        terminal.error("There is not enough main memory for this.", "Close other programs, or cut the scan to what is needed.")
        raise typer.Exit(1) from error
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            terminal.unexpected(error)
        elif error.filename is None:  # what is printed goes nowhere
            terminal.error(f"The output cannot be written: {(error.strerror or str(error)).lower()}.")
        else:
            terminal.error(f"'{error.filename}' cannot be used: {(error.strerror or str(error)).lower()}.")
        raise typer.Exit(1) from error
    except Exception as error:
        terminal.unexpected(error)
        raise typer.Exit(1) from error


def _columns(unit: str) -> tuple[Any, ...]:
    """What stands in a bar: how much of how much, since when, how long still."""
    from rich import progress as rich

    counts = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if unit == "bytes" else (rich.MofNCompleteColumn(),)
    return (rich.TextColumn("{task.description}"), rich.BarColumn(), *counts, rich.TimeElapsedColumn(), rich.TimeRemainingColumn())


def _table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column == header[0] else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
