"""Fronts against brute force."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import Bits, Border, BorderCost, Cost, CostTable, LayerCosts
from hawq_tvm.ilp import Problem, formulate, solve_ilp
from hawq_tvm.ilp.front import AXES, Front, find_axes, pareto_front, shadow_prices
from hawq_tvm.ilp.problem import Quantity

PAIRS = (Bits(2, 8), Bits(4, 4), Bits(8, 8))
numbers = st.integers(0, 40).map(lambda value: value / 4)


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    """Up to four layers with a border between the first two; small numbers, so that ties are common."""
    count = draw(st.integers(1, 4))
    rows = tuple(
        LayerCosts(f"l{i}", 1, 1, {p: Cost(draw(numbers), draw(numbers), 1, draw(numbers)) for p in PAIRS})
        for i in range(count)
    )
    between = {(PAIRS[0], PAIRS[1]): BorderCost(latency_us=draw(numbers), size_bytes=draw(numbers))}
    return CostTable(rows, borders=(Border("l0", "l1", between),) if count > 1 else ())


def by_force(problem: Problem, axes: tuple[Quantity, Quantity]) -> list[tuple[float, float]]:
    """The totals of which none is as good in both and better in one."""
    every = itertools.product(*(range(len(group.choices)) for group in problem.groups))
    totals = {tuple(problem.total(picks, axis) for axis in axes) for picks in every if problem.meets(picks)}
    return sorted((a, b) for a, b in totals if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in totals))


@settings(max_examples=25)
@given(table=tables(), axes=st.permutations(list(AXES)).map(lambda names: (AXES[names[0]], AXES[names[1]])),
       limit=st.sampled_from([None, 12.0]))  # fmt: skip
def test_a_whole_front_is_every_point(table: CostTable, axes: tuple[Quantity, Quantity], limit: float | None) -> None:
    problem = formulate(table, Budget(latency=limit))
    if "energy_uj" in axes:
        with pytest.raises(AllocationError, match="a front over it needs it for every layer"):
            pareto_front(problem, axes)
        return
    truth = by_force(problem, axes)
    if not truth:
        with pytest.raises(InfeasibleBudget, match="no bit configuration meets the budget of 12 us"):
            pareto_front(problem, axes)
        return
    front = pareto_front(problem, axes)
    assert [tuple(point.totals[axis] for axis in axes) for point in front.points] == truth
    number = "the only point" if len(truth) == 1 else f"all {len(truth)} points"
    assert front.is_whole and front.statement.startswith(f"{number} of the front of")
    back = Front.from_json(json.loads(json.dumps(front.to_json())))
    assert back == front
    some = pareto_front(problem, axes, points=3)
    found = [tuple(point.totals[axis] for axis in axes) for point in some.points]
    assert set(found) <= set(truth) and {truth[0], truth[-1]} <= set(found) and found == sorted(found)
    assert some.is_whole == (len(truth) == 1) and ("others may lie" in some.statement) == (len(found) > 1)


def simple() -> Problem:
    layers = tuple(
        LayerCosts(name, 8, 8, {Bits(4, 4): Cost(low, 4.0, 128), Bits(8, 8): Cost(0.0, 8.0, 512)})
        for name, low in (("a", 9.0), ("b", 2.0), ("c", 5.0))
    )
    return formulate(CostTable(layers), Budget())


def front() -> Front:
    return pareto_front(simple())


def test_steps_say_what_a_unit_buys_and_which_layer_binds() -> None:
    steps = front().steps
    assert [(step.more, step.less, step.price) for step in steps] == [(4, 9, 2.25), (4, 5, 1.25), (4, 2, 0.5)]
    assert [list(step.changes) for step in steps] == [["a"], ["c"], ["b"]]
    assert steps[0].changes["a"] == (Bits(4, 4), Bits(8, 8))


def test_a_front_as_json_and_csv() -> None:
    found = front()
    data = json.loads(json.dumps(found.to_json()))
    assert data["axes"] == ["size_bytes", "sensitivity"] and data["is_whole"] and len(data["points"]) == 4
    assert data["points"][0]["bits"] == dict.fromkeys("abc", "w4a4")
    assert data["steps"][0] == {"more": 4.0, "less": 9.0, "price": 2.25, "changes": {"a": ["w4a4", "w8a8"]}}
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["size_bytes"] for row in rows] == ["12.0", "16.0", "20.0", "24.0"]
    assert (rows[1]["a"], rows[1]["sensitivity"]) == ("w8a8", "7.0")


def test_progress_and_solvers() -> None:
    seen: list[tuple[int, int]] = []
    pareto_front(simple(), points=3, solver="cbc", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_fronts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(AllocationError, match="over two quantities, got bops twice"):
        pareto_front(simple(), ("bops", "bops"))
    with pytest.raises(AllocationError, match="at least its two ends, got 1 points"):
        pareto_front(simple(), points=1)
    assert find_axes(" latency, sensitivity") == ("latency_us", "sensitivity")
    for text in ("size", "size,size", "size,speed", "size,bops,latency", ""):
        with pytest.raises(AllocationError, match="a front is over two of size, bops, latency, energy, sensitivity"):
            find_axes(text)


def test_shadow_prices_bound_what_a_budget_buys() -> None:
    layers = tuple(
        LayerCosts(f"l{i}", 8, 8, {Bits(4, 4): Cost(float(i), 4.0, 128), Bits(8, 8): Cost(0.0, 8.0, 512)})
        for i in range(6)
    )
    table = CostTable(layers)
    problem = formulate(table, Budget(size=32, bops=10**6))
    prices = shadow_prices(problem)
    assert prices["bops"] == 0.0
    gained = solve_ilp(problem).sensitivity - solve_ilp(formulate(table, Budget(size=36, bops=10**6))).sensitivity
    assert prices["size_bytes"] * 4 >= gained - 1e-9 and gained == 3.0
    assert 0.75 <= prices["size_bytes"] <= 1.0
    with pytest.raises(InfeasibleBudget):
        shadow_prices(formulate(table, Budget(size=3)))


def test_damaged_fronts_are_refused() -> None:
    good = front().to_json()
    for change, message in (
        ({"axes": ["size_bytes"]}, "axes is size_bytes, expected two of"),
        ({"axes": ["size_bytes", "speed"]}, "axes is size_bytes, speed, expected two of"),
        ({"axes": ["size_bytes", "energy_uj"]}, "a point lacks one of its axes, size_bytes, energy_uj"),
        ({"points": [{"bits": {"a": "w9a9"}, "size_bytes": 1, "sensitivity": 0}]}, "layer 'a': bits are written"),
        ({"points": [{"bits": {"a": "4"}, "size_bytes": -1}]}, "points[0].size_bytes is -1"),
        ({"is_whole": "yes"}, "is_whole is"),
    ):
        with pytest.raises(AllocationError, match=f"^the front: {re.escape(message)}"):
            Front.from_json({**good, **change})
