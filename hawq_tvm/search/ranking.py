"""HAWQ's ranking: blocks in descending order of S_i = lambda_i / n_i, and bits that descend with it.

lambda_i is the top eigenvalue of the Hessian with respect to the weights of block i, and n_i their number. The paper
leaves to its reader which bits each rank gets. Here all blocks begin at their most bits; then, until the limits are
met, one steps down: of those after which the bits still descend along the ranking, the one that loses least for what
it saves.

Source: HAWQ (arXiv 1905.03696), section 3.3 and algorithm 1; among assignments in that order the least total
sensitivity decides as in HAWQ-V2 (arXiv 1911.03852).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf

from hawq_tvm.core.specs import Bits
from hawq_tvm.ilp import Allocation, Problem
from hawq_tvm.ilp.problem import Group, at_most
from hawq_tvm.search.picks import Picks, allocation, highest, meeting
from hawq_tvm.search.resources import Resources

Block = tuple[int, ...]
"""Groups of a problem that share their bits, by index."""


def rank_hawq(problem: Problem, resources: Resources) -> Allocation:
    """Bits that descend with HAWQ's S_i, block by block, within the limits.

    Args:
        problem: see `hawq_tvm.ilp.formulate`.
        resources: with `curvatures`, the top eigenvalues by layer; without, what a layer loses at its fewest bits
            stands in for its eigenvalue.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
    """
    started = time.perf_counter()
    fallback = meeting(problem)
    stairs = _Stairs(problem, ranked(problem, resources.curvatures))
    levels: list[int] | None = [len(stairs.pairs) - 1] * len(stairs.blocks)
    while levels is not None and not problem.meets(stairs.picks(levels)):
        levels = stairs.lower(levels)
    if levels is None:  # only where a cost grows with fewer bits, or pairs are not for all layers
        return allocation(problem, fallback, "hawq", started, "hawq: no descending bits meet the limits; ilp instead")
    return allocation(problem, stairs.picks(stairs.raised(levels)), "hawq", started)


def ranked(problem: Problem, curvatures: Mapping[str, float]) -> list[Block]:
    """The network's blocks, most sensitive first: S_i = lambda_i / n_i, in the network's order where that is equal.

    Args:
        problem: its groups.
        curvatures: top eigenvalues by layer. A block's is at least the largest of its layers' (Cauchy's interlacing),
            which is taken for it.
    """
    return sorted(_blocks(problem), key=lambda block: -_score([problem.groups[g] for g in block], curvatures))


def _score(groups: Sequence[Group], curvatures: Mapping[str, float]) -> float:
    known = [curvatures[name] for group in groups for name in group.layers if name in curvatures]
    losses = [group.choices[0].sensitivity for group in groups]
    weights = sum(8 * group.choices[0].size_bytes / group.choices[0].bits.weight for group in groups)
    return max(known or losses) / max(weights, 1)


def _blocks(problem: Problem) -> list[Block]:
    """Groups whose layers lie in one module, as the convolutions of a residual block do; in the network's order."""
    blocks: dict[str, list[int]] = {}
    for g, group in enumerate(problem.groups):
        module = group.layers[0].rpartition(".")[0]
        blocks.setdefault(module or group.layers[0], []).append(g)
    return [tuple(groups) for groups in blocks.values()]


class _Stairs:
    """Levels of blocks, which descend along the ranking; a level is a pair of bits.

    Attributes:
        blocks: as they are ranked.
        pairs: what a level stands for, ascending.
    """

    def __init__(self, problem: Problem, blocks: Sequence[Block]) -> None:
        self._problem = problem
        self.blocks = blocks
        self.pairs: list[Bits] = sorted({choice.bits for group in problem.groups for choice in group.choices})

    def picks(self, levels: Sequence[int]) -> Picks:
        """What each group picks: its highest choice up to its block's level, which for a pinned one is its pin."""
        picks = highest(self._problem)
        for block, level in zip(self.blocks, levels, strict=True):
            for g in block:
                picks[g] = at_most(self._problem.groups[g], self.pairs[level])
        return picks

    def lower(self, levels: Sequence[int]) -> list[int] | None:
        """One step down; None where all are at their fewest bits."""
        now = self._problem.sensitivity(self.picks(levels))
        excess = self._excess(levels)
        steps = []
        for trial in self._steps(levels, -1):
            rise, gain = self._problem.sensitivity(self.picks(trial)) - now, excess - self._excess(trial)
            steps.append((rise / gain if gain > 0 else inf, trial))
        return min(steps)[1] if steps else None

    def _excess(self, levels: Sequence[int]) -> float:
        """By how much the limits are exceeded, in shares of each."""
        picks, limits = self.picks(levels), self._problem.limits.items()
        return sum(max(0.0, self._problem.total(picks, cost) / max(limit, 1e-12) - 1) for cost, limit in limits)

    def raised(self, levels: Sequence[int]) -> list[int]:
        """Steps up for as long as one stays within the limits and loses less."""
        best = list(levels)
        while True:
            now = self._problem.sensitivity(self.picks(best))
            steps = [
                (self._problem.sensitivity(self.picks(trial)), trial)
                for trial in self._steps(best, +1)
                if self._problem.meets(self.picks(trial))
            ]
            if not steps or min(steps)[0] >= now:
                return best
            best = min(steps)[1]

    def _steps(self, levels: Sequence[int], by: int) -> list[list[int]]:
        """Levels after each step of one block that leaves them descending."""
        found = []
        for b in range(len(levels)):
            trial = [*levels[:b], levels[b] + by, *levels[b + 1 :]]
            within = 0 <= trial[b] < len(self.pairs)
            if within and all(one >= other for one, other in pairwise(trial)):
                found.append(trial)
        return found
