"""Why a layer has its bits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost, Cost, CostTable, LayerCosts
from hawq_tvm.ilp import Problem, formulate, solve_ilp
from hawq_tvm.ilp.explain import Explanation, explain

W4, W8 = Bits(4, 4), Bits(8, 8)


def table(losses: dict[str, float], borders: tuple[Border, ...] = ()) -> CostTable:
    """Layers that lose so much at 4 bits, of 4 bytes and 1 us or 8 bytes and 2 us."""
    rows = {name: {W4: Cost(loss, 4.0, 1, 1.0), W8: Cost(0.0, 8.0, 1, 2.0)} for name, loss in losses.items()}
    return CostTable(tuple(LayerCosts(name, 1, 1, row) for name, row in rows.items()), borders=borders)


def why(problem: Problem, layer: str, error: float | None = None) -> Explanation:
    return explain(problem, solve_ilp(problem).bits, layer, sensitivity_error=error)


def test_what_other_bits_would_cost_alone_and_at_best() -> None:
    problem = formulate(table({"a": 9.0, "b": 2.0, "c": 5.0}), Budget(size=20))
    found = why(problem, "b", 0.1)
    assert (found.bits, found.tied) == (W4, ())
    (other,) = found.alternatives
    assert (other.bits, other.exceeds, other.follows) == (W8, ("size_bytes",), ("c",))
    assert other.alone == {"sensitivity": -2.0, "size_bytes": 4.0, "bops": 0.0, "latency_us": 1.0}
    assert other.loss == 3.0, "b at 8 bits takes them from c"
    assert found.used == {"size_bytes": 1.0} and found.prices["size_bytes"] > 0
    assert found.margin == 2.5, "were b 2.5 times as sensitive, it would be as good to give it the bits of c"
    assert "times 2.5 they would change the answer, which is beyond two standard errors" in found.sentences()[-1]
    assert "within two" in why(problem, "b", 0.8).sentences()[-1]
    assert found.sentences()[:2] == [
        "the budget on size_bytes is used to 100.0% and binds",
        "the nearest alternative is w8a8: it loses 3 more, with 1 other layers changed",
    ]
    wrong = solve_ilp(formulate(table({"a": 9.0, "b": 2.0 * 2.6, "c": 5.0}), Budget(size=20))).bits
    assert (wrong.layers["b"], wrong.layers["c"]) == (W8, W4), "as the margin says"


def test_what_the_budgets_do_not_allow() -> None:
    problem = formulate(table({"a": 9.0, "b": 2.0}), Budget(size=8))
    found = why(problem, "a")
    assert found.alternatives[0].loss is None and found.margin is None
    assert "the budgets allow no configuration with w8a8" in found.sentences()
    json.dumps(found.to_json())


def test_ties_pins_and_freedom_are_told() -> None:
    tied = replace(table({"a": 9.0, "b": 2.0}), ties=(("a", "b"),))
    assert why(formulate(tied, Budget()), "b").sentences()[:2] == [
        "b must have the same bits as a",
        "no budget holds it: it has the bits that lose least",
    ]
    pinned = why(formulate(tied, Budget(size=99), pins={"a": W8}), "a")
    assert pinned.alternatives == () and "has no other choice" in pinned.sentences()[1]
    assert "is used to 16.2% and does not bind" in pinned.sentences()[2]


def test_a_border_is_part_of_what_other_bits_cost() -> None:
    border = Border("a", "b", {(W4, W8): BorderCost(latency_us=0.5)})
    problem = formulate(table({"a": 9.0, "b": 2.0}, (border,)), Budget(latency=4))
    (other,) = why(problem, "a").alternatives
    assert other.alone["latency_us"] == -0.5 and other.loss == 9.0


def test_what_cannot_be_explained() -> None:
    problem = formulate(table({"a": 9.0, "b": 2.0}), Budget())
    with pytest.raises(AllocationError, match="there is no layer 'z'; the layers are a, b"):
        why(problem, "z")
    with pytest.raises(AllocationError, match="layer 'a' has w2a2, which is none of its choices; allocate again"):
        explain(problem, BitConfig.uniform(("a", "b"), Bits(2, 2)), "b")
