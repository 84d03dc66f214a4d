"""The integer graph as an ONNX file and back.

Written: one `hawq_tvm` function node a layer (`onnx_functions`), weights of up to 4 bits as packed INT4 initialisers,
types and scales as JSON in the model's metadata, with the graph's fingerprint. Read: the same graph, to the bit, or a
`ModelFileError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hawq_tvm.backends.onnx.functions import (
    DOMAIN,
    DOMAIN_VERSION,
    FUNCTIONS,
    IR_VERSION,
    OPSET,
    channel_pads,
    concat_function,
    weighted_function,
)
from hawq_tvm.core.codebook import indexes_of
from hawq_tvm.core.errors import GraphError, ModelFileError, first_line
from hawq_tvm.core.ir import Array, Graph, IntType, Node, Operator, Rescale, TensorType, Window
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
    WeightedOperator,
)
from hawq_tvm.core.strict_json import JsonReader

FORMAT = 1
_METADATA = "hawq_tvm"
_ELEMENTS = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}


# writing


def to_onnx(graph: Graph) -> ModelProto:
    """The graph as an ONNX model, checked by ONNX's full checker.

    Args:
        graph: a checked graph.

    Returns:
        A model of opset 21 whose batch size is free.
    """
    model = _model(graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def _model(graph: Graph) -> ModelProto:
    writer = _Writer(graph)
    for node in graph:
        writer.add(node)
    values = {name: writer.value_info(name) for name in graph.types}
    inner = [values[node.name] for node in graph if node.name != graph.output]
    onnx_graph = helper.make_graph(
        writer.nodes,
        graph.name,
        [values[graph.input_name]],
        [values[graph.output]],
        writer.initializers,
        value_info=inner,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(
        onnx_graph,
        opset_imports=opsets,
        functions=list(writer.functions.values()),
        ir_version=IR_VERSION,
        producer_name="hawq_tvm",
    )
    helper.set_model_props(model, {_METADATA: json.dumps(_metadata(graph))})
    return model


def _metadata(graph: Graph) -> dict[str, Any]:
    weight_bits = {node.name: node.op.weight_bits for node in graph if isinstance(node.op, WeightedOperator)}
    return {
        "format": FORMAT,
        "fingerprint": graph.fingerprint(),
        "types": {name: repr(type.dtype) for name, type in graph.types.items()},
        "scales": {name: type.scale for name, type in graph.types.items()},
        "weight_bits": weight_bits,
    }


class _Writer:
    """Collects ONNX nodes, initialisers and the functions they need."""

    def __init__(self, graph: Graph) -> None:
        self.types = graph.types
        self.taken = set(self.types)
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.functions: dict[str, onnx.FunctionProto] = {}

    def value_info(self, name: str) -> onnx.ValueInfoProto:
        type = self.types[name]
        return helper.make_tensor_value_info(name, _ELEMENTS[type.dtype.carrier], ["batch", *type.shape])

    def add(self, node: Node) -> None:
        op = node.op
        match op:
            case Conv2d() | Linear():
                self._weighted(node, op)
            case Requantize() | GlobalAvgPool2d():
                name = "QRequantize" if isinstance(op, Requantize) else "QGlobalAvgPool2d"
                self._call(node, name, [node.inputs[0], self._scalar(node, "multiplier", op.rescale.multiplier[0])])
            case Add():
                first, second = self._multipliers(node, op.rescale)
                self._call(node, "QAdd", [node.inputs[0], first, node.inputs[1], second])
            case Concat():
                pairs = zip(node.inputs, self._multipliers(node, op.rescale), strict=True)
                self._call(node, f"QConcat{len(node.inputs)}", [name for pair in pairs for name in pair])
            case AvgPool2d():
                channels = self.types[node.inputs[0]].shape[0]
                ones = self._constant(node, "ones", np.ones((channels, 1, *op.window.kernel), np.uint8))
                multiplier = self._constant(node, "multiplier", op.rescale.multiplier)
                sliding: dict[str, Any] = {"strides": op.window.strides, "pads": op.window.pads, "group": channels}
                self._call(node, "QAvgPool2d", [node.inputs[0], ones, multiplier], **sliding)
            case MaxPool2d():
                window = {"kernel_shape": op.window.kernel, **_window_attributes(op.window)}
                self.nodes.append(helper.make_node("MaxPool", node.inputs, [node.name], node.name, **window))
            case Flatten():
                self.nodes.append(helper.make_node("Flatten", node.inputs, [node.name], node.name, axis=1))
            case PadChannels():
                pads = self._constant(node, "pads", channel_pads(op.before, op.after))
                self.nodes.append(helper.make_node("Pad", [*node.inputs, pads], [node.name], node.name))
            case _:
                raise AssertionError(f"no ONNX form of {op.kind}")

    def _weighted(self, node: Node, op: WeightedOperator) -> None:
        channel = (-1, 1, 1) if isinstance(op, Conv2d) else (-1,)
        inputs = [
            node.inputs[0],
            self._constant(node, "weight", _stored_weight(op)),
            self._constant(node, "bias", op.bias.reshape(channel)),
            self._constant(node, "multiplier", op.rescale.multiplier.reshape(channel)),
        ]
        if op.codebook is not None:
            inputs.append(self._constant(node, "codebook", op.codebook))
        if op.rescale.residual is not None:
            inputs += [node.inputs[1], self._constant(node, "residual", op.rescale.residual.reshape(channel))]
        kind, residual = "QConv2d" if isinstance(op, Conv2d) else "QLinear", op.rescale.residual is not None
        name = weighted_function(kind, codebook=op.codebook is not None, residual=residual)
        window = {**_window_attributes(op.window), "group": op.groups} if isinstance(op, Conv2d) else {}
        self._call(node, name, inputs, **window)

    def _call(self, node: Node, function: str, inputs: list[str], **attributes: Any) -> None:
        """A function node with the attributes of the node's rescale."""
        rescale = node.op.rescale_or_none
        assert rescale is not None
        is_concat = function.startswith("QConcat")
        self.functions[function] = concat_function(len(node.inputs)) if is_concat else FUNCTIONS[function]
        attributes |= {
            "shift": rescale.shift,
            "y_min": rescale.lo,
            "y_max": rescale.hi,
            "y_type": _ELEMENTS[node.type.dtype.carrier],
        }
        self.nodes.append(helper.make_node(function, inputs, [node.name], node.name, domain=DOMAIN, **attributes))

    def _constant(self, node: Node, part: str, values: Array) -> str:
        name = f"{node.name}.{part}"
        while name in self.taken:  # a layer may be called conv.bias
            name += "_"
        self.taken.add(name)
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def _scalar(self, node: Node, part: str, value: int) -> str:
        return self._constant(node, part, np.array(value, np.int64))

    def _multipliers(self, node: Node, rescale: Rescale) -> list[str]:
        return [self._scalar(node, f"multiplier{i}", value) for i, value in enumerate(rescale.multiplier)]


def _stored_weight(op: WeightedOperator) -> Array:
    """Weights, or their places in the codebook, two of up to 4 bits in a byte."""
    narrow = op.format.bits <= 4
    if op.codebook is None:
        return op.weight.astype(ml_dtypes.int4) if narrow else op.weight
    indexes = indexes_of(op.weight, op.codebook)
    return indexes.astype(ml_dtypes.uint4) if narrow else indexes


def _window_attributes(window: Window) -> dict[str, Any]:
    return {"strides": window.strides, "pads": window.pads, "dilations": window.dilations}


# reading


def read_onnx(path: Path) -> Graph:
    """Read a file that `to_onnx` made.

    Args:
        path: of the file.

    Returns:
        The graph, checked.

    Raises:
        ModelFileError: the file is missing, truncated, corrupted, not ours or of another format.
    """
    return from_onnx(load_model(path), str(path))


def load_model(path: Path) -> ModelProto:
    """An ONNX file as it stands, whoever wrote it, and no other file.

    ONNX lets a tensor name another file that holds its values. None of ours does, and a file that somebody else wrote
    must not choose which files are read here.

    Raises:
        ModelFileError: the file is missing, no ONNX file, or a tensor anywhere in it, in functions, subgraphs and
            sparse tensors too, has its values elsewhere.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist; compile the run first") from None
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{path} is not a whole ONNX file ({first_line(error)}); write it again with hawq-tvm compile"
        ) from None
    _refuse_values_elsewhere(model, str(path))
    return model


def _refuse_values_elsewhere(model: ModelProto, source: str) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelFileError(
                f"{source} has the values of tensor {tensor.name!r} in another file, which is not read; write it again "
                "with hawq-tvm compile"
            )


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor in a message, however deep; protobuf itself bounds the depth."""
    if isinstance(message, TensorProto):
        yield message
    for _, value in message.ListFields():
        for part in value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,):
            if isinstance(part, Message):
                yield from _tensors(part)
            else:
                break  # numbers and texts, of which a field may hold millions


def from_onnx(model: ModelProto, source: str = "the model") -> Graph:
    """The graph that a model holds; see `read_onnx`.

    A runtime computes what nodes and functions say, of which the reader extracts a part: so the model must be the one
    that `to_onnx` makes of the graph, and the graph must have the fingerprint that was stored.
    """
    _refuse_values_elsewhere(model, source)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if _METADATA not in properties:
        raise ModelFileError(
            f"{source} was not written by hawq_tvm (its producer is '{model.producer_name}'); "
            "give hawq-tvm the PyTorch network instead"
        )
    try:
        reader = JsonReader(f"{source} is corrupted or changed", ModelFileError, "write it again with hawq-tvm compile")
        found = reader.parse(properties[_METADATA].encode())
        if reader.take(found, _Format)["format"] != FORMAT:
            raise ModelFileError(f"{source} has format {found['format']}, this version reads {FORMAT}; export it again")
        metadata: _Metadata = reader.take(found, _Metadata)
        graph = _Reader(model, metadata).graph()
        graph.check()
        if graph.fingerprint() != metadata["fingerprint"]:
            raise ValueError("its fingerprint does not match")
        written = _model(graph)
        for part in ("graph", "functions", "opset_import"):
            if getattr(model, part) != getattr(written, part):
                raise ValueError(f"its {part} differs from what hawq_tvm writes for this network")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, GraphError) as error:
        raise ModelFileError(
            f"{source} is corrupted or changed ({error}); write it again with hawq-tvm compile"
        ) from error
    return graph


class _Format(TypedDict):
    """What every format of the metadata has."""

    format: int


class _Metadata(_Format):
    """What `_metadata` writes."""

    fingerprint: str
    types: Mapping[str, str]
    scales: Mapping[str, float]
    weight_bits: Mapping[str, int]


class _Reader:
    """Turns ONNX nodes back into graph nodes; `_READERS` says how."""

    def __init__(self, model: ModelProto, metadata: _Metadata) -> None:
        self.model = model
        self.metadata = metadata
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self.shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]) for value in values
        }

    def graph(self) -> Graph:
        nodes = tuple(self._node(node) for node in self.model.graph.node)
        source = self.model.graph.input[0].name
        return Graph(self.model.graph.name, source, self._type(source), nodes, self.model.graph.output[0].name)

    def _type(self, name: str) -> TensorType:
        return TensorType(
            IntType.parse(self.metadata["types"][name]), self.shapes[name], float(self.metadata["scales"][name])
        )

    def _node(self, node: NodeProto) -> Node:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        reader = _READERS["QConcat" if node.op_type.startswith("QConcat") else node.op_type]
        op, inputs = reader(self, node, attributes)
        return Node(node.output[0], op, tuple(inputs), self._type(node.output[0]))

    def array(self, name: str) -> Array:
        return numpy_helper.to_array(self.constants[name])

    def rescale(self, attributes: Mapping[str, Any], *multipliers: str, residual: str | None = None) -> Rescale:
        return Rescale(
            np.concatenate([self.array(name).reshape(-1) for name in multipliers]),
            attributes["shift"],
            attributes["y_min"],
            attributes["y_max"],
            None if residual is None else self.array(residual).reshape(-1),
        )


_Read = tuple[Operator, list[str]]


def _read_weighted(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    x, weight, bias, multiplier, *rest = node.input
    codebook = reader.array(rest.pop(0)) if "Codebook" in node.op_type else None
    rescale = reader.rescale(attributes, multiplier, residual=rest[1] if rest else None)
    weights = reader.array(weight)
    weights = weights.astype(np.int8) if codebook is None else codebook[weights.astype(np.int64)]
    bits = int(reader.metadata["weight_bits"][node.output[0]])
    biases = reader.array(bias).reshape(-1)
    inputs = [x, *rest[:1]]
    if node.op_type.startswith("QLinear"):
        return Linear(weights, bits, biases, rescale, codebook=codebook), inputs
    window = _read_window(attributes, weights.shape[2:])
    return Conv2d(weights, bits, biases, rescale, window, attributes["group"], codebook=codebook), inputs


def _read_window(attributes: Mapping[str, Any], kernel: tuple[int, ...]) -> Window:
    top, left, bottom, right = attributes["pads"]
    dilations = tuple(attributes.get("dilations", (1, 1)))
    return Window(
        (int(kernel[0]), int(kernel[1])),
        (attributes["strides"][0], attributes["strides"][1]),
        (top, left, bottom, right),
        (dilations[0], dilations[1]),
    )


def _read_requantize(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    return Requantize(reader.rescale(attributes, node.input[1])), [node.input[0]]


def _read_global(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    return GlobalAvgPool2d(reader.rescale(attributes, node.input[1])), [node.input[0]]


def _read_add(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    return Add(reader.rescale(attributes, node.input[1], node.input[3])), [node.input[0], node.input[2]]


def _read_concat(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    return Concat(reader.rescale(attributes, *node.input[1::2])), list(node.input[0::2])


def _read_avg_pool(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    ones, multiplier = (reader.array(name) for name in node.input[1:])
    rescale = Rescale(multiplier, attributes["shift"], attributes["y_min"], attributes["y_max"])
    return AvgPool2d(_read_window(attributes, ones.shape[2:]), rescale), [node.input[0]]


def _read_max_pool(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    return MaxPool2d(_read_window(attributes, tuple(attributes["kernel_shape"]))), [node.input[0]]


def _read_flatten(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    return Flatten(), [node.input[0]]


def _read_pad_channels(reader: _Reader, node: NodeProto, attributes: Mapping[str, Any]) -> _Read:
    pads = reader.array(node.input[1])
    return PadChannels(int(pads[1]), int(pads[5])), [node.input[0]]


_READERS: dict[str, Callable[[_Reader, NodeProto, Mapping[str, Any]], _Read]] = {
    **{name: _read_weighted for name in FUNCTIONS if name.startswith(("QConv2d", "QLinear"))},
    "QRequantize": _read_requantize,
    "QGlobalAvgPool2d": _read_global,
    "QAdd": _read_add,
    "QConcat": _read_concat,
    "QAvgPool2d": _read_avg_pool,
    "MaxPool": _read_max_pool,
    "Flatten": _read_flatten,
    "Pad": _read_pad_channels,
}
