"""The float graph run in PyTorch: for calibration, the Hessian, and as the fp32 network beside the integer one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawq_tvm.core.float_ir import WEIGHTED, Clip, FloatGraph, FloatNode

Tap = Callable[[str, Tensor], None]
"""Called with each value's name and its float32 tensor [N, ...], the input's first."""


class FloatModule(nn.Module):
    """A float graph as a module. Weights are buffers: nothing trains here."""

    def __init__(self, graph: FloatGraph) -> None:
        super().__init__()
        self.graph = graph
        self._keys: dict[str, str] = {}
        for index, node in enumerate(graph):
            self._keys[node.name] = f"n{index}"
            for part, array in (("weight", node.weight), ("bias", node.bias), ("counts", node.counts)):
                tensor = None if array is None else torch.from_numpy(array.copy())
                self.register_buffer(f"n{index}_{part}", tensor)

    def constant(self, name: str, part: str) -> Tensor | None:
        """``weight``, ``bias`` or ``counts`` of a node, or None."""
        tensor: Tensor | None = getattr(self, f"{self._keys[name]}_{part}")
        return tensor

    def weights(self) -> dict[str, Tensor]:
        """The weight of every layer, by name."""
        found = {node.name: self.constant(node.name, "weight") for node in self.graph.layers}
        return {name: weight for name, weight in found.items() if weight is not None}

    def forward(self, x: Tensor, *, weights: Mapping[str, Tensor] | None = None, tap: Tap | None = None) -> Tensor:
        """Run the graph.

        Args:
            x: float32 [N, ...].
            weights: other weights for some layers, by name; the Hessian differentiates through them.
            tap: sees every value as it is made.

        Returns:
            float32, the graph's output.
        """
        given = weights or {}
        return run_nodes(self.graph, x, lambda node, inputs: self.result(node, inputs, given.get(node.name)), tap)

    def result(self, node: FloatNode, inputs: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
        """What one node makes of given inputs, its clip applied.

        Args:
            node: of the graph.
            inputs: float32 [N, ...] each, a residual last.
            weight: other than its own.

        Returns:
            float32 [N, ...]; may share its memory with an input.
        """
        own, bias, counts = (self.constant(node.name, part) for part in ("weight", "bias", "counts"))
        return clipped(evaluate(node, inputs, own if weight is None else weight, bias, counts), node.clip)


def run_nodes(
    graph: FloatGraph, x: Tensor, compute: Callable[[FloatNode, list[Tensor]], Tensor], tap: Tap | None = None
) -> Tensor:
    """Run a graph's nodes in their order, keeping no value longer than it is read.

    Args:
        graph: from capture.
        x: float32 [N, ...], the input's value.
        compute: makes a node's value of its inputs.
        tap: sees every value as it is made, the input's first.

    Returns:
        The output's value.
    """
    values = {graph.input_name: x}
    if tap is not None:
        tap(graph.input_name, x)
    for node, ends in zip(graph, graph.last_reads, strict=True):
        values[node.name] = compute(node, [values[name] for name in node.inputs])
        if tap is not None:
            tap(node.name, values[node.name])
        for name in ends:
            del values[name]
    return values[graph.output]


def clipped(x: Tensor, clip: Clip | None) -> Tensor:
    """`x` within the bounds of a clip, where there is one."""
    return x if clip is None else x.clamp(clip.lo, clip.hi)


def weighted(node: FloatNode, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum of products of a layer with weights: no residual, no clip.

    Args:
        node: a ``conv2d`` or ``linear``.
        x: float [N, ...], its first input.
        weight: of the dtype of `x`, in the shape of the node's.
        bias: [out], or None.

    Returns:
        [N, out, ...].
    """
    if node.kind == "linear":
        return F.linear(x, weight, bias)
    assert node.kind == "conv2d" and node.window is not None, node.kind
    window = node.window
    symmetric = window.pads[:2] == window.pads[2:]
    padding: int | tuple[int, int] = (window.pads[0], window.pads[1]) if symmetric else 0
    x = x if symmetric else _pad(x, window.pads, 0.0)
    return F.conv2d(x, weight, bias, window.strides, padding, window.dilations, node.groups)


def evaluate(
    node: FloatNode,
    inputs: Sequence[Tensor],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """The result of one node before its clip.

    Args:
        node: of a captured graph.
        inputs: float [N, ...] each, a residual last.
        weight: of a layer with weights.
        bias: of a layer with weights.
        counts: of an average pool.

    Returns:
        float [N, ...]; may share its memory with an input.
    """
    x = inputs[0]
    if node.kind in WEIGHTED:
        assert weight is not None
        x = weighted(node, x, weight, bias)
        return x + inputs[1] if len(inputs) == 2 else x
    if node.kind == "add":
        return inputs[0] + inputs[1]
    if node.kind == "concat":
        return torch.cat(list(inputs), dim=1)
    if node.kind == "max_pool2d":
        assert node.window is not None
        padded = _pad(x, node.window.pads, float("-inf"))
        return F.max_pool2d(padded, node.window.kernel, node.window.strides, 0, node.window.dilations)
    if node.kind == "avg_pool2d":
        assert node.window is not None and counts is not None
        padded = _pad(x, node.window.pads, 0.0)
        return F.avg_pool2d(padded, node.window.kernel, node.window.strides, divisor_override=1) / counts
    if node.kind == "global_avg_pool2d":
        return x.mean((2, 3), keepdim=True)
    if node.kind == "flatten":
        return x.flatten(1)
    if node.kind == "pad_channels":
        assert node.channel_pads is not None
        return F.pad(x, (0, 0, 0, 0, *node.channel_pads))
    assert node.kind == "clip", f"no float form of {node.kind}"
    return x


def _pad(x: Tensor, pads: tuple[int, int, int, int], value: float) -> Tensor:
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x
