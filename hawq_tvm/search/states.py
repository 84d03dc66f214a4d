"""What HAQ's agent sees of a network: eight numbers a layer that stay, and two that an episode fills in.

    0 depthwise   1 in channels   2 out channels   3 stride   4 kernel   5 weights   6 input pixels   7 index
    8 the last action's bits, a share of the most   9 whether weights are asked for now, or the activation

The first eight are brought to 0..1 over the layers, each by its least and greatest.

Source: HAQ (arXiv 1811.08886), section 3.1, as its published environment computes them (``_build_state_embedding``).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from hawq_tvm.core.float_ir import FloatGraph, FloatNode
from hawq_tvm.core.ir import Shape

FIXED = 8
"""How many numbers of a layer stay through an episode."""


def layer_states(graph: FloatGraph) -> Mapping[str, tuple[float, ...]]:
    """The fixed numbers of every layer, 0..1 each, by name in the network's order.

    Args:
        graph: from capture.
    """
    shapes = graph.shapes
    table = np.array([_numbers(node, shapes[node.inputs[0]], i) for i, node in enumerate(graph.layers)], np.float64)
    least, span = table.min(axis=0), np.ptp(table, axis=0)
    scaled = np.divide(table - least, span, out=table.copy(), where=span > 0)  # one that is the same for all stays
    return {node.name: tuple(map(float, row)) for node, row in zip(graph.layers, scaled, strict=True)}


def _numbers(node: FloatNode, read: Shape, index: int) -> tuple[float, ...]:
    assert node.weight is not None
    out, kernel = node.weight.shape[0], node.weight.shape[2:]
    weights = node.weight.size
    if node.kind == "linear":
        return 0.0, node.weight.shape[1], out, 0.0, 1.0, weights, 1.0, index
    assert node.window is not None
    channels = read[0]
    depthwise = float(node.groups == channels)
    return depthwise, channels, out, node.window.strides[0], kernel[0], weights, prod(read[1:]), index
