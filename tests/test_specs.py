from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.errors import AllocationError, CompileError, RunError
from hawq_tvm.core.specs import BitConfig, Bits, Budget, Cost, CostTable, LayerCosts, Limit
from hawq_tvm.core.targets import TARGETS, find_target
from hawq_tvm.settings import Settings


@given(st.integers(2, 8), st.integers(2, 8))
def test_bits_print_and_parse(weight: int, activation: int) -> None:
    bits = Bits(weight, activation)
    assert Bits.parse(repr(bits)) == Bits.parse(repr(bits).upper()) == bits


@pytest.mark.parametrize("text", ["w1a8", "w8a9", "8w8", "w4", "nine", "16", ""])
def test_other_bits_are_refused(text: str) -> None:
    with pytest.raises(AllocationError):
        Bits.parse(text)


@pytest.mark.parametrize(
    ("text", "cost", "expected"),
    [
        ("60%", "size_bytes", Limit(0.6, is_share=True)),
        ("6.5MB", "size_bytes", Limit(6.5e6)),
        ("1 MiB", "size_bytes", Limit(2**20)),
        (2_000_000, "size_bytes", Limit(2e6)),
        ("1.2G", "bops", Limit(1.2e9)),
        ("1.5ms", "latency_us", Limit(1500.0)),
        ("800", "latency_us", Limit(800.0)),
        (1e3, "latency_us", Limit(1000.0)),
    ],
)
def test_limits(text: str, cost: str, expected: Limit) -> None:
    parsed = Limit.parse(text, cost)  # type: ignore[arg-type]
    assert parsed.is_share == expected.is_share
    assert parsed.value == pytest.approx(expected.value)


@pytest.mark.parametrize(("text", "cost"), [("6MB", "bops"), ("-3", "bops"), ("a lot", "bops"), ("5ms", "size_bytes")])
def test_other_limits_are_refused(text: str, cost: str) -> None:
    with pytest.raises(AllocationError, match="a budget on"):
        Limit.parse(text, cost)  # type: ignore[arg-type]


def test_bit_configurations_survive_json_and_hands() -> None:
    config = BitConfig({"a": Bits(4, 8), "b": Bits(8, 8)}, "test")
    assert BitConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert BitConfig.from_json({"a": "w4a8", "b": 8}).layers == config.layers
    for bad in ([], {}, {"bits": {}}, {"bits": {"a": "w99"}}, "w4a4", None):
        with pytest.raises(AllocationError, match="^the bit configuration: .*; write"):
            BitConfig.from_json(bad)
    for bad, message in (
        ({"a": "w9a9"}, "the bit configuration: layer 'a': bits are written like w4a8"),
        ({"a": "4" * 5000}, "the bit configuration: layer 'a': bits are written like w4a8"),
        ({"bits": {"a": None}}, "the bit configuration: bits.a is null, expected text or a whole number"),
        ({"bits": {"a": -4}}, "the bit configuration: bits.a is -4"),
        ({"bits": {"a": 4}, "origin": 3}, "the bit configuration: origin is 3, expected text"),
    ):
        with pytest.raises(AllocationError, match=re.escape(message)):
            BitConfig.from_json(bad)


def test_cost_tables_survive_json() -> None:
    rows = {Bits(4, 4): Cost(0.5, 10.0, 160, 1.5), Bits(8, 8): Cost(0.1, 20.0, 640)}
    table = CostTable((LayerCosts("a", 20, 10, rows),), (("a",),), {"bops": "counted"})
    assert CostTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    certain = CostTable((LayerCosts("a", 20, 10, rows, 0.25),))
    assert CostTable.from_json(json.loads(json.dumps(certain.to_json()))).layers[0].sensitivity_error == 0.25
    assert table.total(BitConfig({"a": Bits(4, 4)}), "latency_us") == 1.5
    with pytest.raises(AllocationError, match="no latency_us for layer 'a'"):
        table.total(BitConfig({"a": Bits(8, 8)}), "latency_us")
    with pytest.raises(AllocationError, match="no entry for layer 'a' at w2a2"):
        table.total(BitConfig({"a": Bits(2, 2)}), "bops")


COSTS = {
    "layers": [
        {"name": name, "parameters": 2, "macs": 3, "choices": {"w4a4": {"sensitivity": -1, "size_bytes": 2, "bops": 3}}}
        for name in ("a", "b")
    ],
    "ties": [["a", "b"]],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("layers"), "layers is missing"),
        (lambda data: data["layers"][1].pop("macs"), "layers[1].macs is missing"),
        (lambda data: data["layers"][1].update(name="a"), "two layers are named 'a'"),
        (lambda data: data["layers"][0].update(parameters=-1), "layers[0].parameters is -1"),
        (lambda data: data["layers"][0].update(macs=1.5), "layers[0].macs is 1.5, expected a whole number"),
        (lambda data: data["layers"][0]["choices"].update({"4": [1]}), "layers[0].choices.4 is a list of 1"),
        (lambda data: data["layers"][0]["choices"].update(w9a9=vars(Cost(0, 0, 0))), "layer 'a': bits are written"),
        (
            lambda data: data["layers"][0]["choices"].update({"4": vars(Cost(0, 0, 0))}),
            "layer 'a' has two costs for w4a4",
        ),
        (lambda data: data["layers"][0]["choices"]["w4a4"].update(bops=-3), "layers[0].choices.w4a4.bops is -3"),
        (
            lambda data: data["layers"][0]["choices"]["w4a4"].update(price=3),
            "layers[0].choices.w4a4.price is not known",
        ),
        (lambda data: data.update(ties=[["a", "c"]]), "ties names 'c', which is no layer"),
        (lambda data: data.update(sources=[]), "sources is a list of 0, expected an object"),
    ],
)
def test_cost_tables_that_are_none_are_refused(change: Callable[[Any], object], message: str) -> None:
    assert CostTable.from_json(COSTS).names == ("a", "b")
    data = copy.deepcopy(COSTS)
    change(data)
    with pytest.raises(AllocationError) as raised:
        CostTable.from_json(data, "r/costs.json")
    assert str(raised.value).startswith(f"r/costs.json: {message}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "budget is 3, expected an object"),
        ({"bops": {"value": -1, "is_share": False}}, "budget.bops.value is -1"),
        ({"bops": {"value": 1, "is_share": 0}}, "budget.bops.is_share is 0, expected true or false"),
        ({"bops": {"is_share": True}}, "budget.bops.value is missing"),
        ({"watts": {"value": 1}}, "budget bounds 'watts'"),
    ],
)
def test_stored_budgets_that_are_none_are_refused(data: Any, message: str) -> None:
    with pytest.raises(RunError, match=re.escape(f"the manifest's settings are damaged: {message}")):
        Budget.from_json(data)


@pytest.mark.parametrize("error", [-0.1, "0.1", True, float("nan"), float("inf"), [0.1]])
def test_errors_of_sensitivities_that_are_none_are_refused_by_layer(error: object) -> None:
    table = CostTable((LayerCosts("a", 20, 10, {Bits(4, 4): Cost(0.5, 10.0, 160)}),)).to_json()
    table["layers"][0]["sensitivity_error"] = error
    with pytest.raises(AllocationError, match="layer 'a': sensitivity_error must be a finite number of at least 0"):
        CostTable.from_json(table)
    del table["layers"][0]["sensitivity_error"]
    assert CostTable.from_json(table).layers[0].sensitivity_error is None, "older tables, and those written by hand"


def test_settings_survive_json() -> None:
    settings = Settings(budget=Budget(size="60%", latency="2ms"), pins={"fc": Bits(8, 4)}, seed=3)
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_ends_are_pinned_unless_said_otherwise() -> None:
    layers = ("first", "middle", "last")
    assert Settings().all_pins(layers) == {"first": Bits(8, 8), "last": Bits(8, 8)}
    assert Settings(pins={"last": Bits(8, 4)}).all_pins(layers)["last"] == Bits(8, 4)
    assert Settings(pin_ends=False).all_pins(layers) == {}
    ties = (("first", "middle"),)
    assert Settings(pins={"middle": Bits(4, 4)}).all_pins(layers, ties) == {"middle": Bits(4, 4), "last": Bits(8, 8)}
    assert Settings(bits=(Bits(2, 2),)).pairs(layers) == (Bits(2, 2), Bits(8, 8))


def test_targets() -> None:
    assert find_target("llvm") is TARGETS["llvm"]
    assert TARGETS["llvm/portable"].library_name == "model.llvm-portable.so"
    with pytest.raises(CompileError, match="unknown target 'x86'; known: llvm"):
        find_target("x86")
