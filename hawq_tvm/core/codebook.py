"""Weights as indexes into a codebook: 2^b int8 values a layer, chosen by k-means, one scale per output channel.

HAQ's other quantiser (arXiv 1811.08886, section 3.5, after Deep Compression, arXiv 1510.00149): a weight is stored as
an index of b bits. HAQ's centroids are reals; ours are integers of the int8 carrier, so that a layer with a codebook
computes what any layer of 8-bit weights computes, exactly and on every target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.dyadic import round_half_up
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.ir import Array

CODEBOOK_BITS = range(2, 7)
"""Widths of an index: 64 values are what one byte shuffle looks up, and HAQ leaves layers of more bits as they are."""


def weight_limit(bits: int) -> int:
    """The largest weight of `bits` bits: 7 for 4, 127 for 8."""
    return (1 << (bits - 1)) - 1


CARRIER_LIMIT = weight_limit(8)
"""The largest value of a codebook, as of any 8-bit weight."""


@dataclass(frozen=True, order=True)
class WeightFormat:
    """What a weight is stored as: an integer of `bits` bits, or an index of so many into a codebook.

    >>> str(WeightFormat(4)), str(WeightFormat(4, codebook=True))
    ('4', 'k4')
    """

    bits: int
    codebook: bool = False

    def __post_init__(self) -> None:
        allowed = CODEBOOK_BITS if self.codebook else range(2, 9)
        if self.bits not in allowed:
            what = "an index into a codebook has" if self.codebook else "weights have"
            raise AllocationError(f"{what} {allowed[0]} to {allowed[-1]} bits, got {self!s}")

    def __str__(self) -> str:
        return f"k{self.bits}" if self.codebook else str(self.bits)

    @property
    def carried_bits(self) -> int:
        """Bits of the integer that is multiplied."""
        return 8 if self.codebook else self.bits

    @property
    def limit(self) -> int:
        """The largest integer that is multiplied: 7 for 4 bits, 127 for 8 and for a codebook."""
        return weight_limit(self.carried_bits)

    def size_bytes(self, parameters: int) -> float:
        """Of so many weights, with their codebook: 2^b bytes."""
        return parameters * self.bits / 8 + (2**self.bits if self.codebook else 0)


def check_codebook(codebook: Array) -> None:
    """Refuse what is no codebook.

    Args:
        codebook: int8, 2^b values for a b of `CODEBOOK_BITS`, ascending, none twice, within the narrow range.

    Raises:
        ValueError: anything else.
    """
    if codebook.dtype != np.int8 or codebook.shape not in [(2**bits,) for bits in CODEBOOK_BITS]:
        raise ValueError(f"a codebook is int8 of 4 to 64 values, a power of two; got {codebook.dtype} {codebook.shape}")
    if codebook[0] < -CARRIER_LIMIT or (np.diff(codebook.astype(np.int16)) <= 0).any():
        raise ValueError(f"a codebook ascends from {-CARRIER_LIMIT} or more, no value twice")


def index_bits(codebook: Array) -> int:
    """Bits of an index into a codebook.

    >>> index_bits(np.arange(16, dtype=np.int8))
    4
    """
    return len(codebook).bit_length() - 1


def indexes_of(weight: Array, codebook: Array) -> NDArray[np.uint8]:
    """Where each weight stands in the codebook, uint8 of its shape; every weight is one of its values."""
    return np.searchsorted(codebook, weight).astype(np.uint8)


def nearest_codes(ratios: NDArray[np.float64], codebook: Array) -> Array:
    """The value of the codebook nearest to each ratio, ties up, int8 of their shape."""
    return np.asarray(codebook[np.searchsorted(midpoints(codebook), ratios, side="right")])


def midpoints(codebook: Array) -> NDArray[np.float64]:
    """Where one value's share ends and the next one's begins, float64 [2^b - 1]."""
    values = codebook.astype(np.float64)
    return np.asarray((values[:-1] + values[1:]) / 2)


def fitted_codebook(ratios: NDArray[np.float64], counts: NDArray[np.floating[Any]], bits: int) -> Array:
    """The codebook that loses least of weights, each brought to the nearest of the carrier's values first.

    Args:
        ratios: weights over their scales.
        counts: of their shape, what an error of each of them counts.
        bits: of an index.

    Returns:
        int8 [2^bits], ascending.
    """
    nearest = np.clip(round_half_up(ratios), -CARRIER_LIMIT, CARRIER_LIMIT)
    return best_codebook(mass_of(nearest, counts), bits)


def mass_of(values: NDArray[Any], counts: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """What each of -127 .. 127 counts, float64 [255].

    Args:
        values: whole numbers within that range.
        counts: of their shape, what each of them counts.
    """
    places = values.astype(np.int64).reshape(-1) + CARRIER_LIMIT
    return np.bincount(places, counts.reshape(-1), minlength=2 * CARRIER_LIMIT + 1).astype(np.float64)


def best_codebook(mass: NDArray[np.float64], bits: int) -> Array:
    """The codebook of least weighted squared error: one-dimensional k-means, solved exactly.

    On a line every cluster is an interval, so the best ones come from dynamic programming over where they end
    (Wang and Song, Ckmeans.1d.dp, The R Journal 3/2, 2011); over the 255 values of the carrier that takes
    milliseconds, has no seed and no local minimum. A cluster's best integer is the one nearest to its mean.

    Args:
        mass: float64 [255], at least 0: what the values -127 .. 127 count, such as how many weights lie there.
        bits: of an index.

    Returns:
        int8 [2^bits], ascending.
    """
    values = np.arange(-CARRIER_LIMIT, CARRIER_LIMIT + 1, dtype=np.float64)
    cost, centre = _intervals(values, np.asarray(mass, np.float64))
    count, clusters = len(values), 2**bits
    best = cost[0].copy()  # of the values up to j, in one cluster
    starts = np.zeros((clusters, count), np.int64)
    for k in range(1, clusters):
        before = np.concatenate([[np.inf], best[:-1]])  # of the values up to i - 1, where i begins the last cluster
        totals = before[:, None] + cost
        starts[k] = totals.argmin(axis=0)
        best = totals[starts[k], np.arange(count)]
    codes, last = np.empty(clusters, np.int8), count - 1
    for k in range(clusters - 1, -1, -1):
        first = int(starts[k, last])
        codes[k] = centre[first, last]
        last = first - 1
    return codes


def _intervals(values: NDArray[np.float64], mass: NDArray[np.float64]) -> tuple[NDArray[np.float64], Array]:
    """The error of one cluster over the values i to j, infinite where j < i, and its integer, both [n, n]."""
    sums = [np.concatenate([[0.0], np.cumsum(mass * values**power)]) for power in range(3)]
    total, first, second = (below[None, 1:] - below[:-1, None] for below in sums)
    mean = np.divide(first, total, out=np.broadcast_to(values[:, None], total.shape).copy(), where=total > 0)
    centre = np.clip(np.floor(mean + 0.5), values[:, None], np.maximum(values[None, :], values[:, None]))
    cost = np.maximum(second - 2 * centre * first + centre**2 * total, 0.0)
    return np.where(values[None, :] >= values[:, None], cost, np.inf), centre.astype(np.int8)
