"""From accumulators to stored bytes: residual, the rounding law, clip and offset, sixteen lanes an instruction.

x86 multiplies 32-bit lanes to 64 bits in even lanes alone (``vpmuldq``), so a vector goes through as its even and its
odd lanes. With a shift of 33 and more the law needs only the high halves of the sums: 2^(s-1) is a multiple of 2^32, so

    floor((total + 2^(s-1)) / 2^s) = floor((floor(total / 2^32) + 2^(s-33)) / 2^(s-32))

which is 32-bit arithmetic again. Smaller shifts are done in 64 bits. `Bounds` proves that no sum overflows and that
every rounded one fits 32 bits.

Where `hawq_tvm.core.float32_rescale` proves it exact for one product, or `float32_residual` beside a residual, one
fused multiply-add does it all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.tirx import op

from hawq_tvm.core.float32_rescale import DIGITS, MAGIC
from hawq_tvm.core.float32_residual import FloorForm
from hawq_tvm.core.ir import Rescale
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86.vectors import (
    LANES,
    clipped,
    constant,
    dot_pairs,
    multiply_add_52,
    multiply_add_down,
    pack_signed,
    pack_unsigned,
)

Product = tuple[Expr, Expr]
"""Two int32x16 whose lanes are multiplied to 64 bits."""

BytesProduct = tuple[tuple[Expr, Expr], Expr]
"""Unsigned bytes as 64-bit lanes, those of the even and those of the odd 32-bit lanes, and an int32x16."""

HIGH_HALF_SHIFT = 33
"""From this shift on, the high halves decide."""


def rounded(products: Sequence[Product], rescale: Rescale, added: BytesProduct | None = None) -> Expr:
    """The rounding law on a sum of products, before its clip: int32x16.

    Args:
        products: what is summed up.
        rescale: whose shift it is.
        added: a residual of unsigned bytes, which ``vpmadd52luq`` multiplies and adds at once: exact, since the product
            has 39 bits of the 52 that it keeps.
    """
    even, odd = (_total([(half(x), half(m)) for x, m in products]) for half in (_even, _odd))
    if added is not None:
        (first, second), multiplier = added
        even = multiply_add_52(even, first, _lower(op.reinterpret("int64x8", multiplier)))
        odd = multiply_add_52(odd, second, _odd(multiplier))
    shift = rescale.shift
    if shift >= HIGH_HALF_SHIFT:
        high = op.reinterpret("int32x16", _lower(_shifted_down(even, 32)) | _upper(odd))
        return op.shift_right(high + constant(1 << (shift - 33), "int32"), constant(shift - 32, "int32"))
    half_unit, places = constant(1 << (shift - 1), "int64", 8), constant(shift, "int64", 8)
    even, odd = (op.shift_right(total + half_unit, places) for total in (even, odd))
    return op.reinterpret("int32x16", _lower(even) | op.shift_left(odd, constant(32, "int64", 8)))


def rounded_in_float32(accumulator: Expr, ratio: Expr) -> Expr:
    """The rounding law on one product where `float32_is_exact`: int32x16.

    ``vfmadd213ps`` rounds to the nearest integer between 2^23 and 2^24, whose last bits are that integer.

    Args:
        accumulator: int32x16.
        ratio: float32x16, the multipliers over 2^shift.
    """
    value = accumulator.astype(f"float32x{LANES}")
    total = op.call_llvm_pure_intrin(f"float32x{LANES}", "llvm.fma", value, ratio, constant(MAGIC, "float32"))
    bits = int(np.float32(MAGIC).view(np.int32))
    return op.reinterpret(f"int32x{LANES}", total) - constant(bits, "int32")


def floored_in_float32(accumulator: Expr, ratio: Expr, pairs: Expr, form: FloorForm) -> Expr:
    """The rounding law over a residual by its `floor_form`: int32x16, the stored result and `form.base`.

    Args:
        accumulator: int32x16.
        ratio: float32x16, the multipliers over 2^shift.
        pairs: int16x32, every stored residual twice.
        form: the layer's.
    """
    half, rest = form.factor // 2, form.factor - form.factor // 2
    factors = op.reinterpret("int16x32", constant(half << 16 | rest, "int32"))
    start = op.reinterpret("float32x16", dot_pairs(constant(form.start, "int32"), pairs, factors))
    total = multiply_add_down(accumulator.astype(f"float32x{LANES}"), ratio, start)
    return op.shift_right(op.reinterpret("int32x16", total), constant(form.digits, "int32"))


def stored_floors(values: Sequence[Expr], rescale: Rescale, offset: int, form: FloorForm) -> Expr:
    """As `stored_bytes`, of what `floored_in_float32` gives."""
    lanes, lo, hi = LANES * len(values), rescale.lo + offset, rescale.hi + offset
    if len(values) == 2 and form.base + (1 << DIGITS - 1 - form.digits) <= 1 << 16:
        base = constant(form.base, "uint16", lanes)
        words = tirx.max(pack_unsigned(*values), base) - base  # ``vpsubusw``
        return clipped(words, lo, hi, "uint16", lanes).astype(f"uint8x{lanes}")
    results = [value - constant(form.base, "int32") for value in values]
    words, carrier = (results[0], "int32") if len(values) == 1 else (pack_unsigned(*results), "uint16")
    return clipped(words, lo, hi, carrier, lanes).astype(f"uint8x{lanes}")


def stored_bytes(values: Sequence[Expr], rescale: Rescale, offset: int) -> Expr:
    """Clipped values as they are stored.

    Args:
        values: one int32x16, or two, whose lanes then come out as `PACKED_LANES` says.
        rescale: whose clip lies in the bytes' range.
        offset: of the storage: 0 for unsigned values, 128 for signed ones.

    Returns:
        uint8x16 or uint8x32.
    """
    lanes = LANES * len(values)
    if not offset:
        if len(values) == 1:
            return clipped(values[0], rescale.lo, rescale.hi, "int32").astype(f"uint8x{lanes}")
        return clipped(pack_unsigned(*values), rescale.lo, rescale.hi, "uint16", lanes).astype(f"uint8x{lanes}")
    packed, carrier = (values[0], "int32") if len(values) == 1 else (pack_signed(*values), "int16")
    signed = clipped(packed, rescale.lo, rescale.hi, carrier, lanes).astype(f"int8x{lanes}")
    return op.reinterpret(f"uint8x{lanes}", signed) ^ constant(offset, "uint8", lanes)


def _total(products: Sequence[Product]) -> Expr:
    first, *rest = (x * m for x, m in products)
    for product in rest:
        first = first + product
    return first


def _even(vector: Expr) -> Expr:
    """Even 32-bit lanes, sign extended: with `_odd` what ``vpmuldq`` reads."""
    places = constant(32, "int64", 8)
    return op.shift_right(op.shift_left(op.reinterpret("int64x8", vector), places), places)


def _odd(vector: Expr) -> Expr:
    return op.shift_right(op.reinterpret("int64x8", vector), constant(32, "int64", 8))


def _shifted_down(vector: Expr, places: int) -> Expr:
    return op.shift_right(vector, constant(places, "int64", 8))


def _lower(vector: Expr) -> Expr:
    return vector & constant((1 << 32) - 1, "int64", 8)


def _upper(vector: Expr) -> Expr:
    return vector & constant(-(1 << 32), "int64", 8)
