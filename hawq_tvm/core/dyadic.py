"""The one rounding law: ``q = clip((total + 2^(s-1)) >> s, lo, hi)``.

A scale ratio ``r`` is carried as a dyadic number ``m / 2^s``. With ``total = sum_i acc_i * m_i`` in int64 the law
rounds to nearest, ties toward plus infinity (an arithmetic shift floors). Everything that rescales integers, in numpy,
PyTorch, ONNX or TVM, computes exactly this; `docs/arithmetic.md` derives it and its bounds.

Source: HAWQ-V3 (arXiv 2011.10680), section 3 and equation 5, with one rounding for both branches of a residual.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hawq_tvm.core.errors import GraphError

MULTIPLIER_LIMIT = 2**31
"""Multipliers satisfy ``0 <= m < MULTIPLIER_LIMIT``."""

SHIFT_RANGE = (1, 62)
"""The smallest and the largest shift."""

ACCUMULATOR_LIMIT = 2**31
"""Accumulators, bias included, satisfy ``|acc| < ACCUMULATOR_LIMIT``."""

DYADIC_LIMIT = 2**63
"""The int64 sum that is shifted stays under this magnitude, the rounding term included."""

ROUNDED_LIMIT = 2**31
"""The shifted sum stays under this magnitude before it is clipped."""


def rescale(total: NDArray[np.int64], shift: int, lo: int, hi: int) -> NDArray[np.int64]:
    """Round ``total / 2^shift`` half up and clip it.

    Args:
        total: int64, any shape: accumulators times multipliers, already summed over branches.
        shift: 1 to 62.
        lo: smallest result.
        hi: largest result.

    Returns:
        int64, the shape of `total`, within ``[lo, hi]``.

    >>> rescale(np.array([-3, -1, 1, 3, 1000]), shift=1, lo=-8, hi=7)
    array([-1,  0,  1,  2,  7])
    """
    rounded = (total + (np.int64(1) << np.int64(shift - 1))) >> np.int64(shift)
    clipped: NDArray[np.int64] = np.clip(rounded, lo, hi)
    return clipped


def to_dyadic(ratios: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """The multipliers and the one shift that carry positive scale ratios best.

    The shift is the largest that keeps every ``m = floor(r * 2^s + 1/2)`` under 2^31, so the largest ratio keeps 30 or
    31 significant bits. A ratio just under a power of two rounds up to a mantissa of exactly 2^31 and then takes the
    shift below.

    Args:
        ratios: float64, any shape, finite and not negative: source scale over target scale.

    Returns:
        Multipliers, int64 of the shape of `ratios`, each in ``[0, 2^31)``, and the shift, 1 to 62.

    Raises:
        GraphError: a ratio is negative, not finite, or so large that no shift carries it.

    >>> to_dyadic([1.0, 0.5])
    (array([1073741824,  536870912]), 30)
    """
    values = np.asarray(ratios, dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise GraphError(f"scale ratios must be finite and not negative, got {values.min()} to {values.max()}")
    largest = float(values.max(initial=0.0))
    lowest_shift, highest_shift = SHIFT_RANGE
    _, exponent = np.frexp(largest)  # largest < 2^exponent
    shift = int(np.clip(31 - int(exponent), lowest_shift, highest_shift))
    while shift >= lowest_shift:
        multipliers = np.floor(np.ldexp(values, shift) + 0.5)
        if multipliers.max(initial=0.0) < MULTIPLIER_LIMIT:
            return multipliers.astype(np.int64), shift
        shift -= 1
    raise GraphError(
        f"a scale ratio of {largest:.4g} is too large for a dyadic number: it must stay under 2^30; "
        "the layer's output range is far smaller than its accumulator's, check its calibration"
    )


def round_half_up(values: ArrayLike) -> NDArray[np.float64]:
    """Round to nearest, ties toward plus infinity: the law's rounding, for floats that become integers offline.

    >>> round_half_up(np.array([-1.5, -0.5, 0.5, 1.49]))
    array([-1.,  0.,  1.,  1.])
    """
    rounded: NDArray[np.float64] = np.floor(np.asarray(values, np.float64) + 0.5)
    return rounded
