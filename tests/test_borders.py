"""What lies between layers: by a target's cost model, and as users give it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hawq_tvm.backends.tvm.borders import predict_borders
from hawq_tvm.backends.tvm.latency import predict_latency
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ops import Requantize
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import BitConfig, Bits, BorderCost
from hawq_tvm.core.targets import find_target
from hawq_tvm.measure.costing import cost_table, read_latency_table

from .builders import captured, ranges_of

W4, W48, W8 = Bits(4, 4), Bits(4, 8), Bits(8, 8)
BATCH = 8


@pytest.fixture(scope="module", params=["Mobile", "Padded"])
def network(request: pytest.FixtureRequest) -> tuple[FloatGraph, RangeTable]:
    """Networks in which a layer reads a sum, which is stored at 8 bits."""
    return captured(request.param), ranges_of(request.param)


@pytest.mark.parametrize("target", ["nvidia/t4", "llvm"])
@pytest.mark.parametrize("pair", [W4, W8])
def test_layers_and_borders_are_all_that_layers_cause(
    network: tuple[FloatGraph, RangeTable], target: str, pair: Bits
) -> None:
    """With one pair for all, what the plan costs is that of its layers, of the borders and of other operators."""
    graph, ranges = network
    machine = Machine.resolve(find_target(target))
    borders = predict_borders(graph, ranges, [W4, W48, W8], lambda bits: bits, machine.target, batch=BATCH)
    bits = BitConfig.uniform(tuple(layer.name for layer in graph.layers), pair)
    integers = integerize(graph, ranges, bits)
    plan = plan_storages(integers, machine.target, machine.vector_bits, batch=BATCH, features=machine.features)
    layers = set(bits.layers)
    copies = {n.name for n in integers if isinstance(n.op, Requantize) and n.name not in graph.by_name}
    first = {n.inputs[0] for n in integers if n.name in layers and n.name == graph.layers[0].name}
    others = sum(offer.cost for name, offer in plan.offers.items() if name not in layers | copies)
    others += sum(offer.cost for name, offer in plan.offers.items() if name in copies & first)
    for conversion, (_, offer) in zip(plan.conversions, plan.converters, strict=True):
        is_first = conversion.reader == graph.layers[0].name or conversion.reader in first
        others += offer.cost if conversion.reader not in layers | copies or is_first else 0.0
    table = predict_latency(graph, ranges, {pair: bits}, machine.target, batch=BATCH)
    alone = sum(row[pair] for row in table.latency_us.values())
    between = sum(cost.latency_us for border in borders if (cost := border.at(bits.layers)) is not None)
    assert alone + between + others == pytest.approx(plan.cost)
    if pair == W4:
        assert between > 0, "a sum is stored at 8 bits and read at 4"


def test_borders_depend_on_the_bits_of_values_alone(network: tuple[FloatGraph, RangeTable]) -> None:
    graph, ranges = network
    borders = predict_borders(graph, ranges, [W4, W48, W8], lambda bits: bits, find_target("nvidia/t4"), batch=BATCH)
    names = [layer.name for layer in graph.layers]
    assert borders
    for border in borders:
        assert names.index(border.first) < names.index(border.second)
        for (one, other), cost in border.costs.items():
            assert cost.latency_us > 0
            for same in (W48, W8):
                if one.activation == 8:
                    assert border.costs[same, other] == cost
                if other.activation == 8:
                    assert border.costs[one, same] == cost
    for pair, costs in ((W4, [{(W4, W4)}] * len(borders)), (W8, [])):
        again = predict_borders(graph, ranges, [pair], lambda bits: bits, find_target("nvidia/t4"), batch=BATCH)
        assert [set(border.costs) for border in again] == costs, "where all have 8 bits, nothing is brought to others"


def test_borders_that_users_give_reach_the_cost_table(network: tuple[FloatGraph, RangeTable], tmp_path: Path) -> None:
    graph, _ = network
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
