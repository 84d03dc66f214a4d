"""Max, average and global average pooling, channels last: vectors of channels, window by window."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Window
from hawq_tvm.core.ops import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from hawq_tvm.kernels.generic.acceptance import refuse_filling_up
from hawq_tvm.kernels.generic.costs import Work, cost
from hawq_tvm.kernels.generic.expressions import Expr, int64, rescale
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, channels_last, framed_rows, lanes_of, local
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _images(request: Request, x: Any, y: Any) -> tuple[Image, Image]:
    node, found = request.node, request.alternatives
    return Image(x, request.inputs[0], found[node.inputs[0]]), Image(y, node.type, found[node.name])


def _parameters(request: Request) -> tuple[Any, Any]:
    node, found = request.node, request.alternatives
    return (
        stored_parameter("x", request.inputs[0], found[node.inputs[0]], request.batch),
        stored_parameter("y", node.type, found[node.name], request.batch),
    )


def _over_windows(
    request: Request,
    window: Window,
    images: tuple[Image, Image],
    accumulator: tuple[str, int],
    combine: Callable[[Expr, Expr], Expr],
    finish: Callable[[Expr, Expr, Expr], Expr],
) -> None:
    """Every window's taps combined, vector by vector; `accumulator` is a dtype and what it starts as."""
    (x, y), (dtype, start) = images, accumulator
    (sy, sx), (dy, dx), (kh, kw), (top, left, _, _) = window.strides, window.dilations, window.kernel, window.pads
    lanes = lanes_of(y.channels, max(request.vector_bits // (32 if dtype == "int32" else 8), 4))

    def row(n: Expr, _block: Expr, h: Expr) -> None:
        taken = local((lanes,), dtype)
        with T.serial(y.type.shape[2]) as w, T.serial(y.channels // lanes) as part:
            with T.vectorized(lanes) as lane:
                T.buffer_store(taken, tirx.const(start, dtype), [lane])
            with T.serial(kh) as ry, T.serial(kw) as rx, T.vectorized(lanes) as lane:
                value = x[n, part * lanes + lane, h * sy + ry * dy - top, w * sx + rx * dx - left]
                T.buffer_store(taken, combine(taken[lane], value.astype(dtype)), [lane])
            with T.vectorized(lanes) as lane:
                y.store(finish(taken[lane], h, w), n, part * lanes + lane, h, w)

    elements = request.batch * prod(request.inputs[0].shape)
    framed_rows(y, row, batch=request.batch, threads=elements >= MIN_ELEMENTS)


def _refuse_max(request: Request) -> str | None:
    op, type = request.node.op, request.inputs[0]
    assert isinstance(op, MaxPool2d)
    if any(op.window.pads) and type.dtype.signed:
        return f"its padding is the frame's zeros, which are not the least values of {type.dtype}"
    return None


def _build_max(request: Request) -> BuiltKernel:
    op, x_type = request.node.op, request.inputs[0]
    assert isinstance(op, MaxPool2d)
    carrier = x_type.dtype.carrier
    lowest = int(np.iinfo(carrier).min)

    def body(x: Any, y: Any) -> None:
        images = _images(request, x, y)
        _over_windows(request, op.window, images, (carrier, lowest), te.max, lambda value, h, w: value)

    return BuiltKernel(function(_parameters(request), body), ())


def _refuse_average(request: Request) -> str | None:
    op, node = request.node.op, request.node
    assert isinstance(op, AvgPool2d)
    return refuse_filling_up(request.alternatives[node.name], node.type, op.rescale)


def _build_average(request: Request) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, AvgPool2d)
    shared = op.rescale.multiplier.shape == (1, 1)
    x_parameter, y_parameter = _parameters(request)

    def body(x: Any, multiplier: Any, y: Any) -> None:
        def finish(total: Expr, h: Expr, w: Expr) -> Expr:
            factor = multiplier[0, 0] if shared else multiplier[h, w]
            return rescale(int64(total) * factor, op.rescale, request.node.type.dtype)

        images = _images(request, x, y)
        _over_windows(request, op.window, images, ("int32", 0), lambda total, value: total + value, finish)

    multiplier = op.rescale.multiplier
    built = function([x_parameter, ("multiplier", multiplier.shape, "int64"), y_parameter], body)
    return BuiltKernel(built, (multiplier,))


def _build_global(request: Request) -> BuiltKernel:
    """Writes NCHW: a pixel of channels is the same either way."""
    op, x_type, output = request.node.op, request.inputs[0], request.node.type
    assert isinstance(op, GlobalAvgPool2d)
    storage = request.alternatives[request.node.inputs[0]]
    (channels, height, width), batch = x_type.shape, request.batch

    def body(x: Any, multiplier: Any, y: Any) -> None:
        image = Image(x, x_type, storage)
        lanes = lanes_of(image.channels, max(request.vector_bits // 32, 4))
        parts = image.channels // lanes
        threads = batch * prod(x_type.shape) >= MIN_ELEMENTS
        with (T.parallel if threads else T.serial)(batch * parts) as task:
            n, part, sums = task // parts, task % parts, local((lanes,), "int32")
            with T.vectorized(lanes) as lane:
                T.buffer_store(sums, tirx.const(0, "int32"), [lane])
            with T.serial(height) as h, T.serial(width) as w, T.vectorized(lanes) as lane:
                T.buffer_store(sums, sums[lane] + image[n, part * lanes + lane, h, w].astype("int32"), [lane])
            with T.serial(lanes) as lane:
                channel = part * lanes + lane
                with T.If(channel < channels), T.Then():
                    value = rescale(int64(sums[lane]) * multiplier[0], op.rescale, output.dtype)
                    T.buffer_store(y, value, [n, channel, 0, 0])

    parameters = [
        stored_parameter("x", x_type, storage, batch),
        ("multiplier", (1,), "int64"),
        ("y", (batch, channels, 1, 1), output.dtype.carrier),
    ]
    return BuiltKernel(function(parameters, body), (op.rescale.multiplier,))


def _window_cost(request: Request) -> float:
    op, type = request.node.op, request.node.type
    assert isinstance(op, MaxPool2d | AvgPool2d)
    storage = request.alternatives[request.node.name]
    taps = request.batch * prod(type.shape[1:]) * storage.channels(type) * prod(op.window.kernel)
    rates = "max pool nhwc" if isinstance(op, MaxPool2d) else "avg pool nhwc"
    return cost(rates, request, Work(taps, storage.size_bytes(type, request.batch)))


def _global_cost(request: Request) -> float:
    storage = request.alternatives[request.node.inputs[0]]
    outputs = request.batch * request.node.type.shape[0]
    return cost("global pool nhwc", request, Work(storage.size_bytes(request.inputs[0], request.batch), outputs))


MAX_POOL2D_NHWC = Kernel(
    "max_pool2d_generic_nhwc", channels_last(MaxPool2d, _window_cost, _build_max, refuse=_refuse_max)
)
AVG_POOL2D_NHWC = Kernel(
    "avg_pool2d_generic_nhwc", channels_last(AvgPool2d, _window_cost, _build_average, refuse=_refuse_average)
)
GLOBAL_AVG_POOL2D_NHWC = Kernel(
    "global_avg_pool2d_generic_nhwc",
    channels_last(GlobalAvgPool2d, _global_cost, _build_global, writes_canonical=True),
)
