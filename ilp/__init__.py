"""Bit allocation: a cost table and a budget in, a bit configuration out. Imported as `hawq_tvm.ilp`."""

from __future__ import annotations

from collections.abc import Callable

from hawq_tvm.ilp.problem import Allocation, Problem, formulate
from hawq_tvm.ilp.pulp_solver import SOLVERS, solve_ilp

ALLOCATORS: dict[str, Callable[..., Allocation]] = {"ilp": solve_ilp}
"""Every allocator by its name: each takes a `Problem` and returns an `Allocation`."""

__all__ = ["ALLOCATORS", "SOLVERS", "Allocation", "Problem", "formulate", "solve_ilp"]
