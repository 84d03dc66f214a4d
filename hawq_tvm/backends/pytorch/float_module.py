"""The float graph run in PyTorch: for calibration, the Hessian, and as the fp32 network beside the integer one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawq_tvm.core.float_ir import FloatGraph, FloatNode

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
        values = {self.graph.input_name: x}
        if tap is not None:
            tap(self.graph.input_name, x)
        for node in self.graph:
            given = weights.get(node.name) if weights is not None else None
            values[node.name] = self.evaluate(node, [values[name] for name in node.inputs], given)
            if tap is not None:
                tap(node.name, values[node.name])
        return values[self.graph.output]

    def evaluate(self, node: FloatNode, inputs: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
        """One node of the graph.

        Args:
            node: the node.
            inputs: float32 [N, ...] each.
            weight: other than its own.

        Returns:
            float32 [N, ...].
        """
        x = inputs[0]
        weight = self.constant(node.name, "weight") if weight is None else weight
        if node.kind == "conv2d":
            assert node.window is not None and weight is not None
            window = node.window
            symmetric = window.pads[:2] == window.pads[2:]
            padding: int | tuple[int, int] = (window.pads[0], window.pads[1]) if symmetric else 0
            x = x if symmetric else _pad(x, window.pads, 0.0)
            bias = self.constant(node.name, "bias")
            x = F.conv2d(x, weight, bias, window.strides, padding, window.dilations, node.groups)
        elif node.kind == "linear":
            assert weight is not None
            x = F.linear(x, weight, self.constant(node.name, "bias"))
        elif node.kind == "add":
            x = inputs[0] + inputs[1]
        elif node.kind == "concat":
            x = torch.cat(list(inputs), dim=1)
        elif node.kind == "max_pool2d":
            assert node.window is not None
            padded = _pad(x, node.window.pads, float("-inf"))
            x = F.max_pool2d(padded, node.window.kernel, node.window.strides, 0, node.window.dilations)
        elif node.kind == "avg_pool2d":
            counts = self.constant(node.name, "counts")
            assert node.window is not None and counts is not None
            padded = _pad(x, node.window.pads, 0.0)
            x = F.avg_pool2d(padded, node.window.kernel, node.window.strides, divisor_override=1) / counts
        elif node.kind == "global_avg_pool2d":
            x = x.mean((2, 3), keepdim=True)
        elif node.kind == "flatten":
            x = x.flatten(1)
        else:
            assert node.kind == "clip", f"no float form of {node.kind}"
        if len(inputs) == 2 and node.kind in ("conv2d", "linear"):
            x = x + inputs[1]
        return x if node.clip is None else x.clamp(node.clip.lo, node.clip.hi)


def _pad(x: Tensor, pads: tuple[int, int, int, int], value: float) -> Tensor:
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x
