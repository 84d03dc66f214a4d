"""What lies between layers of different bits, by a target's cost model: copies at other bits and in other storages.

A kernel writes what its reader asks for, so packing and unpacking is mostly a part of kernels. What is left belongs to
a *border*, the pair of a layer and the nearest layer before it: a copy at fewer bits of a value that is stored at more,
a copy in another storage, and what a kernel takes longer because it writes for a reader of other bits than its own.

Bits of weights say nothing of a border, and layers that read each other alternate. So two configurations show every
border of two widths: layers of even depth at one width and those of odd depth at the other, and the opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.storage import Plan, plan_storages
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import Requantize
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import BitConfig, Bits, Border, BorderCost
from hawq_tvm.core.targets import Target


@dataclass(frozen=True)
class _Neighbours:
    """A layer and the nearest before it; whether it reads just what that one makes, through pools and the like."""

    first: str
    second: str
    is_direct: bool


@dataclass(frozen=True, eq=False)
class _Planned:
    """A configuration's integer graph and how it is computed."""

    graph: Graph
    plan: Plan

    def between(self, layer: str) -> float:
        """Microseconds of the copies that are made for a layer alone; one that layers share is the first reader's."""
        by_name = {node.name: node for node in self.graph}
        name = by_name[layer].inputs[0]
        total, readers = 0.0, {layer}
        copy = by_name.get(name)
        if copy is not None and isinstance(copy.op, Requantize) and self._first_reader(name) == layer:
            total += self.plan.offers[name].cost
            readers.add(name)
        for conversion, (_, offer) in zip(self.plan.conversions, self.plan.converters, strict=True):
            total += offer.cost if conversion.reader in readers else 0.0
        return total

    def _first_reader(self, value: str) -> str:
        return next(node.name for node in self.graph if value in node.inputs)


def predict_borders(
    graph: FloatGraph,
    ranges: RangeTable,
    pairs: Iterable[Bits],
    stored: Callable[[BitConfig], BitConfig],
    target: Target,
    *,
    batch: int = 1,
) -> tuple[Border, ...]:
    """Microseconds of every border at every two candidate pairs, by the cost model of the target.

    What a kernel saves by writing fewer bits is not counted: a border costs nothing at least.

    Args:
        graph: from capture.
        ranges: from calibration.
        pairs: candidates.
        stored: a configuration with the bits at which values are stored, as for deployment.
        target: what is compiled for; it need not be at hand.
        batch: samples a call.
    """
    machine = Machine.resolve(target)
    by_width: dict[int, list[Bits]] = {}
    for pair in sorted(pairs):
        by_width.setdefault(pair.activation, []).append(pair)
    neighbours = _neighbours(graph)
    depth = _depths(graph, neighbours)

    def planned(even: int, odd: int) -> _Planned:
        widths = {name: odd if deep % 2 else even for name, deep in depth.items()}
        bits = stored(BitConfig({name: by_width[width][-1] for name, width in widths.items()}))
        integers = integerize(graph, ranges, bits)
        plan = plan_storages(integers, target, machine.vector_bits, batch=batch, features=machine.features)
        return _Planned(integers, plan)

    made = {(even, odd): planned(even, odd) for even in by_width for odd in by_width}
    borders = []
    for border in neighbours:
        costs: dict[tuple[Bits, Bits], BorderCost] = {}
        for one, ours in by_width.items():
            for other, theirs in by_width.items():
                mixed = made[(one, other) if depth[border.first] % 2 == 0 else (other, one)]
                microseconds = mixed.between(border.second)
                if border.is_direct:
                    own = mixed.plan.offers[border.first].cost
                    microseconds += own - made[one, one].plan.offers[border.first].cost
                if microseconds > 0:
                    costs.update(((p, q), BorderCost(latency_us=microseconds)) for p in ours for q in theirs)
        if costs:
            borders.append(Border(border.first, border.second, costs))
    return tuple(borders)


def _neighbours(graph: FloatGraph) -> list[_Neighbours]:
    """By layer that has one, the nearest before it along first inputs."""
    nodes = graph.by_name
    layers = {layer.name for layer in graph.layers}
    found = []
    for layer in graph.layers:
        value = layer.inputs[0]
        while value in nodes and value not in layers:
            value = nodes[value].inputs[0]
        if value in layers:
            found.append(_Neighbours(value, layer.name, graph.source(layer.inputs[0]) == value))
    return found


def _depths(graph: FloatGraph, neighbours: Iterable[_Neighbours]) -> Mapping[str, int]:
    """How many layers stand before each; layers that read the same value have the same before them."""
    before = {border.second: border.first for border in neighbours}
    depth: dict[str, int] = {}
    for layer in graph.layers:
        depth[layer.name] = depth[before[layer.name]] + 1 if layer.name in before else 0
    return depth
