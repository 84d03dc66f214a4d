"""What a stage is: a value that says what it needs, what it leaves, and how that is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hawq_tvm.core.reporter import Advance
from hawq_tvm.stages.work import Work


@dataclass(frozen=True)
class Stage:
    """One stage of one run, ready to be made.

    It is skipped while its options, the versions and the files that it reads are those that it was made from, and the
    files that it wrote are as it left them.

    Attributes:
        name: in the manifest; with the target's name where each target has its own.
        title: for people.
        make: writes `writes`, and tells its progress.
        options: JSON values that decide the result.
        reads: files of the run that decide it too.
        writes: files that it makes; a name that ends in ``/`` means all files in that folder.
        timing: it times something, so nothing may run beside it.
        always: it is made again each time, being cheap and the only way to see what changed outside the run. What it
            leaves decides by its hash whether later stages are up to date.
    """

    name: str
    title: str
    make: Callable[[Advance], None]
    options: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    timing: bool = False
    always: bool = False


Step = Callable[[Work], Stage | None]
"""Looks at the work and gives the stage to make; None where there is nothing to make, or only something to check."""
