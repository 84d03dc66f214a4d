"""What the allocator is told: the cost table of sensitivities, bytes, BOPS and microseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.specs import Bits, BorderRow, Cost, CostTable, LayerCosts, parsed_bits, parsed_borders
from hawq_tvm.core.strict_json import JsonReader

if TYPE_CHECKING:
    from hawq_tvm.backends.tvm.latency import LatencyTable


def cost_table(
    graph: FloatGraph,
    pairs: Iterable[Bits],
    *,
    sensitivity: Mapping[str, Any] | None,
    latency: LatencyTable | None,
    caution: float = 0.0,
) -> CostTable:
    """Put together what every layer costs at every pair.

    Args:
        graph: from capture.
        pairs: bit pairs, pins included.
        sensitivity: from `hawq_tvm.measure.sensitivity`; None where there is nothing to choose.
        latency: measured or given; None where it is not asked for.
        caution: standard errors that each sensitivity is taken to be higher by, so that what is not known is not free.
    """
    rows = []
    for node in graph.layers:
        assert node.weight is not None
        profiled = None if sensitivity is None else sensitivity["layers"].get(node.name, {})
        choices = {}
        for pair in pairs:
            rise = 0.0 if profiled is None else _sensitivity(profiled, node.name, pair, caution)
            microseconds = None if latency is None else latency.latency_us[node.name].get(pair)
            spread = None if latency is None else latency.spread_us.get(node.name, {}).get(pair)
            size_bytes = pair.format.size_bytes(int(node.weight.size))
            choices[pair] = Cost(rise, size_bytes, node.macs * pair.operations, microseconds, spread)
        error = None if profiled is None else _relative_error(profiled, node.name, caution)
        rows.append(LayerCosts(node.name, int(node.weight.size), node.macs, choices, error))
    one_pair = "not estimated: there is one bit pair to choose from"
    sources = {
        "sensitivity": one_pair if sensitivity is None else _source(sensitivity, caution),
        "size_bytes": "weights x weight bits / 8, and codebooks; biases and multipliers are not counted",
        "bops": "multiply-accumulates x weight bits x activation bits, a sample (HAWQ-V3); a codebook's weights have 8",
        "latency_us": "not measured" if latency is None else latency.source,
    }
    return CostTable(tuple(rows), graph.tied_groups(), sources, () if latency is None else latency.borders)


def rated(costs: CostTable, sensitivity: Mapping[str, Any], caution: float) -> CostTable:
    """The same costs with the sensitivities of another metric.

    Args:
        costs: of some pairs.
        sensitivity: of that metric, from `hawq_tvm.measure.sensitivity`.
        caution: as `cost_table` takes it.
    """
    rows = []
    for row in costs.layers:
        profiled = sensitivity["layers"].get(row.name, {})
        choices = {
            pair: replace(cost, sensitivity=_sensitivity(profiled, row.name, pair, caution))
            for pair, cost in row.choices.items()
        }
        error = _relative_error(profiled, row.name, caution)
        rows.append(replace(row, choices=choices, sensitivity_error=error))
    return replace(costs, layers=tuple(rows), sources={**costs.sources, "sensitivity": _source(sensitivity, caution)})


def _source(sensitivity: Mapping[str, Any], caution: float) -> str:
    """How sensitivities were obtained, and what to know of them."""
    above = f"taken {caution:g} standard errors higher" if caution else None
    return ". ".join(filter(None, [sensitivity["method"], above, sensitivity.get("note")]))


def _sensitivity(profiled: Mapping[str, Any], layer: str, pair: Bits, caution: float) -> float:
    """What a layer's weights and its input cost at a pair, summed; inputs that were not profiled are alike at all.

    An estimate below 0 is noise around a truth near it, and counts as 0 before its error is added.
    """
    parts = _parts(profiled, layer, str(pair.format), str(pair.activation))
    return sum(max(value, 0.0) + caution * error for value, error in parts)


def _relative_error(profiled: Mapping[str, Any], layer: str, caution: float) -> float | None:
    """The standard error of a layer's sensitivity per what it is taken to be, at the fewest bits; None if not known."""
    if "weights_error" not in profiled:
        return None
    weights, inputs = (min(profiled.get(part, {"8": 0.0}), key=_bits_of) for part in ("weights", "inputs"))
    parts = _parts(profiled, layer, weights, inputs)
    error = sum(error for _, error in parts)
    value = sum(max(value, 0.0) + caution * error for value, error in parts)
    return error / value if value else (None if error else 0.0)


def _bits_of(width: str) -> int:
    """The bits of a width as tables have it: ``4``, or ``k4`` for a codebook."""
    return int(width.removeprefix("k"))


def _parts(profiled: Mapping[str, Any], layer: str, weights: str, inputs: str) -> list[tuple[float, float]]:
    """Value and standard error of a layer's weights and of its input at some widths."""
    found = []
    for part, bits in (("weights", weights), ("inputs", inputs)):
        if part == "inputs" and part not in profiled:
            continue
        try:
            found.append((profiled[part][bits], profiled.get(f"{part}_error", {}).get(bits, 0.0)))
        except KeyError:
            raise AllocationError(
                f"the sensitivities have nothing for the {part} of layer {layer!r} at {bits} bits; profile the network "
                "again"
            ) from None
    return found


def read_latency_table(path: Path, layers: tuple[str, ...]) -> LatencyTable:
    """Microseconds that the user gives, as ``{layer: {"w4a4": us}}``, bare or under the key ``latency_us``.

    Beside that key there may be ``borders``, written as in a cost table: what two layers' bits take together.

    Raises:
        AllocationError: unreadable, not a table, a layer is missing, or a time that is no number of at least 0.
    """
    from hawq_tvm.backends.tvm.latency import LatencyTable

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
