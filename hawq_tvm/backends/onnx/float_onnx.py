"""The float graph as a plain ONNX model: the fp32 peer in benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hawq_tvm.backends.onnx.functions import IR_VERSION, OPSET, channel_pads
from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode


def to_float_onnx(graph: FloatGraph) -> ModelProto:
    """The graph in standard fp32 operators, its batch size free."""
    writer = _Writer()
    for node in graph:
        writer.add(node)
    shapes = graph.shapes
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shapes[name]])
        for name in (graph.input_name, graph.output)
    ]
    onnx_graph = helper.make_graph(writer.nodes, graph.name, ends[:1], ends[1:], writer.constants)
    model = helper.make_model(
        onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="hawq_tvm"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, node: FloatNode) -> None:
        """One node, with the residual and the clip that were fused into it spelt out."""
        steps: list[Callable[[list[str], str], None]] = [lambda x, y: self._operator(node, x, y)]
        if len(node.inputs) == 2 and node.weight is not None:
            steps.append(lambda x, y: self._emit("Add", [*x, node.inputs[1]], y))
        if node.clip is not None and node.kind != "clip":
            clip = node.clip
            steps.append(lambda x, y: self._clip(clip, x, y, node.name))
        inputs = list(node.inputs[:1] if node.weight is not None else node.inputs)
        for index, step in enumerate(steps):
            output = node.name if index == len(steps) - 1 else f"{node.name}/{index}"
            step(inputs, output)
            inputs = [output]

    def _operator(self, node: FloatNode, x: list[str], y: str) -> None:
        match node.kind:
            case "conv2d":
                self._emit("Conv", [*x, *self._weights(node)], y, **_window(node), group=node.groups)
            case "linear":
                self._emit("Gemm", [*x, *self._weights(node)], y, transB=1)
            case "add":
                self._emit("Add", x, y)
            case "concat":
                self._emit("Concat", x, y, axis=1)
            case "max_pool2d":
                self._emit("MaxPool", x, y, **_window(node))
            case "avg_pool2d":
                self._average(node, x, y)
            case "global_avg_pool2d":
                self._emit("GlobalAveragePool", x, y)
            case "flatten":
                self._emit("Flatten", x, y, axis=1)
            case "pad_channels":
                assert node.channel_pads is not None
                self._emit("Pad", [*x, self._constant(f"{y}/pads", channel_pads(*node.channel_pads))], y)
            case "clip":
                assert node.clip is not None
                self._clip(node.clip, x, y, node.name)
            case _:
                raise AssertionError(f"no ONNX form of {node.kind}")

    def _average(self, node: FloatNode, x: list[str], y: str) -> None:
        assert node.window is not None and node.counts is not None
        attributes = _window(node)
        size = int(np.prod(node.window.kernel))
        if any(pad >= node.window.kernel[axis % 2] for axis, pad in enumerate(node.window.pads)):
            # ONNX Runtime takes such pads of a convolution alone, and folds a Pad node into the pool
            channels = node.shape[0]
            share = np.full((channels, 1, *node.window.kernel), 1 / size, np.float32)
            self._emit("Conv", [*x, self._constant(f"{y}/share", share)], f"{y}/mean", **attributes, group=channels)
        else:
            del attributes["dilations"]
            self._emit("AveragePool", x, f"{y}/mean", **attributes, count_include_pad=1)
        factor = np.float32(size) / node.counts
        self._emit("Mul", [f"{y}/mean", self._constant(f"{y}/factor", factor)], y)

    def _clip(self, clip: Clip, x: list[str], y: str, name: str) -> None:
        if clip == Clip(0.0, np.inf):
            self._emit("Relu", x, y)
            return
        bounds = [
            self._constant(f"{name}/{part}", np.float32(value)) if np.isfinite(value) else ""
            for part, value in (("lo", clip.lo), ("hi", clip.hi))
        ]
        self._emit("Clip", [*x, *bounds], y)

    def _weights(self, node: FloatNode) -> list[str]:
        return [self._constant(f"{node.name}/{part}", getattr(node, part)) for part in ("weight", "bias")]

    def _constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _emit(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))


def _window(node: FloatNode) -> dict[str, Any]:
    window = node.window
    assert window is not None
    return {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "pads": window.pads,
        "dilations": window.dilations,
    }
