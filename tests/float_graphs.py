"""Float graphs of a few nodes, written down by hand: no network, no capture."""

from __future__ import annotations

from typing import Any

import numpy as np

from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode
from hawq_tvm.core.ir import Window

INFINITE = float("inf")
POINT = Window((1, 1))
RELU = Clip(0.0, INFINITE)
SHAPE = (4, 6, 6)


def node(name: str, kind: str, *inputs: str, **fields: Any) -> FloatNode:
    """A node of any kind, by default of 4 channels of 6 x 6."""
    return FloatNode(name, kind, inputs, fields.pop("shape", SHAPE), **fields)


def conv(name: str, *inputs: str, groups: int = 1, window: Window = POINT, **fields: Any) -> FloatNode:
    """A convolution of 4 channels; its weights and biases differ by channel."""
    weight = np.linspace(-1, 1, 16 // groups * window.kernel[0] * window.kernel[1], dtype=np.float32)
    defaults = {
        "weight": weight.reshape(4, 4 // groups, *window.kernel),
        "bias": np.array([0.5, -0.25, 0.0, 2.0], np.float32),
    }
    return node(name, "conv2d", *inputs, window=window, groups=groups, **{**defaults, **fields})


def linear(name: str, *inputs: str, features: int = 4, **fields: Any) -> FloatNode:
    """A linear layer with 3 outputs."""
    weight = np.linspace(-0.7, 0.9, 3 * features, dtype=np.float32).reshape(3, features)
    return node(name, "linear", *inputs, shape=(3,), weight=weight, bias=np.array([0.1, 0.2, -3], np.float32), **fields)


def graph(*nodes: FloatNode, output: str | None = None) -> FloatGraph:
    """The graph of the nodes, the last of which is its result where nothing is said."""
    return FloatGraph("net", "x", SHAPE, nodes, output or nodes[-1].name)
