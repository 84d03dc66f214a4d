"""How a run tells what it is doing: nothing by default; the command line gives one that draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int | None], None]
"""Called with what is done and, where it is known, with what is to do in all."""


class Reporter:
    """Told of stages and their progress; this one is silent."""

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
