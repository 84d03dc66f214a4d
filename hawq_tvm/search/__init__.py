"""Every allocator in one table: the integer linear program, and what searches instead.

    ilp cbc highs     the program of `hawq_tvm.ilp`, proved optimal for the table's sensitivities
    hawq              bits that descend with HAWQ's S_i
    greedy            least sensitivity for what is saved
    greedy-accuracy   the same by accuracy, measured
    random            drawn, as a control
    ddpg              HAQ's agent
    optuna            Optuna's TPE sampler, where Optuna is installed

All take the same problem, keep its ties and pins, stay within its budgets, and answer with an `Allocation`.
"""

from __future__ import annotations

from collections.abc import Callable

from hawq_tvm import ilp
from hawq_tvm.core.errors import AllocationError, did_you_mean
from hawq_tvm.ilp import Allocation, Allocator, Problem
from hawq_tvm.search.chance import draw_random
from hawq_tvm.search.greedy import allocate_by_accuracy, allocate_greedily
from hawq_tvm.search.haq import search_haq
from hawq_tvm.search.memory import Evaluate
from hawq_tvm.search.ranking import rank_hawq
from hawq_tvm.search.resources import Resources
from hawq_tvm.search.tpe import allocate_by_optuna

Search = Callable[[Problem, Resources], Allocation]


def _program(name: str) -> Search:
    return lambda problem, resources: ilp.find_allocator(name, gap=resources.gap, seconds=resources.seconds)(problem)


ALLOCATORS: dict[str, Search] = {
    **{name: _program(name) for name in ilp.ALLOCATORS},
    "hawq": rank_hawq,
    "greedy": allocate_greedily,
    "greedy-accuracy": allocate_by_accuracy,
    "random": draw_random,
    "ddpg": search_haq,
    "optuna": allocate_by_optuna,
}
"""Every allocator by the name that ``--solver`` takes."""

MEASURING = ("greedy-accuracy", "random", "ddpg", "optuna")
"""Those that measure accuracy; ``random`` can do without."""


def check_allocator(name: str) -> None:
    """Refuse a name that is none.

    Raises:
        AllocationError: there is no such allocator.
    """
    if name not in ALLOCATORS:
        close = did_you_mean(name, ALLOCATORS)
        raise AllocationError(f"unknown solver '{name}'; known: {', '.join(ALLOCATORS)}{close}")


def find_allocator(name: str, resources: Resources) -> Allocator:
    """The allocator of that name, with what it may use.

    Raises:
        AllocationError: there is none.
    """
    check_allocator(name)
    search = ALLOCATORS[name]
    return lambda problem: search(problem, resources)


__all__ = ["ALLOCATORS", "MEASURING", "Evaluate", "Resources", "Search", "check_allocator", "find_allocator"]
