"""Operators that compute each element from the elements at its place: requantize and the free-standing sum."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import s_tir, te

from hawq_tvm.core.ops import Add, Requantize
from hawq_tvm.kernels.generic.acceptance import canonical
from hawq_tvm.kernels.generic.costs import cost, elementwise_work
from hawq_tvm.kernels.generic.expressions import Expr, rescale, weighted_sum
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS, spread
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def over_channels(function: Any, elements: int) -> Any:
    """Batch and channel loops of the block ``y`` in parallel where `elements` are many; LLVM vectorises the rest."""
    schedule = s_tir.Schedule(function)
    n, c, *_ = schedule.get_loops(schedule.get_sblock("y"))
    spread(schedule, schedule.fuse(n, c), elements >= MIN_ELEMENTS)
    return schedule.mod["main"]


def _build(request: Request) -> BuiltKernel:
    op, output = request.node.op, request.node.type
    assert isinstance(op, Add | Requantize)
    shape = (request.batch, *output.shape)
    inputs = [te.placeholder(shape, x.dtype.carrier, name=f"x{i}") for i, x in enumerate(request.inputs)]

    def result(*index: Expr) -> Expr:
        return rescale(weighted_sum([x[index] for x in inputs], op.rescale.multiplier), op.rescale, output.dtype)

    y = te.compute(shape, result, name="y")
    return BuiltKernel(over_channels(te.create_prim_func([*inputs, y]), prod(shape)), ())


def _cost(request: Request) -> float:
    return cost("elementwise nchw", request, elementwise_work(request))


ADD_GENERIC = Kernel("add_generic", canonical(Add, _cost, _build))
REQUANTIZE_GENERIC = Kernel("requantize_generic", canonical(Requantize, _cost, _build))
