"""Requantize, the free-standing sum and channels of zeros, channels last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ops import Add, PadChannels, Requantize
from hawq_tvm.kernels.generic.costs import Work, cost, elementwise_work
from hawq_tvm.kernels.generic.expressions import Expr, rescale, weighted_sum
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, channels_last, framed_rows, over_channels
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _by_channels(
    request: Request, pieces: Callable[[Sequence[Image]], Sequence[tuple[int, Callable[..., Expr]]]]
) -> BuiltKernel:
    """Pixel by pixel, `pieces` of the channels side by side: how many each, and the value at (n, c, h, w) in it."""
    node, batch = request.node, request.batch
    types = (*request.inputs, node.type)
    storages = [request.alternatives[name] for name in (*node.inputs, node.name)]
    parameters = [
        stored_parameter(f"image{i}", type, storage, batch)
        for i, (type, storage) in enumerate(zip(types, storages, strict=True))
    ]

    def body(*buffers: Any) -> None:
        *inputs, y = (Image(*given) for given in zip(buffers, types, storages, strict=True))
        top, left, _, _ = y.storage.frame

        def row(n: Expr, _block: Expr, h: Expr) -> None:
            with T.serial(node.type.shape[2]) as w:
                start = 0
                for count, value in pieces(inputs):

                    def store(c: Expr, start: int = start, value: Callable[..., Expr] = value) -> None:
                        y.store(value(n, c, h, w), n, start + c, h, w)

                    over_channels(y, start, count, store)
                    start += count
            y.zero(n, h + top, (left, node.type.shape[2]), (start, y.filled_up))

        framed_rows(y, row, batch=batch, threads=batch * prod(node.type.shape) >= MIN_ELEMENTS)

    return BuiltKernel(function(parameters, body), ())


def _build_sum(request: Request) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, Add | Requantize)

    def pieces(inputs: Sequence[Image]) -> list[tuple[int, Callable[..., Expr]]]:
        def value(*index: Expr) -> Expr:
            total = weighted_sum([x[index] for x in inputs], op.rescale.multiplier)
            return rescale(total, op.rescale, request.node.type.dtype)

        return [(request.node.type.shape[0], value)]

    return _by_channels(request, pieces)


def _build_pad(request: Request) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, PadChannels)

    def pieces(inputs: Sequence[Image]) -> list[tuple[int, Callable[..., Expr]]]:
        (x,) = inputs
        zero = tirx.const(0, x.type.dtype.carrier)
        return [
            (op.before, lambda *index: zero),
            (x.type.shape[0], lambda *index: x[index]),
            (op.after, lambda *index: zero),
        ]

    return _by_channels(request, pieces)


def _pad_cost(request: Request) -> float:
    storage = request.alternatives[request.node.name]
    return cost("pad channels nhwc", request, Work(0, storage.size_bytes(request.node.type, request.batch)))


def _cost(rates: str) -> Callable[[Request], float]:
    return lambda request: cost(rates, request, elementwise_work(request))


ADD_NHWC = Kernel("add_generic_nhwc", channels_last(Add, _cost("elementwise nhwc"), _build_sum))
REQUANTIZE_NHWC = Kernel("requantize_generic_nhwc", channels_last(Requantize, _cost("elementwise nhwc"), _build_sum))
PAD_CHANNELS_NHWC = Kernel("pad_channels_generic_nhwc", channels_last(PadChannels, _pad_cost, _build_pad))
