"""Pools: a thread for each word of the result, which walks over its window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ir import Window
from hawq_tvm.core.ops import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.acceptance import canonical, packed
from hawq_tvm.kernels.cuda.costs import simple_cost
from hawq_tvm.kernels.cuda.launch import node_by_words
from hawq_tvm.kernels.cuda.registers import accumulators
from hawq_tvm.kernels.cuda.values import Place, Value
from hawq_tvm.kernels.generic.expressions import Expr, int64, rounded
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def over_taps(window: Window, size: tuple[int, int], at: Place, tap: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
    """Emit the loops over a window's taps.

    Args:
        window: of the operator.
        size: rows and columns of the input.
        at: the place of the result.
        tap: emits the work of one tap; gets its row and column in the window, and those in the input,
            which lie inside it.
    """
    (height, width), (sy, sx), (dy, dx) = size, window.strides, window.dilations
    top, left, _, _ = window.pads
    with T.serial(window.kernel[0]) as ky, T.serial(window.kernel[1]) as kx:
        h, w = T.bind(at[2] * sy + ky * dy - top), T.bind(at[3] * sx + kx * dx - left)
        if any(window.pads):
            with T.If(tirx.all(h >= 0, h < height, w >= 0, w < width)), T.Then():
                tap(ky, kx, h, w)
        else:
            tap(ky, kx, h, w)


def _over_window(
    x: Value, y: Value, at: Place, window: Window, first: int, step: Callable[[Expr, Expr], Expr]
) -> list[Expr]:
    """Fold a window's values, lane by lane."""
    held = accumulators(y.lanes, first)

    def tap(_ky: Expr, _kx: Expr, h: Expr, w: Expr) -> None:
        for lane, value in enumerate(x.load_run(at[0], at[1], h, w, y.lanes)):
            T.buffer_store(held, step(held[lane], value), [lane])

    over_taps(window, x.size, at, tap)
    return [held[lane] for lane in range(y.lanes)]


def _build_max(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op, node = request.node.op, request.node
    assert isinstance(op, MaxPool2d)

    def body(inputs: Sequence[Value], _constants: Any, y: Value, at: Place) -> list[Expr]:
        return _over_window(inputs[0], y, at, op.window, node.type.dtype.lo, tirx.max)

    return node_by_words(request, reads, writes, body)


def _build_average(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op, node = request.node.op, request.node
    assert isinstance(op, AvgPool2d)
    height, width = node.type.shape[1:]
    multipliers = np.broadcast_to(op.rescale.multiplier, (height, width)).astype(np.int32)

    def body(inputs: Sequence[Value], constants: Any, y: Value, at: Place) -> list[Expr]:
        sums = _over_window(inputs[0], y, at, op.window, 0, lambda held, value: held + value)
        multiplier = T.bind(int64(constants[0][at[2], at[3]]))
        return [rounded(int64(total) * multiplier, op.rescale) for total in sums]

    return node_by_words(request, reads, writes, body, (np.ascontiguousarray(multipliers),))


def _build_global(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, GlobalAvgPool2d)
    whole = Window((request.inputs[0].shape[1], request.inputs[0].shape[2]))

    def body(inputs: Sequence[Value], _constants: Any, y: Value, at: Place) -> list[Expr]:
        sums = _over_window(inputs[0], y, at, whole, 0, lambda held, value: held + value)
        return [rounded(int64(total) * int64(int(op.rescale.multiplier[0])), op.rescale) for total in sums]

    return node_by_words(request, reads, writes, body)


def _cost(request: Request, reads: tuple[Storage, ...], writes: Storage) -> Prediction:
    op = request.node.op
    taps = prod(op.window.kernel) if isinstance(op, MaxPool2d | AvgPool2d) else prod(request.inputs[0].shape[1:])
    return simple_cost(request, reads, writes, taps)


MAX_POOL2D_CUDA = Kernel("max_pool2d_cuda", canonical(MaxPool2d, _cost, _build_max))
MAX_POOL2D_CUDA_NHWC = Kernel("max_pool2d_cuda_nhwc", packed(MaxPool2d, _cost, _build_max))
AVG_POOL2D_CUDA = Kernel("avg_pool2d_cuda", canonical(AvgPool2d, _cost, _build_average))
AVG_POOL2D_CUDA_NHWC = Kernel("avg_pool2d_cuda_nhwc", packed(AvgPool2d, _cost, _build_average))
GLOBAL_AVG_POOL2D_CUDA = Kernel("global_avg_pool2d_cuda", canonical(GlobalAvgPool2d, _cost, _build_global))
GLOBAL_AVG_POOL2D_CUDA_NHWC = Kernel("global_avg_pool2d_cuda_nhwc", packed(GlobalAvgPool2d, _cost, _build_global))
GLOBAL_AVG_POOL2D_CUDA_NHWC_NCHW = Kernel(
    "global_avg_pool2d_cuda_nhwc_nchw", packed(GlobalAvgPool2d, _cost, _build_global, writes_canonical=True)
)
