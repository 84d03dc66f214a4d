"""Reals to integers offline: symmetric weights per output channel, symmetric activations per tensor.

Weights of b bits use the narrow range ``-(2^(b-1) - 1) .. 2^(b-1) - 1``, zero-point 0. Activations are unsigned where
they cannot be negative, signed elsewhere, zero-point 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.codebook import WeightFormat, fitted_codebook, nearest_codes, weight_limit
from hawq_tvm.core.dyadic import round_half_up
from hawq_tvm.core.errors import CalibrationError
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


RangeTable = Mapping[str, Range | Mapping[int, Range]]
"""Ranges by value: one for all widths, or one for each width, since the range that loses least grows with the bits."""


def ranges_to_json(ranges: RangeTable) -> dict[str, Any]:
    """A table as it is stored: ``[lo, hi]`` for all widths, or one by width.

    >>> ranges_to_json({"conv": Range(0.0, 3.0), "fc": {4: Range(-1.0, 2.0)}})
    {'conv': [0.0, 3.0], 'fc': {'4': [-1.0, 2.0]}}
    """
    return {
        name: [found.lo, found.hi]
        if isinstance(found, Range)
        else {str(bits): [one.lo, one.hi] for bits, one in found.items()}
        for name, found in ranges.items()
    }


def range_at(ranges: RangeTable, value: str, bits: int) -> Range:
    """The range of a value that is stored or read at `bits`.

    Raises:
        CalibrationError: there is none.

    >>> range_at({"conv": {4: Range(0.0, 3.0), 8: Range(0.0, 5.0)}}, "conv", 4).hi
    3.0
    """
    if value not in ranges:
        raise CalibrationError(f"no range for '{value}'; calibrate this network, or add it to the ranges")
    found = ranges[value]
    if isinstance(found, Range):
        return found
    if bits not in found:
        raise CalibrationError(
            f"no range for '{value}' at {bits} bits, only at {', '.join(map(str, found))}; calibrate this network, or "
            "add it to the ranges"
        )
    return found[bits]


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """What a layer is deployed with.

    Attributes:
        integers: int8 [out, ...], within the narrow range of `bits`, or values of the codebook.
        scales: float64 [out], above 0.
        bias: float32 [out], in reals.
        bits: 2 to 8, or 2 to 6 of an index.
        codebook: int8 [2^bits], ascending; None where weights are integers of `bits` bits.
    """

    integers: Array
    scales: FloatArray
    bias: FloatArray
    bits: int
    codebook: Array | None = None

    @property
    def format(self) -> WeightFormat:
        return WeightFormat(self.bits, self.codebook is not None)

    @property
    def restored(self) -> FloatArray:
        """The reals that the integers stand for, float64 of their shape."""
        return np.asarray(self.integers * _per_channel(self.scales, self.integers.ndim))

    def with_scales(self, scales: FloatArray) -> LayerWeights:
        """The same reals on another grid, as near as it comes."""
        if np.array_equal(scales, self.scales):
            return self
        if self.codebook is None:
            integers = quantize_weight(self.restored, scales, self.bits)
        else:
            integers = nearest_codes(_ratios(self.restored, scales), self.codebook)
        return replace(self, integers=integers, scales=scales)


def _per_channel(scales: FloatArray, dimensions: int) -> FloatArray:
    """Scales [out] as they multiply an array of so many dimensions."""
    return scales.reshape(-1, *(1,) * (dimensions - 1))


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
    return np.clip(round_half_up(_ratios(weight, scales)), -limit, limit).astype(np.int8)


def _ratios(weight: FloatArray, scales: FloatArray) -> NDArray[np.float64]:
    """``weight / scale``, 0 where the scale is."""
    shaped = _per_channel(scales, weight.ndim)
    return np.divide(weight.astype(np.float64), shaped, out=np.zeros(weight.shape), where=shaped > 0)


def cluster_weight(weight: FloatArray, scales: FloatArray, bits: int) -> tuple[Array, Array]:
    """The codebook that loses least of a layer's weights, and its value nearest to each.

    What a weight counts is its channel's scale squared, so that the error is that of the reals.

    Args:
        weight: float [out, ...].
        scales: float64 [out], at which the largest weight of a channel is 127.
        bits: of an index, 2 to 6.

    Returns:
        int8 of the shape of `weight`, and the codebook, int8 [2^bits].
    """
    ratios = _ratios(weight, scales)
    counts = np.broadcast_to(_per_channel(np.square(scales), weight.ndim), weight.shape)
    codebook = fitted_codebook(ratios, counts, bits)
    return nearest_codes(ratios, codebook), codebook


def activation_type(bits: int, nonnegative: bool) -> IntType:
    """Unsigned where the activation cannot be negative, signed elsewhere."""
    return IntType(bits, signed=not nonnegative)


def activation_scale(range: Range, dtype: IntType) -> float:
    """The scale at which `dtype` covers `range`, symmetric about 0 where it is signed.

    >>> activation_scale(Range(0.0, 6.0), IntType(4, signed=False))
    0.4
    """
    return (range.magnitude if dtype.signed else range.hi) / dtype.hi
