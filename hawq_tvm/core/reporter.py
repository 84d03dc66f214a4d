"""How a run tells what it is doing: nothing by default; the command line gives one that draws."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int | None], None]
"""Called with what is done and, where it is known, with what is to do in all."""


class Reporter:
    """Told of stages and their progress; this one is silent, and what is worth reading it gives as a warning."""

    @contextmanager
    def stage(self, title: str, *, timing: bool = False) -> Iterator[Advance]:
        """A stage with a name for people.

        Args:
            title: what is being done.
            timing: the stage times something, so nothing may run beside it: draw on its advances alone.
        """
        yield lambda done, total: None

    def skipped(self, title: str) -> None:
        """A stage that an earlier start finished."""

    def note(self, text: str) -> None:
        """A line worth reading."""
        warnings.warn(text, stacklevel=2)


class LineReporter(Reporter):
    """One line a stage on standard error, with its seconds: for logs, where a bar cannot be drawn."""

    @contextmanager
    def stage(self, title: str, *, timing: bool = False) -> Iterator[Advance]:
        started = time.perf_counter()
        yield lambda done, total: None
        self.note(f"  {title}  {time.perf_counter() - started:.1f} s")

    def skipped(self, title: str) -> None:
        self.note(f"  {title}  done before")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def as_reporter(progress: bool | Reporter) -> Reporter:
    """What ``progress=`` stands for: True for lines on standard error, False for warnings alone, or a reporter."""
    if isinstance(progress, Reporter):
        return progress
    return LineReporter() if progress else Reporter()
