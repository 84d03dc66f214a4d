"""What lies between layers: timed, by a target's cost model, and as users give it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hawq_tvm.backends.tvm import latency
from hawq_tvm.backends.tvm.borders import Crossing, Taken
from hawq_tvm.backends.tvm.chosen import ChosenKernel
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.latency import LatencyTable, TableKernels, measure_latency, predict_latency
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.backends.tvm.timing import KernelTime, TimedKernel
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ops import Requantize
from hawq_tvm.core.specs import BitConfig, Bits, BorderCost, CostTable
from hawq_tvm.core.targets import find_target
from hawq_tvm.ilp import formulate, solve_ilp
from hawq_tvm.ilp.explain import explain
from hawq_tvm.measure.costing import cost_table, read_latency_table
from hawq_tvm.runs.explanations import sentences

from .builders import candidates_of, captured, compiled, uniform

W4, W48, W8 = Bits(4, 4), Bits(4, 8), Bits(8, 8)
BATCH = 8
LLVM = find_target("llvm")

networks = pytest.mark.parametrize("network", ["Mobile", "Padded"])
"""In which a layer reads a sum, which is stored at 8 bits."""

compiles = pytest.mark.skipif(find_c_compiler() is None, reason="kernels that are timed are linked by a C compiler")


@networks
@pytest.mark.parametrize("target", ["nvidia/t4", "llvm"])
@pytest.mark.parametrize("pair", [W4, W8])
def test_layers_and_borders_are_all_that_layers_cause(network: str, target: str, pair: Bits) -> None:
    """With one pair for all, what the plan costs is that of its layers, of the borders and of other operators."""
    candidates = candidates_of(network, W4, W48, W8, batch=BATCH)
    graph, machine = candidates.graph, Machine.resolve(find_target(target))
    bits = BitConfig.uniform(candidates.layers, pair)
    integers = integerize(graph, candidates.ranges, bits)
    plan = plan_storages(integers, machine.target, machine.vector_bits, batch=BATCH, features=machine.features)
    layers = set(bits.layers)
    copies = {n.name for n in integers if isinstance(n.op, Requantize) and n.name not in graph.by_name}
    first = {n.inputs[0] for n in integers if n.name in layers and n.name == graph.layers[0].name}
    others = sum(offer.cost for name, offer in plan.offers.items() if name not in layers | copies)
    others += sum(offer.cost for name, offer in plan.offers.items() if name in copies & first)
    for conversion, (_, offer) in zip(plan.conversions, plan.converters, strict=True):
        is_first = conversion.reader == graph.layers[0].name or conversion.reader in first
        others += offer.cost if conversion.reader not in layers | copies or is_first else 0.0
    table = predict_latency(candidates, machine.target)
    alone = sum(row[pair] for row in table.latency_us.values())
    between = sum(cost.latency_us for border in table.borders if (cost := border.at(bits.layers)) is not None)
    assert alone + between + others == pytest.approx(plan.cost)
    if pair == W4:
        assert between > 0, "a sum is stored at 8 bits and read at 4"


@networks
def test_borders_depend_on_the_bits_of_values_alone(network: str) -> None:
    target = find_target("nvidia/t4")
    borders = predict_latency(candidates_of(network, W4, W48, W8, batch=BATCH), target).borders
    names = list(candidates_of(network).layers)
    assert [border.second for border in borders] == names[1:], "every layer but the first has one before it"
    assert any(border.costs for border in borders)
    for border in borders:
        assert names.index(border.first) < names.index(border.second)
        for (one, other), cost in border.costs.items():
            assert cost.latency_us > 0
            for same in (W48, W8):
                if one.activation == 8:
                    assert border.costs[same, other] == cost
                if other.activation == 8:
                    assert border.costs[one, same] == cost
    for pair in (W4, W8):
        again = predict_latency(candidates_of(network, pair, batch=BATCH), target).borders
        costs = [set(border.costs) for border in again if border.costs]
        copied = sum((W4, W4) in border.costs for border in borders)
        assert costs == ([{(W4, W4)}] * copied if pair == W4 else []), "where all have 8 bits, nothing is copied"


# timed


def taking(times: dict[str, float], asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take what is said, microseconds by their names' beginning, and 10 otherwise."""

    def take(kernels: Sequence[TimedKernel], *_: Any, **__: Any) -> list[KernelTime]:
        found = [next((us for name, us in times.items() if kernel.startswith(name)), 10.0) for kernel in asked]
        assert len(kernels) == len(found)
        return [KernelTime((us * 0.9e-6, us * 1e-6, us * 1.1e-6), 1) for us in found]

    def timed(kernel: ChosenKernel, built: Any) -> Any:
        asked.append(kernel.kernel)
        return kernel

    monkeypatch.setattr(ChosenKernel, "timed", timed)
    monkeypatch.setattr(latency, "build_kernel", lambda *_: None)
    monkeypatch.setattr(latency, "time_kernels", take)


def costs_of(network: str, table: LatencyTable) -> CostTable:
    """A cost table in which a layer loses 1 at 4 bits, and nothing at 8."""
    loss = {"weights": {"4": 0.5, "8": 0.0}, "inputs": {"4": 0.5, "8": 0.0}}
    sensitivity = {"method": "said", "layers": dict.fromkeys(candidates_of(network).layers, loss)}
    return cost_table(captured(network), (W4, W8), sensitivity=sensitivity, latency=table)


def test_the_kernels_between_layers_are_timed_with_theirs_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    taking({"requantize": 3.0}, asked, monkeypatch)
    candidates = candidates_of("Padded", W4, W8)
    table = measure_latency(candidates, LLVM)
    kernels = TableKernels.of(candidates, Machine.resolve(LLVM))
    assert asked == [kernel.kernel for kernel in kernels.distinct.values()]
    assert sum(name.startswith("requantize") for name in asked) == 2, "sums of two sizes are copied"
    assert table.source.endswith("copies between layers among them")
    by_layer = {border.second: border for border in table.borders}
    for name in ("down1", "down2"):
        copied = by_layer[name].costs[W8, W4]
        assert (copied.latency_us, copied.latency_spread_us) == (pytest.approx(3.0), pytest.approx((2.76, 3.24)))
        assert by_layer[name].source.startswith(f"measured: {name} reads a copy at 4 bits (requantize_")
    assert not by_layer["fc"].costs
    assert by_layer["fc"].source == "nothing runs there at any bits, fc reads what is written"


def test_a_border_that_was_measured_changes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 bits save 5 us of each layer; where a copy takes more, there is nothing to save at the layer that reads it."""
    answers = []
    for copy in (1.0, 100.0):
        with monkeypatch.context() as patch:
            asked: list[str] = []
            taking({"requantize": copy}, asked, patch)
            table = measure_latency(candidates_of("Padded", W4, W8), LLVM)
        quick = {name: {W4: 5.0, W8: 10.0} for name in table.latency_us}
        costs = costs_of("Padded", LatencyTable(quick, table.source, borders=table.borders))
        answers.append(solve_ilp(formulate(costs, Budget(latency="36us"))).bits)
        found = explain(costs, "down1", uniform("Padded", W4), {"latency_us": 36.0})
        text = " ".join(sentences(found))
        assert f"between stem and down1: {copy:g} us" in text
        assert "measured: down1 reads a copy at 4 bits (requantize_" in text
    cheap, dear = answers
    assert list(cheap.layers.values()).count(W4) == 1
    assert dear.layers["down1"] == dear.layers["down2"] == W8, "the copy would take more than 4 bits save"


@compiles
@networks
def test_what_was_timed_is_what_the_library_calls(network: str, tmp_path: Path) -> None:
    """Of layers in turn at 8 and 4 bits, copies are called where their border costs something, and nowhere else."""
    candidates = candidates_of(network, W4, W8)
    table = measure_latency(candidates, LLVM)
    pairs = {name: (W8, W4)[number % 2] for number, name in enumerate(candidates.layers)}
    integers = integerize(candidates.graph, candidates.ranges, BitConfig(pairs))
    info = compiled(integers, tmp_path).info
    by_name = {node.name: node for node in integers}
    for border in table.borders:
        cost, read = border.at(pairs), by_name[border.second].inputs[0]
        is_copied = read in info.calls and isinstance(by_name[read].op, Requantize)
        if is_copied:
            assert cost is not None and cost.latency_spread_us is not None
            low, high = cost.latency_spread_us
            assert 0 < low <= cost.latency_us <= high
            assert info.call_kernels[read] in border.source
        else:
            assert cost is None or "takes longer" in border.source
    assert any(border.at(pairs) for border in table.borders)


def test_a_kernel_takes_longer_only_beyond_the_spreads() -> None:
    """What a kernel writes for another reader counts where it is told apart from its own time."""
    kernels = TableKernels.of(candidates_of("Padded", W4, W8), Machine.resolve(LLVM))
    crossing = next(border for border in kernels.borders if border.second == "down1").crossings[4, 8]
    assert crossing.rewrites and crossing.writes is not None, "a frame for the reader's padding, which a copy has alone"
    here, alone = crossing.writes

    def cost(us: float, spread: float) -> BorderCost:
        times = {here.code: us, alone.code: 10.0}
        return crossing.cost(
            lambda kernel: Taken(times[kernel.code], (times[kernel.code] - spread, times[kernel.code] + spread))
        )

    assert cost(13.0, 1.0) == BorderCost(latency_us=3.0, latency_spread_us=(1.0, 5.0))
    assert cost(13.0, 2.0) == cost(9.0, 0.1) == BorderCost()
    assert crossing.cost(lambda kernel: Taken(12.0 if kernel.code == here.code else 10.0)) == BorderCost(latency_us=2.0)
    assert Crossing((), None).cost(lambda kernel: pytest.fail("nothing runs")) == BorderCost()


# as files have them


def test_borders_are_read_as_they_were_written_and_as_they_were_before_they_had_a_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taking({"requantize": 3.0}, [], monkeypatch)
    costs = costs_of("Padded", measure_latency(candidates_of("Padded", W4, W8), LLVM))
    written = json.loads(json.dumps(costs.to_json()))
    assert CostTable.from_json(written) == costs
    for border in written["borders"]:
        del border["source"]
        for row in border["costs"].values():
            for cost in row.values():
                del cost["latency_spread_us"]
    old = CostTable.from_json(written)
    assert [border.source for border in old.borders] == [""] * len(old.borders)
    assert old.total(uniform("Padded", W4), "latency_us") == costs.total(uniform("Padded", W4), "latency_us")
    written["borders"][0]["source"] = 3
    with pytest.raises(AllocationError, match=r"^the cost table: borders\[0\].source is 3, expected text; mend it"):
        CostTable.from_json(written)


@networks
def test_borders_that_users_give_reach_the_cost_table(network: str, tmp_path: Path) -> None:
    graph = captured(network)
    names = tuple(layer.name for layer in graph.layers)
    border = {"first": names[0], "second": names[1], "costs": {"w4a4": {"w8a8": {"latency_us": 2.5}}}}
    path = tmp_path / "latency.json"
    times = {name: {"w4a4": 1.0, "w8a8": 2.0} for name in names}
    path.write_text(json.dumps({"latency_us": times, "borders": [border]}))
    table = cost_table(graph, (W4, W8), sensitivity=None, latency=read_latency_table(path, names))
    assert [b.costs for b in table.borders] == [{(W4, W8): BorderCost(latency_us=2.5)}]
    mixed = BitConfig(dict.fromkeys(names, W8) | {names[0]: W4})
    assert table.total(mixed, "latency_us") == 2.0 * (len(names) - 1) + 1.0 + 2.5
    path.write_text(json.dumps({"latency_us": times, "borders": [{**border, "second": "none"}]}))
    with pytest.raises(AllocationError, match="borders names 'none', which is no layer of layers"):
        read_latency_table(path, names)
