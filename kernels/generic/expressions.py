"""Pieces of TIR expressions that the generic kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from hawq_tvm.core.ir import Array, IntType, Rescale

Expr = Any  # a tirx PrimExpr; TVM's own types are not annotated


def int64(value: Expr) -> Expr:
    return tirx.const(value, "int64") if isinstance(value, int) else value.astype("int64")


def weighted_sum(values: Sequence[Expr], multipliers: Array) -> Expr:
    """The sum of values, each times its multiplier, as int64."""
    terms = [int64(value) * int64(int(multiplier)) for value, multiplier in zip(values, multipliers, strict=True)]
    return sum(terms[1:], terms[0])


def rescale(total: Expr, parameters: Rescale, dtype: IntType) -> Expr:
    """The rounding law of `hawq_tvm.core.dyadic` on one int64 sum, cast to the carrier of `dtype`."""
    return rounded(total, parameters).astype(dtype.carrier)


def rounded(total: Expr, parameters: Rescale) -> Expr:
    """The rounding law on one int64 sum, as int32."""
    shifted = shifted_half_up(total, parameters)
    return te.max(te.min(shifted, tirx.const(parameters.hi, "int32")), tirx.const(parameters.lo, "int32"))


def shifted_half_up(total: Expr, parameters: Rescale) -> Expr:
    """The rounding law on one int64 sum before its clip: int32, as `Bounds.rounded` proves."""
    return ((total + int64(1 << (parameters.shift - 1))) >> int64(parameters.shift)).astype("int32")


def nibble(byte: Expr, half: Expr) -> Expr:
    """The signed 4-bit integer in the low (`half` 0) or high (1) nibble of a byte, as int32."""
    shift = tirx.const(28, "int32") - 4 * half.astype("int32")
    return (byte.astype("int32") << shift) >> tirx.const(28, "int32")


def padded(x: Any, pads: tuple[int, int, int, int], fill: int) -> Any:
    """An NCHW tensor with `fill` around each image: pads are (top, left, bottom, right)."""
    top, left, bottom, right = pads
    batch, channels, height, width = (int(size) for size in x.shape)

    def value(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        inside = tirx.all(h >= top, h < height + top, w >= left, w < width + left)
        return tirx.if_then_else(inside, x[n, c, h - top, w - left], tirx.const(fill, x.dtype))

    return te.compute((batch, channels, height + top + bottom, width + left + right), value, name="padded")
