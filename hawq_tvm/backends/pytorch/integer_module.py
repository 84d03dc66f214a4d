"""The integer graph run in PyTorch, exactly, at the speed of float convolutions.

A float32 convolution is exact while every partial sum is an integer under 2^24. The bound is proved per layer from the
weights and the input type; where it is reached, input channels are split until each part keeps it, and the parts are
added in int64. A channel that alone reaches it, and a grouped convolution, run in float64. `check_exact_float32` shows
once a process that this machine's float32 convolution really is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.ir import Array, Graph, Node, Rescale, TensorType, Window
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

EXACT_LIMIT = 2**24
"""float32 holds every integer up to this magnitude."""


class IntegerModule(nn.Module):
    """An integer graph as a module from real inputs to logits; `values` gives every layer's integers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        graph.check()
        check_exact_float32()
        self.graph = graph
        types = graph.types
        self._parts = {
            node.name: _exact_parts(node.op, types[node.inputs[0]])
            for node in graph
            if isinstance(node.op, WeightedOperator)
        }

    def forward(self, x: Tensor) -> Tensor:
        """Logits of real inputs.

        Args:
            x: float32 [N, ...].

        Returns:
            float32, the graph's output times its scale.
        """
        result = self.values(self.quantize(x), keep=False)[self.graph.output]
        return (result.double() * self.graph.output_type.scale).float()

    def quantize(self, x: Tensor) -> Tensor:
        """`hawq_tvm.core.interpreter.quantize_input`, on tensors."""
        return quantized(x, self.graph.input_type)

    @torch.no_grad()
    def values(self, x: Tensor, *, keep: bool = True) -> dict[str, Tensor]:
        """Every value's integers.

        Args:
            x: [N, ...] in the carrier dtype of the graph's input.
            keep: whether values that nothing reads any more are kept; the output always is.

        Returns:
            Tensors in their carrier dtypes, by name.
        """
        last_use = {name: index for index, node in enumerate(self.graph.nodes) for name in node.inputs}
        values = {self.graph.input_name: x}
        for index, node in enumerate(self.graph.nodes):
            inputs = [values[name] for name in node.inputs]
            values[node.name] = self.evaluate(node, inputs)
            if not keep:
                for name in node.inputs:
                    if last_use[name] == index and name != self.graph.output:
                        values.pop(name, None)
        return values

    def run(self, x: Array) -> dict[str, Array]:
        """`values` from numpy to numpy: what `verify` calls."""
        return {name: value.numpy() for name, value in self.values(torch.from_numpy(x)).items()}

    @torch.no_grad()
    def evaluate(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """One node of the graph.

        Args:
            node: the node.
            inputs: integers [N, ...] each, in the carrier dtypes of what it reads.

        Returns:
            Integers [N, ...] in the carrier dtype of its type.
        """
        return self._evaluate(node, inputs).to(_DTYPES[node.type.dtype.carrier])

    def _evaluate(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        op, x = node.op, inputs[0]
        match op:
            case Conv2d() | Linear():
                total = self._accumulate(node.name, op, x)
                shape = (1, -1) + (1,) * (total.ndim - 2)
                total.add_(_constant(op.bias).view(shape)).mul_(_constant(op.rescale.multiplier).view(shape))
                if op.rescale.residual is not None:
                    total.addcmul_(inputs[1].long(), _constant(op.rescale.residual).view(shape))
                return _rescale(total, op.rescale)
            case Add():
                first, second = (y.long() * int(m) for y, m in zip(inputs, op.rescale.multiplier, strict=True))
                return _rescale(first + second, op.rescale)
            case Concat():
                terms = [y.long() * int(m) for y, m in zip(inputs, op.rescale.multiplier, strict=True)]
                return _rescale(torch.cat(terms, dim=1), op.rescale)
            case Requantize():
                return _rescale(x.long() * int(op.rescale.multiplier[0]), op.rescale)
            case MaxPool2d():
                padded = _pad(x.float(), op.window, float("-inf"))
                return F.max_pool2d(padded, op.window.kernel, op.window.strides, 0, op.window.dilations)
            case AvgPool2d():
                padded = _pad(x.double(), op.window, 0.0)
                sums = F.avg_pool2d(padded, op.window.kernel, op.window.strides, divisor_override=1)
                return _rescale(sums.long() * _constant(op.rescale.multiplier), op.rescale)
            case GlobalAvgPool2d():
                return _rescale(x.sum((2, 3), keepdim=True) * int(op.rescale.multiplier[0]), op.rescale)
            case Flatten():
                return x.flatten(1)
            case PadChannels():
                return F.pad(x, (0, 0, 0, 0, op.before, op.after))
        raise AssertionError(f"no PyTorch form of {op.kind}")

    def _accumulate(self, name: str, op: WeightedOperator, x: Tensor) -> Tensor:
        """The int64 accumulator, from float products of proved parts."""
        result: Tensor | None = None
        for channels, weight in self._parts[name]:
            part = x[:, channels].to(weight.dtype)
            if isinstance(op, Conv2d):
                part = _pad(part, op.window, 0.0)
                part = F.conv2d(part, weight, None, op.window.strides, 0, op.window.dilations, op.groups)
            else:
                part = F.linear(part, weight)
            result = part.long() if result is None else result.add_(part.long())
        assert result is not None
        return result


def quantized(x: Tensor, type: TensorType) -> Tensor:
    """Reals as the integers nearest to them, ties up, clipped to a type.

    Args:
        x: float32 [N, ...].
        type: its dtype and scale.

    Returns:
        [N, ...] in the carrier dtype.
    """
    q = torch.floor(x.double() / type.scale + 0.5).clamp_(type.dtype.lo, type.dtype.hi)
    return q.to(_DTYPES[type.dtype.carrier])


_DTYPES = {"int8": torch.int8, "uint8": torch.uint8, "int32": torch.int32}


def _constant(array: Array) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def _rescale(total: Tensor, rescale: Rescale) -> Tensor:
    """The rounding law; consumes `total`."""
    return total.add_(1 << (rescale.shift - 1)).bitwise_right_shift_(rescale.shift).clamp_(rescale.lo, rescale.hi)


def _pad(x: Tensor, window: Window, value: float) -> Tensor:
    top, left, bottom, right = window.pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(window.pads) else x


def _exact_parts(op: WeightedOperator, x: TensorType) -> list[tuple[slice, Tensor]]:
    """Slices of the input channels, with their weights, whose products sum exactly in the weights' dtype.

    That is float32 where the bound allows it, and float64, exact for any accumulator, where channels cannot be split.
    """
    channels = op.weight.shape[1]
    magnitudes = np.abs(op.weight.astype(np.int64)).reshape(op.out_channels, channels, -1).sum(axis=2)
    magnitudes *= x.dtype.magnitude
    weight = torch.from_numpy(op.weight.astype(np.float32))
    if magnitudes.sum(axis=1).max() < EXACT_LIMIT:
        return [(slice(None), weight)]
    if isinstance(op, Conv2d) and op.groups > 1:
        # a group's channels lie apart in the input, so one split does not serve all
        return [(slice(None), weight.double())]
    parts, start = [], 0
    while start < channels:
        running = np.cumsum(magnitudes[:, start:], axis=1).max(axis=0)
        width = int(np.searchsorted(running, EXACT_LIMIT))
        part = slice(start, start + max(1, width))
        parts.append((part, weight[:, part].contiguous() if width else weight[:, part].double()))
        start = part.stop
    return parts


@cache
def check_exact_float32() -> None:
    """Show that float32 convolution and matrix product are exact here, on sums that come close to 2^24.

    Raises:
        RuntimeModuleError: they are not, as where PyTorch was told to use bfloat16 or TF32 inside.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(128, 256, (2, 50, 12, 12), generator=generator).double()
    w = torch.randint(120, 128, (32, 50, 3, 3), generator=generator).double()
    w[::2] *= -1
    exact = F.conv2d(x, w, padding=1)
    rows, columns = x.reshape(2 * 50, -1)[:, :100], w.reshape(32, -1)[:, :100]
    assert exact.abs().max() < EXACT_LIMIT
    same = torch.equal(F.conv2d(x.float(), w.float(), padding=1).double(), exact) and torch.equal(
        F.linear(rows.float(), columns.float()).double(), F.linear(rows, columns)
    )
    if not same:
        raise RuntimeModuleError(
            "float32 convolutions are not exact in this process; undo torch.set_float32_matmul_precision() and "
            "torch.backends settings that allow bfloat16 or TF32"
        )
