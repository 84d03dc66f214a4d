"""Concatenation along channels, each branch rescaled on the way; and channels of zeros around an image's own."""

from __future__ import annotations

from math import prod

from tvm import te, tirx

from hawq_tvm.core.ops import Concat, PadChannels
from hawq_tvm.kernels.generic.acceptance import canonical
from hawq_tvm.kernels.generic.costs import Work, cost, elementwise_work
from hawq_tvm.kernels.generic.elementwise import over_channels
from hawq_tvm.kernels.generic.expressions import Expr, int64, rescale
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _build(request: Request) -> BuiltKernel:
    op, output = request.node.op, request.node.type
    assert isinstance(op, Concat)
    inputs = [
        te.placeholder((request.batch, *x.shape), x.dtype.carrier, name=f"x{i}") for i, x in enumerate(request.inputs)
    ]

    def result(n: Expr, c: Expr, *pixel: Expr) -> Expr:
        start = output.shape[0] - request.inputs[-1].shape[0]
        value = _term(inputs[-1][(n, c - start, *pixel)], op, len(inputs) - 1)
        for i in reversed(range(len(inputs) - 1)):
            end = start
            start -= request.inputs[i].shape[0]
            value = tirx.if_then_else(c < end, _term(inputs[i][(n, c - start, *pixel)], op, i), value)
        return rescale(value, op.rescale, output.dtype)

    shape = (request.batch, *output.shape)
    y = te.compute(shape, result, name="y")
    return BuiltKernel(over_channels(te.create_prim_func([*inputs, y]), prod(shape)), ())


def _term(value: Expr, op: Concat, branch: int) -> Expr:
    return int64(value) * int64(int(op.rescale.multiplier[branch]))


def _build_pad(request: Request) -> BuiltKernel:
    op, (type,) = request.node.op, request.inputs
    assert isinstance(op, PadChannels)
    x = te.placeholder((request.batch, *type.shape), type.dtype.carrier, name="x")
    end = op.before + type.shape[0]

    def value(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        own = tirx.all(c >= op.before, c < end)
        return tirx.if_then_else(own, x[n, c - op.before, h, w], tirx.const(0, x.dtype))

    shape = (request.batch, *request.node.type.shape)
    y = te.compute(shape, value, name="y")
    return BuiltKernel(over_channels(te.create_prim_func([x, y]), prod(shape)), ())


def _cost(request: Request) -> float:
    return cost("concat nchw", request, elementwise_work(request))


def _pad_cost(request: Request) -> float:
    return cost("pad channels nchw", request, Work(0, request.batch * prod(request.node.type.shape)))


CONCAT_GENERIC = Kernel("concat_generic", canonical(Concat, _cost, _build))
PAD_CHANNELS_GENERIC = Kernel("pad_channels_generic", canonical(PadChannels, _pad_cost, _build_pad))
