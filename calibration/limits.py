"""Where to clip: each method finds, from a value's histogram, the magnitude that its range ends at.

A value of b bits is quantised to ``scale * q``: q runs over ``0 .. 2^b - 1`` where it cannot be negative, over
``-2^(b-1) .. 2^(b-1) - 1`` elsewhere, and the limit is ``scale`` times the largest q. A wide range clips little and
rounds coarsely, a narrow one the other way round; the fewer the bits, the narrower is the best.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.calibration.histogram import BINS, Histogram
from hawq_tvm.core.ir import IntType

Method = Callable[[Histogram, int, bool], float]
"""From a histogram, bits and whether the value is signed, to the limit: above 0 and at most the largest magnitude."""

FloatArray = NDArray[np.float64]

_OCTAVES, _STEPS = 7, 32


def candidates(histogram: Histogram) -> FloatArray:
    """The limits that `least_error` and `least_divergence` choose from: the largest magnitude down to 1/128 of it.

    Each is 2.2 % below the one before. Both criteria are flat around their least value.
    """
    return np.asarray(histogram.magnitude * 2.0 ** (-np.arange(_OCTAVES * _STEPS + 1) / _STEPS))


def largest(histogram: Histogram, bits: int, signed: bool) -> float:
    """The largest magnitude: nothing is clipped."""
    return histogram.magnitude


def within(histogram: Histogram, bits: int, signed: bool, percent: float = 99.999) -> float:
    """The magnitude that `percent` of all elements, zeros included, stay within, to a bin."""
    counted = histogram.zeros + np.cumsum(histogram.counts.sum(axis=0))
    index = int(np.searchsorted(counted, np.ceil(percent / 100 * counted[-1])))
    return min(histogram.magnitude, (index + 1) * histogram.bin_width)


def least_error(histogram: Histogram, bits: int, signed: bool) -> float:
    """The limit of least squared error of the quantised elements."""
    limits = candidates(histogram)
    return float(limits[np.argmin(squared_errors(histogram, limits, IntType(bits, signed)))])


def squared_errors(histogram: Histogram, limits: FloatArray, dtype: IntType) -> FloatArray:
    """The sum of squared errors at each limit, the elements of a bin taken as spread evenly over it.

    On each side of 0, with level 0 alone an element v has the error ``v^2``. Level k serves what lies beyond
    ``e_k = (k - 1/2) scale``, and changes the error there by ``(v - k scale)^2 - (v - (k - 1) scale)^2``, which is
    ``(2k - 1) scale^2 - 2 v scale``. Summed over the elements beyond e_k,

        error = sum v^2 + sum_k ( (2k - 1) scale^2 N(e_k) - 2 scale V(e_k) )

    with N(e) the number and V(e) the sum of the elements beyond e.

    Args:
        histogram: of a value.
        limits: float64 [L], above 0.
        dtype: of the quantised value.

    Returns:
        float64 [L].
    """
    scales = limits[:, None] / dtype.hi
    error = np.zeros(len(limits))
    for counts, levels in zip(histogram.counts, (dtype.hi, -dtype.lo), strict=True):
        k = np.arange(1, levels + 1)
        number, total, squares = _beyond(counts, histogram.bin_width, (k - 0.5) * scales)
        error += squares + ((2 * k - 1) * scales**2 * number - 2 * scales * total).sum(axis=1)
    return error


def _beyond(counts: NDArray[np.int64], bin_width: float, edges: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """How many elements of one side lie beyond each edge, and their sum; and the sum of squares of all."""
    starts = np.arange(BINS) * bin_width
    ends = starts + bin_width
    number = np.append(np.cumsum(counts[::-1])[::-1], 0)  # in this bin and beyond
    total = np.append(np.cumsum((counts * (starts + ends) / 2)[::-1])[::-1], 0.0)
    squares = float((counts * (starts**2 + starts * ends + ends**2) / 3).sum())
    index = np.minimum(edges / bin_width, BINS - 1).astype(np.int64)
    end = ends[index]
    edges = np.minimum(edges, end)
    part = counts[index] * (end - edges) / bin_width  # of the bin that the edge cuts
    return number[index + 1] + part, total[index + 1] + part * (edges + end) / 2, squares


def least_divergence(histogram: Histogram, bits: int, signed: bool) -> float:
    """The limit of least Kullback-Leibler divergence of the quantised distribution from the real one."""
    limits = candidates(histogram)
    return float(limits[np.argmin(divergences(histogram, limits, IntType(bits, signed)))])


def divergences(histogram: Histogram, limits: FloatArray, dtype: IntType) -> FloatArray:
    """``KL(P || Q)`` at each limit, of elements other than 0, which every limit keeps as they are.

    P is the histogram with what is clipped on either side counted in the last bin that is kept there and not empty. Q
    has of each level the elements that round to it, spread evenly over those of its bins that are not empty. What is
    clipped is left out of Q: with it, the fewer bins are kept, the less would P and Q differ, down to one bin a level,
    where they are equal. Nor may P have an element where Q has none: hence the last bin that is *not empty*. A limit
    where a step is narrower than a bin tells nothing, and has infinite divergence.

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017; HAQ (arXiv 1811.08886), section 3.4, clips by the same
    measure. There levels start at the multiples of the step; here they round to nearest, as the network does.

    Args:
        histogram: of a value.
        limits: float64 [L], above 0.
        dtype: of the quantised value.

    Returns:
        float64 [L], at least 0.
    """
    counts = np.concatenate([histogram.counts[1, ::-1], histogram.counts[0]])  # from -width to width
    total = int(counts.sum())
    scales = limits / dtype.hi
    levels = np.arange(dtype.lo, dtype.hi + 2)  # each starts half a step below its own point
    cuts = np.clip(np.round((levels - 0.5) * scales[:, None] / histogram.bin_width) + BINS, 0, 2 * BINS).astype(int)
    first, last = cuts[:, 0], cuts[:, -1]

    number, occupied = _running(counts), _running(counts > 0)
    mass, bins = np.diff(number[cuts], axis=1), np.diff(occupied[cuts], axis=1)  # [L, levels]
    density = np.log(np.maximum(mass, 1) / np.maximum(bins, 1))  # of Q, times what is kept
    kept = number[last] - number[first]
    below, above = number[first], total - number[last]

    filled = np.append(np.flatnonzero(counts), 0)
    lowest, highest = filled[occupied[first]], filled[occupied[last] - 1]  # the bins that take what is clipped
    entropy = _running(_times_log(counts))
    joint = np.where(lowest == highest, above, 0)
    own = (
        entropy[last]
        - entropy[first]
        + _times_log(counts[lowest] + below + joint)
        - _times_log(counts[lowest])
        + np.where(lowest == highest, 0.0, _times_log(counts[highest] + above) - _times_log(counts[highest]))
    )
    cross = (mass * density).sum(axis=1)
    for clipped, place in ((below, lowest), (above, highest)):
        level = (cuts <= place[:, None]).sum(axis=1) - 1
        cross = cross + clipped * np.take_along_axis(density, np.clip(level, 0, mass.shape[1] - 1)[:, None], 1)[:, 0]
    result = (own - cross) / max(total, 1) + np.log(np.maximum(kept, 1) / max(total, 1))
    return np.where((kept > 0) & (scales >= histogram.bin_width), result, np.inf)


def _running(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Sums of the first 0, 1, 2 ... values."""
    return np.concatenate([[0], np.cumsum(values)])


def _times_log(counts: NDArray[np.generic]) -> FloatArray:
    """``c log c``, 0 where c is."""
    return np.asarray(counts * np.log(np.maximum(counts, 1)), np.float64)


METHODS: dict[str, Method] = {
    "max": largest,
    "percentile": within,  # or percentile:99.9, another `percent`
    "mse": least_error,
    "kl": least_divergence,
}
"""Every method by the name that users give it."""
