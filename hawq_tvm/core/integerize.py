"""The float graph, ranges and a bit configuration become the integer graph.

Every value gets one quantiser: its range at the most bits that a reader asks for. A layer that reads fewer gets a
`Requantize` in between. The values of a concatenation share its quantiser where nothing else reads them, so that
joining them copies integers. The network's result keeps 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.dyadic import round_half_up, to_dyadic
from hawq_tvm.core.errors import AllocationError, CalibrationError, GraphError
from hawq_tvm.core.float32_rescale import odd_multipliers
from hawq_tvm.core.float32_residual import residual_multipliers
from hawq_tvm.core.float_ir import PASS_THROUGH, WEIGHTED, Clip, FloatGraph, FloatNode
from hawq_tvm.core.ir import OUTPUT_TYPE, Graph, Node, Operator, Rescale, TensorType
from hawq_tvm.core.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PadChannels,
    Requantize,
)
from hawq_tvm.core.quantizer import (
    FloatArray,
    LayerWeights,
    RangeTable,
    cluster_weight,
    quantize_weight,
    weight_scales,
)
from hawq_tvm.core.specs import BitConfig

_BIAS_LIMIT = 2.0**30  # half of what the accumulator holds, the other half is the products'
_WIDE_SUM_STEPS = 2.0**16  # a sum that is the network's result keeps this many steps to the coarser branch's one


def integerize(
    graph: FloatGraph, ranges: RangeTable, bits: BitConfig, weights: Mapping[str, LayerWeights] | None = None
) -> Graph:
    """Quantise a network.

    Args:
        graph: from capture.
        ranges: of the input and of every value, by name.
        bits: weight and input-activation bits of every layer.
        weights: integers, scales and biases of layers, as rounding found them; a layer that is not among them gets
            max-abs scales and the nearest integers.

    Returns:
        The integer graph, checked, its overflow proofs included.

    Raises:
        AllocationError: a layer without bits, or bits for a layer that is not there; weights of other bits.
        CalibrationError: a dead layer, or a value without a range.
        OverflowRefused: a layer that could overflow, by name.
        GraphError: a scale ratio that no dyadic number carries, by layer.
    """
    return _Integerizer(graph, ActivationTypes(graph, ranges, bits), weights or {}).build()


class _Integerizer:
    """One walk over the float graph."""

    def __init__(self, graph: FloatGraph, activations: ActivationTypes, weights: Mapping[str, LayerWeights]) -> None:
        self.graph = graph
        self.activations = activations
        self.weights = weights
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}
        self.copies: dict[tuple[str, int], str] = {}

    def build(self) -> Graph:
        self.types[self.graph.input_name] = self.activations.type(self.graph.input_name)
        for node in self.graph:
            try:
                self._emit(node.name, *self._convert(node))
            except GraphError as error:
                raise GraphError(f"layer '{node.name}': {error}") from error
        input_type = self.types[self.graph.input_name]
        result = Graph(self.graph.name, self.graph.input_name, input_type, tuple(self.nodes), self.graph.output)
        result.check()
        return result

    def _emit(self, name: str, op: Operator, inputs: tuple[str, ...], type: TensorType) -> None:
        self.nodes.append(Node(name, op, inputs, type))
        self.types[name] = type

    def _read(self, layer: FloatNode) -> str:
        """The value that a layer reads, at its bits: the stored one, or a requantised copy, made once."""
        name = layer.inputs[0]
        stored, type = self.types[name], self.activations.reads(layer)
        if stored == type:
            return name
        key = name, type.dtype.bits
        if key not in self.copies:
            copy = self.copies[key] = self._free_name(f"{name}.{type.dtype}")
            multiplier, shift = to_dyadic([stored.scale / type.scale])
            rescale = Rescale(odd_multipliers(multiplier, shift), shift, type.dtype.lo, type.dtype.hi)
            self._emit(copy, Requantize(rescale), (name,), type)
        return self.copies[key]

    def _free_name(self, name: str) -> str:
        """The name, with as many underscores behind it as make it no layer's and no other copy's."""
        while name in self.graph.by_name or name in self.types:
            name += "_"
        return name

    # one node each

    def _convert(self, node: FloatNode) -> tuple[Operator, tuple[str, ...], TensorType]:
        if node.kind in WEIGHTED:
            return self._weighted(node)
        inputs = [self.types[name] for name in node.inputs]
        if node.kind in PASS_THROUGH:
            type = replace(inputs[0], shape=node.shape)
            if node.kind == "flatten":
                return Flatten(), node.inputs, type
            if node.kind == "pad_channels":
                assert node.channel_pads is not None
                return PadChannels(*node.channel_pads), node.inputs, type
            assert node.window is not None
            return MaxPool2d(node.window), node.inputs, type
        scales = np.array([x.scale for x in inputs])
        if node.kind in ("add", "concat", "clip"):
            finest = scales.max() / _WIDE_SUM_STEPS
            type = self._output(node, finest)
            rescale = self._rescale(node, type, scales / type.scale)
            op: Operator = Add(rescale) if node.kind == "add" else Concat(rescale)
            return (Requantize(rescale) if node.kind == "clip" else op), node.inputs, type
        if node.kind == "global_avg_pool2d":
            count = float(np.prod(inputs[0].shape[1:]))
            type = self._output(node, scales[0] / count)
            return GlobalAvgPool2d(self._rescale(node, type, scales / count / type.scale)), node.inputs, type
        assert node.kind == "avg_pool2d" and node.counts is not None and node.window is not None, node.kind
        counts = node.counts.astype(np.float64)
        counts = counts[:1, :1] if np.all(counts == counts[0, 0]) else counts
        type = self._output(node, scales[0] / counts.max())
        return AvgPool2d(node.window, self._rescale(node, type, scales[0] / counts / type.scale)), node.inputs, type

    def _output(self, node: FloatNode, wide_scale: float) -> TensorType:
        """The type of a node's result: its quantiser's, or 32 bits at `wide_scale` for the network's result."""
        if node.name == self.activations.wide:
            return TensorType(OUTPUT_TYPE, node.shape, float(wide_scale))
        return self.activations.type(node.name)

    def _rescale(
        self, node: FloatNode, type: TensorType, ratios: FloatArray, residual_ratio: float | None = None
    ) -> Rescale:
        """The dyadic form of the ratios, with the node's clip as integer bounds.

        Free-standing sums and the network's 32-bit result keep all 31 bits of their multipliers: no float32 holds what
        they round.
        """
        residual = None
        if residual_ratio is not None:
            joint, shift = to_dyadic([*ratios, residual_ratio])
            multiplier, residual = joint[:-1], joint[-1:]
            if type.dtype != OUTPUT_TYPE:
                multiplier, residual = residual_multipliers(multiplier, residual, shift)
        else:
            multiplier, shift = to_dyadic(ratios)
            if node.kind != "add" and type.dtype != OUTPUT_TYPE:
                multiplier = odd_multipliers(multiplier, shift)
        lo, hi = integer_bounds(type, node.clip)
        return Rescale(multiplier, shift, lo, hi, residual)

    def _weighted(self, node: FloatNode) -> tuple[Operator, tuple[str, ...], TensorType]:
        source = self._read(node)
        x = self.types[source]
        rounded = self._rounded(node, x.scale)
        accumulator_scales = rounded.scales * x.scale
        bias = round_half_up(rounded.bias / accumulator_scales).astype(np.int64)
        inputs: tuple[str, ...] = (source,)
        wide_scale, residual_ratio = accumulator_scales.max(), None
        if len(node.inputs) == 2:
            inputs = (source, node.inputs[1])
            wide_scale = max(wide_scale, self.types[node.inputs[1]].scale / _WIDE_SUM_STEPS)
        type = self._output(node, wide_scale)
        if len(node.inputs) == 2:
            residual_ratio = self.types[node.inputs[1]].scale / type.scale
        rescale = self._rescale(node, type, accumulator_scales / type.scale, residual_ratio)
        weight, bits, codebook = rounded.integers, rounded.format.carried_bits, rounded.codebook
        if node.kind == "linear":
            return Linear(weight, bits, bias, rescale, codebook=codebook), inputs, type
        assert node.window is not None
        return Conv2d(weight, bits, bias, rescale, node.window, node.groups, codebook=codebook), inputs, type

    def _rounded(self, node: FloatNode, input_scale: float) -> LayerWeights:
        """A layer's integers, as they are given or the nearest ones."""
        format = self.activations.bits.layers[node.name].format
        given = self.weights.get(node.name)
        if given is None:
            return round_to_nearest(node, format, input_scale)
        if given.format != format:
            raise AllocationError(
                f"layer '{node.name}' was rounded to {given.format} bits and is to have {format}; round it again"
            )
        return given.with_scales(np.maximum(given.scales, least_scales(given.bias, input_scale)))


def least_scales(bias: FloatArray, input_scale: float) -> FloatArray:
    """The least weight scales, float64 [out], at which biases fit the accumulator beside the products."""
    return np.asarray(np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT))


def check_alive(node: FloatNode) -> None:
    """Raise `CalibrationError` where a layer's weights or biases are not finite, or all its weights are 0."""
    assert node.weight is not None and node.bias is not None
    if not (np.isfinite(node.weight).all() and np.isfinite(node.bias).all()):
        raise CalibrationError(f"layer '{node.name}' holds weights or biases that are NaN or infinite")
    if not node.weight.any():
        raise CalibrationError(f"layer '{node.name}' is dead: all its weights are 0; prune it or check the checkpoint")


def round_to_nearest(node: FloatNode, format: WeightFormat, input_scale: float) -> LayerWeights:
    """Max-abs scales and the integers, or the values of the best codebook, nearest to the weights.

    Scales are raised where a channel's bias would not fit the accumulator. A channel of zeros (a batch norm with factor
    0) has no scale of its own and takes the layer's largest.

    Raises:
        CalibrationError: as `check_alive`.
    """
    check_alive(node)
    assert node.weight is not None and node.bias is not None
    scales = weight_scales(node.weight, format.carried_bits)
    scales = np.maximum(np.where(scales > 0, scales, scales.max()), least_scales(node.bias, input_scale))
    return round_at_scales(node, format, scales)


def round_at_scales(node: FloatNode, format: WeightFormat, scales: FloatArray) -> LayerWeights:
    """The integers, or the values of the best codebook, nearest to the weights at given scales, float64 [out]."""
    check_alive(node)
    assert node.weight is not None and node.bias is not None
    if format.codebook:
        integers, codebook = cluster_weight(node.weight, scales, format.bits)
        return LayerWeights(integers, scales, node.bias, format.bits, codebook)
    return LayerWeights(quantize_weight(node.weight, scales, format.bits), scales, node.bias, format.bits)


def integer_bounds(type: TensorType, clip: Clip | None) -> tuple[int, int]:
    """The least and the largest integer of a value: its type's, or the nearest to a clip's bounds within them."""
    lo, hi = type.dtype.lo, type.dtype.hi
    if clip is None:
        return lo, hi
    least, most = round_half_up(np.clip(np.array([clip.lo, clip.hi]) / type.scale, lo, hi))
    return int(least), int(most)
