"""Lagrangian relaxation: a lower bound, and how much each choice costs at least.

Budgets become prices: with lambda_r >= 0 for each row r,

    L(lambda) = min_x  f(x) + sum_r lambda_r (c_r(x) - limit_r)   <=   the least f within the limits.

For given prices the minimum is that of a sum over the graph of borders (`priced`).

The best prices are those of the master problem of Dantzig and Wolfe, the best mixture of known configurations that
keeps the limits. It has as many rows as there are budgets, and one more, so its simplex method is a handful of tiny
linear systems; each step's prices make one more configuration. Whatever prices come out, the bound holds: their quality
is speed, never exactness.

Sources: Geoffrion, "Lagrangean relaxation for integer programming" (1974); Dantzig and Wolfe, "Decomposition principle
for linear programs" (1960).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ulp

import numpy as np

from hawq_tvm.ilp.priced import PricedTerms
from hawq_tvm.ilp.problem import FloatArray
from hawq_tvm.ilp.program import IntArray, Program

_MOST_STEPS = 200
_CLOSE = 1e-9  # of the master's value and the bound, relative to the objective's range, at which prices are good enough
_STEEPEST = 1e4  # prices at most: the objective's whole range for so small a part of a row's
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """What the best prices say.

    Attributes:
        bound: no configuration within the limits has a lower objective.
        prices: lambda of each bounded row: by how much a unit more of it lowers the bound.
        marginals: by group, float64 [choices]: no configuration within the limits that has the choice has a lower
            objective than `bound` plus this, up to `doubt`.
        doubt: what rounding may have added.
        mixture: configurations that keep the limits together, with their weights, which sum to 1 at most.
        met: every configuration that was met, int [configurations, groups].
    """

    bound: float
    prices: FloatArray
    marginals: tuple[FloatArray, ...]
    doubt: float
    mixture: tuple[tuple[float, IntArray], ...]
    met: IntArray


def relax(program: Program, known: IntArray | None = None) -> Relaxation:
    """The relaxation of a program whose every choice is within reach.

    Args:
        program: the program.
        known: configurations to begin with, int [configurations, groups]; they need not keep the limits.
    """
    return _Dual(program).solve(known)


@dataclass(frozen=True, eq=False)
class _Column:
    """A column of the master problem.

    Attributes:
        cost: its objective.
        vector: what it takes of each row beyond the room, then 1 if it is a configuration.
        picks: the configuration, if it is one.
    """

    cost: float
    vector: FloatArray
    picks: IntArray | None = None


class _Dual:
    """The search for prices, in the scaled units of the terms."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._terms = PricedTerms(program)
        limits, least = program.limits[1:], self._terms.least[1:]
        room = [limit - own + ulp(limit) for limit, own in zip(limits, least, strict=True)]  # sums round down too
        self._room = np.array(room) / self._terms.scale[1:]
        count = len(self._room)
        self._slack = [_Column(0.0, np.append(row, 0.0)) for row in np.eye(count)]
        self._bought = [_Column(_STEEPEST, np.append(-row, 0.0)) for row in np.eye(count)]  # room for a steep price
        self._best, self._prices = -np.inf, np.zeros(count)
        self._met: list[IntArray] = []

    def _meet(self, prices: FloatArray) -> _Column:
        """The configuration that has L(prices); remembers prices that are the best so far."""
        value, picks, total = self._terms.cheapest(np.append(1.0, prices))
        value -= float(prices @ self._room)
        if value > self._best:
            self._best, self._prices = value, prices
        self._met.append(picks)
        return self._column(total, picks)

    def _column(self, total: FloatArray, picks: IntArray) -> _Column:
        return _Column(float(total[0]), np.append(total[1:] - self._room, 1.0), picks)

    def solve(self, known: IntArray | None) -> Relaxation:
        """The simplex method; known configurations enter before new ones are sought."""
        count = len(self._room)
        pool: list[_Column] = []
        if known is not None and len(known):
            self._met = list(known)
            pool = [self._column(total, picks) for total, picks in zip(self._terms.totals(known), known, strict=True)]
        first = self._meet(np.zeros(count))
        basis = [self._slack[r] if first.vector[r] <= 0 else self._bought[r] for r in range(count)] + [first]
        for _ in range(_MOST_STEPS):
            matrix = np.stack([column.vector for column in basis], axis=1)
            costs = np.array([column.cost for column in basis])
            try:
                weights = np.linalg.solve(matrix, np.append(np.zeros(count), 1.0))
                duals = np.linalg.solve(matrix.T, costs)
            except np.linalg.LinAlgError:
                break  # rounding has eaten the basis; the prices so far are good ones
            entering = self._entering([*pool, *self._slack, *self._bought], duals)
            if entering is None:
                entering = self._meet(np.clip(-duals[:count], 0.0, _STEEPEST))
                pool.append(entering)
                if _gain(entering, duals) >= -_CLOSE or float(costs @ weights) - self._best <= _CLOSE:
                    break
            direction = np.linalg.solve(matrix, entering.vector)
            ratios = np.full(count + 1, np.inf)
            np.divide(weights, direction, out=ratios, where=direction > _EPSILON)
            basis[int(ratios.argmin())] = entering
        mixture = [
            (float(w), c.picks) for w, c in zip(weights, basis, strict=True) if c.picks is not None and w > _CLOSE
        ]
        return self._relaxation(tuple(mixture))

    @staticmethod
    def _entering(columns: Sequence[_Column], duals: FloatArray) -> _Column | None:
        """The column that lowers the master's value fastest, if any does."""
        best = min(columns, key=lambda column: _gain(column, duals), default=None)
        return best if best is not None and _gain(best, duals) < -_CLOSE else None

    def _relaxation(self, mixture: tuple[tuple[float, IntArray], ...]) -> Relaxation:
        """In the program's own units; the doubt is for sums of as many terms as there are, each below its range."""
        unit = float(self._terms.scale[0])
        terms = len(self._program.alone) + len(self._program.together)
        prices = self._prices
        doubt = 4 * terms * _EPSILON * (1.0 + float(prices.sum()) + float(prices @ np.abs(self._room)))
        bound = self._terms.least[0] + unit * (self._best - doubt)
        return Relaxation(
            bound=bound - _EPSILON * abs(bound),
            prices=prices * unit / self._terms.scale[1:],
            marginals=tuple(unit * own for own in self._terms.marginals(np.append(1.0, prices))),
            doubt=2 * unit * doubt,
            mixture=mixture,
            met=np.array(self._met),
        )


def _gain(column: _Column, duals: FloatArray) -> float:
    return column.cost - float(duals @ column.vector)
