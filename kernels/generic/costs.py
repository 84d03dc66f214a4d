"""What the CPU kernels cost: for each, a linear model in the work that a request asks for.

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
        macs: multiply-accumulates, or elements that a window or a sum looks at; a vector's empty lanes count too.
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
    "conv2d nchw": Rates(0.0083, 0.2708, 0.3122),
    "conv2d nchw pixels": Rates(0.0269, 0.0, 0.4723),
    "linear": Rates(0.029, 0.0),
    "pool nchw": Rates(0.0, 0.218, 0.1876),
    "global pool nchw": Rates(0.0371, 0.0),
    "elementwise nchw": Rates(0.0278, 0.0127),
    "concat nchw": Rates(0.0428, 0.0),
    "pad channels nchw": Rates(0.0, 0.0116),
    "conv2d nhwc": Rates(0.0081, 0.0469),
    "conv2d nhwc depthwise": Rates(0.0192, 0.0),
    "max pool nhwc": Rates(0.0004, 0.0117),
    "avg pool nhwc": Rates(0.0107, 0.0439),
    "elementwise nhwc": Rates(0.0268, 0.0171),
    "concat nhwc": Rates(0.0409, 0.0),
    "pad channels nhwc": Rates(0.0, 0.0041),
    "global pool nhwc": Rates(0.0094, 0.0),
    "conv2d vnni": Rates(0.0018, 0.013),
    "conv2d vnni residual": Rates(0.0018, 0.0512),
    "conv2d vnni w4": Rates(0.0018, 0.022),
    "conv2d vnni w4 residual": Rates(0.0018, 0.056),
    "winograd vnni": Rates(0.0039, 0.12, 0.016),
    "winograd vnni residual": Rates(0.0039, 0.158, 0.016),
    "depthwise vnni": Rates(0.0, 0.0189, 0.0078),
    "max pool dot": Rates(0.0008, 0.002),
    "avg pool dot": Rates(0.0, 0.0304),
    "global pool dot": Rates(0.0046, 0.0),
    "requantize dot": Rates(0.02, 0.0),
    "add dot": Rates(0.0322, 0.0019),
    "linear vnni": Rates(0.0053, 0.0),
    "linear vnni w4": Rates(0.0022, 0.0),
    "convert to pixels avx512": Rates(0.0, 0.0042),
    "convert to nhwc": Rates(0.0, 0.1309),
    "convert to nchw": Rates(0.0, 0.1599),
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


def empty_lanes(lanes: int, request: Request) -> int:
    """How many times as long arithmetic takes on vectors of so many lanes as on full ones."""
    return max(1, request.vector_bits // 32 // lanes)


def weighted_macs(request: Request) -> int:
    """Multiply-accumulates of a node with weights, the batch counted."""
    op = request.node.op
    assert isinstance(op, WeightedOperator)
    return request.batch * op.macs(request.node.type)
