"""Allocations that live side by side in one run, by name; none overwrites another, and one at a time is the run's."""

from __future__ import annotations

import re

from hawq_tvm.core.errors import RunError, SettingsError
from hawq_tvm.core.reporter import Advance
from hawq_tvm.runs.artifacts import ALLOCATION, BITS, named_file
from hawq_tvm.stages.allocate import allocation_options, allocation_reads, choose
from hawq_tvm.stages.stage import Stage, Step
from hawq_tvm.stages.work import Work

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str) -> None:
    """Refuse what is no file's name.

    Raises:
        SettingsError: letters, digits, dots, dashes and underscores are what it may have.
    """
    if _NAME.fullmatch(name) is None:
        raise SettingsError(f"an allocation is named by letters, digits, '.', '-' and '_', got {name!r}")


def allocate_as(name: str) -> Step:
    """Choose bits and keep them beside the run's own, which stay."""
    check_name(name)

    def step(work: Work) -> Stage:
        def make(advance: Advance) -> None:
            result = choose(work, advance)
            bits = work.as_stored(result.bits).to_json()
            work.run.write_json(named_file(name), {"bits": bits, "allocation": result.to_json()})

        return Stage(
            f"allocate {name}",
            f"allocating bits, as '{name}'",
            make,
            allocation_options(work),
            reads=allocation_reads(work),
            writes=(named_file(name),),
        )

    return step


def take_up(name: str) -> Step:
    """Make an allocation of that name the run's own.

    Raises:
        RunError: there is none, or it was made from costs that have changed since.
    """
    check_name(name)

    def step(work: Work) -> Stage:
        names = work.artifacts.named
        if name not in names:
            others = f"it has {', '.join(names)}" if names else "it has none"
            raise RunError(
                f"{work.run.name} has no allocation '{name}', {others}; make it with hawq-tvm allocate {work.run.name} "
                f"--name {name}"
            )
        work.run.fresh(named_file(name))

        def make(_: Advance) -> None:
            bits, allocation = work.artifacts.named_allocation(name)
            work.run.write_json(BITS, bits.to_json())
            work.run.write_json(ALLOCATION, allocation)

        options = {**work.run.options(named_file(name)), "named": name}
        title = f"taking up the allocation '{name}'"
        return Stage("allocate", title, make, options, reads=(named_file(name),), writes=(BITS, ALLOCATION))

    return step
