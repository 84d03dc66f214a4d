"""When a kernel's loops are spread over threads."""

from __future__ import annotations

from typing import Any

MIN_MACS = 2_000_000
"""Multiply-accumulates from which threads pay: about 20 us of one core, where waking the pool takes 5 to 50."""

MIN_ELEMENTS = 100_000
"""Elements from which they pay in an operator without weights."""


def spread(schedule: Any, loop: Any, worth_it: bool) -> Any:
    """Run a loop's iterations on all threads where that pays; returns the loop."""
    if worth_it:
        schedule.parallel(loop)
    return loop
