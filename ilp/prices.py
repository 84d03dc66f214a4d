"""Shadow prices: what a little more of each budget that binds would buy, and which layers would get it.

Said twice, since bits come in steps. By the relaxation, in which parts of layers may have other bits, more of a budget
buys at a rate: the price that the best Lagrangian bound has for it. What it really buys is the answer of one more
program, with the limit raised by a round amount: a hundredth or so, or the next round amount that buys anything at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil, floor, log10

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.specs import CostName
from hawq_tvm.ilp.lagrangian import relax
from hawq_tvm.ilp.problem import Allocation, Problem, ShadowPrice
from hawq_tvm.ilp.program import Program
from hawq_tvm.ilp.pulp_solver import default_solver, explain_infeasible, solve_ilp
from hawq_tvm.ilp.reduction import within_reach, without_dominated

_LEAST, _MOST = 0.01, 1.0  # of the limit, that it is raised by


def relaxed_prices(problem: Problem) -> dict[CostName, float]:
    """By how much the relaxation's least sensitivity falls for a unit more of each budget; 0 of one that does not bind.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
    """
    program = within_reach(without_dominated(Program.of(problem)))
    if program is None:
        raise explain_infeasible(problem, default_solver())
    return dict(zip(problem.limits, (max(float(price), 0.0) for price in relax(program).prices), strict=True))


def shadow_prices(
    problem: Problem, best: Allocation, solve: Callable[[Problem], Allocation] = solve_ilp
) -> tuple[ShadowPrice, ...]:
    """What more of each budget that binds buys, in the order of the limits.

    Args:
        problem: what was solved.
        best: its optimum.
        solve: the solver.

    Returns:
        A price of each budget whose relaxation has one, and of which up to twice as much buys anything.
    """
    found = []
    for cost, price in relaxed_prices(problem).items():
        if price > 0:
            for more in _round_amounts(problem.limits[cost]):
                raised = _solved(replace(problem, limits={**problem.limits, cost: problem.limits[cost] + more}), solve)
                if raised is None:
                    break
                if raised.sensitivity < best.sensitivity:
                    now = best.bits.layers
                    changes = {n: (now[n], bits) for n, bits in raised.bits.layers.items() if bits != now[n]}
                    less = best.sensitivity - raised.sensitivity
                    found.append(ShadowPrice(cost, problem.limits[cost], price, more, less, best.sensitivity, changes))
                    break
    return tuple(found)


def _solved(problem: Problem, solve: Callable[[Problem], Allocation]) -> Allocation | None:
    """The optimum; None where the solver was given too little time for one, which is no reason to lose the other."""
    try:
        return solve(problem)
    except AllocationError:
        return None


def _round_amounts(limit: float) -> Iterator[float]:
    """1, 2 and 5 times powers of ten, from about a hundredth of a limit to about all of it.

    >>> list(_round_amounts(150.0))
    [2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
    """
    if limit <= 0:
        return
    for exponent in range(floor(log10(limit * _LEAST)), ceil(log10(limit * _MOST)) + 1):
        for digit in (1, 2, 5):
            amount = float(f"{digit}e{exponent}")
            if _LEAST * limit <= amount <= _MOST * limit:
                yield amount
