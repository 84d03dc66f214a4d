"""A network in which one layer is otherwise: what it is, and how it runs from that layer on.

At a layer with changes, only the rest of the network is run for each of them, from the values that are live there: on
average half a network a change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import clipped, evaluate
from hawq_tvm.core.float_ir import PASS_THROUGH, WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.posttraining.simulate import Grid

_JOINING = (*PASS_THROUGH, "concat", "clip")
"""The kinds whose result is made of their inputs' elements as they are."""


class Network(Protocol):
    """A float graph that computes in some way: `RealNetwork`, or `hawq_tvm.posttraining.simulate.SimulatedNetwork`.

    Attributes:
        graph: from capture.
        weights: float32 by layer.
        biases: float32 [out] by layer.
    """

    graph: FloatGraph
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]

    def start(self, x: Tensor) -> Tensor:
        """The network's input as it is stored."""

    def reads(self, node: FloatNode, x: Tensor) -> Tensor:
        """What a layer with weights reads of its first input, as that is stored."""

    def settle(self, node: FloatNode, result: Tensor) -> Tensor:
        """A node's result, before its clip, as it is stored."""


class RealNetwork:
    """The float network: nothing is rounded."""

    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self.weights = {node.name: torch.from_numpy(node.weight) for node in graph.layers if node.weight is not None}
        self.biases = {node.name: torch.from_numpy(node.bias) for node in graph.layers if node.bias is not None}

    def start(self, x: Tensor) -> Tensor:
        return x

    def reads(self, node: FloatNode, x: Tensor) -> Tensor:
        return x

    def settle(self, node: FloatNode, result: Tensor) -> Tensor:
        return clipped(result, node.clip)


@dataclass(frozen=True, eq=False)
class Change:
    """What is otherwise in one layer.

    Attributes:
        layer: its name.
        weight: float32 [out, ...] instead of the network's; None leaves it.
        bias: float32 [out] instead of the network's; None leaves it.
        reads: the grid that its first input is brought to; None leaves what the network makes it read.
        exact: whether it reads its first input as it was before it was rounded to be stored.
    """

    layer: str
    weight: Tensor | None = None
    bias: Tensor | None = None
    reads: Grid | None = None
    exact: bool = False


@dataclass(frozen=True)
class Live:
    """The values that are live at some node, float32 [N, ...] by name: as they are stored, and before that."""

    stored: dict[str, Tensor]
    exact: dict[str, Tensor]


class Runner:
    """Runs a network, whole or from a node on, with one layer changed."""

    def __init__(self, network: Network, *, keeps_exact: bool = False) -> None:
        self.network = network
        self.nodes = network.graph.nodes
        self._keeps_exact = keeps_exact
        self._ends = network.graph.last_reads

    def _result(self, node: FloatNode, inputs: Sequence[Tensor], change: Change | None = None) -> Tensor:
        """A node's result before clip and storing, its first input as it is read."""
        weight, bias = self.network.weights.get(node.name), self.network.biases.get(node.name)
        if change is not None:
            weight = weight if change.weight is None else change.weight
            bias = bias if change.bias is None else change.bias
        counts = None if node.counts is None else torch.from_numpy(node.counts)
        return evaluate(node, inputs, weight, bias, counts)

    def _inputs(self, node: FloatNode, stored: Mapping[str, Tensor]) -> list[Tensor]:
        first, *rest = (stored[name] for name in node.inputs)
        return [self.network.reads(node, first) if node.kind in WEIGHTED else first, *rest]

    def changed(self, node: FloatNode, change: Change, live: Live) -> Tensor:
        """The result of a changed layer, before clip and storing."""
        first, *rest = self._inputs(node, live.stored)
        first = live.exact[node.inputs[0]] if change.exact else first
        return self._result(node, [first if change.reads is None else change.reads.nearest(first), *rest], change)

    def walk(self, x: Tensor) -> Iterator[tuple[int, FloatNode, Live]]:
        """Run the network, and stop before each layer with weights: its index, itself, and what is live."""
        start = self.network.graph.input_name
        live = Live({start: self.network.start(x)}, {start: x} if self._keeps_exact else {})
        for index, node in enumerate(self.nodes):
            if node.kind in WEIGHTED:
                yield index, node, live
            result = self._result(node, self._inputs(node, live.stored))
            if self._keeps_exact:
                joined = node.kind in _JOINING
                exact = self._result(node, [live.exact[name] for name in node.inputs]) if joined else result
                live.exact[node.name] = clipped(exact, node.clip)
            live.stored[node.name] = self.network.settle(node, result)
            for name in self._ends[index]:
                live.stored.pop(name)
                live.exact.pop(name, None)

    def rest(self, index: int, result: Tensor, live: Live) -> Tensor:
        """The network's result, where the node at `index` has the result `result` before clip and storing."""
        values = dict(live.stored)
        values[self.nodes[index].name] = self.network.settle(self.nodes[index], result)
        for name in self._ends[index]:
            del values[name]
        return self._onward(index + 1, values)

    def run(self, x: Tensor) -> Tensor:
        """The network's result."""
        return self._onward(0, {self.network.graph.input_name: self.network.start(x)})

    def _onward(self, index: int, values: dict[str, Tensor]) -> Tensor:
        """The network's result from the values that are live before the node at `index`, which are given up."""
        for node, ends in zip(self.nodes[index:], self._ends[index:], strict=True):
            values[node.name] = self.network.settle(node, self._result(node, self._inputs(node, values)))
            for name in ends:
                del values[name]
        return values[self.network.graph.output]
