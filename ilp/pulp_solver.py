"""The integer linear program: the least sensitivity within the budgets, proved optimal.

`search` finds the optimum; here it becomes an allocation, or the reason why there is none.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace
from math import inf, isfinite

from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import COST_NAMES, COST_UNITS, CostName
from hawq_tvm.ilp.problem import Allocation, Problem
from hawq_tvm.ilp.program import Program
from hawq_tvm.ilp.pulp_program import Effort
from hawq_tvm.ilp.search import minimise


def solve_ilp(problem: Problem, *, solver: str | None = None, gap: float = 0.0, seconds: float = inf) -> Allocation:
    """The configuration of least total sensitivity within the limits, proved optimal unless less is asked for.

    Args:
        problem: see `formulate`.
        solver: ``cbc`` or ``highs``; None for HiGHS where it is installed, else CBC.
        gap: relative to the objective, how far above the optimum the answer may be.
        seconds: at most; what is best by then is returned with the bound that is known.

    Raises:
        InfeasibleBudget: no configuration meets the limits; names the budget that binds and the nearest value.
        AllocationError: the solver is not installed or failed, or found nothing in time.
    """
    start = time.perf_counter()
    solver = default_solver() if solver is None else solver
    answer = minimise(Program.of(problem), Effort(solver, gap, seconds))
    if answer.picks is None:
        if not answer.is_final:
            raise AllocationError(f"{solver} found no configuration within {seconds:g} s; give it more time")
        raise explain_infeasible(problem, solver)
    picks = _spend_slack(problem, answer.picks)
    sensitivity = problem.sensitivity(picks)
    bound = min(answer.bound, sensitivity) if isfinite(answer.bound) else None
    return Allocation(
        bits=problem.config(picks, f"ilp ({solver})"),
        sensitivity=sensitivity,
        costs={cost: problem.total(picks, cost) for cost in problem.known},
        limits=dict(problem.limits),
        solver=solver,
        seconds=time.perf_counter() - start,
        proved=bound == sensitivity,
        lower_bound=bound,
        gap=None if bound is None or not sensitivity else (sensitivity - bound) / abs(sensitivity),
    )


def default_solver() -> str:
    """HiGHS where it is installed, which is several times faster; else CBC, which comes with PuLP."""
    return "highs" if importlib.util.find_spec("highspy") else "cbc"


def _spend_slack(problem: Problem, picks: list[int]) -> list[int]:
    """Give groups more bits where that leaves the sensitivity as it is and every limit is still met.

    Omega knows weight bits alone, so pairs such as w4a4 and w4a8 are equal to the program and the solver's pick between
    them is arbitrary.
    """
    for g, group in enumerate(problem.groups):
        for k in range(len(group.choices) - 1, picks[g], -1):
            if group.choices[k].sensitivity == group.choices[picks[g]].sensitivity:
                trial = [*picks[:g], k, *picks[g + 1 :]]
                if problem.meets(trial):
                    picks = trial
                    break
    return picks


def explain_infeasible(problem: Problem, solver: str) -> InfeasibleBudget:
    """Which budget binds, and the smallest value it could have with the others as they are.

    Where no single budget is to blame, because those that remain contradict each other too, one is left out.
    """
    limits = dict(problem.limits)
    least: dict[CostName, float] = {}
    while not least:
        for cost in limits:
            others = {other: limit for other, limit in limits.items() if other != cost}
            answer = minimise(Program.of(replace(problem, limits=others), cost), Effort(solver))
            if answer.picks is not None:
                least[cost] = problem.total(answer.picks, cost)
        if not least:
            limits.pop(max(limits, key=lambda name: COST_NAMES.index(name)))
    cost = min(least, key=lambda name: least[name] / max(limits[name], 1e-12))
    unit, limit, nearest = COST_UNITS[cost], limits[cost], least[cost]
    if nearest <= limit:
        raise AllocationError(f"{solver} found no configuration where there is one; try the other solver")
    rest = " with the other budgets as they are" if len(limits) > 1 else ""
    also = "; other budgets are out of reach too" if len(limits) < len(problem.limits) else ""
    message = (
        f"no bit configuration meets the budget of {_written(limit)} {unit}{_meant(cost, limit, nearest)}: "
        f"the nearest{rest} is {_written(nearest)} {unit}{also}; raise the budget, allow fewer bits or pin fewer layers"
    )
    return InfeasibleBudget(cost, limit, nearest, message)


_LARGER: dict[CostName, dict[str, float]] = {
    "size_bytes": {"kB": 1e3, "MB": 1e6, "GB": 1e9},
    "bops": {"M": 1e6, "G": 1e9, "T": 1e12},
    "latency_us": {"ms": 1e3, "s": 1e6},
    "energy_uj": {"mJ": 1e3, "J": 1e6},
}


def _meant(cost: CostName, limit: float, nearest: float) -> str:
    """A question, where a number was given that makes sense in a larger unit: 6.5 for 6.5MB."""
    larger = next((name for name, factor in _LARGER[cost].items() if limit * factor >= nearest), None)
    return f" (did you mean {limit:g}{larger}?)" if larger is not None and 0 < limit < 1000 else ""


def _written(value: float) -> str:
    """A number that reads back as itself: what is named as nearest must be met when it is given."""
    return str(int(value)) if value == int(value) else repr(value)
