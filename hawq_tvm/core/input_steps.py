"""When a multiplication quantises an input as the contract's division does.

`quantize_input` never decreases from one real to the next, so it is known by its steps: the least float32 that reaches
each integer. Another function that never decreases, and that agrees with it at every step and at the float right below,
agrees on every float32. That makes 2 * 255 comparisons a proof for 8 bits.

The function compared is ``floor(fma(x, 1 / scale, HALF))`` in float64: a fused multiply-add rounds once (IEEE 754-2019,
section 5.4.1), and neither rounding nor flooring ever decreases. It is several times as fast as a division.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.interpreter import quantize_input
from hawq_tvm.core.ir import TensorType

LARGEST = np.finfo(np.float32).max
"""The largest finite float32."""

HALF = 0.5 + 2.0**-44
"""Where a step lies at a float, a product may miss it by 2^-46; the next float lies 2^-25 from it, or more."""

_SMALLEST_SCALE = 2.0**-100
"""Well above it floats are dense enough for every integer to have a step of its own."""


def input_steps(type: TensorType) -> NDArray[np.float32]:
    """The least float32 at which an input becomes each integer above the lowest; infinity where none does.

    Args:
        type: the graph's `input_type`.

    Returns:
        float32 [hi - lo], never decreasing.

    >>> from hawq_tvm.core.ir import IntType
    >>> input_steps(TensorType(IntType(2, signed=True), (3, 8, 8), 0.5))
    array([-0.75, -0.25,  0.25], dtype=float32)
    """
    wanted = np.arange(type.dtype.lo + 1, type.dtype.hi + 1)
    one = TensorType(type.dtype, wanted.shape, type.scale)
    end = int(LARGEST.view(np.int32))
    below, reached = np.full(wanted.shape, -end - 1), np.full(wanted.shape, end + 1)  # places among all float32
    with np.errstate(over="ignore"):
        while np.any(reached - below > 1):
            middle = np.clip((below + reached) // 2, -end, end)
            reaches = quantize_input(_at(middle)[None], one)[0] >= wanted
            below, reached = np.where(reaches, below, middle), np.where(reaches, middle, reached)
    return _at(reached)


def multiplication_is_exact(type: TensorType) -> bool:
    """Whether ``floor(fma(x, 1 / scale, HALF))`` is the integer of every float32 between the outer steps.

    Args:
        type: the graph's `input_type`.
    """
    steps = input_steps(type)
    if type.scale < _SMALLEST_SCALE or not np.isfinite(steps).all():
        return False
    inverse = Fraction(1 / type.scale)

    def multiplied(x: np.float32) -> int:
        return floor(float(Fraction(float(x)) * inverse + Fraction(HALF)))  # float() rounds to nearest, ties to even

    return all(
        multiplied(step) == integer and multiplied(np.nextafter(step, -LARGEST)) == integer - 1
        for integer, step in enumerate(steps, type.dtype.lo + 1)
    )


def _at(place: NDArray[np.int64]) -> NDArray[np.float32]:
    """The float32 of each place in their order, zero at 0, the largest at its own bits; infinity behind that."""
    bits = np.minimum(np.abs(place), 0x7F800000).astype(np.int32)
    return np.copysign(bits.view(np.float32), place).astype(np.float32)
