"""What the generic kernels cost: for each, a linear model in the work that a request asks for.

    microseconds = (macs x macs_ns + outputs x output_ns + copied x copied_ns) / 1000 + CALL_US

The rates are fitted to kernels timed on one thread with warm caches (`benchmarks/storage_costs.py` prints them); they
are of one machine with 512-bit vectors, and arithmetic is scaled to the width at hand. Only their ratios decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hawq_tvm.core.ir import Window
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.kernels.interface import Request

CALL_US = 1.0
"""A call through the virtual machine."""


@dataclass(frozen=True)
class Work:
    """What a kernel does in a call.

    Attributes:
        macs: multiply-accumulates, or elements that a window or a sum looks at.
        outputs: elements written, frames and channels that fill up counted.
        copied: elements of an input that are copied before they are read.
    """

    macs: int
    outputs: int
    copied: int = 0


@dataclass(frozen=True)
class Rates:
    """Nanoseconds for each unit of `Work` with 512-bit vectors."""

    macs_ns: float
    output_ns: float
    copied_ns: float = 0.0

    def microseconds(self, work: Work, vector_bits: int) -> float:
        macs_ns = self.macs_ns * 512 / min(vector_bits, 512)
        total = work.macs * macs_ns + work.outputs * self.output_ns + work.copied * self.copied_ns
        return total / 1e3 + CALL_US


RATES: dict[str, Rates] = {
    "conv2d nchw": Rates(0.0082, 0.3, 0.2),
    "conv2d nchw pixels": Rates(0.03, 0.3, 0.2),
    "linear": Rates(0.01, 1.0),
    "pool nchw": Rates(0.3, 0.3, 0.2),
    "global pool nchw": Rates(0.1, 1.0),
    "elementwise nchw": Rates(0.1, 0.1),
    "concat nchw": Rates(0.3, 0.3),
}
"""By kernel and storage; `pixels` are convolutions whose groups have too few channels to fill a vector."""


def window_work(request: Request, window: Window) -> Work:
    """Of a pool over windows: every tap of every output, and a copy of the input where it is padded."""
    outputs = request.batch * prod(request.node.type.shape)
    return Work(outputs * prod(window.kernel), outputs, padded_copy(request, window))


def padded_copy(request: Request, window: Window) -> int:
    """Elements of the copy that pads the input; none where there is nothing to pad."""
    channels, height, width = request.inputs[0].shape
    top, left, bottom, right = window.pads
    size = request.batch * channels * (height + top + bottom) * (width + left + right)
    return size if any(window.pads) else 0


def elementwise_work(request: Request) -> Work:
    """Of a kernel that reads every input once."""
    inputs = sum(prod(x.shape) for x in request.inputs)
    return Work(request.batch * inputs, request.batch * prod(request.node.type.shape))


def cost(rates: str, request: Request, work: Work) -> float:
    """Estimated microseconds of some work at the rates of that name."""
    return RATES[rates].microseconds(work, request.vector_bits)


def weighted_macs(request: Request) -> int:
    """Multiply-accumulates of a node with weights, the batch counted."""
    op = request.node.op
    assert isinstance(op, WeightedOperator)
    return request.batch * op.macs(request.node.type)
