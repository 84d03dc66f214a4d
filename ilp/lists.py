"""A program of one bounded row, solved by lists of partial configurations.

Groups are taken one after the other. Of the configurations of those taken so far, two kinds need not be kept: those
that another undercuts in both sums, whatever follows, and those that cannot beat what is known, by the Lagrangian bound
of what follows. What is left at the end is the optimum. Lists stay short where many configurations have equal costs,
which is where branch and bound finds nothing to tell them apart by. A list that would become too long is cut to what
looks best: then the outcome is a good configuration, and the next attempt has a better one to beat.

Sums are exact, so undercutting is: each is a pair of floats, of which the first is the correctly rounded sum.

Sources: Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation" (1969), for the lists; Dyer, Riha
and Walker, "A hybrid dynamic programming/branch-and-bound algorithm for the multiple-choice knapsack problem" (1995),
for the bounds; Dekker, "A floating-point technique for extending the available precision" (1971), and Knuth, TAOCP 2,
section 4.2.2, for the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.ilp.problem import FloatArray
from hawq_tvm.ilp.program import IntArray, Program

_MOST_BITS = 105
"""From the lowest bit of a term to the highest of a sum: what a pair of floats holds, with its sign for one more."""

_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Sums:
    """Exact sums: `high` is each one's correctly rounded value, `low` what it lacks."""

    high: FloatArray
    low: FloatArray

    def plus(self, terms: FloatArray) -> Sums:
        """Each sum with its term; exact where `fits_pairs` says so."""
        high, error = _two_sum(self.high, terms)
        return Sums(*_two_sum(high, self.low + error))

    def at(self, places: IntArray | NDArray[np.bool_]) -> Sums:
        return Sums(self.high[places], self.low[places])


def _two_sum(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rounded sum of two floats and its error, without error."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def fits_pairs(terms: Sequence[FloatArray]) -> bool:
    """Whether every sum of one term of each array is a pair of floats exactly, and all sums on the way to it.

    All are whole multiples of the lowest bit that any term has. With fewer than 2^105 of them, the low half of a sum
    and the error of an addition are less than 2^52 of them each, so what is added up in `Sums.plus` is exact.
    """
    values = np.concatenate(terms)
    values = values[values != 0]
    if not len(values):
        return True
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    lowest = int((np.frexp((whole & -whole).astype(np.float64))[1] - 1 + exponents - 53).min())
    most = sum(float(np.abs(own).max()) for own in terms)
    return bool(np.isfinite(most)) and int(np.frexp(most)[1]) + 1 - lowest <= _MOST_BITS


def can_list(program: Program) -> bool:
    """Whether a program is of the kind: one row that is bounded, no borders, and sums that are exact."""
    if len(program.limits) != 2 or not np.isfinite(program.limits[1]) or program.ends:
        return False
    return all(fits_pairs([own[row] for own in program.alone]) for row in range(2))


def best_by_lists(
    program: Program, price: float, target: float, width: int, check: Callable[[], None]
) -> tuple[list[int] | None, bool]:
    """The configuration of least objective within the limit; one that is not less than the target need not be found.

    Args:
        program: one that can be listed.
        price: of a unit of the bounded row, at least 0. Any price gives the same answer; good ones keep lists short.
        target: an objective that is known to be reached, or infinity.
        width: of the lists at most.
        check: called for every group; may raise.

    Returns:
        The best that was found; and whether no list was cut, so that none is better and less than the target.
    """
    order = _order(program, price)
    lists = _Lists([program.alone[group] for group in order], float(program.limits[1]), price, target)
    for step in range(len(order)):
        check()
        lists.extend(step, width)
    best = lists.best()
    return None if best is None else [best[place] for place in np.argsort(order)], lists.are_whole


def _order(program: Program, price: float) -> IntArray:
    """Groups whose choices cost most beyond the bound go first, while lists are short."""
    priced = [own[0] + price * own[1] for own in program.alone]
    return np.argsort([own.min() - own.mean() for own in priced], kind="stable")


class _Lists:
    """The list of the groups so far, and how each list came of the one before."""

    def __init__(self, alone: Sequence[FloatArray], limit: float, price: float, target: float) -> None:
        self._alone, self._limit, self._price, self._target = alone, limit, price, target
        priced = [own[0] + price * own[1] for own in alone]
        self._rest = _behind(priced), _behind([own[1] for own in alone])
        magnitudes = [np.abs(own).max(axis=1) for own in alone]
        objective, cost = np.sum(magnitudes, axis=0)
        # What may be lost where sums are compared in plain float64, far more than is.
        self._doubt = 8 * len(priced) * _EPSILON * np.array([objective + price * (cost + abs(self._limit)), cost])
        nothing = np.zeros(1)
        self._objective, self._cost = Sums(nothing, nothing), Sums(nothing, nothing)
        self._steps: list[tuple[IntArray, IntArray]] = []
        self.are_whole = True

    def extend(self, group: int, width: int) -> None:
        """Take one more group."""
        own = self._alone[group]
        bound, reach = self._ahead(group)
        before, choice = np.nonzero(self._within(bound, reach))
        objective = self._objective.at(before).plus(own[0, choice])
        cost = self._cost.at(before).plus(own[1, choice])
        kept = _undercut_by_none(objective, cost)
        if len(kept) > width:
            bounds = bound[before[kept], choice[kept]]
            kept = kept[np.argpartition(bounds, width)[:width]]
            self.are_whole = False
        self._objective, self._cost = objective.at(kept), cost.at(kept)
        self._steps.append((before[kept].astype(np.int32), choice[kept].astype(np.int32)))

    def _ahead(self, group: int) -> tuple[FloatArray, FloatArray]:
        """Of each list entry with each choice of a group: the least objective to come of it, and the least cost."""
        own, (priced, cheapest) = self._alone[group], self._rest
        objective = self._objective.high[:, None] + own[0]
        cost = self._cost.high[:, None] + own[1]
        bound = objective + self._price * (cost - self._limit) + priced[group + 1]
        return bound, cost + cheapest[group + 1]

    def _within(self, bound: FloatArray, reach: FloatArray) -> NDArray[np.bool_]:
        """Which may still end within the limit and below the target."""
        worth, reachable = self._doubt
        within: NDArray[np.bool_] = (bound - worth < self._target) & (reach - reachable <= self._limit)
        return within

    def best(self) -> list[int] | None:
        """The configuration of least objective, of those of one objective the cheapest; None where none is left."""
        within = np.flatnonzero(self._cost.high <= self._limit)
        if not len(within):
            return None
        objective, cost = self._objective.at(within), self._cost.at(within)
        at = int(within[np.lexsort((cost.low, cost.high, objective.low, objective.high))[0]])
        picks = []
        for before, choice in reversed(self._steps):
            picks.append(int(choice[at]))
            at = int(before[at])
        return picks[::-1]


def _behind(terms: Sequence[FloatArray]) -> FloatArray:
    """By group, the sum of the least terms from it on; 0 behind the last."""
    least = np.array([own.min() for own in terms] + [0.0])
    behind: FloatArray = np.cumsum(least[::-1])[::-1]
    return behind


def _undercut_by_none(objective: Sums, cost: Sums) -> IntArray:
    """Entries than which no other has less or as much of both, in ascending order of cost; of equal ones one stays."""
    order = np.lexsort((objective.low, objective.high, cost.low, cost.high))
    rank = _ranks(objective.at(order))
    least_before = np.minimum.accumulate(np.append(len(rank) + 1, rank))[:-1]
    return np.asarray(order[rank < least_before], np.intp)


def _ranks(sums: Sums) -> IntArray:
    """The place of each in ascending order, equal ones sharing theirs."""
    order = np.lexsort((sums.low, sums.high))
    high, low = sums.high[order], sums.low[order]
    is_new = np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))[: len(order)]
    ranks = np.empty(len(order), np.intp)
    ranks[order] = np.cumsum(is_new)
    return ranks
