"""Greedy allocation: from the most bits down, at each step what loses least for what it saves, until budgets are met.

By the table's sensitivities, or by accuracy as it is measured. The second asks again only about the step that looks
best: losses grow as bits become fewer, so that a step measured earlier rarely becomes better than it was. A step that
was never measured is expected to lose four times what the last one of its group did, as the power of rounding errors
grows with each bit less.

Source: the ratio rule is that of the greedy for multiple-choice knapsacks (Kellerer, Pferschy, Pisinger, Knapsack
Problems, 2004, section 11.2); asking again about the best alone is Minoux's accelerated greedy (1978).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from hawq_tvm.ilp import Allocation, Problem
from hawq_tvm.search.picks import PARTS, Part, Picks, allocation, highest, lowered, meeting, savings
from hawq_tvm.search.resources import Resources, Trials


def allocate_greedily(problem: Problem, resources: Resources) -> Allocation:
    """Least sensitivity given up for each share of the exceeded limits that is saved.

    Args:
        problem: see `hawq_tvm.ilp.formulate`.
        resources: none of them is used.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
    """
    started = time.perf_counter()
    fallback = meeting(problem)
    picks = highest(problem)
    while not problem.meets(picks):
        saved, steps = savings(problem, picks), []
        for g, group in enumerate(problem.groups):
            for k, choice in enumerate(group.choices):
                gain = saved(g, k)
                if gain > 0:
                    steps.append(((choice.sensitivity - group.choices[picks[g]].sensitivity) / gain, g, k))
        if not steps:
            return allocation(problem, fallback, "greedy", started, "greedy: no step met the limits; ilp instead")
        _, g, k = min(steps)
        picks[g] = k
    return allocation(problem, _filled(problem, picks), "greedy", started)


def _filled(problem: Problem, picks: Picks) -> Picks:
    """Spend what is left of the limits: the change that gains most, for as long as one gains."""
    while True:
        gains = [
            (group.choices[picks[g]].sensitivity - choice.sensitivity, g, k)
            for g, group in enumerate(problem.groups)
            for k, choice in enumerate(group.choices)
        ]
        steps = ([*picks[:g], k, *picks[g + 1 :]] for gain, g, k in sorted(gains, reverse=True) if gain > 0)
        found = next((then for then in steps if problem.meets(then)), None)
        if found is None:
            return picks
        picks = found


_GROWTH = 4.0  # of the power of rounding errors with each bit less
_UNSEEN = 1e-4  # what a drop of the accuracy too small to be seen is taken for


@dataclass
class _Step:
    """One group's next step down.

    Attributes:
        group: its index.
        part: ``weight`` or ``activation``, whichever gets fewer bits.
        choice: where it leads.
        drop: of the accuracy, as it was measured last or is expected.
        asked: how many steps had been taken then; -1 before the first.
    """

    group: int
    part: Part
    choice: int
    drop: float = -inf
    asked: int = -1


def allocate_by_accuracy(problem: Problem, resources: Resources) -> Allocation:
    """Least accuracy given up for what is saved, measured on the network as it has become.

    When no more may be measured, steps go by what was measured last. The configuration that it ends at is measured too,
    where it may be.

    Args:
        problem: see `hawq_tvm.ilp.formulate`.
        resources: with something that measures.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
        AllocationError: nothing measures.
    """
    started = time.perf_counter()
    trials = Trials("greedy-accuracy", problem, resources)
    fallback = meeting(problem)
    picks, taken = highest(problem), 0
    now = trials.accuracy_of(picks)
    steps = [step for g in range(len(picks)) for step in _next_steps(problem, picks, g, {})]
    while not problem.meets(picks):
        may_ask = trials.left > 1  # one is kept for the end
        best = _cheapest(problem, picks, steps, unknown=-inf if may_ask else inf)
        if best is None:
            picks = list(fallback)
            break
        if best.asked < taken and may_ask:
            then = [*picks[: best.group], best.choice, *picks[best.group + 1 :]]
            best.drop, best.asked = now - trials.accuracy_of(then), taken
            continue
        drops = {step.part: step.drop for step in steps if step.group == best.group}
        picks[best.group], taken = best.choice, taken + 1
        if may_ask:
            now -= best.drop  # as it was measured just now
        others = [step for step in steps if step.group != best.group]
        steps = others + _next_steps(problem, picks, best.group, drops)
    known = f": {trials.accuracy_of(picks):.4f}" if trials.left else ""
    origin = f"greedy-accuracy, {trials.done} measured{known}"
    return allocation(problem, picks, "greedy-accuracy", started, origin)


def _next_steps(problem: Problem, picks: Sequence[int], g: int, drops: Mapping[Part, float]) -> list[_Step]:
    """The next choice with fewer bits of the activation, and of the weights; `drops` are the group's last."""
    lower = {part: lowered(problem.groups[g], picks[g], part) for part in PARTS}
    expected = {part: _GROWTH * max(drops[part], _UNSEEN) if drops.get(part, -inf) > -inf else -inf for part in lower}
    return [_Step(g, part, k, expected[part]) for part, k in lower.items() if k is not None]


def _cheapest(problem: Problem, picks: Picks, steps: Sequence[_Step], unknown: float) -> _Step | None:
    """The step of the least drop for what it saves, `unknown` where none was measured; None where none saves."""
    saved, found = savings(problem, picks), []
    for order, step in enumerate(steps):
        gain = saved(step.group, step.choice)
        if gain > 0:
            found.append(((unknown if step.drop == -inf else step.drop) / gain, order))
    return steps[min(found)[1]] if found else None
