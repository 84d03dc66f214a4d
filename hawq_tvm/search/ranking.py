"""HAWQ's ranking: blocks in descending order of S_i = lambda_i / n_i, and bits that descend with it.

lambda_i is the top eigenvalue of the Hessian with respect to the weights of block i, and n_i their number. The paper
leaves to its reader which bits each rank gets. Here all blocks begin at their most bits; then, until the limits are
met, one steps down, in its weights or in its activations: of those after which both still descend along the ranking,
the one that loses least for what it saves. So with pairs such as w2, w4 and w8 at one width of activations, the weights
alone descend, as in the paper's ResNet-20, and with w2a2, w4a4 and w8a8 both do together.

Source: HAWQ (arXiv 1905.03696), section 3.3 and algorithm 1; among assignments in that order the least total
sensitivity decides as in HAWQ-V2 (arXiv 1911.03852).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
    levels: list[Bits] | None = stairs.top
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
    """Pairs of bits by block, which descend along the ranking in weights and in activations.

    A block that is pinned stands beside the stairs: it would hold up all that rank above it.

    Attributes:
        blocks: those with a choice, as they are ranked.
        pairs: all that any layer may have and that lead down to one which meets the limits in every block, ascending. A
            block at another one, as w8a3 beside w2a4, would hold all that rank above it at no less. Where none meets
            them, all.
    """

    def __init__(self, problem: Problem, blocks: Sequence[Block]) -> None:
        self._problem = problem
        self.blocks = [block for block in blocks if any(len(problem.groups[g].choices) > 1 for g in block)]
        pairs = sorted({choice.bits for group in problem.groups for choice in group.choices})
        low_enough = [pair for pair in pairs if problem.meets(self.picks([pair] * len(self.blocks)))]
        leading = [pair for pair in pairs if any(_within(low, pair) for low in low_enough)]
        self.pairs: list[Bits] = leading or pairs

    @property
    def top(self) -> list[Bits]:
        """Every block at the most bits."""
        return [self.pairs[-1]] * len(self.blocks)

    def picks(self, levels: Sequence[Bits]) -> Picks:
        """What each group picks: its highest choice up to its block's pair, or its pin."""
        picks = highest(self._problem)
        for block, pair in zip(self.blocks, levels, strict=True):
            for g in block:
                picks[g] = at_most(self._problem.groups[g], pair)
        return picks

    def lower(self, levels: Sequence[Bits]) -> list[Bits] | None:
        """One step down; None where all are at their fewest bits.

        A step to a pair that none of the block's layers may have changes nothing, and is taken first: it would hold up
        those that rank above.
        """
        before = self.picks(levels)
        now, excess = self._problem.sensitivity(before), self._excess(levels)
        steps = []
        for trial in self._steps(levels, self._below):
            if self.picks(trial) == before:
                return trial
            rise, gain = self._problem.sensitivity(self.picks(trial)) - now, excess - self._excess(trial)
            steps.append((rise / gain if gain > 0 else inf, trial))
        return min(steps)[1] if steps else None

    def _excess(self, levels: Sequence[Bits]) -> float:
        """By how much the limits are exceeded, in shares of each."""
        picks, limits = self.picks(levels), self._problem.limits.items()
        return sum(max(0.0, self._problem.total(picks, cost) / max(limit, 1e-12) - 1) for cost, limit in limits)

    def raised(self, levels: Sequence[Bits]) -> list[Bits]:
        """Steps up for as long as one stays within the limits and loses less."""
        best = list(levels)
        while True:
            now = self._problem.sensitivity(self.picks(best))
            steps = [
                (self._problem.sensitivity(self.picks(trial)), trial)
                for trial in self._steps(best, self._above)
                if self._problem.meets(self.picks(trial))
            ]
            if not steps or min(steps)[0] >= now:
                return best
            best = min(steps)[1]

    def _steps(self, levels: Sequence[Bits], neighbours: Callable[[Bits], list[Bits]]) -> list[list[Bits]]:
        """Pairs after each step of one block that leaves them descending."""
        trials = ([*levels[:b], pair, *levels[b + 1 :]] for b in range(len(levels)) for pair in neighbours(levels[b]))
        return [trial for trial in trials if all(_within(after, before) for before, after in pairwise(trial))]

    def _below(self, pair: Bits) -> list[Bits]:
        """The next pairs with fewer bits: no other one lies between."""
        lower = [other for other in self.pairs if other < pair and _within(other, pair)]
        return [one for one in lower if not any(one < other and _within(one, other) for other in lower)]

    def _above(self, pair: Bits) -> list[Bits]:
        """The next pairs with more bits."""
        return [other for other in self.pairs if pair in self._below(other)]


def _within(one: Bits, other: Bits) -> bool:
    """Whether neither part has more bits."""
    return one.weight <= other.weight and one.activation <= other.activation
