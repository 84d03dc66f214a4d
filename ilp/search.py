"""The search for the optimum of a program: branch and bound, whose bounds are Lagrangian and whose leaves are PuLP's.

A program of one budget and no borders is a knapsack, for which `lists` serve. Of others:

At each node, what need not be looked at goes first (`reduction`), then what the Lagrangian bound rules out
(`lagrangian`). Where few choices are left, a solver takes the node as it is (`pulp_program`). Elsewhere the node is
split at the group on which the relaxation is most undecided: whether it takes more of the budgets than the relaxation's
mixture does on average, or no more. The search dives from the node of the least bound, so what is left when it ends is
no better.

Good configurations rule out most choices. They come from the *core* of a node, the choices that cost least beyond the
bound, which a solver is given at the first node and at the end of every dive.

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
from hawq_tvm.ilp.lists import best_by_lists, can_list
from hawq_tvm.ilp.problem import FloatArray
from hawq_tvm.ilp.program import IntArray, Program
from hawq_tvm.ilp.pulp_program import Effort, PulpProgram
from hawq_tvm.ilp.reduction import within_reach, without_dominated

_LEAF = 1000
"""Choices in all, beyond one a group, that a solver is given as they are."""

_CORE = 700
"""Choices, beyond one a group, that it is given to find good configurations."""

_FEW = 100
"""Choices, beyond one a group, that a solver is given even where lists would do."""

_WIDTHS = (200, 2_000, 20_000)
"""Of lists, one after the other until none is cut."""

_ROUGH = 0.05
"""How far above its best the answer to a core may be, as a share of what is not known yet."""

_DEPTH = 4
"""Nodes of a dive, whose end is where the next core is taken from."""

_EPSILON = float(np.finfo(np.float64).eps)
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
        relaxation: of it.
    """

    program: Program
    relaxation: Relaxation


class _OutOfTimeError(Exception):
    """The search has used up its time."""


class _Search:
    """The best configuration so far, and what could still beat it by more than the gap that is allowed."""

    def __init__(self, program: Program, effort: Effort) -> None:
        self._whole = program
        self._effort = effort
        self._deadline = time.monotonic() + effort.seconds
        self._best: list[int] | None = None
        self._value, self._bound = inf, -inf
        self._ahead: list[tuple[float, int, _Node]] = []
        self._pushed = 0

    def run(self) -> Answer:
        """Take nodes by their bounds until none can beat the best configuration."""
        program = within_reach(without_dominated(self._whole))
        try:
            if program is not None:
                self._look(program)
        except _OutOfTimeError:
            return Answer(self._best, min(self._bound, self._value), is_final=False)
        return Answer(self._best, self._target)

    def _look(self, program: Program) -> None:
        """By lists where they serve, by a solver alone where little is to be chosen in any time, else by branching."""
        lists = _freedom(program) > _FEW and can_list(program)
        if not lists and _freedom(program) <= _LEAF and not program.ends and self._effort.seconds == inf:
            self._solve(program)
            return
        root = self._relaxed(program, np.zeros((0, len(program.alone)), np.intp))
        if root is None:
            return
        self._bound = root.relaxation.bound
        if not (lists and self._list(root)):
            self._bound_and_branch(root)

    def _list(self, root: _Node) -> bool:
        """Whether lists settle a program; what they find is remembered in any case."""
        for width in _WIDTHS:
            kept = self._worth(root)
            if not all(map(np.any, kept)):
                return True
            left = root.program.keep(kept)
            picks, are_whole = best_by_lists(left, float(root.relaxation.prices[0]), self._target, width, self._hurry)
            if picks is not None:
                self._take(left, picks)
            if are_whole:
                return True
        return False

    def _hurry(self) -> None:
        if time.monotonic() > self._deadline:
            raise _OutOfTimeError

    @property
    def _allowed(self) -> float:
        """How far above the optimum the answer may be, in the objective's unit."""
        return self._effort.gap * abs(self._value) if self._best is not None else 0.0

    @property
    def _target(self) -> float:
        """What has no lower objective than this is not worth finding."""
        return self._value - self._allowed

    def _take(self, program: Program, picks: Sequence[int]) -> None:
        """Remember a configuration if it is within the limits and the best so far."""
        if program.exceeded(picks) is None:
            original = program.original(picks)
            value = self._whole.total(original, 0)
            if value < self._value:
                self._best, self._value = original, value

    def _nearly_better(self, program: Program, configurations: IntArray) -> NDArray[np.bool_]:
        """Which configurations may have a lower objective than the best so far, by sums in plain float64."""
        if program.bordering[0]:
            return np.ones(len(configurations), np.bool_)
        terms = program.choices[0][program.starts[:-1] + configurations]
        doubt = len(terms[0]) * _EPSILON * np.abs(terms).sum(axis=1)
        nearly: NDArray[np.bool_] = terms.sum(axis=1) - doubt < self._value
        return nearly

    def _bound_and_branch(self, root: _Node) -> None:
        """Dive from the node of the least bound, again and again; the core of the root before."""
        self._rough(root)
        self._put(root)
        while self._ahead:
            self._bound, _, node = heapq.heappop(self._ahead)
            if self._bound >= self._target:
                break
            self._dive(node)

    def _dive(self, node: _Node) -> None:
        """Split a node, then the half of the lesser bound, and so on; and solve the core of where that ends."""
        for _ in range(_DEPTH):
            halves = sorted(self._split(node), key=lambda half: half.relaxation.bound)
            if not halves:
                return
            node, *others = halves
            for other in others:
                self._put(other)
        self._rough(node)
        self._put(node)

    def _put(self, node: _Node) -> None:
        self._pushed += 1  # of equal bounds the older is first
        heapq.heappush(self._ahead, (node.relaxation.bound, self._pushed, node))

    def _relaxed(self, program: Program, met: IntArray) -> _Node | None:
        """Relax a part of the program; None if it cannot hold what is worth finding.

        Args:
            program: the part.
            met: configurations to begin with, by the numbers of the whole.
        """
        reached = within_reach(program.bounded(self._target))
        if reached is None:
            return None
        relaxation = relax(reached, reached.having(met))
        for picks in relaxation.met[self._nearly_better(reached, relaxation.met)]:
            self._take(reached, picks)
        return _Node(reached, relaxation) if relaxation.bound < self._target else None

    def _worth(self, node: _Node) -> list[NDArray[np.bool_]]:
        """By group, the choices of a node that what is worth finding can have."""
        worth = self._target - node.relaxation.bound + node.relaxation.doubt
        return [own <= worth for own in node.relaxation.marginals]

    def _split(self, node: _Node) -> list[_Node]:
        """What is still to be looked at of a node's two halves; nothing where it is small and was solved."""
        kept = self._worth(node)
        left = within_reach(node.program.keep(kept).bounded(self._target)) if all(map(np.any, kept)) else None
        if left is None:
            return []
        halves = None if _freedom(left) <= _LEAF else _halves(node.program, node.relaxation, kept)
        if halves is None:
            self._solve(left)
            return []
        met = node.program.originals(node.relaxation.met)
        nodes = [self._relaxed(node.program.keep(half), met) for half in halves]
        return [half for half in nodes if half is not None]

    def _rough(self, node: _Node) -> None:
        """Solve the core of a node, roughly, for a good configuration."""
        kept = self._worth(node)
        if all(map(np.any, kept)):
            near = _cheapest(node.relaxation.marginals, _CORE + len(kept))
            core = node.program.keep([a & b if (a & b).any() else a for a, b in zip(kept, near, strict=True)])
            bound = node.relaxation.bound
            self._solve(core, gap=_ROUGH * (min(self._value, bound + abs(bound)) - bound))

    def _solve(self, program: Program, gap: float = 0.0) -> None:
        """Have a solver find the best of a program; again, where that makes the objective's terms much smaller.

        Args:
            program: what it may choose from.
            gap: how far above the best of it will do, where that is more than the search allows anyway.
        """
        left = within_reach(program)
        while left is not None:
            spread = _spread(left)
            seconds = self._deadline - time.monotonic()
            effort = replace(self._effort, gap=max(gap, self._allowed), seconds=seconds)
            picks, is_final = PulpProgram(left).solve(effort)
            if picks is not None:
                self._take(left, picks)
            if not is_final:
                raise _OutOfTimeError
            left = within_reach(left.bounded(self._target))
            if gap > self._allowed or left is not None and (_spread(left) == 0 or _spread(left) * _RESCALED > spread):
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
