"""How much of each value's signal is left in integers, measured beside the float network.

Both networks run on the same samples, node by node. Each value is looked at in five ways, all against the float one:

    accumulated   the integer network as a whole
    alone         this node in integers, on the float network's inputs, quantised at the types that it reads
    inputs        the float node on those quantised inputs: what rounding the inputs costs
    weights       the float node with the weights and the bias that the integers stand for
    output        the float value, quantised

The signal-to-quantisation-noise ratio is ``10 log10(sum y^2 / sum (y - y')^2)``, over all elements of all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule, quantized
from hawq_tvm.core.errors import DataError
from hawq_tvm.core.float_ir import PASS_THROUGH, FloatGraph, FloatNode
from hawq_tvm.core.ir import Graph, Node, TensorType
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.measure.causes import find_causes
from hawq_tvm.measure.fidelity import Fidelity, ValueFidelity
from hawq_tvm.measure.meters import Meter


def measure_fidelity(
    float_graph: FloatGraph,
    integer_graph: Graph,
    batches: Iterable[Tensor],
    *,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """What is left of every value, and why where that is little.

    Args:
        float_graph: what was integerised.
        integer_graph: what became of it.
        batches: float32 [N, ...] each.
        progress: called with the number of samples done.

    Raises:
        DataError: no samples.
    """
    meters, samples = measure(float_graph, integer_graph, batches, progress=progress)
    nodes = {node.name: node for node in integer_graph}
    values = tuple(_value(name, nodes.get(name), meter) for name, meter in meters.items())
    return Fidelity(samples, values, find_causes(float_graph, integer_graph, meters))


def _value(name: str, node: Node | None, meter: Meter) -> ValueFidelity:
    op = None if node is None else node.op
    return ValueFidelity(
        name=name,
        kind="input" if op is None else op.kind,
        bits=meter.type.dtype.bits,
        weight_bits=op.format.bits if isinstance(op, WeightedOperator) else None,
        accumulated_db=meter.db("accumulated"),
        alone_db=meter.db("alone"),
        inputs_db=meter.db("inputs"),
        weights_db=meter.db("weights"),
        output_db=meter.db("output"),
        clipped=meter.clipped_share,
        largest=meter.largest,
        range_use=meter.range_use,
        effective_bits=meter.effective_bits,
        levels=meter.levels_used,
        channel_spread=meter.channel_spread,
    )


def measure(
    float_graph: FloatGraph,
    integer_graph: Graph,
    batches: Iterable[Tensor],
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Meter], int]:
    """Run both networks side by side.

    Args:
        float_graph: what was integerised.
        integer_graph: what became of it.
        batches: float32 [N, ...] each; a batch's values are in memory at once, as far as they are still read.
        progress: called with the number of samples done.

    Returns:
        A meter for every value that is made, in order, the input's and narrower copies' too; max-pools and flattens
        make none, since they choose or move integers. And how many samples were seen.

    Raises:
        DataError: no samples.
    """
    walk = _Walk(float_graph, integer_graph)
    samples = 0
    with torch.no_grad():
        for x in batches:
            walk.run(x)
            samples += len(x)
            if progress is not None:
                progress(samples)
    if not samples:
        raise DataError("there are no samples to compare the float and the integer network on")
    return walk.meters, samples


class _Walk:
    """The two networks and their meters."""

    def __init__(self, float_graph: FloatGraph, integer_graph: Graph) -> None:
        self.graph = integer_graph
        self.nodes = float_graph.by_name
        self.types = integer_graph.types
        self.floats = FloatModule(float_graph)
        self.restored = FloatModule(restored(float_graph, integer_graph))
        self.integers = IntegerModule(integer_graph)
        self.last_use = {name: index for index, node in enumerate(integer_graph) for name in node.inputs}
        self.meters = {
            name: Meter.of(self.types[name])
            for name in (integer_graph.input_name, *(node.name for node in integer_graph))
            if not (name in self.nodes and self.nodes[name].kind in PASS_THROUGH)
        }

    def run(self, x: Tensor) -> None:
        """One batch, node by node; values that nothing reads any more go."""
        first = self.graph.input_name
        values = {first: _Value.of(x, self.types[first], self.integers.quantize(x))}
        self._meter(first, values[first], {})
        for index, node in enumerate(self.graph):
            inputs = [values[name] for name in node.inputs]
            made = self.nodes.get(node.name)
            y = inputs[0].exact if made is None else self.floats.result(made, [value.exact for value in inputs])
            q = self.integers.evaluate(node, [value.deployed for value in inputs])
            value = values[node.name] = _Value.of(y, node.type, q)
            if node.name in self.meters:
                self._meter(node.name, value, {} if made is None else self._views(node, made, inputs))
            for name in node.inputs:
                if self.last_use[name] == index:
                    values.pop(name, None)

    def _meter(self, name: str, value: _Value, views: Mapping[str, Tensor]) -> None:
        accumulated = _reals(value.deployed, self.types[name])
        self.meters[name].add(value.exact, value.rounded, {"accumulated": accumulated, "output": value.reals, **views})

    def _views(self, node: Node, made: FloatNode, inputs: Sequence[_Value]) -> dict[str, Tensor]:
        """What a node makes of its inputs as they are quantised, and with its deployed weights."""
        alone = self.integers.evaluate(node, [value.rounded for value in inputs])
        views = {
            "alone": _reals(alone, node.type),
            "inputs": self.floats.result(made, [value.reals for value in inputs]),
        }
        if made.weight is not None:
            views["weights"] = self.restored.result(made, [value.exact for value in inputs])
        return views


@dataclass(eq=False)
class _Value:
    """One value of a batch.

    Attributes:
        exact: of the float network.
        deployed: of the integer network, integers.
        rounded: the exact value quantised at its type, integers.
        reals: what those stand for, float32.
    """

    exact: Tensor
    deployed: Tensor
    rounded: Tensor
    reals: Tensor

    @classmethod
    def of(cls, exact: Tensor, type: TensorType, deployed: Tensor) -> _Value:
        rounded = quantized(exact, type)
        return cls(exact, deployed, rounded, _reals(rounded, type))


def _reals(q: Tensor, type: TensorType) -> Tensor:
    """What integers stand for, float32."""
    return q.float() * type.scale if type.dtype.bits <= 8 else (q.double() * type.scale).float()


def restored(float_graph: FloatGraph, integer_graph: Graph) -> FloatGraph:
    """The float graph with the weights and biases that the integer graph computes with."""
    table, types = {node.name: node for node in integer_graph}, integer_graph.types
    nodes = []
    for made in float_graph:
        op = table[made.name].op
        if isinstance(op, WeightedOperator):
            node = table[made.name]
            input_scale = types[node.inputs[0]].scale
            accumulator = op.rescale.multiplier * 2.0**-op.rescale.shift * node.type.scale
            shape = (-1, *(1,) * (op.weight.ndim - 1))
            weight = (op.weight * (accumulator / input_scale).reshape(shape)).astype(np.float32)
            made = replace(made, weight=weight, bias=(op.bias * accumulator).astype(np.float32))
        nodes.append(made)
    return replace(float_graph, nodes=tuple(nodes))
