"""Bit allocation: a cost table and a budget in, a bit configuration out. Imported as `hawq_tvm.ilp`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.ilp.problem import Allocation, Problem, formulate
from hawq_tvm.ilp.pulp_program import SOLVERS
from hawq_tvm.ilp.pulp_solver import solve_ilp

Allocator = Callable[[Problem], Allocation]

ALLOCATORS: dict[str, Callable[..., Allocation]] = {
    "ilp": solve_ilp,  # with whichever solver is installed
    **{name: partial(solve_ilp, solver=name) for name in SOLVERS},
}
"""Every program by the name that ``--solver`` takes; see `solve_ilp` for what it takes beside the problem."""


def find_allocator(name: str, *, gap: float = 0.0, seconds: float = inf) -> Allocator:
    """The allocator of that name.

    Args:
        name: as ``--solver`` takes it.
        gap: relative, how far above the optimum the answer may be.
        seconds: how long it may take; see `solve_ilp`.

    Raises:
        AllocationError: there is none.
    """
    if name not in ALLOCATORS:
        raise AllocationError(f"unknown solver '{name}'; known: {', '.join(ALLOCATORS)}")
    return partial(ALLOCATORS[name], gap=gap, seconds=seconds)


__all__ = ["ALLOCATORS", "SOLVERS", "Allocation", "Allocator", "Problem", "find_allocator", "formulate", "solve_ilp"]
