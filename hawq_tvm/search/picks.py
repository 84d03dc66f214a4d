"""Picks, one choice a group: stepping down and up, meeting the budgets, and the answer that is made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from hawq_tvm.core.specs import Bits, CostName
from hawq_tvm.ilp import Allocation, Problem, solve_ilp
from hawq_tvm.ilp.problem import Group

Part = Literal["activation", "weight"]
PARTS: tuple[Part, ...] = ("activation", "weight")

Picks = list[int]
"""For each group of a problem, in its order, the index of its choice."""


def highest(problem: Problem) -> Picks:
    """Every group at its most bits."""
    return [len(group.choices) - 1 for group in problem.groups]


def meeting(problem: Problem) -> Picks:
    """Some picks within every limit: those of the integer linear program.

    Raises:
        InfeasibleBudget: there are none; the message names the budget that binds and the nearest value.
    """
    layers = solve_ilp(problem).bits.layers
    return [
        next(k for k, choice in enumerate(group.choices) if choice.bits == layers[group.layers[0]])
        for group in problem.groups
    ]


def lowered(group: Group, pick: int, part: Part) -> int | None:
    """The choice with fewer ``weight`` or ``activation`` bits, the next, and all else as it is; None at the end.

    >>> from hawq_tvm.ilp.problem import Choice, Group
    >>> pairs = [Bits(4, 4), Bits(4, 8), Bits(8, 8)]
    >>> group = Group(("conv",), tuple(Choice(bits, 0.0, 0.0, 0.0, None) for bits in pairs))
    >>> lowered(group, 1, "activation"), lowered(group, 2, "activation"), lowered(group, 2, "weight")
    (0, None, 1)
    """
    now = group.choices[pick].bits
    if part == "weight":
        fewer = [Bits(bits, now.activation, now.codebook) for bits in range(now.weight - 1, 1, -1)]
    else:
        fewer = [Bits(now.weight, bits, now.codebook) for bits in range(now.activation - 1, 1, -1)]
    pairs = {choice.bits: k for k, choice in enumerate(group.choices)}
    return next((pairs[bits] for bits in fewer if bits in pairs), None)


def enforced(problem: Problem, picks: Sequence[int], fallback: Sequence[int]) -> Picks:
    """HAQ's enforcement of budgets: sweeps from the last group to the first, each a step down, until they are met.

    A step is one in the bits of the activation, then one in those of the weights, and after each the budgets are looked
    at. What is pinned has one choice and stays, as the published loop sets it back after each step.

    Source: HAQ (arXiv 1811.08886), section 3.3; ``_final_action_wall`` of its published environment.

    Args:
        problem: with limits.
        picks: what the agent asked for.
        fallback: taken where the sweeps end outside a limit, since a cost grows with fewer bits.
    """
    picks, stepped = list(picks), True
    if problem.meets(picks):
        return picks
    while stepped:
        stepped = False
        for g in reversed(range(len(picks))):
            for part in PARTS:
                lower = lowered(problem.groups[g], picks[g], part)
                if lower is None:
                    continue
                picks[g], stepped = lower, True
                if problem.meets(picks):
                    return picks
    return list(fallback)


def savings(problem: Problem, picks: Sequence[int]) -> Callable[[int, int], float]:
    """What a step saves of the limits that picks exceed, summed as shares of each limit.

    Args:
        problem: with limits.
        picks: as they are now.

    Returns:
        A function of a group and of the choice that it steps to.
    """
    exceeded = {cost: limit for cost, limit in problem.limits.items() if problem.total(picks, cost) > limit}

    def of_step(g: int, k: int) -> float:
        return sum(-_difference(problem, picks, g, k, cost) / max(limit, 1e-12) for cost, limit in exceeded.items())

    return of_step


def _difference(problem: Problem, picks: Sequence[int], g: int, k: int, cost: CostName) -> float:
    """By how much a cost grows where group g steps to choice k, its borders included."""
    choices = problem.groups[g].choices
    found = choices[k].cost(cost) - choices[picks[g]].cost(cost)
    for edge in problem.edges:
        if g in (edge.first, edge.second) and cost in edge.costs:
            table, stepped = edge.costs[cost], [*picks]
            stepped[g] = k
            found += table[stepped[edge.first]][stepped[edge.second]] - table[picks[edge.first]][picks[edge.second]]
    return found


def allocation(
    problem: Problem, picks: Sequence[int], name: str, started: float, origin: str | None = None
) -> Allocation:
    """An allocator's answer.

    Args:
        problem: that it was given.
        picks: within its limits.
        name: of the allocator.
        started: `time.perf_counter` when it began.
        origin: what the bits say of themselves; None for the name.
    """
    assert problem.meets(picks), f"{name} must stay within the limits"
    return Allocation(
        bits=problem.config(picks, origin or name),
        sensitivity=problem.sensitivity(picks),
        costs={cost: problem.total(picks, cost) for cost in problem.known},
        limits=dict(problem.limits),
        solver=name,
        seconds=time.perf_counter() - started,
    )
