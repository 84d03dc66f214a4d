"""Why a layer has its bits: every number against brute force over all configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError, RunError
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost, Cost, CostName, CostTable, LayerCosts
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.ilp import formulate, solve_ilp
from hawq_tvm.ilp.explain import Explanation, explain
from hawq_tvm.runs.explanations import sentences

PAIRS = tuple(map(Bits.parse, ("w4a4", "w4a8", "w8a8")))
VALUES = st.integers(0, 40)
READER = JsonReader("explanations.json", RunError, "make it again")


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    count = draw(st.integers(2, 4))
    layers = []
    for i in range(count):
        choices = {pair: Cost(float(draw(VALUES)), float(draw(VALUES)), draw(VALUES)) for pair in PAIRS}
        layers.append(LayerCosts(f"layer{i}", 10, 100, choices, draw(st.sampled_from([None, 0.1]))))
    ties = (("layer0", f"layer{count - 1}"),) if draw(st.booleans()) else ()
    return CostTable(tuple(layers), ties)


def every(table: CostTable, limits: Mapping[CostName, float]) -> list[tuple[float, BitConfig]]:
    """All configurations within limits and ties, with their sensitivities."""
    found = []
    for pairs in product(PAIRS, repeat=len(table.names)):
        bits = BitConfig(dict(zip(table.names, pairs, strict=True)))
        tied = all(len({bits.layers[name] for name in tie}) == 1 for tie in table.ties)
        if tied and all(table.total(bits, cost) <= limit for cost, limit in limits.items()):
            found.append((table.total(bits, "sensitivity"), bits))
    return found


@given(tables(), st.integers(20, 150), st.integers(20, 150), st.data())
@settings(max_examples=15)
def test_regrets_and_gains_are_those_of_brute_force(
    table: CostTable, size: int, bops: int, data: st.DataObject
) -> None:
    limits: dict[CostName, float] = {"size_bytes": float(size), "bops": float(bops)}
    within = every(table, limits)
    if not within:
        return
    best = solve_ilp(formulate(table, Budget.absolute(limits)))
    layer = data.draw(st.sampled_from(table.names))
    found = explain(table, layer, best.bits, limits)
    least = min(value for value, _ in within)
    assert found.sensitivity == pytest.approx(least)
    for choice in found.alternatives:
        with_it = [value for value, bits in within if bits.layers[layer] == choice.bits]
        if with_it:
            assert choice.regret == pytest.approx(min(with_it) - least, abs=1e-9)
        else:
            assert choice.regret is None
        tied = [row for row in table.layers if row.name in found.tied]
        assert choice.sensitivity == sum(row.choices[choice.bits].sensitivity for row in tied)
    for reading in found.budgets:
        others = {cost: limit for cost, limit in limits.items() if cost != reading.cost}
        freed = min(value for value, _ in every(table, others))
        assert reading.gain == pytest.approx(least - freed, abs=1e-9)
        assert reading.spent == table.total(best.bits, reading.cost)
    assert sentences(found)[0].startswith(layer)


def table_of(error: float | None = 0.01) -> CostTable:
    """Two layers of which one alone fits at 8 bits: the first, which loses more."""
    rows = []
    for name, loss in (("stem", 9.0), ("head", 4.0)):
        choices = {Bits(4, 4): Cost(loss, 4.0, 16), Bits(8, 8): Cost(0.0, 8.0, 64)}
        rows.append(LayerCosts(name, 8, 1, choices, error))
    return CostTable(tuple(rows))


def told(layer: str, error: float | None = 0.01, **options: Any) -> Explanation:
    table = table_of(error)
    bits = solve_ilp(formulate(table, Budget(size=12))).bits
    return explain(table, layer, bits, {"size_bytes": 12.0}, **options)


def test_the_sentences() -> None:
    text = " ".join(sentences(told("stem")))
    assert "stem has w8a8: the least loss of the whole network within its budgets" in text
    assert "size: 12 of 12 bytes; it binds: without it the sensitivity would be 4 lower, this layer at w8a8" in text
    assert "next would come w4a4: the network would lose 5 more" in text
    assert "its sensitivity is known to 1% (standard error), so the choice is sure" in text


def test_an_error_tells_whether_the_choice_is_sure() -> None:
    """The head has 4 bits and loses 4, known to a share: 5 more would have to be lost for the answer to change."""
    assert told("head", 0.1).is_sure is True
    assert told("head", 0.9).is_sure is False
    assert told("head", None).is_sure is None
    assert "may be chance" in " ".join(sentences(told("head", 0.9)))


def test_a_pinned_layer_is_told_what_it_would_cost_otherwise() -> None:
    found = told("stem", pins={"stem": Bits(8, 8)})
    assert found.pinned
    assert [choice.regret for choice in found.alternatives] == [5.0, 0.0]
    assert "at which it is pinned" in sentences(found)[0]


def test_bits_that_were_edited_are_told_apart() -> None:
    edited = BitConfig({"stem": Bits(4, 4), "head": Bits(8, 8)})
    found = explain(table_of(), "stem", edited, {"size_bytes": 12.0})
    assert "edited by hand or found by a search; the program gives it w8a8" in sentences(found)[0]


def test_without_budgets_nothing_binds() -> None:
    found = explain(table_of(), "stem", BitConfig({"stem": Bits(8, 8), "head": Bits(8, 8)}), {})
    assert not found.budgets
    assert "there is no budget" in sentences(found)[0]


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(AllocationError, match="no layer 'tail'; the layers are stem, head"):
        told("tail")


def test_json_says_what_the_table_says() -> None:
    data = told("head").to_json()
    assert data["bits"] == "w4a4"
    assert [row["regret"] for row in data["alternatives"]] == [0.0, 5.0]
    assert data["budgets"][0]["bits"] == "w8a8"


def written() -> dict[str, Any]:
    """An explanation as its file holds it."""
    bits = BitConfig({"conv": PAIRS[0], "fc": PAIRS[2]})
    layers = tuple(
        LayerCosts(name, 10, 100, {pair: Cost(9.0 - pair.weight, float(pair.weight), pair.weight) for pair in PAIRS})
        for name in bits.layers
    )
    between = {(one, other): BorderCost(latency_us=2.5) for one in PAIRS for other in PAIRS if one != other}
    between[PAIRS[0], PAIRS[2]] = BorderCost(latency_us=2.5, latency_spread_us=(2.25, 3.0))
    table = CostTable(layers, borders=(Border("conv", "fc", between, "measured: a copy"),))
    return explain(table, "conv", bits, {"size_bytes": 12.0}).to_json()


def test_an_explanation_reads_back() -> None:
    """What lies at the layer's borders too."""
    data = json.loads(json.dumps(written()))
    (border,) = data["borders"]
    assert border["costs"] == {"latency_us": 2.5}
    found = Explanation.from_json(READER, data)
    assert json.loads(json.dumps(found.to_json())) == data
    told = sentences(found)
    assert "between conv and fc: 2.5 us (2.25 to 3) at these bits; measured: a copy" in told


def test_an_explanation_that_was_kept_before_each_border_had_a_row_tells_what_they_cost() -> None:
    data = json.loads(json.dumps(written()))
    for borders, expected in (
        ({"latency_us": 2.5}, ["between conv and its neighbours: 2.5 us at these bits"]),
        ({}, []),
    ):
        told = sentences(Explanation.from_json(READER, {**data, "borders": borders}))
        assert [line for line in told if line.startswith("between")] == expected


def test_a_border_that_costs_nothing_says_why() -> None:
    table = replace(table_of(), borders=(Border("stem", "head", {}, "nothing runs there at any bits"),))
    found = explain(table, "head", BitConfig({"stem": Bits(8, 8), "head": Bits(4, 4)}), {"size_bytes": 12.0})
    assert "between stem and head: 0 at these bits; nothing runs there at any bits" in sentences(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alternatives": 3}, "alternatives is 3, expected"),
        ({"bits": "w9a9"}, "w9a9"),
        ({"borders": {"time": 3.0}}, "'time' is no cost; there are size_bytes, bops, latency_us, energy_uj"),
        ({"tied": [1]}, "tied"),
        ({"borders": [{"first": "conv"}]}, r"borders"),
    ],
)
def test_damaged_explanations_are_refused(change: Mapping[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        Explanation.from_json(READER, {**json.loads(json.dumps(written())), **change})
