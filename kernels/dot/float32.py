"""The rounding law in one instruction, where `hawq_tvm.core.float32_rescale` proves that exact."""

from __future__ import annotations

import numpy as np
from tvm.tirx import op

from hawq_tvm.core.float32_rescale import MAGIC, float32_is_exact
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.kernels.dot.vectors import constant
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import Request


def in_float32(request: Request) -> bool:
    """Whether a layer's rescale is done, and proved exact, in float32."""
    layer = request.node.op
    assert isinstance(layer, WeightedOperator)
    return float32_is_exact(layer.rescale, layer.bounds(request.inputs))


def rounded_in_float32(accumulator: Expr, ratio: Expr, lanes: int) -> Expr:
    """The rounding law on one product where `float32_is_exact`: int32.

    A fused multiply-add, as ``vfmadd213ps``, rounds to the nearest integer between 2^23 and 2^24, whose last bits are
    that integer.

    Args:
        accumulator: int32 of so many lanes.
        ratio: float32, the multipliers over 2^shift.
        lanes: of the vectors.
    """
    floats = f"float32x{lanes}"
    total = op.call_llvm_pure_intrin(
        floats, "llvm.fma", accumulator.astype(floats), ratio, constant(MAGIC, "float32", lanes)
    )
    bits = int(np.float32(MAGIC).view(np.int32))
    return op.reinterpret(f"int32x{lanes}", total) - constant(bits, "int32", lanes)
