"""The search for the optimum of a program: branch and bound, whose bounds are Lagrangian and whose leaves are PuLP's.

At each node, what need not be looked at goes first (`reduction`), then what the Lagrangian bound rules out
(`lagrangian`). Where few choices are left, a solver takes the node as it is (`pulp_program`). Elsewhere the node is
split at the group on which the relaxation is most undecided: whether it takes more of the budgets than the relaxation's
mixture does on average, or no more. The node of the least bound is next, so what is left when it ends is no better.

Good configurations rule out most choices. They come from the *core* of a node, the choices that cost least beyond the
bound, which a solver is given at the first node, the second, the fourth, and so on.

Sources: Balas and Zemel, "An algorithm for large zero-one knapsack problems" (1980), for the core; Beale and Tomlin
(1970) for splitting sets of choices of which one is taken.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.ilp.lagrangian import Relaxation, relax
from hawq_tvm.ilp.problem import FloatArray
from hawq_tvm.ilp.program import IntArray, Program
from hawq_tvm.ilp.pulp_program import Effort, PulpProgram
from hawq_tvm.ilp.reduction import within_reach, without_dominated

_LEAF = 600
"""Choices in all, beyond one a group, that a solver is given as they are."""

_CORE = 400
"""Choices, beyond one a group, that it is given to find good configurations."""

_RESCALED = 8.0  # solved again where striking out choices shrinks the objective's largest term at least so much


@dataclass(frozen=True)
class Answer:
    """What a search ends with.

    Attributes:
        picks: the best configuration within the limits that was found; None where there is none, or none yet.
        bound: none has a lower objective.
        is_final: whether the search ended by itself and not by its time.
    """

    picks: list[int] | None
    bound: float
    is_final: bool = True


def minimise(program: Program, effort: Effort) -> Answer:
    """The configuration of least objective within the limits, proved optimal unless the effort allows for less."""
    return _Search(program, effort).run()


@dataclass(frozen=True, eq=False)
class _Node:
    """A part of the program that is still to be looked at.

    Attributes:
        program: what it may choose from.
        bound: nothing in it has a lower objective.
        met: configurations of it, to begin its relaxation with; by the numbers of the whole.
    """

    program: Program
    bound: float
    met: IntArray


class _OutOfTimeError(Exception):
    """The search has used up its time."""


class _Search:
    """The best configuration so far, and what could still beat it by more than the gap that is allowed."""

    def __init__(self, program: Program, effort: Effort) -> None:
        self._whole = program
        self._effort = effort
        self._deadline = time.monotonic() + effort.seconds
        self._best: list[int] | None = None
        self._value = inf
        self._ahead: list[tuple[float, int, _Node]] = []
        self._pushed = self._relaxed = 0

    def run(self) -> Answer:
        """Take nodes by their bounds until none can beat the best configuration."""
        program = without_dominated(self._whole)
        bound = -inf
        self._push(_Node(program, bound, np.zeros((0, len(program.alone)), np.intp)))
        try:
            while self._ahead:
                bound, _, node = heapq.heappop(self._ahead)
                if bound >= self._target:
                    break
                self._look(node)
        except _OutOfTimeError:
            return Answer(self._best, min(bound, self._value), is_final=False)
        return Answer(self._best, self._target)

    @property
    def _allowed(self) -> float:
        """How far above the optimum the answer may be, in the objective's unit."""
        return self._effort.gap * abs(self._value) if self._best is not None else 0.0

    @property
    def _target(self) -> float:
        """What has no lower objective than this is not worth finding."""
        return self._value - self._allowed

    def _push(self, node: _Node) -> None:
        self._pushed += 1  # of equal bounds the older is first
        heapq.heappush(self._ahead, (node.bound, self._pushed, node))

    def _take(self, program: Program, picks: Sequence[int]) -> None:
        """Remember a configuration if it is within the limits and the best so far."""
        if program.exceeded(picks) is None:
            original = program.original(picks)
            value = self._whole.total(original, 0)
            if value < self._value:
                self._best, self._value = original, value

    def _look(self, node: _Node) -> None:
        """Solve a node, or split it."""
        program = within_reach(node.program.bounded(self._target))
        if program is None:
            return
        if _freedom(program) <= _LEAF and not program.ends and self._effort.seconds == inf:
            self._solve(program)
            return
        relaxation = relax(program, program.having(node.met))
        for picks in relaxation.met:
            self._take(program, picks)
        self._relaxed += 1
        if self._relaxed.bit_count() == 1 and _freedom(program) > _LEAF:  # ever more seldom
            self._solve(program.keep(_cheapest(relaxation.marginals, _CORE + len(program.alone))))
        if relaxation.bound >= self._target:
            return
        met = program.originals(relaxation.met)
        worth = self._target - relaxation.bound + relaxation.doubt
        kept = [own <= worth for own in relaxation.marginals]
        if not all(mask.any() for mask in kept):
            return
        left = within_reach(program.keep(kept).bounded(self._target))
        if left is None:
            return
        halves = None if _freedom(left) <= _LEAF else _halves(program, relaxation, kept)
        if halves is None:
            self._solve(left)
        else:
            for half in halves:
                self._push(_Node(program.keep(half), relaxation.bound, met))

    def _solve(self, program: Program) -> None:
        """Have a solver find the best of a program; again, where that makes the objective's terms much smaller."""
        left = within_reach(program)
        while left is not None:
            spread = _spread(left)
            seconds = self._deadline - time.monotonic()
            picks, is_final = PulpProgram(left).solve(replace(self._effort, gap=self._allowed, seconds=seconds))
            if picks is not None:
                self._take(left, picks)
            if not is_final:
                raise _OutOfTimeError
            left = within_reach(left.bounded(self._target))
            if left is not None and (_spread(left) == 0 or _spread(left) * _RESCALED > spread):
                return


def _halves(
    program: Program, relaxation: Relaxation, kept: Sequence[NDArray[np.bool_]]
) -> list[list[NDArray[np.bool_]]] | None:
    """Two parts of what is kept, split at the group on which the mixture is least at one; None where it is at one."""
    weights = np.array([weight for weight, _ in relaxation.mixture])
    costs = [relaxation.prices @ terms[1:] for terms in program.alone]
    most, split = 0.0, None
    for group, own in enumerate(costs):
        mixed = np.array([own[picks[group]] for _, picks in relaxation.mixture])
        mean = float(weights @ mixed) / float(weights.sum())
        disagreement = float(weights @ np.abs(mixed - mean))
        below = own <= mean
        if disagreement > most and (below & kept[group]).any() and (~below & kept[group]).any():
            most, split = disagreement, (group, below)
    if split is None:
        return None
    group, below = split
    return [[mask & part if g == group else mask for g, mask in enumerate(kept)] for part in (below, ~below)]


def _cheapest(marginals: Sequence[FloatArray], size: int) -> list[NDArray[np.bool_]]:
    """About so many choices, those of least marginals; every group keeps at least one."""
    every = np.sort(np.concatenate(marginals))
    most = float(every[min(size, len(every)) - 1])
    return [own <= max(most, float(own.min())) for own in marginals]


def _freedom(program: Program) -> int:
    """How many choices there are beyond one a group."""
    return program.size - len(program.alone)


def _spread(program: Program) -> float:
    """The largest term of the objective, as the solver scales by it."""
    terms = (*program.alone, *program.together)
    return max((float(np.ptp(own[0])) for own in terms), default=0.0)
