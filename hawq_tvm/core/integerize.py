"""The float graph, ranges and a bit configuration become the integer graph.

Every value gets one quantiser: its range at the most bits that a reader asks for. A layer that reads fewer gets a
`Requantize` in between. The values of a concatenation share its quantiser where nothing else reads them, so that
joining them copies integers. The network's result keeps 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from hawq_tvm.core.dyadic import round_half_up, to_dyadic
from hawq_tvm.core.errors import AllocationError, CalibrationError, GraphError
from hawq_tvm.core.float_ir import PASS_THROUGH, WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.ir import OUTPUT_TYPE, Graph, Node, Operator, Rescale, TensorType
from hawq_tvm.core.ops import Add, AvgPool2d, Concat, Conv2d, Flatten, GlobalAvgPool2d, Linear, MaxPool2d, Requantize
from hawq_tvm.core.quantizer import FloatArray, Range, activation_scale, activation_type, quantize_weight, weight_scales
from hawq_tvm.core.specs import BitConfig, Bits

RESIDUAL_BITS = 8
"""The bits of a value that a sum reads: rounding it coarser would cost more accuracy than the memory is worth."""

_WIDENED = (*WEIGHTED, "add", "avg_pool2d", "global_avg_pool2d")
_BIAS_LIMIT = 2.0**30  # half of what the accumulator holds, the other half is the products'
_WIDE_SUM_STEPS = 2.0**16  # a sum that is the network's result keeps this many steps to the coarser branch's one


def integerize(graph: FloatGraph, ranges: Mapping[str, Range], bits: BitConfig) -> Graph:
    """Quantise a network.

    Args:
        graph: from capture.
        ranges: of the input and of every value, by name.
        bits: weight and input-activation bits of every layer.

    Returns:
        The integer graph, checked, its overflow proofs included.

    Raises:
        AllocationError: a layer without bits, or bits for a layer that is not there.
        CalibrationError: a dead layer, or a value without a range.
        OverflowRefused: a layer that could overflow, by name.
        GraphError: a scale ratio that no dyadic number carries, by layer.
    """
    names = [layer.name for layer in graph.layers]
    missing = [name for name in names if name not in bits.layers]
    unknown = [name for name in bits.layers if name not in names]
    if missing or unknown:
        what = f"no bits for layer '{missing[0]}'" if missing else f"bits for unknown layer '{unknown[0]}'"
        raise AllocationError(f"the bit configuration has {what}; the layers are {', '.join(names)}")
    return _Integerizer(graph, ranges, bits.layers).build()


class _Integerizer:
    """One walk over the float graph."""

    def __init__(self, graph: FloatGraph, ranges: Mapping[str, Range], bits: Mapping[str, Bits]) -> None:
        self.graph = graph
        self.ranges = ranges
        self.bits = bits
        self.nonnegative = graph.nonnegative()
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}
        self.copies: dict[tuple[str, int], str] = {}

    def build(self) -> Graph:
        self.types[self.graph.input_name] = self._quantizer(self.graph.input_name, self.graph.input_shape)
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

    # which bits and scale a value is stored at

    @cached_property
    def _wide(self) -> str | None:
        """The value that becomes the network's result and keeps 32 bits; None where a max-pool stands behind it."""
        table = self.graph.by_name
        node = table.get(self.graph.output)
        while node is not None and node.kind == "flatten":
            node = table.get(node.inputs[0])
        return node.name if node is not None and node.kind in _WIDENED else None

    @cached_property
    def _stored_bits(self) -> dict[str, int]:
        """The most bits that any reader of a value asks for."""
        stored: dict[str, int] = {}
        users = self.graph.users
        for name in [*(node.name for node in reversed(self.graph.nodes)), self.graph.input_name]:
            wanted = [self._wanted(user, name, stored) for user in users[name]]
            stored[name] = max(wanted, default=8)
        return stored

    def _wanted(self, user: FloatNode, name: str, stored: Mapping[str, int]) -> int:
        if user.kind in WEIGHTED:
            residual = len(user.inputs) == 2 and user.inputs[1] == name
            activation = self.bits[user.name].activation if user.inputs[0] == name else 0
            return max(activation, RESIDUAL_BITS if residual else 0)
        if user.kind == "add" or user.name == self._wide:
            return RESIDUAL_BITS
        return stored[user.name]

    @cached_property
    def _owner(self) -> dict[str, str]:
        """For values that only a concatenation reads, that concatenation: they share its quantiser."""
        users = self.graph.users
        owner: dict[str, str] = {}
        for name in [*(node.name for node in reversed(self.graph.nodes)), self.graph.input_name]:
            readers, value = users[name], name
            while len(readers) == 1 and readers[0].kind in PASS_THROUGH:
                value = readers[0].name
                readers = users[value]
            if len(readers) == 1 and readers[0].kind == "concat" and value != self.graph.output:
                owner[name] = owner.get(readers[0].name, readers[0].name)
        return owner

    def _quantizer(self, name: str, shape: tuple[int, ...], bits: int | None = None) -> TensorType:
        """The type of a value stored at `bits`, by default at its own."""
        owner = self._owner.get(name, name)
        if owner not in self.ranges:
            raise CalibrationError(f"no range for '{owner}'; calibrate this network, or add it to the ranges")
        dtype = activation_type(self._stored_bits[owner] if bits is None else bits, self.nonnegative[owner])
        scale = activation_scale(self.ranges[owner], dtype)
        if not scale > 0:
            raise CalibrationError(
                f"'{owner}' has the range {self.ranges[owner]}: a dead layer; check weights and data"
            )
        return TensorType(dtype, shape, scale)

    def _at_bits(self, name: str, bits: int) -> str:
        """The value at that many bits: itself, or its requantised copy, made once."""
        stored = self.types[name]
        if stored.dtype.bits == bits:
            return name
        source = self.graph.source(name)
        type = self._quantizer(source, stored.shape, bits)
        if (name, bits) not in self.copies:
            copy = self.copies[name, bits] = self._free_name(f"{name}.{type.dtype}")
            multiplier, shift = to_dyadic([stored.scale / type.scale])
            rescale = Rescale(multiplier, shift, type.dtype.lo, type.dtype.hi)
            self._emit(copy, Requantize(rescale), (name,), type)
        return self.copies[name, bits]

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
        if node.name == self._wide:
            return TensorType(OUTPUT_TYPE, node.shape, float(wide_scale))
        return self._quantizer(node.name, node.shape)

    def _rescale(
        self, node: FloatNode, type: TensorType, ratios: FloatArray, residual_ratio: float | None = None
    ) -> Rescale:
        """The dyadic form of the ratios, with the node's clip as integer bounds."""
        if residual_ratio is None:
            multiplier, shift = to_dyadic(ratios)
            residual = None
        else:
            joint, shift = to_dyadic([*ratios, residual_ratio])
            multiplier, residual = joint[:-1], joint[-1:]
        lo, hi = type.dtype.lo, type.dtype.hi
        if node.clip is not None:
            lo, hi = (_clamped(bound / type.scale, lo, hi) for bound in (node.clip.lo, node.clip.hi))
        return Rescale(multiplier, shift, lo, hi, residual)

    def _weighted(self, node: FloatNode) -> tuple[Operator, tuple[str, ...], TensorType]:
        assert node.weight is not None and node.bias is not None
        bits = self.bits[node.name]
        source = self._at_bits(node.inputs[0], bits.activation)
        x = self.types[source]
        scales = _safe_scales(node, bits.weight, x.scale)
        accumulator_scales = scales * x.scale
        bias = round_half_up(node.bias / accumulator_scales).astype(np.int64)
        inputs: tuple[str, ...] = (source,)
        wide_scale, residual_ratio = accumulator_scales.max(), None
        if len(node.inputs) == 2:
            inputs = (source, node.inputs[1])
            wide_scale = max(wide_scale, self.types[node.inputs[1]].scale / _WIDE_SUM_STEPS)
        type = self._output(node, wide_scale)
        if len(node.inputs) == 2:
            residual_ratio = self.types[node.inputs[1]].scale / type.scale
        rescale = self._rescale(node, type, accumulator_scales / type.scale, residual_ratio)
        weight = quantize_weight(node.weight, scales, bits.weight)
        if node.kind == "linear":
            return Linear(weight, bits.weight, bias, rescale), inputs, type
        assert node.window is not None
        return Conv2d(weight, bits.weight, bias, rescale, node.window, node.groups), inputs, type


def _clamped(value: float, lo: int, hi: int) -> int:
    """Round half up to an integer within lo..hi; infinities allowed."""
    return int(round_half_up(np.clip(np.float64(value), lo, hi)))


def _safe_scales(node: FloatNode, bits: int, input_scale: float) -> FloatArray:
    """Max-abs weight scales, raised where a channel's bias would not fit the accumulator.

    A channel of zeros (a batch norm with factor 0) has no scale of its own and takes the layer's largest.
    """
    assert node.weight is not None and node.bias is not None
    if not (np.isfinite(node.weight).all() and np.isfinite(node.bias).all()):
        raise CalibrationError(f"layer '{node.name}' holds weights or biases that are NaN or infinite")
    scales = weight_scales(node.weight, bits)
    if not scales.any():
        raise CalibrationError(f"layer '{node.name}' is dead: all its weights are 0; prune it or check the checkpoint")
    floor = np.abs(node.bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT)
    return np.maximum(np.where(scales > 0, scales, scales.max()), floor)
