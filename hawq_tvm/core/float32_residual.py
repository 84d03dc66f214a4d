"""When one fused multiply-add in float32 computes the rounding law over a residual.

With a residual the law floors a sum of two products and one half:

    q = floor(acc * m / 2^s  +  t)          with t = res * m_res / 2^s + 1/2

Where `t` is a float, ``fma(float32(acc), m / 2^s, t)`` rounded down is the largest float that is no larger than the
sum, and flooring that again floors the sum, since whole numbers are floats: no tie is lost, whatever the multipliers.
So that flooring is a shift, ``2^e`` is added to `t`: the floats from ``2^e`` to ``2^(e+1)`` lie ``2^-k`` apart,
k = 23 - e, and their bits, shifted by `k`, count the whole numbers there. In those bits `t` itself is an integer sum.
Below and above, bits keep the order of floats, so that whatever leaves that range is clipped as it would be.

`t` is a float where `m_res` is a multiple of ``2^(s-k)``. Hence multipliers are chosen so where a network is turned
into integers, for every target alike.

Derived here; rounding down is IEEE 754-2019's roundTowardNegative (section 4.3.2), the order of bits section 5.10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hawq_tvm.core.float32_rescale import DIGITS, excess_digits
from hawq_tvm.core.ir import IntType, Rescale

RESIDUAL_DIGITS = 14
"""Binary digits behind the point that are kept of a residual's ratio under 1; of one under 2, one less, and so on."""

FACTOR_DIGITS = 16
"""Of `FloorForm.factor`, all ones left out: what two signed 16-bit factors of one residual add up to."""

_EXPONENTS = range(8, 13)
"""Of the ranges that are tried: 256 to 4096 whole numbers; `RESIDUAL_DIGITS` suits the first two."""


def residual_multipliers(
    multipliers: ArrayLike, residual: ArrayLike, shift: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Multipliers near those given with which `floor_form` finds a form.

    Args:
        multipliers: of the accumulators, int64 in ``[0, 2^31)``; they lose what is beyond 24 significant bits.
        residual: of the residual, likewise; it becomes a multiple of 2^-14 where its ratio is under 1.
        shift: the shift they go with.

    Returns:
        Both, int64 of their shapes, in ``[0, 2^31)``.

    >>> residual_multipliers([2**31 - 1, 5], [700_000_001], shift=31)
    (array([2147483520,          5]), array([700055552]))
    """
    m, r = np.asarray(multipliers, np.int64), np.asarray(residual, np.int64)
    excess = excess_digits(m)
    _, exponent = np.frexp(float(r.max(initial=0)) / 2.0**shift)  # the largest ratio is under 2^exponent
    dropped = max(0, shift - RESIDUAL_DIGITS + max(0, int(exponent)))
    unit = 1 << dropped
    nearest = (r + unit // 2) // unit * unit
    return m >> excess << excess, np.where(nearest < 1 << 31, nearest, nearest - unit)


@dataclass(frozen=True)
class FloorForm:
    """How a layer with a residual is rounded: ``(bits(fma_down(acc, m / 2^s, t)) >> digits) - base``.

    Attributes:
        digits: `k` above.
        start: the bits of `t` where the stored residual is 0.
        factor: what one more of it adds to those bits.
        base: what is subtracted at last, so that a stored result is left.
    """

    digits: int
    start: int
    factor: int
    base: int


def floor_form(
    rescale: Rescale, accumulator: int, residual: IntType, *, residual_offset: int, offset: int
) -> FloorForm | None:
    """The form that gives the law's stored result, after its clip, for every accumulator within a bound.

    It is proved where all of this holds:

    - accumulators' multipliers have 24 significant bits, and there is one of the residual, a multiple of ``2^(s-k)``,
      which is the sum of two numbers of 15 bits then;
    - `t` lies in the range whatever the residual, and so does every stored result within the clip;
    - accumulators of 2^24 and more, which float32 may round, are clipped in either form: at ``2^24 - 1`` the law is at
      a bound of the clip already, and neither form ever decreases.

    Args:
        rescale: the layer's.
        accumulator: bound of its magnitude.
        residual: the residual's type.
        residual_offset: what is added to stored residuals.
        offset: what is added to stored results.
    """
    m, s, factor = rescale.multiplier, rescale.shift, rescale.residual
    if factor is None or len(np.unique(factor)) != 1 or np.any(m % (1 << excess_digits(m))):
        return None
    (m_res,) = map(int, np.unique(factor))
    if accumulator >= 1 << DIGITS and not _clipped_from(rescale, m_res, residual, (1 << DIGITS) - 1):
        return None
    for exponent in _EXPONENTS:
        digits = DIGITS - 1 - exponent
        if s < digits or m_res % (1 << (s - digits)):
            continue
        step = m_res >> (s - digits)  # all that follows in units of 2^-digits, from 2^exponent on
        zero = (offset << digits) + (1 << (digits - 1)) - residual_offset * step
        least, most = (zero + (bound + residual_offset) * step for bound in (residual.lo, residual.hi))
        below = max(0, -(least >> digits))  # whole numbers that `t` must be raised by
        top = max(most, ((rescale.hi + offset + 1) << digits) - 1) + (below << digits)
        if top < 1 << (DIGITS - 1) and step < (1 << FACTOR_DIGITS) - 1 and rescale.lo + offset >= 0:
            first = 127 + exponent << DIGITS - 1  # the bits of 2^exponent
            return FloorForm(digits, first + zero + (below << digits), step, (first >> digits) + below)
    return None


def _clipped_from(rescale: Rescale, m_res: int, residual: IntType, accumulator: int) -> bool:
    """Whether accumulators of this magnitude are clipped beside every residual, or multiply by zero."""
    half = 1 << (rescale.shift - 1)
    most = (accumulator * rescale.multiplier + residual.lo * m_res + half) >> rescale.shift
    least = (-accumulator * rescale.multiplier + residual.hi * m_res + half) >> rescale.shift
    return bool(np.all((rescale.multiplier == 0) | (most >= rescale.hi) & (least <= rescale.lo)))
