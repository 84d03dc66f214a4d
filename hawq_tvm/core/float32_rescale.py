"""When one fused multiply-add in float32 computes the rounding law.

Where hardware has fast float32 and no fast 64-bit integers, the cheapest exact rescale of one accumulator is

    fma(float32(acc), m / 2^s, MAGIC) - MAGIC            with MAGIC = 1.5 * 2^23

`m / 2^s` is a float32 where `m` has 24 significant bits, the product inside a fused multiply-add is exact, and the sum
with `MAGIC` has no digits behind the point, so that it rounds once, to the nearest integer. A float rounds ties to even
where the law rounds them up; with a multiplier that is odd in its last place there are none. Hence multipliers are
chosen so where a network is turned into integers, for every target alike: who has this form may use it, and all compute
the same.

Derived here; a fused multiply-add rounds once: IEEE 754-2019, section 5.4.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hawq_tvm.core.ir import Bounds, Rescale

DIGITS = 24
"""Significant binary digits of a float32."""

MAGIC = 1.5 * 2.0**23
"""Floats between 2^23 and 2^24 are the integers there; in the middle, so that results of either sign stay between."""

_RESULT_LIMIT = 2**21  # |result| stays far from the ends of that interval, an accumulator's own rounding included


def odd_multipliers(multipliers: ArrayLike, shift: int) -> NDArray[np.int64]:
    """The nearest multipliers of at most 24 significant bits, odd in the last place that is kept.

    One that is a whole number of ``2^shift`` stays: it multiplies by an integer (a copy, where that is 1), and rounds
    nothing.

    Args:
        multipliers: int64, any shape, in ``[0, 2^31)``.
        shift: the shift they go with.

    Returns:
        int64 of that shape, in ``[0, 2^31)``; they differ by at most 2^-23 of each, small ones by at most 1.

    >>> odd_multipliers([0, 6, 2**30, 2**31 - 1], shift=32)
    array([         0,          7, 1073741952, 2147483520])
    >>> odd_multipliers([2**30], shift=30)
    array([1073741824])
    """
    values = np.asarray(multipliers, np.int64)
    excess = excess_digits(values)
    return np.where(values % (1 << shift) == 0, values, (values >> excess | 1) << excess)


def float32_is_exact(rescale: Rescale, bounds: Bounds) -> bool:
    """Whether the float32 form gives the law's result for every accumulator within `bounds`, after the clip.

    It does where all of this holds, multiplier by multiplier:

    - `m` has 24 significant bits;
    - no accumulator makes a tie: it would have to be a multiple of ``2^(s-1-z)``, where ``2^z`` is the largest power of
      two that divides `m`; with ``z >= s`` nothing is rounded;
    - accumulators of 2^24 and more, which float32 may round, are clipped in either form: at ``2^24 - 1`` the law is at
      a bound of the clip already, and neither form ever decreases;
    - no result comes near the end of the interval in which floats are integers.

    It speaks of one product. A fused residual is a second one, which would be rounded apart: False. A sum of two values
    must not ask.
    """
    m, s = rescale.multiplier, rescale.shift
    if rescale.residual is not None or bounds.rounded >= _RESULT_LIMIT or np.any(m % (1 << excess_digits(m))):
        return False
    largest = min(bounds.accumulator, 2**DIGITS - 1)
    divisor = m & -m
    if np.any((divisor < 1 << s) & (largest * divisor >= 1 << (s - 1))):
        return False
    half = 1 << (s - 1)
    most, least = (largest * m + half) >> s, (-largest * m + half) >> s
    return largest == bounds.accumulator or bool(np.all((m == 0) | (most >= rescale.hi) & (least <= rescale.lo)))


def excess_digits(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """By how many binary digits each value exceeds 24."""
    _, digits = np.frexp(values.astype(np.float64))
    return np.maximum(digits.astype(np.int64) - DIGITS, 0)
