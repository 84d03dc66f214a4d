"""What the allocator is told: the cost table of sensitivities, bytes, BOPS and microseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hawq_tvm.backends.tvm.latency import LatencyTable
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.specs import Bits, BorderRow, Cost, CostTable, LayerCosts, parsed_bits, parsed_borders
from hawq_tvm.core.strict_json import JsonReader


def cost_table(
    graph: FloatGraph,
    pairs: Iterable[Bits],
    *,
    sensitivity: Mapping[str, Any] | None,
    latency: LatencyTable | None,
) -> CostTable:
    """Put together what every layer costs at every pair.

    Args:
        graph: from capture.
        pairs: bit pairs, pins included.
        sensitivity: from `hawq_tvm.measure.sensitivity`; None where there is nothing to choose.
        latency: measured or given; None where it is not asked for.
    """
    rows = []
    for node in graph.layers:
        assert node.weight is not None
        profiled = None if sensitivity is None else sensitivity["layers"].get(node.name, {})
        choices = {}
        for pair in pairs:
            rise = 0.0 if profiled is None else _sensitivity(profiled, node.name, pair)
            microseconds = None if latency is None else latency.latency_us[node.name].get(pair)
            spread = None if latency is None else latency.spread_us.get(node.name, {}).get(pair)
            size_bytes = pair.format.size_bytes(int(node.weight.size))
            choices[pair] = Cost(rise, size_bytes, node.macs * pair.operations, microseconds, spread)
        error = None if profiled is None else profiled.get("relative_error")
        rows.append(LayerCosts(node.name, int(node.weight.size), node.macs, choices, error))
    one_pair = "not estimated: there is one bit pair to choose from"
    sources = {
        "sensitivity": one_pair
        if sensitivity is None
        else ". ".join(filter(None, [sensitivity["method"], sensitivity.get("note")])),
        "size_bytes": "weights x weight bits / 8, and codebooks; biases and multipliers are not counted",
        "bops": "multiply-accumulates x weight bits x activation bits, a sample (HAWQ-V3); a codebook's weights have 8",
        "latency_us": "not measured" if latency is None else latency.source,
    }
    return CostTable(tuple(rows), graph.tied_groups(), sources, () if latency is None else latency.borders)


def _sensitivity(profiled: Mapping[str, Any], layer: str, pair: Bits) -> float:
    """What a layer's weights and its input cost at a pair, summed; inputs that were not profiled are alike at all."""
    total = 0.0
    for part, bits in (("weights", pair.format), ("inputs", pair.activation)):
        if part == "inputs" and part not in profiled:
            continue
        try:
            total += profiled[part][str(bits)]
        except KeyError:
            raise AllocationError(
                f"the sensitivities have nothing for the {part} of layer {layer!r} at {bits} bits; profile the network "
                "again"
            ) from None
    return total


def read_latency_table(path: Path, layers: tuple[str, ...]) -> LatencyTable:
    """Microseconds that the user gives, as ``{layer: {"w4a4": us}}``, bare or under the key ``latency_us``.

    Beside that key there may be ``borders``, written as in a cost table: what two layers' bits take together.

    Raises:
        AllocationError: unreadable, not a table, a layer is missing, or a time that is no number of at least 0.
    """
    reader = JsonReader(
        f"the latency table {path}", AllocationError, 'give microseconds as {"layer": {"w4a4": 12.5, ...}, ...}'
    )
    data = reader.read(path)
    where = "latency_us" if isinstance(data, dict) and "latency_us" in data else ""
    table = reader.take(data[where] if where else data, Mapping[str, Mapping[str, float]], where=where)
    parsed: dict[str, dict[Bits, float]] = {}
    for name, row in table.items():
        parsed[name] = {parsed_bits(reader, name, bits): us for bits, us in row.items()}
        if len(parsed[name]) < len(row):
            raise reader.fault(f"layer {name!r} has two times for one pair of bits")
    missing = [name for name in layers if name not in parsed]
    if missing:
        raise AllocationError(
            f"the latency table {path} has no layer '{missing[0]}'; the layers are {', '.join(layers)}"
        )
    given = reader.take(data["borders"], tuple[BorderRow, ...], where="borders") if where and "borders" in data else ()
    return LatencyTable(parsed, f"given by {path}", borders=parsed_borders(reader, given, parsed))
