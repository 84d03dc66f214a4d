"""The `hawq_tvm` domain: model-local ONNX functions whose bodies are standard operators of opset 21.

Any runtime that knows model-local functions computes the integer graph exactly; our own reader sees one node a layer.
Two things in the bodies are less than obvious:

- ONNX has no arithmetic right shift of signed integers (BitShift is unsigned, Div truncates), so ``r >> s`` is
  ``(r - Mod(r, 2^s)) / 2^s``, whose dividend is a multiple of the divisor.
- Weights enter ConvInteger as uint8 with zero-point 128, not as int8: the same sums, on a faster path of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

DOMAIN = "hawq_tvm"
DOMAIN_VERSION = 1
OPSET = 21
IR_VERSION = 10

_INT, _INTS = AttributeProto.INT, AttributeProto.INTS
_RESCALE = ("shift", "y_min", "y_max", "y_type")
_WINDOW = ("strides", "pads", "dilations", "group")


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [output], **attributes)


def _with(node: NodeProto, kind: AttributeProto.AttributeType, *names: str, **renamed: str) -> NodeProto:
    """Attributes of the node that take their values from the function's."""
    for name, source in {**{name: name for name in names}, **renamed}.items():
        node.attribute.append(AttributeProto(name=name, ref_attr_name=source, type=kind))
    return node


def _constant(name: str, dtype: TensorProto.DataType, *values: int) -> NodeProto:
    tensor = helper.make_tensor(name, dtype, [len(values)] if len(values) > 1 else [], values)
    return _node("Constant", [], name, value=tensor)


def _widen(value: str) -> NodeProto:
    return _node("Cast", [value], f"{value}_64", to=TensorProto.INT64)


def _rounding() -> list[NodeProto]:
    """``total`` (int64) to ``y``: the rounding law of `hawq_tvm.core.dyadic`."""
    return [
        _with(_node("Constant", [], "s"), _INT, value_int="shift"),
        _node("Cast", ["s"], "s_u", to=TensorProto.UINT64),
        _constant("one", TensorProto.UINT64, 1),
        _node("BitShift", ["one", "s_u"], "divisor_u", direction="LEFT"),
        _node("Cast", ["divisor_u"], "divisor", to=TensorProto.INT64),
        _node("BitShift", ["divisor_u", "one"], "half_u", direction="RIGHT"),
        _node("Cast", ["half_u"], "half", to=TensorProto.INT64),
        _node("Add", ["total", "half"], "r"),
        _node("Mod", ["r", "divisor"], "remainder", fmod=0),
        _node("Sub", ["r", "remainder"], "multiple"),
        _node("Div", ["multiple", "divisor"], "q"),
        _with(_node("Constant", [], "lo"), _INT, value_int="y_min"),
        _with(_node("Constant", [], "hi"), _INT, value_int="y_max"),
        _node("Clip", ["q", "lo", "hi"], "clipped"),
        _with(_node("Cast", ["clipped"], "y"), _INT, to="y_type"),
    ]


def _unsigned_weight(codebook: bool) -> list[NodeProto]:
    """``weight`` to ``w`` (uint8, zero-point ``w_zero`` = 128), and a zero ``x_zero`` of x's type.

    ``weight`` is int8 or int4; with a codebook, uint8 or uint4 indexes into ``codebook`` (int8).
    """
    integers = "weight"
    lookup: list[NodeProto] = []
    if codebook:
        integers = "decoded"
        lookup = [
            _node("Cast", ["weight"], "indexes", to=TensorProto.INT32),
            _node("Gather", ["codebook", "indexes"], integers, axis=0),
        ]
    return [
        *lookup,
        _node("Cast", [integers], "weight_32", to=TensorProto.INT32),
        _constant("offset", TensorProto.INT32, 128),
        _node("Add", ["weight_32", "offset"], "weight_offset"),
        _node("Cast", ["weight_offset"], "w", to=TensorProto.UINT8),
        _constant("w_zero", TensorProto.UINT8, 128),
        _constant("zero", TensorProto.INT32, 0),
        _node("CastLike", ["zero", "x"], "x_zero"),
    ]


def _finish(residual: bool) -> list[NodeProto]:
    """``accumulator`` (int32) to ``y``: bias, multiplier, residual, rounding."""
    nodes = [
        _node("Add", ["accumulator", "bias"], "biased"),
        _widen("biased"),
        _node("Mul", ["biased_64", "multiplier"], "product" if residual else "total"),
    ]
    if residual:
        nodes += [
            _widen("residual"),
            _node("Mul", ["residual_64", "residual_multiplier"], "residual_product"),
            _node("Add", ["product", "residual_product"], "total"),
        ]
    return nodes + _rounding()


def _function(
    name: str, inputs: Sequence[str], nodes: Sequence[NodeProto], attributes: Sequence[str] = _RESCALE
) -> FunctionProto:
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, list(inputs), ["y"], list(nodes), opsets, list(attributes))


def weighted_function(kind: str, *, codebook: bool, residual: bool) -> str:
    """The function of a `kind` of layer, ``QConv2d`` or ``QLinear``, with the inputs that it has."""
    return f"{kind}{'Codebook' if codebook else ''}{'Add' if residual else ''}"


def _weighted_inputs(codebook: bool, residual: bool) -> list[str]:
    further = [*(["codebook"] if codebook else []), *(["residual", "residual_multiplier"] if residual else [])]
    return ["x", "weight", "bias", "multiplier", *further]


def _conv(codebook: bool, residual: bool) -> FunctionProto:
    convolution = _node("ConvInteger", ["x", "w", "x_zero", "w_zero"], "accumulator")
    _with(convolution, _INTS, "strides", "pads", "dilations")
    _with(convolution, _INT, "group")
    name = weighted_function("QConv2d", codebook=codebook, residual=residual)
    nodes = [*_unsigned_weight(codebook), convolution, *_finish(residual)]
    return _function(name, _weighted_inputs(codebook, residual), nodes, _RESCALE + _WINDOW)


def _linear(codebook: bool, residual: bool) -> FunctionProto:
    multiply = [
        _node("Transpose", ["w"], "w_t", perm=[1, 0]),
        _node("MatMulInteger", ["x", "w_t", "x_zero", "w_zero"], "accumulator"),
    ]
    name = weighted_function("QLinear", codebook=codebook, residual=residual)
    nodes = [*_unsigned_weight(codebook), *multiply, *_finish(residual)]
    return _function(name, _weighted_inputs(codebook, residual), nodes)


def _requantize() -> FunctionProto:
    nodes = [_widen("x"), _node("Mul", ["x_64", "multiplier"], "total"), *_rounding()]
    return _function("QRequantize", ["x", "multiplier"], nodes)


def _add() -> FunctionProto:
    nodes = [
        *(_widen("a"), _node("Mul", ["a_64", "a_multiplier"], "a_product")),
        *(_widen("b"), _node("Mul", ["b_64", "b_multiplier"], "b_product")),
        _node("Add", ["a_product", "b_product"], "total"),
        *_rounding(),
    ]
    return _function("QAdd", ["a", "a_multiplier", "b", "b_multiplier"], nodes)


def concat_function(count: int) -> FunctionProto:
    """``QConcat<count>``: functions have a fixed number of inputs, so there is one for each number of branches."""
    nodes: list[NodeProto] = []
    for i in range(count):
        nodes += [_widen(f"x{i}"), _node("Mul", [f"x{i}_64", f"m{i}"], f"product{i}")]
    nodes += [_node("Concat", [f"product{i}" for i in range(count)], "total", axis=1), *_rounding()]
    inputs = [name for i in range(count) for name in (f"x{i}", f"m{i}")]
    return _function(f"QConcat{count}", inputs, nodes)


def _avg_pool() -> FunctionProto:
    """The window sum is a depthwise ConvInteger with weights of 1, given as ``ones`` uint8 [C, 1, kh, kw]."""
    convolution = _with(_node("ConvInteger", ["x", "ones"], "sum"), _INTS, "strides", "pads")
    _with(convolution, _INT, "group")
    nodes = [convolution, _widen("sum"), _node("Mul", ["sum_64", "multiplier"], "total"), *_rounding()]
    return _function("QAvgPool2d", ["x", "ones", "multiplier"], nodes, (*_RESCALE, "strides", "pads", "group"))


def _global_avg_pool() -> FunctionProto:
    nodes = [
        _widen("x"),
        _constant("axes", TensorProto.INT64, 2, 3),
        _node("ReduceSum", ["x_64", "axes"], "sum", keepdims=1),
        _node("Mul", ["sum", "multiplier"], "total"),
        *_rounding(),
    ]
    return _function("QGlobalAvgPool2d", ["x", "multiplier"], nodes)


def channel_pads(before: int, after: int) -> NDArray[np.int64]:
    """What ONNX's Pad takes for channels of zeros around those of [N, C, H, W]: before the axes, then behind."""
    return np.array([0, before, 0, 0, 0, after, 0, 0], np.int64)


FUNCTIONS: dict[str, FunctionProto] = {
    function.name: function
    for function in (
        *(make(*given) for make in (_conv, _linear) for given in product((False, True), repeat=2)),
        _requantize(),
        _add(),
        _avg_pool(),
        _global_avg_pool(),
    )
}
"""The functions by name; `concat_function` makes the rest."""
