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
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule, quantized
from hawq_tvm.core.errors import DataError
from hawq_tvm.core.float_ir import PASS_THROUGH, FloatGraph, FloatNode
from hawq_tvm.core.ir import Graph, Node, TensorType
from hawq_tvm.core.ops import WeightedOperator

VIEWS = ("accumulated", "alone", "inputs", "weights", "output")
"""The five comparisons with the float value."""

Sums = NDArray[np.float64]


@dataclass(eq=False)
class Meter:
    """Sums over the samples of one value, by channel [C], in float64.

    Attributes:
        type: of the value in integers.
        signal: of the squared float values.
        noise: of the squared differences, by view.
        clipped_noise: the part of the output's noise that elements beyond the range make.
        clipped: how many those are.
        elements: how many were seen.
        largest: magnitude.
        levels: how often each integer was met that the float value quantises to, from the type's least on; zeros of the
            float value are not counted. Of the 32-bit result, and of no other, it is empty.
    """

    type: TensorType
    signal: Sums
    noise: dict[str, Sums]
    clipped_noise: float = 0.0
    clipped: int = 0
    elements: int = 0
    largest: float = 0.0
    levels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, type: TensorType) -> Meter:
        """A meter that has seen nothing."""
        channels, dtype = type.shape[0], type.dtype
        count = dtype.hi - dtype.lo + 1 if dtype.bits <= 8 else 0
        noise = {view: np.zeros(channels) for view in VIEWS}
        return cls(type, np.zeros(channels), noise, levels=np.zeros(count, np.int64))

    def add(self, y: Tensor, q: Tensor, views: Mapping[str, Tensor]) -> None:
        """Take in a batch.

        Args:
            y: the float value, float32 [N, C, ...].
            q: the integers that it quantises to.
            views: what stands in its place, float32, by view; the output's among them.
        """
        self.signal += _squares(y)
        for view, other in views.items():
            self.noise[view] += _squares(other - y)
        self.elements += y.numel()
        lo, hi = float(y.min()), float(y.max())
        self.largest = max(self.largest, hi, -lo)
        if not len(self.levels):
            return
        dtype, scale = self.type.dtype, self.type.scale
        bounds = (dtype.lo - 0.5) * scale, (dtype.hi + 0.5) * scale
        if lo < bounds[0] or hi >= bounds[1]:
            beyond = (y < bounds[0]) | (y >= bounds[1])
            self.clipped += int(beyond.sum())
            self.clipped_noise += float((views["output"] - y)[beyond].double().square().sum())
        self._count(y, q)

    def _count(self, y: Tensor, q: Tensor) -> None:
        """Count levels, of at most so many elements, evenly picked."""
        step = max(1, y.numel() // _MOST_COUNTED)
        some, integers = y.reshape(-1)[::step], q.reshape(-1)[::step]
        dtype = self.type.dtype
        counts = torch.bincount(integers[some != 0].long() - dtype.lo, minlength=len(self.levels))
        self.levels += counts.numpy()


_MOST_COUNTED = 1 << 17
"""Elements of a value and a batch whose levels are counted: enough for the last thousandth of them."""


def _squares(x: Tensor) -> Sums:
    """Sums of squares by channel: within a sample in float32, over the samples in float64."""
    by_sample = x.square().flatten(2).sum(2) if x.ndim > 2 else x.square()
    return np.asarray(by_sample.double().sum(0).numpy())


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
        self.meters[name].add(
            value.exact, value.rounded, {"accumulated": accumulated, "output": value.reals, **views}
        )

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
