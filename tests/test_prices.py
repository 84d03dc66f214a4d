"""What more of a budget buys, against brute force over all configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError, InfeasibleBudget
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost, Cost, CostTable, LayerCosts
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.ilp import Allocation, Problem, formulate, solve_ilp
from hawq_tvm.ilp.prices import relaxed_prices, shadow_prices
from hawq_tvm.ilp.problem import ShadowPrice
from hawq_tvm.runs.front import price_sentences

PAIRS = (Bits(4, 4), Bits(4, 8), Bits(8, 8))
READER = JsonReader("allocation.json", AllocationError, "make it again")


def least(problem: Problem) -> float:
    """The least sensitivity within the limits."""
    every = product(*(range(len(group.choices)) for group in problem.groups))
    return min(problem.sensitivity(picks) for picks in every if problem.meets(picks))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    count = draw(st.integers(1, 4))
    losses, costs = st.integers(0, 30).map(float), st.integers(1, 20)
    layers = tuple(
        LayerCosts(f"l{i}", 8, 8, {pair: Cost(draw(losses), float(draw(costs)), draw(costs)) for pair in PAIRS})
        for i in range(count)
    )
    between = {(PAIRS[0], PAIRS[2]): BorderCost(size_bytes=float(draw(costs)))}
    table = CostTable(layers, borders=(Border("l0", "l1", between),) if count > 1 else ())
    return formulate(table, Budget(size=draw(st.integers(10, 60)), bops=draw(st.integers(10, 60))))


@settings(max_examples=40)
@given(problems())
def test_a_price_is_the_least_round_amount_that_buys_anything(problem: Problem) -> None:
    try:
        best = solve_ilp(problem)
    except InfeasibleBudget:
        return
    relaxed = relaxed_prices(problem)
    found = {price.cost: price for price in shadow_prices(problem, best)}
    for cost, limit in problem.limits.items():
        amounts = (digit * 10.0**power for power in (-1, 0, 1) for digit in (1, 2, 5))
        limits = {more: {**problem.limits, cost: limit + more} for more in amounts if limit / 100 <= more <= limit}
        at = {more: least(replace(problem, limits=raised)) for more, raised in limits.items()}
        buying = [more for more in at if at[more] < best.sensitivity] if relaxed[cost] else []
        if not buying:
            assert cost not in found
            continue
        price = found[cost]
        assert (price.more, price.limit, price.sensitivity) == (buying[0], limit, best.sensitivity)
        assert price.less == pytest.approx(best.sensitivity - at[price.more])
        assert price.price == relaxed[cost]
        assert price.changes, "something changes"
        assert all(best.bits.layers[name] == before != after for name, (before, after) in price.changes.items())


def six_layers(budget: Budget) -> Problem:
    """Of which the i-th loses i at 4 bits, and takes 4 bytes more at 8."""
    layers = tuple(
        LayerCosts(f"l{i}", 8, 8, {Bits(4, 4): Cost(float(i), 4.0, 128), Bits(8, 8): Cost(0.0, 8.0, 512)})
        for i in range(6)
    )
    return formulate(CostTable(layers), budget)


def test_the_relaxation_bounds_what_a_budget_buys_and_the_sentence_says_what_it_does() -> None:
    problem = six_layers(Budget(size=32, bops=10**6))
    prices = relaxed_prices(problem)
    assert prices["bops"] == 0.0
    gained = solve_ilp(problem).sensitivity - solve_ilp(six_layers(Budget(size=36, bops=10**6))).sensitivity
    assert prices["size_bytes"] * 4 >= gained - 1e-9 and gained == 3.0
    assert 0.75 <= prices["size_bytes"] <= 1.0
    (price,) = shadow_prices(problem, solve_ilp(problem))
    assert price_sentences([price]) == [
        "size binds: 5 bytes more buys 3 less sensitivity (50.0% of it): l3 w4a4 to w8a8"
    ]
    with pytest.raises(InfeasibleBudget):
        relaxed_prices(six_layers(Budget(size=3)))


def test_a_solver_without_time_costs_the_price_and_not_the_answer() -> None:
    problem = six_layers(Budget(size=32))

    def late(_: Problem) -> Allocation:
        raise AllocationError("highs found no configuration within 1 s; give it more time")

    assert shadow_prices(problem, solve_ilp(problem), late) == ()


def test_an_allocation_reads_back_with_its_prices_and_without() -> None:
    bits = BitConfig({"conv": Bits(4, 4)})
    price = ShadowPrice("latency_us", 100.0, 0.25, 2.0, 0.5, 3.0, {"conv": (Bits(4, 4), Bits(8, 8))})
    best = Allocation(bits, -1.0, {"size_bytes": 3.0}, {"latency_us": 100.0}, "highs", 0.1, prices=(price,))
    data = json.loads(json.dumps(best.to_json()))
    assert Allocation.from_json(bits, data, READER) == best
    del data["prices"]
    assert Allocation.from_json(bits, data, READER).prices == ()
    for change, said in (
        ({"cost": "time"}, "'time' is no cost; there are size_bytes, bops, latency_us, energy_uj"),
        ({"changes": {"conv": ["w4a4", "w9a9"]}}, "layer 'conv': bits are written like w4a8"),
        ({"changes": {"conv": ["w4a4"]}}, r"prices\[0\].changes.conv"),
        ({"less": -1.0}, r"prices\[0\].less is -1.0"),
    ):
        with pytest.raises(AllocationError, match=said):
            Allocation.from_json(bits, {**data, "prices": [{**price.to_json(), **change}]}, READER)
