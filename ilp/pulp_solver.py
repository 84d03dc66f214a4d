"""The integer linear program, in PuLP: one binary variable per group and choice.

The solvers run with a relative gap of 0. Their feasibility tolerance is still a float's, so an answer that leaves a
limit by a rounding error is cut off and the program solved again: what is returned meets every limit exactly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pulp

from hawq_tvm.errors import AllocationError, InfeasibleBudget
from hawq_tvm.ilp.problem import Allocation, Problem
from hawq_tvm.specs import COST_NAMES, CostName

SOLVERS = ("cbc", "highs")
"""Solvers by name; CBC comes with PuLP, HiGHS with the package highspy."""

_OBJECTIVE_SCALE = 1e6  # far above the solvers' absolute tolerances of 1e-7 to 1e-5
_UNITS: Mapping[CostName, str] = {"size_bytes": "bytes", "bops": "BOPS", "latency_us": "us"}


def solve_ilp(problem: Problem, *, solver: str = "cbc") -> Allocation:
    """The configuration of least total sensitivity within the limits, proved optimal.

    Args:
        problem: see `formulate`.
        solver: ``cbc`` or ``highs``.

    Raises:
        InfeasibleBudget: no configuration meets the limits; names the budget that binds and the nearest value.
        AllocationError: the solver is not installed or failed.
    """
    start = time.perf_counter()
    largest = max((abs(choice.sensitivity) for group in problem.groups for choice in group.choices), default=0.0) or 1.0
    objective = [[choice.sensitivity / largest for choice in group.choices] for group in problem.groups]
    picks = _minimise(problem, objective, problem.limits, solver)
    if picks is None:
        raise _explain(problem, solver)
    picks = _spend_slack(problem, picks)
    known: dict[CostName, float] = {}
    for cost in COST_NAMES:
        if all(getattr(choice, cost) is not None for group in problem.groups for choice in group.choices):
            known[cost] = problem.total(picks, cost)
    return Allocation(
        bits=problem.config(picks, f"ilp ({solver})"),
        sensitivity=problem.sensitivity(picks),
        costs=known,
        limits=dict(problem.limits),
        solver=solver,
        seconds=time.perf_counter() - start,
    )


def _spend_slack(problem: Problem, picks: list[int]) -> list[int]:
    """Give groups more bits where that leaves the sensitivity as it is and every limit is still met.

    Omega knows weight bits alone, so pairs such as w4a4 and w4a8 are equal to the program and the solver's pick between
    them is arbitrary.
    """
    picks = list(picks)
    for g, group in enumerate(problem.groups):
        for k in range(len(group.choices) - 1, picks[g], -1):
            if group.choices[k].sensitivity == group.choices[picks[g]].sensitivity:
                trial = [*picks[:g], k, *picks[g + 1 :]]
                if problem.meets(trial):
                    picks = trial
                    break
    return picks


def _minimise(
    problem: Problem, objective: list[list[float]], limits: Mapping[CostName, float], solver: str
) -> list[int] | None:
    """The best pick for an objective within `limits`, or None where there is none."""
    program = pulp.LpProblem("bit_allocation", pulp.LpMinimize)
    variables = [
        [pulp.LpVariable(f"x_{g}_{k}", cat="Binary") for k in range(len(group.choices))]
        for g, group in enumerate(problem.groups)
    ]
    program += pulp.lpSum(
        weight * _OBJECTIVE_SCALE * x
        for weights, row in zip(objective, variables, strict=True)
        for weight, x in zip(weights, row, strict=True)
    )
    for row in variables:
        program += pulp.lpSum(row) == 1
    for cost, limit in limits.items():
        scale = max(abs(limit), 1e-12)  # both sides relative to the limit, so that tolerances are too
        program += (
            pulp.lpSum(
                choice.cost(cost) / scale * x
                for group, row in zip(problem.groups, variables, strict=True)
                for choice, x in zip(group.choices, row, strict=True)
            )
            <= limit / scale
        )
    bounded = Problem(problem.names, problem.groups, limits)
    while True:
        status = program.solve(_solver(solver))
        if status == pulp.LpStatusInfeasible:
            return None
        if status != pulp.LpStatusOptimal:
            raise AllocationError(f"{solver} ended with the status '{pulp.LpStatus[status]}'; try the other solver")
        picks = [int(np.argmax([x.value() for x in row])) for row in variables]
        if bounded.meets(picks):
            return picks
        program += pulp.lpSum(row[pick] for row, pick in zip(variables, picks, strict=True)) <= len(picks) - 1


def _solver(name: str) -> pulp.LpSolver:
    if name == "cbc":
        solver = pulp.PULP_CBC_CMD(msg=False, gapRel=0, gapAbs=0)
    elif name == "highs":
        solver = pulp.HiGHS(msg=False, gapRel=0, gapAbs=0)
    else:
        raise AllocationError(f"unknown solver '{name}'; known: {', '.join(SOLVERS)}")
    if not solver.available():
        extra = "; pip install highspy" if name == "highs" else ""
        raise AllocationError(f"the solver '{name}' is not installed{extra}")
    return solver


def _explain(problem: Problem, solver: str) -> InfeasibleBudget:
    """Which budget binds, and the smallest value it could have."""
    least: dict[CostName, float] = {}
    for cost in problem.limits:
        objective = [[choice.cost(cost) for choice in group.choices] for group in problem.groups]
        others = {other: limit for other, limit in problem.limits.items() if other != cost}
        top = max((abs(value) for row in objective for value in row), default=1.0) or 1.0
        picks = _minimise(problem, [[value / top for value in row] for row in objective], others, solver)
        if picks is not None:
            least[cost] = problem.total(picks, cost)
    if least:
        cost = min(least, key=lambda name: least[name] / max(problem.limits[name], 1e-12))
        together = len(problem.limits) > 1
    else:  # two budgets or more are each out of reach alone: name the worst
        alone: dict[CostName, float] = {
            cost: sum(min(choice.cost(cost) for choice in group.choices) for group in problem.groups)
            for cost in problem.limits
        }
        cost = max(alone, key=lambda name: alone[name] / max(problem.limits[name], 1e-12))
        least, together = alone, False
    unit, limit, nearest = _UNITS[cost], problem.limits[cost], least[cost]
    rest = " with the other budgets as they are" if together else ""
    message = (
        f"no bit configuration meets the budget of {limit:.10g} {unit}: "
        f"the nearest{rest} is {nearest:.10g} {unit}; raise the budget, allow fewer bits or pin fewer layers"
    )
    return InfeasibleBudget(cost, limit, nearest, message)
