"""Requantize, the free-standing sum, concatenation and channels of zeros: a thread for each word of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ops import Add, Concat, PadChannels, Requantize
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.acceptance import canonical, packed
from hawq_tvm.kernels.cuda.costs import simple_cost
from hawq_tvm.kernels.cuda.launch import node_by_words
from hawq_tvm.kernels.cuda.registers import accumulators
from hawq_tvm.kernels.cuda.values import Place, Value
from hawq_tvm.kernels.generic.expressions import Expr, int64, rounded, weighted_sum
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _build_sum(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, Add | Requantize)

    def body(inputs: Sequence[Value], _constants: Any, y: Value, at: Place) -> list[Expr]:
        runs = [x.load_run(*at, y.lanes) for x in inputs]
        totals = [weighted_sum(values, op.rescale.multiplier) for values in zip(*runs, strict=True)]
        return [rounded(total, op.rescale) for total in totals]

    return node_by_words(request, reads, writes, body)


def _build_concat(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, Concat)
    multipliers = [int(m) for m in op.rescale.multiplier]

    def branch(multiplier: int) -> Callable[[Expr], Expr]:
        return lambda value: rounded(int64(value) * int64(multiplier), op.rescale)

    return _side_by_side(request, reads, writes, 0, [branch(m) for m in multipliers])


def _build_pad(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, PadChannels)
    return _side_by_side(request, reads, writes, op.before, [lambda value: value])


def _side_by_side(
    request: Request,
    reads: tuple[Storage, ...],
    writes: Storage,
    before: int,
    pieces: Sequence[Callable[[Expr], Expr]],
) -> BuiltKernel:
    """The inputs' channels in order after `before` channels of zeros; `pieces` say what becomes of each one's values.

    A word may hold the end of one input and the start of the next: each that it touches adds its lanes.
    """

    def body(inputs: Sequence[Value], _constants: Any, y: Value, at: Place) -> list[Expr]:
        n, c, h, w = at
        lanes = accumulators(y.lanes, 0)
        start = before
        for x, piece in zip(inputs, pieces, strict=True):
            count = x.type.shape[0]
            with T.If(tirx.all(c + y.lanes > start, c < start + count)), T.Then():
                if start % y.lanes == count % y.lanes == 0:
                    for lane, value in enumerate(x.load_run(n, c - start, h, w, y.lanes)):
                        T.buffer_store(lanes, piece(value), [lane])
                else:
                    for lane in range(y.lanes):
                        channel = c + (lane - start)
                        with T.If(tirx.all(channel >= 0, channel < count)), T.Then():
                            T.buffer_store(lanes, piece(x.load(n, channel, h, w)), [lane])
            start += count
        return [lanes[lane] for lane in range(y.lanes)]

    return node_by_words(request, reads, writes, body)


def _cost(request: Request, reads: tuple[Storage, ...], writes: Storage) -> Prediction:
    return simple_cost(request, reads, writes, len(reads))


ADD_CUDA = Kernel("add_cuda", canonical(Add, _cost, _build_sum))
ADD_CUDA_NHWC = Kernel("add_cuda_nhwc", packed(Add, _cost, _build_sum))
REQUANTIZE_CUDA = Kernel("requantize_cuda", canonical(Requantize, _cost, _build_sum))
REQUANTIZE_CUDA_NHWC = Kernel("requantize_cuda_nhwc", packed(Requantize, _cost, _build_sum))
CONCAT_CUDA = Kernel("concat_cuda", canonical(Concat, _cost, _build_concat))
CONCAT_CUDA_NHWC = Kernel("concat_cuda_nhwc", packed(Concat, _cost, _build_concat))
PAD_CHANNELS_CUDA = Kernel("pad_channels_cuda", canonical(PadChannels, _cost, _build_pad))
PAD_CHANNELS_CUDA_NHWC = Kernel("pad_channels_cuda_nhwc", packed(PadChannels, _cost, _build_pad))
