"""Elimination and Lagrangian bounds against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.specs import CostTable
from hawq_tvm.ilp import formulate
from hawq_tvm.ilp.elimination import Elimination
from hawq_tvm.ilp.lagrangian import relax
from hawq_tvm.ilp.program import Program
from hawq_tvm.ilp.reduction import within_reach, without_dominated
from tests.test_ilp import problems


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]], int]:
    """Up to six variables with up to four states, any edges, and a seed for the terms."""
    states = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    every = [(i, j) for j in range(len(states)) for i in range(j)]
    return states, sorted(draw(st.sets(st.sampled_from(every)))) if every else [], draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60)
@given(graph=graphs(), most_entries=st.sampled_from([1, 20, 1 << 17]))
def test_elimination_finds_the_least_and_every_min_marginal(
    graph: tuple[list[int], list[tuple[int, int]], int], most_entries: int
) -> None:
    """Exactly where no edge is loosened, and never above it otherwise."""
    states, ends, seed = graph
    draw = np.random.default_rng(seed)
    alone = [draw.normal(size=count) for count in states]
    together = [draw.normal(size=(states[u], states[v])) for u, v in ends]
    elimination = Elimination(states, ends, most_entries)

    def total(picks: tuple[int, ...], loosened: bool) -> float:
        value = sum(terms[pick] for terms, pick in zip(alone, picks, strict=True))
        for e, (u, v) in enumerate(ends):
            loose = loosened and e in elimination.loosened
            value += together[e][picks[u]].min() if loose else together[e][picks[u], picks[v]]
        return float(value)

    every = list(itertools.product(*map(range, states)))
    least = min(total(picks, True) for picks in every)
    value, picks = elimination.minimise(alone, together)
    assert value == pytest.approx(least) and total(tuple(picks), True) == pytest.approx(least)
    assert least <= min(total(picks, False) for picks in every) + 1e-9
    assert elimination.loosened == [] or most_entries < 1 << 17
    for variable, found in enumerate(elimination.marginals(alone, together)):
        for state, marginal in enumerate(found):
            best = min(total(picks, True) for picks in every if picks[variable] == state)
            assert marginal == pytest.approx(best - least, abs=1e-9)


@settings(max_examples=80)
@given(case=problems())
def test_bounds_hold_for_every_configuration(case: tuple[CostTable, Budget]) -> None:
    """The bound and each choice's marginal; and what is struck out is no loss."""
    problem = formulate(*case)
    whole = Program.of(problem)
    inside = [
        picks for picks in itertools.product(*(range(len(g.choices)) for g in problem.groups)) if problem.meets(picks)
    ]
    reached = within_reach(without_dominated(whole))
    if reached is None:
        assert not inside
        return
    least = min(map(problem.sensitivity, inside), default=np.inf)
    kept = [
        picks for picks in itertools.product(*(range(len(own)) for own in reached.numbers))
        if reached.exceeded(picks) is None
    ]  # fmt: skip
    assert min((reached.total(picks, 0) for picks in kept), default=np.inf) == least
    relaxation = relax(reached)
    assert relaxation.bound <= least
    assert (relaxation.prices >= 0).all()
    for picks in kept:
        for pick, marginals in zip(picks, relaxation.marginals, strict=True):
            assert reached.total(picks, 0) >= relaxation.bound + marginals[pick] - relaxation.doubt
    again = relax(reached, reached.having(reached.originals(relaxation.met)))
    assert again.bound == pytest.approx(relaxation.bound, rel=1e-6, abs=1e-6)
