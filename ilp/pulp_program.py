"""One program in PuLP, solved: a binary variable for each group's choice, and the borders linearised exactly.

Solvers run with a gap of 0, but in floats: feasibility, integrality and optimality hold within tolerances. Three things
keep the answer exact where costs spread over many decades.

- Costs and objective are written as their excess over each term's least, so that small differences between large
  numbers survive. (The difference of two floats is rounded once, so it is exact to the last bit that it has.)
- Each row is given more room than the tolerances are wide, so that no presolve takes a configuration that meets the
  budget exactly for one that leaves it. A configuration that leaves a budget within that room is cut off, with all
  that would leave it likewise.
- Whether a budget is met is decided by the correctly rounded sum of the costs, never by the solver.

A border costs what the choices of two groups say together. Choices that no entry tells apart are one *class*. Where one
side has a single class, the border is a term of the other side's choices. Elsewhere a variable y_cd for each pair of
classes takes the product of the two, held to it by its sums: sum_d y_cd is whether the first side's choice is in class
c, and sum_c y_cd whether the second's is in class d. With binary choices that leaves one way, so that y needs not be
binary itself; and no linearisation is tighter for a single border.

Source: Adams and Sherali, "A tight linearization and an algorithm for zero-one quadratic programming problems" (1986).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, inf, ulp

import numpy as np
import pulp

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.ilp.problem import FloatArray
from hawq_tvm.ilp.program import IntArray, Program, classes

SOLVERS = ("cbc", "highs")
"""Solvers by name; CBC comes with PuLP, HiGHS with the package highspy."""

_OBJECTIVE_SCALE = 1e6  # far above the solvers' absolute tolerances of 1e-7 to 1e-5
_ROOM = 1e-6  # of rows, relative and absolute: HiGHS was seen to lose optimal answers with none, and with 1e-7
_CUTOFF_ROOM = 1e-2  # above the objective's limit, far above the tolerance that a solver takes off it
_HEURISTICS = 0.3  # of HiGHS's effort, 0.05 by default: each better configuration strikes out more choices
_MOST_CUTS = 1000
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Effort:
    """How far a solver goes.

    Attributes:
        solver: by name, of `SOLVERS`.
        gap: absolute, in the objective's unit, that an answer may be above the optimum.
        seconds: at most; infinite for as long as it takes.
    """

    solver: str
    gap: float = 0.0
    seconds: float = inf


Option = Sequence[pulp.LpVariable]
"""Variables of which one is 1 where an option is taken, and none elsewhere."""


@dataclass(frozen=True, eq=False)
class _Term:
    """A group, or a border between two: what each of its options costs.

    Attributes:
        values: float64 [rows, options].
        options: their variables; of a single option, which costs what it costs, none are needed.
    """

    values: FloatArray
    options: Sequence[Option]

    def excess(self, row: int) -> FloatArray:
        own: FloatArray = self.values[row] - self.values[row].min()
        return own


class PulpProgram:
    """A program whose every choice is within reach, as PuLP holds it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._model = pulp.LpProblem("bit_allocation", pulp.LpMinimize)
        self._variables = [
            [pulp.LpVariable(f"x_{g}_{k}", cat="Binary") for k in range(terms.shape[1])] if terms.shape[1] > 1 else []
            for g, terms in enumerate(program.alone)
        ]
        self._terms = [
            _Term(values, [[x] for x in variables])
            for values, variables in zip(program.alone, self._variables, strict=True)
        ]
        self._classes: list[tuple[IntArray, IntArray]] = []
        excess = [term.excess(0) for term in (*self._terms, *self._borders())]
        self._unit = max((float(own.max()) for own in excess), default=0.0) or 1.0
        self._model.setObjective(self._weighted([own * (_OBJECTIVE_SCALE / self._unit) for own in excess]))
        for variables in self._variables:
            if variables:
                self._require(variables, 1)
        for row in range(1, len(program.limits)):
            self._add_row(row)

    def _require(self, variables: Option, total: float, less: Option = ()) -> None:
        """Some variables sum to a number, and to as much as others."""
        weights = [*((x, 1.0) for x in variables), *((x, -1.0) for x in less)]
        self._model.addConstraint(pulp.LpAffineExpression(weights) == total)

    def _borders(self) -> list[_Term]:
        """The borders' terms, added to those of the groups; and what ties their variables to the choices."""
        added = []
        for edge, ((first, second), values) in enumerate(zip(self.program.ends, self.program.together, strict=True)):
            rows, row_of = classes(values.transpose(1, 0, 2))
            columns, column_of = classes(values.transpose(2, 0, 1))
            self._classes.append((row_of, column_of))
            ours = [
                [x for x, c in zip(self._variables[first], row_of, strict=False) if c == k] for k in range(len(rows))
            ]
            theirs = [
                [x for x, c in zip(self._variables[second], column_of, strict=False) if c == k]
                for k in range(len(columns))
            ]
            options = theirs if len(rows) == 1 else ours
            if len(rows) > 1 and len(columns) > 1:
                products = [
                    [pulp.LpVariable(f"y_{edge}_{c}_{d}", 0, 1) for d in range(len(columns))] for c in range(len(rows))
                ]
                for row, variables in zip(products, ours, strict=True):
                    self._require(row, 0, variables)
                for column, variables in zip(zip(*products, strict=True), theirs, strict=True):
                    self._require(column, 0, variables)
                options = [[y] for row in products for y in row]
            added.append(_Term(values[:, rows][:, :, columns].reshape(len(values), -1), options))
        self._terms += added
        return added

    def _weighted(self, weights: Sequence[FloatArray]) -> pulp.LpAffineExpression:
        """The sum of the options' variables, each with a weight; those of weight 0 are left out."""
        total: dict[pulp.LpVariable, float] = {}
        for term, own in zip(self._terms, weights, strict=True):
            for weight, variables in zip(own.tolist(), term.options, strict=False):
                if weight:
                    for variable in variables:
                        total[variable] = total.get(variable, 0.0) + weight
        return pulp.LpAffineExpression(total)

    def _add_row(self, row: int) -> None:
        """A budget: the excess over the least is at most what the least leaves."""
        limit, excess = float(self.program.limits[row]), [term.excess(row) for term in self._terms]
        scale = max((float(own.max()) for own in excess), default=0.0) or 1.0
        least = [int(term.values[row].argmin()) for term in self._terms]
        room = limit - self._sum(least, row) + ulp(limit)  # sums round down too
        room = min(room / scale, float(len(self._terms)))  # no row can use more, and more overflows
        self._model.addConstraint(self._weighted([own / scale for own in excess]) <= room * (1 + _ROOM) + _ROOM)
        greatest = [int(term.values[row].argmax()) for term in self._terms]
        if self._sum(greatest, row) > limit:
            self._cut(
                row, greatest
            )  # solvers are slow to see that where costs are nearly equal only their number counts

    def _sum(self, options: Sequence[int], row: int) -> float:
        """A row's sum, correctly rounded, of one option a term; they may contradict each other."""
        return fsum(float(term.values[row, option]) for term, option in zip(self._terms, options, strict=True))

    def _options(self, picks: Sequence[int]) -> list[int]:
        """The option that each term has under a pick."""
        options = list(picks)
        for (first, second), (rows, columns) in zip(self.program.ends, self._classes, strict=True):
            options.append(int(rows[picks[first]]) * (int(columns.max()) + 1) + int(columns[picks[second]]))
        return options

    def _cut(self, row: int, options: Sequence[int]) -> None:
        """Add the extended cover inequality of options that exceed a limit: at most so many of these.

        A minimal set of terms is found that exceeds the limit while all others cost least: those of the largest
        excesses. Any option of theirs that costs as much can stand in, and any other term's whose excess is as large as
        the largest of theirs.

        Source: Balas, "Facets of the knapsack polytope", Mathematical Programming 8 (1975).
        """
        excess = [term.excess(row) for term in self._terms]
        ascending = sorted(range(len(options)), key=lambda t: float(excess[t][options[t]]))

        def without(count: int) -> list[int]:
            """The options with so many of the smallest excesses replaced by what costs least."""
            left = list(options)
            for t in ascending[:count]:
                left[t] = int(excess[t].argmin())
            return left

        limit = float(self.program.limits[row])
        dropped = bisect_left(range(len(options)), True, key=lambda n: self._sum(without(n + 1), row) <= limit)
        members = {t: float(excess[t][options[t]]) for t in ascending[dropped:]}
        largest = max(members.values())
        taken = [(own >= members.get(t, largest)).astype(np.float64) for t, own in enumerate(excess)]
        self._model.addConstraint(self._weighted(taken) <= len(members) - 1)

    def solve(self, effort: Effort) -> tuple[list[int] | None, bool]:
        """The best pick within the limits, or None; and whether that is proved, as it is unless time ran out.

        Where the program's objective has a limit, as it has once a configuration is known, a pick above it, and None,
        say alike that nothing within the limits is below it.

        Raises:
            AllocationError: the solver is not installed or failed.
        """
        deadline = time.monotonic() + effort.seconds
        for _ in range(_MOST_CUTS):
            status, proved = self._run(effort, deadline - time.monotonic())
            if status == pulp.LpStatusInfeasible:
                return None, True
            if status == pulp.LpStatusNotSolved and effort.seconds < inf:
                return None, False
            if status != pulp.LpStatusOptimal:
                raise AllocationError(
                    f"{effort.solver} ended with the status '{pulp.LpStatus[status]}'; try the other solver"
                )
            picks = [max(((x.value(), k) for k, x in enumerate(own)), default=(1, 0))[1] for own in self._variables]
            exceeded = self.program.exceeded(picks)
            if exceeded is None:
                return picks, proved
            self._cut(exceeded, self._options(picks))
        raise AllocationError(
            f"{effort.solver} returned {_MOST_CUTS} answers that leave a budget by rounding errors; "
            "raise the budget slightly"
        )

    def _run(self, effort: Effort, seconds: float) -> tuple[int, bool]:
        """Solve with the solver of that name; PuLP's status, and whether it is final."""
        solver = _solver(effort.solver, effort.gap * _OBJECTIVE_SCALE / self._unit, seconds, self._cutoff())
        if not solver.available():
            extra = "; pip install highspy" if effort.solver == "highs" else ""
            raise AllocationError(f"the solver '{effort.solver}' is not installed{extra}")
        try:
            status = int(self._model.solve(solver))
        except pulp.PulpError as error:
            raise AllocationError(f"the solver '{effort.solver}' failed ({error}); try the other solver") from error
        if effort.solver == "highs" and self._model.solverModel.getModelStatus().name == "kObjectiveBound":
            return pulp.LpStatusInfeasible, True  # of what is worth finding; PuLP calls it optimal
        return status, self._model.sol_status == pulp.LpSolutionOptimal

    def _cutoff(self) -> float:
        """In the solver's unit, what no objective of interest is above: its limit, and what rounding may add to it.

        All of what is below lets a solver strike out choices at its first bound, before it has found anything itself.
        """
        limit = float(self.program.limits[0])
        least = [float(term.values[0].min()) for term in self._terms]
        lost = (len(least) + 1) * 4 * _EPSILON * (fsum(map(abs, least)) + abs(limit))
        return (limit - fsum(least) + lost) * (_OBJECTIVE_SCALE / self._unit) + _CUTOFF_ROOM


def _solver(name: str, gap: float, seconds: float, cutoff: float) -> pulp.LpSolver:
    """A solver that looks for nothing above a cutoff; CBC, which PuLP gives none, still looks."""
    limit = None if seconds == inf else max(seconds, 0.01)
    if name == "cbc":
        return pulp.PULP_CBC_CMD(msg=False, gapRel=0, gapAbs=gap, timeLimit=limit, cuts=False)
    if name == "highs":
        return pulp.HiGHS(
            msg=False,
            gapRel=0,
            gapAbs=gap,
            timeLimit=limit,
            objective_bound=cutoff,
            mip_heuristic_effort=_HEURISTICS,
            mip_allow_cut_separation_at_nodes=False,
            mip_allow_restart=False,
        )
    raise AllocationError(f"unknown solver '{name}'; known: {', '.join(SOLVERS)}")
