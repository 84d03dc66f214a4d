"""When a multiplication quantises an input as the contract's division does.

`quantize_input` never decreases from one real to the next, so it is known by its steps: the least float32 that reaches
each integer. Another function that never decreases, and that agrees with it at every step and at the float right below,
agrees on every float32. That makes 2 * 255 comparisons a proof for 8 bits.

The function compared is ``floor(fma(x, inverse, half))`` in float64: a fused multiply-add rounds once (IEEE 754-2019,
section 5.4.1), and neither rounding nor flooring ever decreases. It is several times as fast as a division.

Where is `half`? A float that a step reaches wants it no less than some number, the float below wants it less than
another. Steps lie 2^-25 and more from the floats around them, so it is 0.5 and a little, unless a float lies right at a
step: as half of the largest input does, of which a scale is the 127th part. There the division falls to one side or
the other by its last digit, and `half` has to follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf, nextafter

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.interpreter import quantize_input
from hawq_tvm.core.ir import TensorType

LARGEST = np.finfo(np.float32).max
"""The largest finite float32."""

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


@dataclass(frozen=True)
class Multiplication:
    """``floor(fma(x, inverse, half))`` in float64."""

    inverse: float
    half: float

    def __call__(self, x: np.float32) -> int:
        """Exactly: the sum in fractions, rounded once, ties to even as float() does."""
        return floor(float(Fraction(float(x)) * Fraction(self.inverse) + Fraction(self.half)))

    @classmethod
    def between(cls, inverse: float, steps: NDArray[np.float32], lowest: int) -> Multiplication:
        """The one in the middle of what every step and the float below it ask for."""
        products = [Fraction(float(x)) * Fraction(inverse) for x in steps]
        below = [Fraction(float(x)) * Fraction(inverse) for x in np.nextafter(steps, -LARGEST)]
        least = max(integer - product for integer, product in enumerate(products, lowest + 1))
        most = min(integer - product for integer, product in enumerate(below, lowest + 1))
        return cls(inverse, float((least + most) / 2))

    def agrees(self, steps: NDArray[np.float32], lowest: int) -> bool:
        """Whether it is an integer at its step, and one less below: so for every float32 between the outer steps."""
        return all(
            self(step) == integer and self(np.nextafter(step, -LARGEST)) == integer - 1
            for integer, step in enumerate(steps, lowest + 1)
        )


def exact_multiplication(type: TensorType) -> Multiplication | None:
    """The multiplication that gives the integer of every float32 between the outer steps; None where none is proved.

    Args:
        type: the graph's `input_type`.
    """
    steps, lowest = input_steps(type), type.dtype.lo
    if type.scale < _SMALLEST_SCALE or not np.isfinite(steps).all():
        return None
    nearest = 1 / type.scale
    inverses = (nearest, nextafter(nearest, 0), nextafter(nearest, inf))
    found = (Multiplication.between(inverse, steps, lowest) for inverse in inverses)
    return next((it for it in found if it.agrees(steps, lowest)), None)


def _at(place: NDArray[np.int64]) -> NDArray[np.float32]:
    """The float32 of each place in their order, zero at 0, the largest at its own bits; infinity behind that."""
    bits = np.minimum(np.abs(place), 0x7F800000).astype(np.int32)
    return np.copysign(bits.view(np.float32), place).astype(np.float32)
