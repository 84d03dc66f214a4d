"""Reals to integers offline: symmetric weights per output channel, symmetric activations per tensor.

Weights of b bits use the narrow range ``-(2^(b-1) - 1) .. 2^(b-1) - 1``, zero-point 0. Activations are unsigned where
they cannot be negative, signed elsewhere, zero-point 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.dyadic import round_half_up
from hawq_tvm.core.ir import Array, IntType

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Range:
    """The real interval that an activation is quantised over; values outside are clipped.

    Attributes:
        lo: at most 0.
        hi: at least 0.
    """

    lo: float
    hi: float

    @property
    def magnitude(self) -> float:
        return max(self.hi, -self.lo)


def weight_limit(bits: int) -> int:
    """The largest weight of `bits` bits: 7 for 4, 127 for 8."""
    return (1 << (bits - 1)) - 1


def weight_scales(weight: FloatArray, bits: int) -> NDArray[np.float64]:
    """Max-abs scales per output channel; a channel of zeros gets scale 0.

    Args:
        weight: float [out, ...].
        bits: 2 to 8.

    Returns:
        float64 [out].
    """
    largest: NDArray[np.float64] = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    return largest / weight_limit(bits)


def quantize_weight(weight: FloatArray, scales: FloatArray, bits: int) -> Array:
    """Integers nearest to ``weight / scale``, ties up, clipped to the narrow range; zeros where the scale is 0.

    Args:
        weight: float [out, ...].
        scales: float64 [out].
        bits: 2 to 8.

    Returns:
        int8 of the shape of `weight`.
    """
    limit = weight_limit(bits)
    shaped = scales.reshape(-1, *(1,) * (weight.ndim - 1))
    ratio = np.divide(weight.astype(np.float64), shaped, out=np.zeros(weight.shape), where=shaped > 0)
    return np.clip(round_half_up(ratio), -limit, limit).astype(np.int8)


def weight_error(weight: FloatArray, bits: int) -> float:
    """``||Q_b(W) - W||_2^2`` with max-abs scales: the perturbation in HAWQ-V2's and V3's sensitivity.

    Args:
        weight: float [out, ...].
        bits: 2 to 8.
    """
    scales = weight_scales(weight, bits)
    restored = quantize_weight(weight, scales, bits) * scales.reshape(-1, *(1,) * (weight.ndim - 1))
    return float(np.square(restored - weight).sum())


def activation_type(bits: int, nonnegative: bool) -> IntType:
    """Unsigned where the activation cannot be negative, signed elsewhere."""
    return IntType(bits, signed=not nonnegative)


def activation_scale(range: Range, dtype: IntType) -> float:
    """The scale at which `dtype` covers `range`, symmetric about 0 where it is signed.

    >>> activation_scale(Range(0.0, 6.0), IntType(4, signed=False))
    0.4
    """
    return (range.magnitude if dtype.signed else range.hi) / dtype.hi
