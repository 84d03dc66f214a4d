"""Two allocations side by side: which layers differ, and what that costs and saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.specs import COST_NAMES, BitConfig, Bits, CostName, CostTable
from hawq_tvm.ilp.problem import Quantity


@dataclass(frozen=True)
class LayerDifference:
    """A layer whose bits differ.

    Attributes:
        layer: its name.
        bits: its pair in the first and in the second.
        changes: of its sensitivity and its known costs, the second's less the first's.
    """

    layer: str
    bits: tuple[Bits, Bits]
    changes: Mapping[Quantity, float]


@dataclass(frozen=True)
class Difference:
    """What tells two allocations of one network apart.

    Attributes:
        layers: those that differ, in the network's order.
        totals: of the network, in the first and in the second: sensitivity and every cost that both have, borders
            included.
        between: what of these lies between layers, in the first and in the second, where that is not nothing.
    """

    layers: tuple[LayerDifference, ...]
    totals: Mapping[Quantity, tuple[float, float]]
    between: Mapping[CostName, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [
                {"layer": row.layer, "bits": [repr(bits) for bits in row.bits], "changes": dict(row.changes)}
                for row in self.layers
            ],
            "totals": {measure: list(pair) for measure, pair in self.totals.items()},
            "between": {cost: list(pair) for cost, pair in self.between.items()},
        }


def difference(table: CostTable, first: BitConfig, second: BitConfig) -> Difference:
    """Compare two allocations by one cost table.

    Raises:
        AllocationError: they are not of this table's layers, or have bits that it does not price.
    """
    for bits in (first, second):
        strange = [name for name in bits.layers if name not in table.names]
        if strange or len(bits.layers) != len(table.names):
            odd = strange[0] if strange else next(name for name in table.names if name not in bits.layers)
            raise AllocationError(f"two allocations of different networks: layer '{odd}' is in one of them alone")
    measures: list[Quantity] = ["sensitivity"]
    for cost in COST_NAMES:
        if all(getattr(row.choices.get(bits.layers[row.name]), cost, None) is not None
               for row in table.layers for bits in (first, second)):  # fmt: skip
            measures.append(cost)
    totals = {measure: (table.total(first, measure), table.total(second, measure)) for measure in measures}
    rows = []
    for row in table.layers:
        pair = first.layers[row.name], second.layers[row.name]
        if pair[0] != pair[1]:
            before, after = row.choices[pair[0]], row.choices[pair[1]]
            changes = {measure: getattr(after, measure) - getattr(before, measure) for measure in measures}
            rows.append(LayerDifference(row.name, pair, changes))
    ours, theirs = table.between(first.layers), table.between(second.layers)
    between = {
        cost: (ours.get(cost, 0.0), theirs.get(cost, 0.0))
        for cost in COST_NAMES
        if cost in measures and (cost in ours or cost in theirs)
    }
    return Difference(tuple(rows), totals, between)
