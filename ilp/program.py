"""The program in numbers: what the methods that solve it share.

    minimise   sum_g a_0g(x_g) + sum_(g,h) b_0gh(x_g, x_h)
    subject to sum_g a_rg(x_g) + sum_(g,h) b_rgh(x_g, x_h) <= limit_r          for each row r that is bounded

A sum holds its limit where the *correctly rounded* sum of its terms does: `Program.total`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.ilp.problem import FloatArray, Problem, Quantity

IntArray = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Program:
    """Terms by row; row 0 is the objective, those after it are bounded costs.

    Attributes:
        alone: by group, float64 [rows, choices].
        ends: by edge, the numbers of its two groups.
        together: by edge, float64 [rows, choices of the first, choices of the second].
        limits: float64 [rows], infinite where nothing is bounded. That of the objective is what the best known
            configuration has.
        numbers: by group, the numbers that its choices have in the problem, int [choices].
    """

    alone: tuple[FloatArray, ...]
    ends: tuple[tuple[int, int], ...]
    together: tuple[FloatArray, ...]
    limits: FloatArray
    numbers: tuple[IntArray, ...]

    @classmethod
    def of(
        cls,
        problem: Problem,
        objective: Quantity = "sensitivity",
        limits: Mapping[Quantity, float] | None = None,
    ) -> Program:
        """A problem's program: the least of a sum within limits, by default those of the problem."""
        bounded: Mapping[Quantity, float] = dict(problem.limits.items())
        bounded = bounded if limits is None else limits
        rows: tuple[Quantity, ...] = (objective, *bounded)
        alone = [np.array([[choice.cost(row) for choice in group.choices] for row in rows]) for group in problem.groups]
        together = []
        for edge in problem.edges:
            nothing = np.zeros_like(next(iter(edge.costs.values())))
            together.append(
                np.array([nothing if row == "sensitivity" else edge.costs.get(row, nothing) for row in rows])
            )
        kept = [e for e, terms in enumerate(together) if terms.any()]
        return cls(
            tuple(alone),
            tuple((problem.edges[e].first, problem.edges[e].second) for e in kept),
            tuple(together[e] for e in kept),
            np.array([np.inf, *bounded.values()]),
            tuple(np.arange(terms.shape[1]) for terms in alone),
        )

    @cached_property
    def choices(self) -> FloatArray:
        """The groups' terms side by side, float64 [rows, all choices]."""
        return np.concatenate(self.alone, axis=1)

    @cached_property
    def starts(self) -> IntArray:
        """Where each group's choices begin among all, and where the last one's end, int [groups + 1]."""
        return np.cumsum([0, *(len(numbers) for numbers in self.numbers)])

    @cached_property
    def bordering(self) -> tuple[tuple[int, ...], ...]:
        """By row, the edges that cost something in it."""
        costly: list[NDArray[np.bool_]] = [np.any(terms != 0, axis=(1, 2)) for terms in self.together]
        return tuple(tuple(e for e, rows in enumerate(costly) if rows[row]) for row in range(len(self.limits)))

    @property
    def size(self) -> int:
        """How many choices there are in all."""
        return sum(len(numbers) for numbers in self.numbers)

    def terms(self, picks: Sequence[int], row: int) -> list[float]:
        """What a row's sum is made of: each group's term, then each edge's."""
        alone = [float(terms[row, pick]) for terms, pick in zip(self.alone, picks, strict=True)]
        ends = zip(self.ends, self.together, strict=True)
        return alone + [float(terms[row, picks[g], picks[h]]) for (g, h), terms in ends]

    def total(self, picks: Sequence[int], row: int) -> float:
        """A row's sum for a pick, correctly rounded."""
        return fsum(self.terms(picks, row))

    def exceeded(self, picks: Sequence[int]) -> int | None:
        """A bounded row whose limit a pick exceeds; or None."""
        rows = range(1, len(self.limits))
        return next((row for row in rows if self.total(picks, row) > self.limits[row]), None)

    def keep(self, kept: Sequence[NDArray[np.bool_] | IntArray]) -> Program:
        """The same with fewer choices: of each group those that a mask or their places name."""
        places = [np.flatnonzero(which) if which.dtype == np.bool_ else which for which in kept]
        return replace(
            self,
            alone=tuple(terms[:, at] for terms, at in zip(self.alone, places, strict=True)),
            together=tuple(
                terms[:, places[g]][:, :, places[h]] for (g, h), terms in zip(self.ends, self.together, strict=True)
            ),
            numbers=tuple(numbers[at] for numbers, at in zip(self.numbers, places, strict=True)),
        )

    def bounded(self, objective: float) -> Program:
        """The same, looking for what is no worse than an objective."""
        return replace(self, limits=np.array([objective, *self.limits[1:]]))

    def original(self, picks: Sequence[int]) -> list[int]:
        """A pick by the numbers that the problem gives its choices."""
        return [int(numbers[pick]) for numbers, pick in zip(self.numbers, picks, strict=True)]

    def originals(self, configurations: IntArray) -> IntArray:
        """Configurations [configurations, groups] by the numbers that the problem gives their choices."""
        found = [numbers[column] for numbers, column in zip(self.numbers, configurations.T, strict=True)]
        return np.array(found, np.intp).T

    def having(self, configurations: IntArray) -> IntArray:
        """Of configurations by the problem's numbers those whose every choice is here, by the numbers here."""
        columns = list(zip(self.numbers, configurations.T, strict=True))
        there = np.all([np.isin(column, numbers) for numbers, column in columns], axis=0)
        found = [np.searchsorted(numbers, column[there]) for numbers, column in columns]
        return np.array(found, np.intp).T


def classes(rows: FloatArray) -> tuple[IntArray, IntArray]:
    """Which rows [choices, ...] are equal: the first choice of each class, ascending, and each choice's class."""
    first_of: dict[bytes, int] = {}
    plain = np.ascontiguousarray(rows) + 0.0  # -0.0 becomes 0.0
    stands = [first_of.setdefault(row.tobytes(), k) for k, row in enumerate(plain)]
    standing = np.array(list(first_of.values()), np.intp)
    return standing, np.searchsorted(standing, stands)
