"""Random configurations within the budgets: what any method must beat at the same number of measurements."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hawq_tvm.ilp import Allocation, Problem
from hawq_tvm.search.picks import PARTS, Picks, allocation, lowered, meeting
from hawq_tvm.search.resources import Resources, Trials


def draw_random(problem: Problem, resources: Resources) -> Allocation:
    """The most accurate of as many random configurations as may be measured; one of them where nothing measures.

    Args:
        problem: see `hawq_tvm.ilp.formulate`.
        resources: their seed, and something that measures or nothing.

    Raises:
        InfeasibleBudget: no configuration meets the limits.
    """
    started = time.perf_counter()
    fallback = meeting(problem)
    generator = np.random.default_rng(resources.seed)
    if resources.evaluate is None:
        picks = drawn(problem, generator, fallback)
        return allocation(problem, picks, "random", started, f"random, drawn with seed {resources.seed}")
    trials = Trials("random", problem, resources)
    while trials.left:
        trials.accuracy_of(drawn(problem, generator, fallback))
    assert trials.best is not None
    return allocation(problem, trials.best, "random", started, trials.origin)


def drawn(problem: Problem, generator: np.random.Generator, fallback: Sequence[int]) -> Picks:
    """One configuration: choices at random, random steps down until the budgets are met, and up where there is room.

    Args:
        problem: with limits.
        generator: of everything random.
        fallback: taken where the steps down end outside a limit.
    """
    picks: Picks = [int(generator.integers(len(group.choices))) for group in problem.groups]
    while not problem.meets(picks):
        steps = [
            (g, lower)
            for g, group in enumerate(problem.groups)
            for part in PARTS
            if (lower := lowered(group, picks[g], part)) is not None
        ]
        if not steps:
            return list(fallback)
        g, lower = steps[int(generator.integers(len(steps)))]
        picks[g] = lower
    for g in generator.permutation(len(picks)):
        for k in range(len(problem.groups[g].choices) - 1, picks[g], -1):
            trial = [*picks[:g], k, *picks[g + 1 :]]
            if problem.meets(trial):
                picks = trial
                break
    return picks
