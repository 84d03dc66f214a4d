"""The rounding law in one instruction, where `hawq_tvm.core.float32_rescale` proves that exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tvm.tirx import op as tir

from hawq_tvm.core.float32_rescale import MAGIC, float32_is_exact
from hawq_tvm.core.ir import Array, Bounds, Rescale, TensorType
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.kernels.dot.vectors import constant
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import Request


def in_float32(request: Request) -> bool:
    """Whether a layer's rescale is done, and proved exact, in float32."""
    layer = request.node.op
    assert isinstance(layer, WeightedOperator)
    return float_is_exact(layer, request.inputs)


def float_is_exact(op: WeightedOperator, inputs: Sequence[TensorType]) -> bool:
    """Whether the float32 form is proved: for the layer's largest accumulator, or channel by channel for its own."""
    rescale = op.rescale
    if float32_is_exact(rescale, op.bounds(inputs)):
        return True
    return all(
        float32_is_exact(replace(rescale, multiplier=np.array([m])), Bounds.of(bound, bound * int(m), rescale.shift))
        for bound, m in zip(op.accumulator_bounds(inputs), rescale.multiplier, strict=True)
    )


def ratios(multipliers: Array, rescale: Rescale) -> Array:
    """Multipliers of a rescale over 2^shift: float32 of their shape, exact where they have 24 significant bits."""
    return np.ldexp(multipliers.astype(np.float64), -rescale.shift).astype(np.float32)


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
    total = tir.call_llvm_pure_intrin(
        floats, "llvm.fma", accumulator.astype(floats), ratio, constant(MAGIC, "float32", lanes)
    )
    bits = int(np.float32(MAGIC).view(np.int32))
    return tir.reinterpret(f"int32x{lanes}", total) - constant(bits, "int32", lanes)
