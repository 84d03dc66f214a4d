from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.budget import Budget, Limit
from hawq_tvm.core.errors import AllocationError, CompileError, RunError
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost, Cost, CostTable, LayerCosts
from hawq_tvm.core.targets import DEFAULT_TARGET, TARGETS, Target, find_target
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


@pytest.mark.parametrize("weight", [1, 2, 8, 9])
@pytest.mark.parametrize("activation", [1, 2, 8, 9])
def test_both_widths_are_two_to_eight(weight: int, activation: int) -> None:
    if weight in (2, 8) and activation in (2, 8):
        assert (Bits(weight, activation).weight, Bits(weight, activation).activation) == (weight, activation)
    else:
        with pytest.raises(AllocationError, match=f"have 2 to 8 bits, got w{weight}a{activation}"):
            Bits(weight, activation)


def test_bits_are_read_and_ordered() -> None:
    bits = Bits(4, 8)
    assert Bits.parse(bits) is bits
    assert Bits.parse(" W4A8 ") == bits
    assert Bits.parse("5") == Bits.parse(5) == Bits(5, 5)
    assert sorted([Bits(8, 4), Bits(4, 8), Bits(4, 4)]) == [Bits(4, 4), Bits(4, 8), Bits(8, 4)], "weights first"


@pytest.mark.parametrize("value", [True, None, "1", float("nan"), float("inf"), -1.0, 1j])
@pytest.mark.parametrize("name", ["size_bytes", "bops", "latency_us", "energy_uj", "sensitivity"])
def test_costs_are_finite_and_only_sensitivities_may_be_negative(name: str, value: object) -> None:
    fields = {"sensitivity": 0.0, "size_bytes": 0.0, "bops": 0, "latency_us": 0.0}
    changed = {**fields, name: value}
    if (name, value) in (("latency_us", None), ("energy_uj", None), ("sensitivity", -1.0)):
        assert getattr(Cost(**changed), name) == value  # type: ignore[arg-type]
        return
    least = "" if name == "sensitivity" else " of at least 0"
    with pytest.raises(AllocationError, match=f"{name} must be a finite number{least}, got"):
        Cost(**changed)  # type: ignore[arg-type]
    assert Cost(0.0, 0.0, 0).latency_us is None


def test_limits_are_finite_and_not_negative() -> None:
    assert Limit(0.0).value == 0.0
    assert not Limit(1.0).is_share
    for value in (-0.1, float("nan"), float("inf"), True):
        with pytest.raises(AllocationError, match="a budget is a finite number of at least 0, got"):
            Limit(value)


@pytest.mark.parametrize("cost", ["size_bytes", "bops"])
def test_a_number_below_one_is_no_share(cost: str) -> None:
    with pytest.raises(AllocationError, match=f"a budget of 0.25 on {cost} is less than one; a share is written '25%'"):
        Limit.parse(0.25, cost)  # type: ignore[arg-type]
    for value in (0.0, 1.0):
        assert Limit.parse(value, cost) == Limit(value)  # type: ignore[arg-type]
    assert Limit.parse(0.25, "latency_us") == Limit(0.25)
    assert Limit.parse("0.25", cost) == Limit(0.25)  # type: ignore[arg-type]
    assert Limit.parse(".5%", cost) == Limit(0.005, is_share=True)  # type: ignore[arg-type]
    limit = Limit(3.0)
    assert Limit.parse(limit, cost) is limit  # type: ignore[arg-type]


UNITS = {
    "size_bytes": {
        "": 1, "b": 1, "kb": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
    },
    "bops": {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12},
    "latency_us": {"": 1, "us": 1, "ms": 10**3, "s": 10**6},
    "energy_uj": {"": 1, "nJ": 1e-3, "uJ": 1, "mJ": 10**3, "J": 10**6},
}  # fmt: skip


@pytest.mark.parametrize(("cost", "unit"), [(cost, unit) for cost, units in UNITS.items() for unit in units])
def test_every_unit(cost: str, unit: str) -> None:
    assert Limit.parse(f"3{unit}", cost) == Limit(3.0 * UNITS[cost][unit])  # type: ignore[arg-type]
    assert Limit.parse(f" 2.5e1 {unit} ", cost) == Limit(25.0 * UNITS[cost][unit])  # type: ignore[arg-type]
    with pytest.raises(AllocationError) as caught:
        Limit.parse("3 miles", cost)  # type: ignore[arg-type]
    known = ", ".join(name.lower() for name in UNITS[cost] if name)
    assert str(caught.value) == (
        f"a budget on {cost} is a number, one with a unit ({known}) or a percentage; got '3 miles'"
    )


def test_budgets_print_compare_and_survive_json() -> None:
    budget = Budget(size="60%", bops=2e9, latency="1.5ms")
    assert repr(budget) == "Budget(size=60%, bops=2e+09, latency=1500us)"
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget
    assert Budget.from_json({}) == Budget()
    for name in ("size", "bops", "latency", "energy"):
        one = Budget(**{name: "60%"})
        assert Budget.from_json(one.to_json()) == one != budget  # type: ignore[arg-type]
        assert bool(one)
    assert len({budget, Budget(size="60%", bops=2e9, latency="1.5ms"), Budget()}) == 2
    assert not Budget()
    assert budget != "60%"
    assert repr(Budget(size=5, energy="2mJ")) == "Budget(size=5B, energy=2000uJ)"


def test_bit_configurations_survive_json_and_hands() -> None:
    config = BitConfig({"a": Bits(4, 8), "b": Bits(8, 8)}, "test")
    assert BitConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert BitConfig.from_json({"a": "w4a8", "b": 8}).layers == config.layers
    assert config.to_json() == {"origin": "test", "bits": {"a": "w4a8", "b": "w8a8"}, "residual": 8, "stored": {}}
    stored = BitConfig({"a": Bits(4, 4)}, residual=4, stored={"a": 7})
    assert BitConfig.from_json(json.loads(json.dumps(stored.to_json()))) == stored
    for plain in ({"bits": {"a": 8}}, {"a": 8}):
        assert BitConfig.from_json(plain).origin == BitConfig({}).origin == "given"
    assert BitConfig.uniform(("a", "b"), Bits(4, 8)) == BitConfig(dict.fromkeys("ab", Bits(4, 8)), "uniform w4a8")
    for bad in ([], {}, {"bits": {}}, {"bits": {"a": "w99"}}, "w4a4", None):
        with pytest.raises(AllocationError, match="^the bit configuration: .*; write"):
            BitConfig.from_json(bad)
    for bad, message in (
        ({"a": "w9a9"}, "the bit configuration: layer 'a': bits are written like w4a8"),
        ({"a": "4" * 5000}, "the bit configuration: layer 'a': bits are written like w4a8"),
        ({"bits": {"a": None}}, "the bit configuration: bits.a is null, expected text or a whole number"),
        ({"bits": {"a": -4}}, "the bit configuration: bits.a is -4"),
        ({"bits": {"a": 4}, "origin": 3}, "the bit configuration: origin is 3, expected text"),
        ({"bits": {"a": 4}, "residual": 9}, "the bit configuration: a residual is stored at 2 to 8 bits, got 9"),
        ({"bits": {"a": 4}, "stored": {"b": 1}}, "the bit configuration: 'b' is stored at 2 to 8 bits, got 1"),
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


def test_borders_cost_what_their_layers_bits_say_and_survive_json() -> None:
    rows = {Bits(4, 4): Cost(0.5, 10.0, 160, 1.5, energy_uj=3.0), Bits(8, 8): Cost(0.1, 20.0, 640, 2.0, energy_uj=4.0)}
    border = Border("a", "b", {(Bits(4, 4), Bits(8, 8)): BorderCost(latency_us=0.25), (Bits(8, 8), Bits(4, 4)):
                               BorderCost(latency_us=0.5, energy_uj=1.0)})  # fmt: skip
    table = CostTable((LayerCosts("a", 20, 10, rows), LayerCosts("b", 20, 10, rows)), borders=(border,))
    assert CostTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    mixed = BitConfig({"a": Bits(8, 8), "b": Bits(4, 4)})
    assert (table.total(mixed, "latency_us"), table.total(mixed, "energy_uj")) == (4.0, 8.0)
    assert table.total(BitConfig({"a": Bits(4, 4), "b": Bits(8, 8)}), "latency_us") == 3.75
    assert table.total(BitConfig.uniform(("a", "b"), Bits(4, 4)), "latency_us") == 3.0, (
        "what is not listed costs nothing"
    )
    assert table.total(mixed, "sensitivity") == 0.6


COSTS = {
    "layers": [
        {"name": name, "parameters": 2, "macs": 3, "choices": {"w4a4": {"sensitivity": -1, "size_bytes": 2, "bops": 3}}}
        for name in ("a", "b")
    ],
    "ties": [["a", "b"]],
}


def border(**changes: Any) -> dict[str, Any]:
    """The JSON of a border."""
    return {"first": "a", "second": "b", "costs": {"w4a4": {"w4a4": {"latency_us": 1.0}}}, **changes}


@pytest.mark.parametrize("value", [-1.0, None, float("nan"), "1", True])
def test_costs_of_borders_are_finite_and_not_negative(value: Any) -> None:
    for name in ("size_bytes", "bops", "latency_us", "energy_uj"):
        with pytest.raises(AllocationError, match=f"{name} of a border must be a finite number of at least 0, got"):
            BorderCost(**{name: value})


@given(st.tuples(*[st.floats(0, 100)] * 3))
def test_spreads_of_borders_lie_around_their_latencies(numbers: tuple[float, float, float]) -> None:
    low, us, high = sorted(numbers)
    assert BorderCost(latency_us=us, latency_spread_us=(low, high)).latency_spread_us == (low, high)
    for wrong in ((high + 1, low), (us + 1, us + 2), (low - 2, us - 1), (float("nan"), high)):
        with pytest.raises(AllocationError, match="must be a low and a high number around its latency_us of"):
            BorderCost(latency_us=us, latency_spread_us=wrong)


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
        (lambda data: data.update(borders=[border(second="c")]), "borders names 'c', which is no layer"),
        (lambda data: data.update(borders=[border(second="a")]), "a border lies between two layers, and one names 'a'"),
        (lambda data: data.update(borders=[border(first=3)]), "borders[0].first is 3, expected text"),
        (
            lambda data: data.update(borders=[border(costs={"w4a4": {"w8a8": {}}})]),
            "a border of layer 'b' has a cost at w8a8, and the layer has none",
        ),
        (
            lambda data: data.update(borders=[border(costs={"w4a4": {"w4a4": {}, "4": {}}})]),
            "the border of 'a' and 'b' has two costs for w4a4 and w4a4",
        ),
        (
            lambda data: data.update(borders=[border(costs={"4": {"4": {"latency_us": -1}}})]),
            "borders[0].costs.4.4.latency_us is -1",
        ),
        (
            lambda data: data.update(borders=[border(costs={"4": {"4": {"price": 1}}})]),
            "borders[0].costs.4.4.price is not known",
        ),
        *(
            (
                lambda data, spread=spread: data.update(
                    borders=[border(costs={"4": {"4": {"latency_us": 2.5, "latency_spread_us": spread}}})]
                ),
                "borders[0].costs.4.4 cannot stand (latency_spread_us of a border must be a low and a high number "
                f"around its latency_us of 2.5, got {spread}: mend it or leave it out)",
            )
            for spread in ([9, 1], [100, 200])
        ),
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
def test_errors_of_sensitivities_that_are_none_are_refused(error: object) -> None:
    table = CostTable((LayerCosts("a", 20, 10, {Bits(4, 4): Cost(0.5, 10.0, 160)}),)).to_json()
    table["layers"][0]["sensitivity_error"] = error
    with pytest.raises(AllocationError, match="sensitivity_error"):
        CostTable.from_json(table)
    del table["layers"][0]["sensitivity_error"]
    assert CostTable.from_json(table).layers[0].sensitivity_error is None, "older tables, and those written by hand"


def test_a_cost_table_of_several_layers() -> None:
    choice = {Bits(4, 4): Cost(0.25, 10.0, 160)}
    table = CostTable(tuple(LayerCosts(name, 20, 10, choice) for name in "ab"))
    assert (table.names, table.ties, table.sources) == (("a", "b"), (), {})
    both = BitConfig(dict.fromkeys("ab", Bits(4, 4)))
    assert [table.total(both, name) for name in ("sensitivity", "size_bytes", "bops")] == [0.5, 20.0, 320.0]
    with pytest.raises(AllocationError, match="no entry for layer 'b' at None"):
        table.total(BitConfig({"a": Bits(4, 4)}), "bops")
    with pytest.raises(AllocationError, match="no latency_us for layer 'a' at w4a4"):
        table.total(both, "latency_us")
    assert CostTable.from_json({"layers": table.to_json()["layers"]}) == table


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
    assert (TARGETS["llvm"].host_cpu, TARGETS["llvm/portable"].host_cpu) == (True, False)
    plain = Target("moon/2", "hexagon", "a machine")
    assert (plain.kind, plain.host_cpu, plain.attributes) == ("hexagon", False, {})
    assert DEFAULT_TARGET in TARGETS
    with pytest.raises(CompileError, match="unknown target 'x86'; known: llvm"):
        find_target("x86")


def test_errors_of_layers_add_up_to_that_of_the_sum() -> None:
    both = BitConfig(dict.fromkeys("ab", Bits(4, 4)))

    def error(*rows: tuple[float, float | None]) -> float | None:
        layers = [
            LayerCosts(name, 1, 1, {Bits(4, 4): Cost(omega, 1, 1)}, uncertain)
            for name, (omega, uncertain) in zip("ab", rows, strict=True)
        ]
        return CostTable(tuple(layers)).sensitivity_error(both)

    assert error((3.0, 0.5), (1.0, 0.1)) == pytest.approx((3 * 0.5 + 1 * 0.1) / 4)
    assert error((3.0, 0.5), (-1.0, 0.1)) == pytest.approx((3 * 0.5 + 1 * 0.1) / 2), "errors have no sign"
    assert error((-3.0, 0.5), (1.0, 0.1)) == pytest.approx((3 * 0.5 + 1 * 0.1) / 2)
    assert error((3.0, 0.5), (1.0, None)) is None
    assert error((3.0, None), (1.0, 0.1)) is None
    assert error((1.0, 0.5), (-1.0, 0.5)) is None, "of a sum of zero there is none"
    assert error((3.0, 0.0), (1.0, 0.0)) == 0.0


@pytest.mark.parametrize("text", ["x", "a", "-", "²"])
def test_a_letter_is_no_bits(text: str) -> None:
    with pytest.raises(AllocationError, match="bits are written like w4a8"):
        Bits.parse(text)


@pytest.mark.parametrize("error", [-0.1, float("nan"), float("inf"), True, "0.1"])
def test_errors_of_layers_are_at_least_0(error: Any) -> None:
    with pytest.raises(AllocationError, match="sensitivity_error must be a finite number of at least 0"):
        LayerCosts("a", 1, 1, {}, error)
