"""The least of a sum over a graph, exactly: variables are eliminated one after the other.

    min over s_1, ..., s_n of   sum_v a_v(s_v) + sum_(u,v) b_uv(s_u, s_v)

To eliminate a variable is to add up all tables that it stands in and to take the least over its states: what is left is
a table over its neighbours, a message to the one of them that goes next. Its size is what bounds the work. On a tree no
table has more than two axes; a residual block, whose ends see each other both ways, takes three. Going back through the
tables gives for every state the least sum that it can be part of: its min-marginal.

Where a table would become too large, an edge that closes a circle is *loosened*: each state of its first end pays the
least that the edge could cost it. The result is then a lower bound.

Sources: Bertele and Brioschi, "Nonserial Dynamic Programming" (1972); Dechter, "Mini-buckets" (1997); Wainwright and
Jordan, "Graphical models, exponential families, and variational inference" (2008), section 2.5, for min-marginals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, prod

import numpy as np

from hawq_tvm.ilp.problem import FloatArray

_MOST_ENTRIES = 1 << 17
"""Of a table: three axes of 50 states, the 49 pairs of 2 to 8 bits and one."""


@dataclass(frozen=True)
class _Bucket:
    """A variable's elimination.

    Attributes:
        variable: what is eliminated; the first axis of its table.
        scope: the variables of its table, in the order in which they are eliminated.
        edges: the edges that are added here, each with whether its first end is the variable.
        receiver: the bucket that the message goes to; None where nothing is left over.
    """

    variable: int
    scope: tuple[int, ...]
    edges: tuple[tuple[int, bool], ...]
    receiver: int | None


class Elimination:
    """An order of elimination for one graph, used for many sums over it.

    Attributes:
        loosened: the edges that are counted at their least.
    """

    def __init__(
        self, states: Sequence[int], ends: Sequence[tuple[int, int]], most_entries: int = _MOST_ENTRIES
    ) -> None:
        self._states, self._ends = tuple(states), tuple(ends)
        circles = _closing(len(states), ends)
        self.loosened: list[int] = []
        while True:
            order, largest = self._order()
            if largest <= most_entries or not circles:
                break
            self.loosened.append(circles.pop())
        self._buckets = self._fill(order)

    def _order(self) -> tuple[list[int], int]:
        """Variables by the size of the table that they take, least first; and the largest of the tables."""
        neighbours: list[set[int]] = [set() for _ in self._states]
        for edge, (u, v) in enumerate(self._ends):
            if edge not in self.loosened:
                neighbours[u].add(v)
                neighbours[v].add(u)

        def entries(variable: int) -> int:
            return self._states[variable] * prod(self._states[other] for other in neighbours[variable])

        sizes = {variable: entries(variable) for variable in range(len(self._states))}
        order, largest = [], 0
        while sizes:
            variable = min(sizes, key=sizes.__getitem__)
            largest = max(largest, sizes.pop(variable))
            order.append(variable)
            around = neighbours[variable]
            for other in around:
                neighbours[other] |= around
                neighbours[other] -= {variable, other}
            for other in around:
                sizes[other] = entries(other)
        return order, largest

    def _fill(self, order: Sequence[int]) -> list[_Bucket]:
        """The buckets of an order; each gets the edges whose first variable to go is its own."""
        place = {variable: at for at, variable in enumerate(order)}
        edges: list[list[tuple[int, bool]]] = [[] for _ in order]
        scopes: list[set[int]] = [{variable} for variable in order]
        for edge, (u, v) in enumerate(self._ends):
            if edge not in self.loosened:
                at = min(place[u], place[v])
                edges[at].append((edge, order[at] == u))
                scopes[at] |= {u, v}
        buckets = []
        for at, variable in enumerate(order):
            rest = sorted(scopes[at] - {variable}, key=place.__getitem__)
            receiver = place[rest[0]] if rest else None
            if receiver is not None:
                scopes[receiver] |= set(rest)
            buckets.append(_Bucket(variable, (variable, *rest), tuple(edges[at]), receiver))
        return buckets

    def _spread(self, table: FloatArray, axes: Sequence[int], scope: Sequence[int]) -> FloatArray:
        """A table over some variables of a scope, in the scope's order, ready to be added to one over all of them."""
        there = set(axes)
        return table.reshape([self._states[variable] if variable in there else 1 for variable in scope])

    def _climb(
        self, alone: Sequence[FloatArray], together: Sequence[FloatArray]
    ) -> tuple[list[FloatArray], list[FloatArray]]:
        """First to last: each bucket's table, and the message that it sends."""
        tables = [self._spread(alone[b.variable], (b.variable,), b.scope) for b in self._buckets]
        for edge in self.loosened:
            first = self._ends[edge][0]
            at = next(at for at, bucket in enumerate(self._buckets) if bucket.variable == first)
            tables[at] = tables[at] + self._spread(together[edge].min(axis=1), (first,), self._buckets[at].scope)
        messages: list[FloatArray] = []
        for at, bucket in enumerate(self._buckets):
            table = tables[at]
            for edge, is_first in bucket.edges:
                matrix = together[edge] if is_first else together[edge].T
                table = table + self._spread(matrix, self._ends[edge], bucket.scope)
            tables[at] = table
            messages.append(table.min(axis=0))
            if bucket.receiver is not None:
                scope = self._buckets[bucket.receiver].scope
                tables[bucket.receiver] = tables[bucket.receiver] + self._spread(messages[at], bucket.scope[1:], scope)
        return tables, messages

    def minimise(self, alone: Sequence[FloatArray], together: Sequence[FloatArray]) -> tuple[float, list[int]]:
        """The least sum, loosened edges at their least, and states that have it.

        Args:
            alone: by variable, float64 [states].
            together: by edge, float64 [states of the first end, states of the second].
        """
        tables, messages = self._climb(alone, together)
        picks = [0] * len(self._states)
        for table, bucket in zip(reversed(tables), reversed(self._buckets), strict=True):
            here = tuple(picks[other] for other in bucket.scope[1:])
            picks[bucket.variable] = int(table[(slice(None), *here)].argmin())  # type: ignore[arg-type]
        ends = (
            float(message) for message, bucket in zip(messages, self._buckets, strict=True) if bucket.receiver is None
        )
        return fsum(ends), picks

    def marginals(self, alone: Sequence[FloatArray], together: Sequence[FloatArray]) -> list[FloatArray]:
        """By how much each state raises the least sum, by variable float64 [states]; arguments as of `minimise`."""
        tables, messages = self._climb(alone, together)
        found: list[FloatArray] = [np.zeros(0)] * len(self._states)
        for at in reversed(range(len(tables))):
            bucket = self._buckets[at]
            if bucket.receiver is not None:
                scope, mine = self._buckets[bucket.receiver].scope, bucket.scope[1:]
                others = tuple(axis for axis, variable in enumerate(scope) if variable not in mine)
                tables[at] = tables[at] + (tables[bucket.receiver].min(axis=others) - messages[at])
            least = tables[at].min(axis=tuple(range(1, tables[at].ndim)))
            found[bucket.variable] = least - least.min()
        return found


def _closing(count: int, ends: Sequence[tuple[int, int]]) -> list[int]:
    """The edges that close a circle with those before them."""
    leader = list(range(count))

    def find(variable: int) -> int:
        while leader[variable] != variable:
            leader[variable] = leader[leader[variable]]
            variable = leader[variable]
        return variable

    found = []
    for edge, (u, v) in enumerate(ends):
        if find(u) == find(v):
            found.append(edge)
        leader[find(u)] = find(v)
    return found
