"""Where the command line draws: bars and notes on standard error, tables, sentences and JSON on standard output."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hawq_tvm.core.reporter import Advance, LineReporter

_WIDE = 200  # columns where there is no terminal to fit


def _console(*, stderr: bool = False) -> Console:
    """In a terminal, lines break between words; elsewhere they are left whole, for whoever searches them."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if is_terminal or stderr else _WIDE
    return Console(stderr=stderr, highlight=False, soft_wrap=not is_terminal, width=width)


out = _console()
err = _console(stderr=True)


class ConsoleReporter(LineReporter):
    """Bars while stages run and a line when each is done; where standard error is no terminal, the lines alone."""

    @contextmanager
    def stage(self, title: str, *, timing: bool = False) -> Iterator[Advance]:
        with super().stage(title, timing=timing) as silent:
            if not err.is_terminal:
                yield silent
                return
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            with Progress(*columns, console=err, transient=True, auto_refresh=not timing) as progress:
                task = progress.add_task(title, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=total, refresh=timing)

    def note(self, text: str) -> None:
        err.print(Text(text, style="dim" if text.startswith(" ") else ""))


def print_json(data: Any) -> None:
    """JSON alone on standard output."""
    print(json.dumps(data, indent=1))


def print_error(message: str) -> None:
    """One sentence on standard error."""
    err.print(Text("error: ", style="bold red") + Text(message))


_LEAST_TEXT = 24
"""Characters that a column of sentences is left, before a table is given up."""


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: int = 1,
    wraps: bool = False,
    spare: Sequence[str] = (),
) -> None:
    """A table, where it fits; else every row on lines of its own, under its first cell, which is never cut.

    Args:
        columns: their names.
        rows: a cell a column, empty where there is nothing to say.
        texts: how many columns from the left hold text and are flush left; the others hold numbers.
        wraps: the last column holds text that may go on in the next line.
        spare: columns that are left out where there is no room, the last one first; a line says so.
    """
    widths = [max(cell_len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    if wraps:
        widths[-1] = min(widths[-1], _LEAST_TEXT)
    for count in range(len(spare), -1, -1):
        left_out = spare[count:]
        shown = [index for index, name in enumerate(columns) if name not in left_out]
        if sum(widths[index] + _BETWEEN for index in shown) - _BETWEEN <= out.width:
            _print_columns(columns, rows, shown, texts=texts, wraps=wraps)
            if left_out:
                out.print(Text(f"a wider terminal, or --json, shows {', '.join(left_out)} too", style="dim"))
            return
    for name, *cells in rows:
        out.print(Text(name, style="bold"))
        pairs = (f"{column} {cell}".replace(" ", "\0") for column, cell in zip(columns[1:], cells, strict=True) if cell)
        for line in textwrap.wrap("  ".join(pairs), max(out.width - 2, 1), break_long_words=False):
            out.print(Text(f"  {line}".replace("\0", " ")))


_BETWEEN = 2  # blanks between columns


def _print_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], shown: Sequence[int], *, texts: int, wraps: bool
) -> None:
    """Some columns of a table that fit."""
    table = Table(box=None, header_style="bold", padding=(0, _BETWEEN, 0, 0), pad_edge=False)
    for index in shown:
        goes_on = wraps and index == len(columns) - 1
        table.add_column(
            Text(columns[index]), justify="left" if index < texts or goes_on else "right", no_wrap=not goes_on
        )
    for row in rows:
        table.add_row(*(Text(row[index]) for index in shown))
    out.print(table)
