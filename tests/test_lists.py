"""Lists of partial configurations against exact arithmetic and brute force."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from fractions import Fraction
from math import fsum, inf

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hawq_tvm.ilp import search
from hawq_tvm.ilp.lists import Sums, best_by_lists, can_list, fits_pairs
from hawq_tvm.ilp.program import Program
from hawq_tvm.ilp.pulp_program import Effort
from hawq_tvm.ilp.reduction import without_dominated
from hawq_tvm.ilp.search import minimise

floats = st.floats(-1e6, 1e6, allow_subnormal=False)


def program(alone: Sequence[Sequence[tuple[float, float]]], limit: float) -> Program:
    """Groups of choices, each an objective and a cost."""
    arrays = tuple(np.array(choices, np.float64).T for choices in alone)
    return Program(arrays, (), (), np.array([inf, limit]), tuple(np.arange(len(choices)) for choices in alone))


@given(rows=st.lists(st.lists(floats, min_size=1, max_size=4), min_size=1, max_size=8), picks=st.randoms())
def test_sums_are_exact_where_they_fit(rows: list[list[float]], picks: st.DataObject) -> None:
    assume(fits_pairs([np.array(row) for row in rows]))
    chosen = [picks.choice(row) for row in rows]  # type: ignore[attr-defined]
    sums = Sums(np.zeros(1), np.zeros(1))
    for value in chosen:
        sums = sums.plus(np.array([value]))
    assert Fraction(float(sums.high[0])) + Fraction(float(sums.low[0])) == sum(map(Fraction, chosen))
    assert float(sums.high[0]) == fsum(chosen), "correctly rounded"


@pytest.mark.parametrize(("exponent", "fits"), [(50, True), (51, True), (52, False), (300, False)])
def test_what_a_pair_of_floats_holds(exponent: int, fits: bool) -> None:
    """One and its last bit are 53 bits; a sum below twice the largest term, and its sign, are two more."""
    assert fits_pairs([np.array([1 + 2.0**-52]), np.array([0.0, 2.0**exponent])]) is fits
    assert fits_pairs([np.array([0.0]), np.array([0.0, -0.0])])
    assert not fits_pairs([np.array([1e308, 1.0]), np.array([1e308])])


costs = st.one_of(st.integers(0, 6).map(float), st.integers(0, 40).map(lambda value: value / 10))
objectives = st.one_of(costs, st.floats(-10, 10).map(lambda value: round(value, 3)))


@given(
    alone=st.lists(st.lists(st.tuples(objectives, costs), min_size=1, max_size=4), min_size=1, max_size=5),
    share=st.fractions(0, 1, max_denominator=8),
    price=st.sampled_from([0.0, 0.3, 1.0, 50.0]),
    width=st.sampled_from([1, 2, 1000]),
    exactly=st.booleans(),
)
def test_lists_find_the_optimum(
    alone: list[list[tuple[float, float]]], share: Fraction, price: float, width: int, exactly: bool
) -> None:
    """At any price; costs have many ties, and tenths whose sums are only equal when they are rounded."""
    every = list(itertools.product(*alone))
    limits = sorted({fsum(cost for _, cost in picks) for picks in every})
    limit = limits[int(share * (len(limits) - 1))] if exactly else float(share) * limits[-1]
    inside = [fsum(o for o, _ in picks) for picks in every if fsum(cost for _, cost in picks) <= limit]
    least = min(inside, default=None)
    given_program = program(alone, limit)
    assert can_list(given_program)
    for target in (inf, *([least, least + 0.5] if least is not None else [])):
        picks, are_whole = best_by_lists(given_program, price, target, width, lambda: None)
        if picks is not None:
            assert given_program.exceeded(picks) is None
            assert least is not None and given_program.total(picks, 0) >= least
        if are_whole and least is not None and least < target:
            assert picks is not None and given_program.total(picks, 0) == least
        if are_whole and picks is None:
            assert least is None or least >= target
        assert are_whole or width < 1000


def test_what_cannot_be_listed() -> None:
    choices = [[(1.0, 1.0), (0.0, 2.0)]] * 2
    assert can_list(program(choices, 3.0))
    assert not can_list(program(choices, inf))
    assert not can_list(program([[(1e-30, 1.0), (1.1, 2.0)]] * 2, 3.0)), "sums that a pair of floats does not hold"
    border = np.ones((2, 2, 2))
    plain = program(choices, 3.0)
    assert not can_list(Program(plain.alone, ((0, 1),), (border,), plain.limits, plain.numbers))
    rows = tuple(np.concatenate([own, own[1:]]) for own in plain.alone)
    assert not can_list(Program(rows, (), (), np.array([inf, 3.0, 3.0]), plain.numbers))


def shared_costs(seed: int) -> Program:
    """30 groups of 40 choices with few distinct costs, as simulated cycles are."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(30):
        cost = np.sort(draw.integers(1, 60, 40)) * float(draw.integers(1, 9))
        rows.append(np.stack([np.sort(draw.exponential(size=40))[::-1], cost]))
    limit = float(sum(own[1].mean() for own in rows)) // 2
    return Program(tuple(rows), (), (), np.array([inf, limit]), tuple(np.arange(40) for _ in rows))


@pytest.mark.parametrize("seed", range(3))
def test_lists_and_solvers_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shared_costs(seed)
    by_lists = minimise(whole, Effort("cbc"))
    assert search._freedom(without_dominated(whole)) > search._FEW
    monkeypatch.setattr(search, "can_list", lambda program: False)
    by_solver = minimise(whole, Effort("cbc"))
    assert by_lists.picks is not None and by_solver.picks is not None
    assert whole.total(by_lists.picks, 0) == pytest.approx(whole.total(by_solver.picks, 0), rel=1e-9)
    assert by_lists.bound == whole.total(by_lists.picks, 0)


def test_lists_that_are_cut_leave_the_rest_to_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shared_costs(0)
    optimum = minimise(whole, Effort("cbc"))
    asked = []
    solve = search.PulpProgram.solve
    monkeypatch.setattr(search, "_WIDTHS", (2,))
    monkeypatch.setattr(search.PulpProgram, "solve", lambda *given: asked.append(1) or solve(*given))
    again = minimise(whole, Effort("cbc"))
    assert asked and again.picks is not None and optimum.picks is not None
    assert whole.total(again.picks, 0) == pytest.approx(whole.total(optimum.picks, 0), rel=1e-9)


def test_lists_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found by then is kept with the bound of the relaxation."""
    whole, ticks = shared_costs(1), itertools.count()
    begin = time.monotonic()
    monkeypatch.setattr(search.time, "monotonic", lambda: begin + next(ticks))
    answer = minimise(whole, Effort("cbc", seconds=20.0))
    assert not answer.is_final and answer.picks is not None
    assert answer.bound <= whole.total(answer.picks, 0)
    assert whole.exceeded(answer.picks) is None
