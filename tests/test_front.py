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
from hawq_tvm.ilp import Problem, formulate
from hawq_tvm.ilp.front import AXES, Front, find_axes, pareto_front
from hawq_tvm.ilp.problem import Quantity

PAIRS = (Bits(2, 8), Bits(4, 4), Bits(8, 8))
numbers = st.integers(0, 40).map(lambda value: value / 4)


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    """Up to four layers with a border between the first two; small numbers, so that ties are common."""
    count = draw(st.integers(1, 4))

    def cost() -> Cost:
        return Cost(draw(numbers), draw(numbers), draw(st.integers(0, 40)), draw(numbers), energy_uj=draw(numbers))

    rows = tuple(LayerCosts(f"l{i}", 1, 1, {pair: cost() for pair in PAIRS}) for i in range(count))
    between = {(PAIRS[0], PAIRS[1]): BorderCost(latency_us=draw(numbers), energy_uj=draw(numbers))}
    return CostTable(rows, borders=(Border("l0", "l1", between),) if count > 1 else ())


def by_force(problem: Problem, axes: tuple[Quantity, Quantity]) -> list[tuple[float, float]]:
    """The totals of which none is as good in both and better in one."""
    every = itertools.product(*(range(len(group.choices)) for group in problem.groups))
    totals = {tuple(problem.total(picks, axis) for axis in axes) for picks in every if problem.meets(picks)}
    return sorted((a, b) for a, b in totals if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in totals))


@pytest.mark.parametrize("names", itertools.permutations(AXES, 2), ids=",".join)
@settings(max_examples=6)
@given(table=tables(), limit=st.sampled_from([None, 12.0]))
def test_a_whole_front_is_every_point(names: tuple[str, str], table: CostTable, limit: float | None) -> None:
    """Over any two quantities, in either order, each point is no other's worse by brute force, and none is missing."""
    axes = find_axes(",".join(names))
    problem = formulate(table, Budget(latency=limit))
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


def test_a_front_over_what_is_not_known_is_refused() -> None:
    with pytest.raises(
        AllocationError, match="a front over it needs it for every layer, and 'a' has none at w4a4; prof"
    ):
        pareto_front(simple(), ("energy_uj", "sensitivity"))


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
