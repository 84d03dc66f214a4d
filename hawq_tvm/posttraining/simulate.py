"""The integer network in reals: float32 values that lie on the grids of the integers that they stand for.

A value of an integer graph is ``scale * q`` with an integer q. Here each value is computed in float32 from inputs on
their grids and brought to its own by the same rule, ``q = clip(floor(x / scale + 1/2), lo, hi)``, with the clip's
bounds rounded as `hawq_tvm.core.integerize` rounds them. It takes a float convolution a layer, needs no integer
weights, and can stop after any layer.

What differs: sums of float32 instead of exact ones, and scale ratios that are not rounded to 31 bits, so that an
element within that of a tie may fall to the other side; and biases, which are real here unless the caller rounds them.
The integer graph's lie on the grid of the accumulator, ``weight scale * input scale``: at 8 bits far finer than a step,
at 4 bits about a twentieth of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import Tap, clipped, evaluate, run_nodes
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.float_ir import PASS_THROUGH, WEIGHTED, Clip, FloatGraph, FloatNode
from hawq_tvm.core.integerize import integer_bounds
from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import BitConfig, Bits


@dataclass(frozen=True)
class Grid:
    """The reals that a quantised value can be: ``scale * q`` with ``lo <= q <= hi``."""

    scale: float
    lo: int
    hi: int

    @classmethod
    def of(cls, type: TensorType, clip: Clip | None = None) -> Grid:
        """The grid of a type, ended at the integers nearest to a clip's bounds."""
        return cls(type.scale, *integer_bounds(type, clip))

    def nearest(self, x: Tensor) -> Tensor:
        """The points of the grid nearest to float32 `x`, ties up; a new tensor."""
        return (x / self.scale).add_(0.5).floor_().clamp_(self.lo, self.hi).mul_(self.scale)


class SimulatedNetwork:
    """A float graph that computes what its integer graph would.

    Attributes:
        graph: from capture.
        types: which integers each value becomes.
        weights: float32 by layer, on their grid or not; may be changed between calls.
        biases: float32 [out] by layer; may be changed between calls.
    """

    def __init__(
        self,
        graph: FloatGraph,
        types: ActivationTypes,
        weights: Mapping[str, Tensor] | None = None,
        biases: Mapping[str, Tensor] | None = None,
        *,
        bring: Callable[[Grid, Tensor], Tensor] = Grid.nearest,
    ) -> None:
        """Look at a network.

        Args:
            graph: from capture.
            types: of its values.
            weights: instead of the graph's own, for some layers.
            biases: the same.
            bring: brings values to a grid.

        Raises:
            CalibrationError: a value without a range, or with that of a dead layer.
        """
        self.graph = graph
        self.types = types
        self.weights = {**_constants(graph, "weight"), **(weights or {})}
        self.biases = {**_constants(graph, "bias"), **(biases or {})}
        self._counts = _constants(graph, "counts")
        self._bring = bring
        self._reads = {layer.name: Grid.of(types.reads(layer)) for layer in graph.layers}
        self._input = Grid.of(types.type(graph.input_name))
        self._grids = {
            node.name: Grid.of(types.type(node.name), node.clip)
            for node in graph
            if node.kind not in PASS_THROUGH and node.name != types.wide
        }

    def start(self, x: Tensor) -> Tensor:
        """The network's input on its grid.

        Args:
            x: float32 [N, ...].
        """
        return self._bring(self._input, x)

    def reads(self, node: FloatNode, x: Tensor) -> Tensor:
        """What a layer with weights reads of its first input: a copy at its bits where that is stored at more.

        Args:
            node: the layer.
            x: float32 [N, ...], its first input as it is stored.
        """
        stored = self.types.stored_bits[self.types.owner(self.graph.source(node.inputs[0]))]
        narrower = self.types.bits.layers[node.name].activation < stored
        return self._bring(self._reads[node.name], x) if narrower else x

    def node(self, node: FloatNode, inputs: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
        """One node's result on its grid; that of the network's last sum is left in reals.

        Args:
            node: of the graph.
            inputs: float32 [N, ...] each, as they are stored.
            weight: instead of the network's own.

        Returns:
            float32 [N, ...]; of a max-pool or a flatten, whose integers are their input's, it may share its memory.
        """
        if node.kind in WEIGHTED:
            inputs = [self.reads(node, inputs[0]), *inputs[1:]]
        name = node.name
        weight = self.weights.get(name) if weight is None else weight
        return self.settle(node, evaluate(node, inputs, weight, self.biases.get(name), self._counts.get(name)))

    def settle(self, node: FloatNode, result: Tensor) -> Tensor:
        """A node's result, before its clip, brought to its grid; that of the network's last sum is only clipped."""
        grid = self._grids.get(node.name)
        return clipped(result, node.clip) if grid is None else self._bring(grid, result)

    @torch.no_grad()
    def __call__(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """Run the network.

        Args:
            x: float32 [N, ...], real.
            tap: sees every value on its grid as it is made, the input's first.

        Returns:
            float32 [N, ...], the graph's output.
        """
        return run_nodes(self.graph, self.start(x), self.node, tap)


def input_grids(graph: FloatGraph, ranges: RangeTable, widths: Iterable[int]) -> dict[str, dict[int, Grid]]:
    """What every layer reads its first input on, by layer and width.

    Args:
        graph: from capture.
        ranges: of the input and of every value.
        widths: of activations.

    Raises:
        CalibrationError: a value without a range, or with that of a dead layer.
    """
    names = tuple(layer.name for layer in graph.layers)
    types = {bits: ActivationTypes(graph, ranges, BitConfig.uniform(names, Bits(8, bits))) for bits in widths}
    return {layer.name: {bits: Grid.of(found.reads(layer)) for bits, found in types.items()} for layer in graph.layers}


def _constants(graph: FloatGraph, part: str) -> dict[str, Tensor]:
    """``weight``, ``bias`` or ``counts`` of every node that has them, copied."""
    arrays = {node.name: getattr(node, part) for node in graph}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array is not None}
