"""Max, average and global average pooling, NCHW, one channel of one image at a time."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import s_tir, te

from hawq_tvm.core.ir import Window
from hawq_tvm.core.ops import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from hawq_tvm.kernels.generic.acceptance import canonical
from hawq_tvm.kernels.generic.costs import Work, cost, padded_copy, window_work
from hawq_tvm.kernels.generic.expressions import Expr, int64, padded, rescale
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS, spread
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _input(request: Request) -> Any:
    x = request.inputs[0]
    return te.placeholder((request.batch, *x.shape), x.dtype.carrier, name="x")


def _taps(window: Window) -> tuple[Any, Any]:
    return te.reduce_axis((0, window.kernel[0]), "ry"), te.reduce_axis((0, window.kernel[1]), "rx")


def _build_max(request: Request) -> BuiltKernel:
    op, output = request.node.op, request.node.type
    assert isinstance(op, MaxPool2d)
    x = _input(request)
    window = op.window
    source = padded(x, window.pads, int(np.iinfo(str(x.dtype)).min)) if any(window.pads) else x
    (sy, sx), (dy, dx), (ry, rx) = window.strides, window.dilations, _taps(window)

    def largest(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        return te.max(source[n, c, h * sy + ry * dy, w * sx + rx * dx], axis=[ry, rx])

    y = te.compute((request.batch, *output.shape), largest, name="y")
    return BuiltKernel(_over_channels(request, te.create_prim_func([x, y]), "y", source is not x), ())


def _build_average(request: Request) -> BuiltKernel:
    op, output = request.node.op, request.node.type
    assert isinstance(op, AvgPool2d)
    x = _input(request)
    source = padded(x, op.window.pads, 0) if any(op.window.pads) else x
    (sy, sx), (ry, rx) = op.window.strides, _taps(op.window)
    multiplier = te.placeholder(op.rescale.multiplier.shape, "int64", name="multiplier")
    shared = op.rescale.multiplier.shape == (1, 1)

    def total(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        return te.sum(source[n, c, h * sy + ry, w * sx + rx].astype("int32"), axis=[ry, rx])

    shape = (request.batch, *output.shape)
    sums = te.compute(shape, total, name="sums")

    def result(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        factor = multiplier[0, 0] if shared else multiplier[h, w]
        return rescale(int64(sums[n, c, h, w]) * factor, op.rescale, output.dtype)

    y = te.compute(shape, result, name="y")
    function = _over_channels(request, te.create_prim_func([x, multiplier, y]), "sums", source is not x)
    return BuiltKernel(function, (op.rescale.multiplier,))


def _build_global(request: Request) -> BuiltKernel:
    op, output = request.node.op, request.node.type
    assert isinstance(op, GlobalAvgPool2d)
    x = _input(request)
    _, height, width = request.inputs[0].shape
    ry, rx = te.reduce_axis((0, height), "ry"), te.reduce_axis((0, width), "rx")
    channels = output.shape[0]

    def total(n: Expr, c: Expr) -> Expr:
        return te.sum(x[n, c, ry, rx].astype("int32"), axis=[ry, rx])

    sums = te.compute((request.batch, channels), total, name="sums")
    multiplier = te.placeholder((1,), "int64", name="multiplier")  # TVM would fold a constant 0, and the sums with it

    def result(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        return rescale(int64(sums[n, c]) * multiplier[0], op.rescale, output.dtype)

    y = te.compute((request.batch, channels, 1, 1), result, name="y")
    function = _over_channels(request, te.create_prim_func([x, multiplier, y]), "sums", False)
    return BuiltKernel(function, (op.rescale.multiplier,))


def _over_channels(request: Request, function: Any, name: str, copies: bool) -> Any:
    """Channel by channel, in parallel where there is enough to do: the padded copy, the reduction `name`, the rest."""
    schedule = s_tir.Schedule(function)
    reduction = schedule.get_sblock(name)
    n, c, *_ = schedule.get_loops(reduction)
    elements = request.batch * prod(request.inputs[0].shape)
    image = spread(schedule, schedule.fuse(n, c), elements >= MIN_ELEMENTS)
    if copies:
        schedule.compute_at(schedule.get_sblock("padded"), image)
    if name == "sums":
        schedule.reverse_compute_at(schedule.get_sblock("y"), image)
    return schedule.mod["main"]


def _window_cost(request: Request) -> float:
    op = request.node.op
    assert isinstance(op, MaxPool2d | AvgPool2d)
    return cost("pool nchw", request, window_work(request, op.window))


def _copied(request: Request) -> int:
    op = request.node.op
    assert isinstance(op, MaxPool2d | AvgPool2d)
    return padded_copy(request, op.window)


def _global_cost(request: Request) -> float:
    inputs, outputs = (request.batch * prod(x.shape) for x in (request.inputs[0], request.node.type))
    return cost("global pool nchw", request, Work(inputs, outputs))


MAX_POOL2D_GENERIC = Kernel("max_pool2d_generic", canonical(MaxPool2d, _window_cost, _build_max, copied=_copied))
AVG_POOL2D_GENERIC = Kernel("avg_pool2d_generic", canonical(AvgPool2d, _window_cost, _build_average, copied=_copied))
GLOBAL_AVG_POOL2D_GENERIC = Kernel("global_avg_pool2d_generic", canonical(GlobalAvgPool2d, _global_cost, _build_global))
