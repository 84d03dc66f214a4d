"""Channels that are the same number whatever the input, and their removal from the layers that read them.

Training leaves channels behind whose weights are all 0, or whose ReLU never opens. Nothing holds the weights that read
such a channel, nor the factor of a batch norm over it, which is ``1 / sqrt(eps)``, 316 times the usual, where the
variance is 0. In integers those weights would set the scale of their whole row, for a product that is always the same.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.float_ir import WEIGHTED, FloatGraph, FloatNode

Constants = NDArray[np.float64]
"""What each channel of a value always is, [C]; NaN where that depends on the input."""


def fold_constant_channels(graph: FloatGraph) -> FloatGraph:
    """The weights of channels that never change become 0; what they added goes into the bias.

    ``W x + b = W' x + (W_c c + b)`` for channels that are always c. Where a convolution pads with zeros, only channels
    that are always 0 are the same at the border too. A layer that would be left without weights keeps them.
    """
    known: dict[str, Constants] = {graph.input_name: np.full(graph.input_shape[0], np.nan)}
    nodes = []
    for node in graph:
        inputs = [known[name] for name in node.inputs]
        node = _without_constants(node, inputs[0]) if node.weight is not None else node
        known[node.name] = _clipped(node, _constants(node, inputs))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _without_constants(node: FloatNode, x: Constants) -> FloatNode:
    """A layer, or an affine, that reads the constant channels no more."""
    assert node.weight is not None and node.bias is not None
    padded = node.window is not None and any(node.window.pads)
    known = x == 0 if padded else np.isfinite(x)
    if not known.any():
        return node
    if node.kind == "affine":
        offset = node.weight * np.where(known, x, 0.0)
        weight = np.where(known, 0.0, node.weight)
    else:
        rows = weights_by_group(node)
        mask = known.reshape(node.groups, 1, -1, 1)
        offset = (rows * np.where(mask, x.reshape(mask.shape), 0.0)).sum(axis=(2, 3)).reshape(-1)
        weight = np.where(mask, 0.0, rows).reshape(node.weight.shape)
        if not weight.any():
            return node
    bias = (node.bias + offset).astype(np.float32)
    return replace(node, weight=weight.astype(np.float32), bias=bias)


def weights_by_group(node: FloatNode) -> NDArray[np.float64]:
    """A layer's weights as float64 [groups, out / groups, in / groups, kernel]."""
    assert node.weight is not None
    out, columns = node.weight.shape[:2]
    kernel = prod(node.weight.shape[2:])
    return node.weight.astype(np.float64).reshape(node.groups, out // node.groups, columns, kernel)


def _constants(node: FloatNode, inputs: list[Constants]) -> Constants:
    """What is known of a node's channels, before its clip."""
    x = inputs[0]
    if node.kind == "affine":
        assert node.weight is not None and node.bias is not None
        return np.where(node.weight == 0, node.bias.astype(np.float64), np.nan)
    if node.kind in WEIGHTED:
        assert node.bias is not None
        unread = ~weights_by_group(node).any(axis=(2, 3)).reshape(-1)
        found = np.where(unread, node.bias.astype(np.float64), np.nan)
        return found + inputs[1] if len(inputs) == 2 else found
    if node.kind == "add":
        return inputs[0] + inputs[1]
    if node.kind == "concat":
        return np.concatenate(inputs)
    if node.kind == "pad_channels":
        assert node.channel_pads is not None
        return np.pad(x, node.channel_pads)
    if node.kind == "flatten":
        return np.repeat(x, node.shape[0] // len(x))
    if node.kind in ("pad", "avg_pool2d"):  # which add zeros at the border, or divide by another number there
        return np.where(x == 0, 0.0, np.nan)
    return x


def _clipped(node: FloatNode, x: Constants) -> Constants:
    return x if node.clip is None else np.clip(x, node.clip.lo, node.clip.hi)
