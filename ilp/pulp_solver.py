"""The integer linear program, in PuLP: one binary variable per group and choice.

The solvers run with a relative gap of 0, but in floats: feasibility, integrality and optimality hold within tolerances.
Four things keep the answer exact where costs spread over many decades.

- Costs and objective are written as their excess over each group's least, so that small differences between large
  numbers survive, and choices that alone exceed a budget or the best configuration so far are struck out, so that
  each row is scaled by what still matters. Where that changes the scale, the program is solved again.
- Each row is given more room than the tolerances are wide, so that no presolve takes a configuration that meets the
  budget exactly for one that leaves it.
- A configuration that leaves a budget within that room is cut off, with all that would leave it likewise.
- Whether a budget is met is decided by the correctly rounded sum of the costs, never by the solver.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import fsum, ulp

import pulp

from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import COST_NAMES, COST_UNITS, CostName
from hawq_tvm.ilp.problem import Allocation, Problem

SOLVERS = ("cbc", "highs")
"""Solvers by name; CBC comes with PuLP, HiGHS with the package highspy."""

_OBJECTIVE_SCALE = 1e6  # far above the solvers' absolute tolerances of 1e-7 to 1e-5
_ROOM = 1e-6  # of rows, relative and absolute: HiGHS was seen to lose optimal answers with none, and with 1e-7
_MOST_CUTS = 1000
_RESCALED = 2.0  # solved again where striking out choices shrinks the objective's scale at least so much

Objective = Sequence[Sequence[float]]


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
    if problem.edges:
        raise AllocationError(f"the solver '{solver}' knows no costs of borders yet; leave them out of the cost table")
    sensitivities = [[choice.sensitivity for choice in group.choices] for group in problem.groups]
    picks = _minimise(problem, sensitivities, solver)
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
        proved=True,
        lower_bound=problem.sensitivity(picks),
        gap=0.0,
    )


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


def _minimise(problem: Problem, objective: Objective, solver: str) -> list[int] | None:
    """The best pick for an objective within the limits, or None where there is none."""
    best: list[int] | None = None
    kept = [list(range(len(row))) for row in objective]
    while True:
        kept = _strike_out(problem, objective, kept, best)
        if not all(kept):
            return best
        scale = max((float(value) for row in _excess(objective, kept) for value in row.values()), default=0.0)
        picks = _solve(problem, objective, kept, solver)
        if picks is None:
            return best
        if best is None or _total(objective, picks) < _total(objective, best):
            best = picks
        kept = _strike_out(problem, objective, kept, best)
        left = max((float(value) for row in _excess(objective, kept) for value in row.values()), default=0.0)
        if left * _RESCALED > scale or left == 0:
            return best


def _total(objective: Objective, picks: Sequence[int]) -> float:
    return fsum(row[pick] for row, pick in zip(objective, picks, strict=True))


def _excess(table: Objective, kept: Sequence[Sequence[int]]) -> list[dict[int, Fraction]]:
    """By how much each choice that is kept exceeds its group's least, exactly."""
    rows = [{k: Fraction(row[k]) for k in ks} for row, ks in zip(table, kept, strict=True)]
    return [{k: value - min(row.values()) for k, value in row.items()} for row in rows]


def _cost_rows(problem: Problem, cost: CostName) -> Objective:
    return [[choice.cost(cost) for choice in group.choices] for group in problem.groups]


def _least(table: Objective, kept: Sequence[Sequence[int]]) -> list[int]:
    return [min(ks, key=row.__getitem__) for row, ks in zip(table, kept, strict=True)]


def _strike_out(
    problem: Problem, objective: Objective, kept: Sequence[Sequence[int]], best: Sequence[int] | None
) -> list[list[int]]:
    """The choices that can be part of a configuration within the limits and no worse than `best`.

    A choice goes where it exceeds a limit even if all other groups take their least. An empty group: there is none.
    """
    bounds = [(_cost_rows(problem, cost), limit) for cost, limit in problem.limits.items()]
    if best is not None:
        bounds.append((objective, _total(objective, best)))
    rest = [list(ks) for ks in kept]
    changed = True
    while changed and all(rest):
        changed = False
        for table, limit in bounds:
            least = _least(table, rest)
            for g, ks in enumerate(rest):
                within = [k for k in ks if _total(table, [*least[:g], k, *least[g + 1 :]]) <= limit]
                changed |= len(within) < len(ks)
                rest[g] = within
            if not all(rest):
                break
    return rest


@dataclass(frozen=True)
class _Row:
    """One budget as the solver is given it: excesses over least, and the room that leaves."""

    cost: CostName
    excess: list[dict[int, Fraction]]
    least: list[int]
    room: Fraction

    @classmethod
    def make(cls, problem: Problem, cost: CostName, kept: Sequence[Sequence[int]]) -> _Row:
        table, limit = _cost_rows(problem, cost), problem.limits[cost]
        least = _least(table, kept)
        room = Fraction(limit) - Fraction(_total(table, least)) + Fraction(ulp(limit))  # sums round down too
        return cls(cost, _excess(table, kept), least, room)

    def cover(self, problem: Problem, picks: Sequence[int]) -> tuple[int, list[tuple[int, int]]]:
        """The extended cover inequality of picks that exceed the limit: at most so many of these choices.

        A minimal set of groups is found that exceeds the limit while all others cost least. Any choice of theirs that
        costs as much can stand in, and any other group's whose excess is as large as the largest of theirs.

        Source: Balas, "Facets of the knapsack polytope", Mathematical Programming 8 (1975).
        """
        left = list(picks)
        for g in sorted(range(len(left)), key=lambda g: self.excess[g][left[g]]):
            trial = [*left[:g], self.least[g], *left[g + 1 :]]
            if problem.total(trial, self.cost) > problem.limits[self.cost]:
                left = trial
        members = {g: row[pick] for g, (row, pick) in enumerate(zip(self.excess, left, strict=True)) if row[pick] > 0}
        largest = max(members.values())
        choices = [(g, k) for g, row in enumerate(self.excess) for k in row if row[k] >= members.get(g, largest)]
        return len(members) - 1, choices


def _solve(problem: Problem, objective: Objective, kept: Sequence[Sequence[int]], solver: str) -> list[int] | None:
    """One program over the choices that are kept, each of which fits the limits on its own."""
    rows = [_Row.make(problem, cost, kept) for cost in problem.limits]
    excess = _excess(objective, kept)
    program = pulp.LpProblem("bit_allocation", pulp.LpMinimize)
    variables = [{k: pulp.LpVariable(f"x_{g}_{k}", cat="Binary") for k in ks} for g, ks in enumerate(kept)]
    program += _OBJECTIVE_SCALE * _scaled(excess, variables, _largest(excess))
    for choices in variables:
        program += pulp.lpSum(choices.values()) == 1

    def cut(row: _Row, picks: Sequence[int]) -> None:
        allowed, choices = row.cover(problem, picks)
        program.addConstraint(pulp.lpSum(variables[g][k] for g, k in choices) <= allowed)

    for row in rows:
        scale = _largest(row.excess)
        room = float(min(row.room / scale, Fraction(len(kept))))  # no row can use more, and more overflows
        program += _scaled(row.excess, variables, scale) <= room * (1 + _ROOM) + _ROOM
        greatest = [max(values, key=values.__getitem__) for values in row.excess]
        if problem.total(greatest, row.cost) > problem.limits[row.cost]:
            cut(row, greatest)  # solvers are slow to see that where costs are nearly equal only their number counts
    for _ in range(_MOST_CUTS):
        status = _run(program, solver)
        if status == pulp.LpStatusInfeasible:
            return None
        if status != pulp.LpStatusOptimal:
            raise AllocationError(f"{solver} ended with the status '{pulp.LpStatus[status]}'; try the other solver")
        picks = [max((x.value(), k) for k, x in choices.items())[1] for choices in variables]
        exceeded = problem.exceeded(picks)
        if exceeded is None:
            return picks
        cut(next(row for row in rows if row.cost == exceeded), picks)
    raise AllocationError(
        f"{solver} returned {_MOST_CUTS} answers that leave a budget by rounding errors; raise the budget slightly"
    )


def _largest(excess: Sequence[Mapping[int, Fraction]]) -> Fraction:
    return max((value for row in excess for value in row.values()), default=Fraction(0)) or Fraction(1)


def _scaled(
    excess: Sequence[Mapping[int, Fraction]], variables: Sequence[Mapping[int, pulp.LpVariable]], scale: Fraction
) -> pulp.LpAffineExpression:
    return pulp.lpSum(
        float(value / scale) * variables[g][k] for g, row in enumerate(excess) for k, value in row.items() if value
    )


def _run(program: pulp.LpProblem, name: str) -> int:
    """Solve with the solver of that name and return PuLP's status."""
    if name == "cbc":
        solver = pulp.PULP_CBC_CMD(msg=False, gapRel=0, gapAbs=0)
    elif name == "highs":
        solver = pulp.HiGHS(msg=False, gapRel=0, gapAbs=0)
    else:
        raise AllocationError(f"unknown solver '{name}'; known: {', '.join(SOLVERS)}")
    if not solver.available():
        extra = "; pip install highspy" if name == "highs" else ""
        raise AllocationError(f"the solver '{name}' is not installed{extra}")
    try:
        return int(program.solve(solver))
    except pulp.PulpError as error:
        raise AllocationError(f"the solver '{name}' failed ({error}); try the other solver") from error


def _explain(problem: Problem, solver: str) -> InfeasibleBudget:
    """Which budget binds, and the smallest value it could have with the others as they are.

    Where no single budget is to blame, because those that remain contradict each other too, one is left out.
    """
    limits = dict(problem.limits)
    least: dict[CostName, float] = {}
    while not least:
        for cost in limits:
            others = {other: limit for other, limit in limits.items() if other != cost}
            picks = _minimise(replace(problem, limits=others), _cost_rows(problem, cost), solver)
            if picks is not None:
                least[cost] = problem.total(picks, cost)
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
