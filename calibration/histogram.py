"""How often a value's elements have which magnitude: all that is kept of them while samples go by."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 8192
"""Bins on either side of 0: at 8 bits, 16 or more to a step of the full range."""

_LEAST_WIDTH = 2.0**-100  # so that scaling by BINS / width stays within float32


class Histogram:
    """Counts of equally wide bins on both sides of 0, the zeros apart, and the two extremes.

    The width is the least power of two that the largest magnitude does not exceed. It doubles when a larger one comes,
    and bins merge in pairs; bin i holds magnitudes above ``i * bin_width`` and up to ``(i + 1) * bin_width``, so that a
    merged bin holds exactly what it would have counted. So a histogram depends on the elements alone, not on their
    order or on how they are cut into batches, and histograms of parts add up to that of the whole.

    Attributes:
        lo: the smallest element seen, 0 if none is negative.
        hi: the largest element seen, 0 if none is positive.
        zeros: elements that are 0.
        counts: int64 [2, BINS]: of positive elements, then of negative ones, by magnitude.
        width: of all bins together.
    """

    def __init__(self) -> None:
        self.lo = 0.0
        self.hi = 0.0
        self.zeros = 0
        self.counts: NDArray[np.int64] = np.zeros((2, BINS), np.int64)
        self.width = _LEAST_WIDTH

    @property
    def magnitude(self) -> float:
        """The largest magnitude seen."""
        return max(self.hi, -self.lo)

    @property
    def bin_width(self) -> float:
        return self.width / BINS

    def observe(self, x: Tensor) -> None:
        """Take in some elements.

        Args:
            x: float32 of any shape, finite.
        """
        lo, hi = (float(bound) for bound in torch.aminmax(x))
        self._take_extremes(lo, hi)
        scale = BINS / self.width
        scaled = x.detach().flatten() * scale  # exact, being a power of two, where nothing becomes 0
        away = scaled.ceil() if lo >= 0 else scaled.abs().ceil_().copysign_(scaled)
        found = torch.bincount(away.long().add_(BINS), minlength=2 * BINS + 1).numpy()
        zeros, counts = int(found[BINS]), np.stack([found[BINS + 1 :], found[:BINS][::-1]])
        if scale < 1:  # float32 scaled down: the least magnitudes have become 0, and are of the first bins
            lost = np.array([int((x > 0).sum()), int((x < 0).sum())]) - counts.sum(axis=1)
            zeros, counts[:, 0] = zeros - int(lost.sum()), counts[:, 0] + lost
        self.zeros += zeros
        self.counts += counts

    def merge(self, other: Histogram) -> None:
        """Take in what another histogram has seen."""
        self._take_extremes(other.lo, other.hi)  # so that the width is at least the other's
        self.zeros += other.zeros
        self.counts += _merged(other.counts, self.width / other.width)

    def _take_extremes(self, lo: float, hi: float) -> None:
        """Make room for elements from `lo` to `hi`."""
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        if self.magnitude <= self.width:
            return
        mantissa, exponent = math.frexp(self.magnitude)  # magnitude = mantissa * 2^exponent, 1/2 <= mantissa < 1
        width = math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)
        self.counts = _merged(self.counts, width / self.width)
        self.width = width


def _merged(counts: NDArray[np.int64], ratio: float) -> NDArray[np.int64]:
    """Counts [2, BINS] in bins that are `ratio` times as wide, a power of two."""
    together = min(int(ratio), BINS)
    result = np.zeros_like(counts)
    result[:, : BINS // together] = counts.reshape(2, -1, together).sum(axis=2)
    return result
