"""The rounding law on x86, as many lanes an instruction as a vector has.

x86 multiplies 32-bit lanes to 64 bits in even lanes alone (``vpmuldq``), so a vector goes through as its even and its
odd lanes. With a shift of 33 and more the law needs only the high halves of the sums: 2^(s-1) is a multiple of 2^32, so

    floor((total + 2^(s-1)) / 2^s) = floor((floor(total / 2^32) + 2^(s-33)) / 2^(s-32))

which is 32-bit arithmetic again. Smaller shifts are done in 64 bits. `Bounds` proves that no sum overflows and that
every rounded one fits 32 bits.

Where `hawq_tvm.core.float32_residual` proves it, a fused multiply-add of AVX-512, which can round down, does it all.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx import op

from hawq_tvm.core.float32_rescale import DIGITS
from hawq_tvm.core.float32_residual import FloorForm
from hawq_tvm.core.ir import Rescale
from hawq_tvm.kernels.dot.unit import Factors
from hawq_tvm.kernels.dot.vectors import clipped, constant
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86.vectors import LANES, dot_pairs, multiply_add_52, multiply_add_down, pack_unsigned

BytesProduct = tuple[tuple[Expr, Expr], Expr]
"""Unsigned bytes as 64-bit lanes, those of the even and those of the odd 32-bit lanes, and an int32x16."""

HIGH_HALF_SHIFT = 33
"""From this shift on, the high halves decide."""


def rounded(products: Sequence[Factors], rescale: Rescale, lanes: int, added: BytesProduct | None = None) -> Expr:
    """The rounding law on a sum of products, before its clip: int32 of so many lanes.

    Args:
        products: what is summed up.
        rescale: whose shift it is.
        lanes: of the vectors: 16, or 8.
        added: a residual of unsigned bytes, which ``vpmadd52luq`` multiplies and adds at once: exact, since the product
            has 39 bits of the 52 that it keeps.
    """
    even, odd = (_total([(half(x, lanes), half(m, lanes)) for x, m in products]) for half in (_even, _odd))
    if added is not None:
        (first, second), multiplier = added
        even = multiply_add_52(even, first, _lower(op.reinterpret("int64x8", multiplier), lanes))
        odd = multiply_add_52(odd, second, _odd(multiplier, lanes))
    shift = rescale.shift
    if shift >= HIGH_HALF_SHIFT:
        high = op.reinterpret(f"int32x{lanes}", _lower(_shifted_down(even, 32, lanes), lanes) | _upper(odd, lanes))
        return op.shift_right(high + constant(1 << (shift - 33), "int32", lanes), constant(shift - 32, "int32", lanes))
    half_unit, places = constant(1 << (shift - 1), "int64", lanes // 2), constant(shift, "int64", lanes // 2)
    even, odd = (op.shift_right(total + half_unit, places) for total in (even, odd))
    return op.reinterpret(f"int32x{lanes}", _lower(even, lanes) | op.shift_left(odd, constant(32, "int64", lanes // 2)))


def floored(accumulator: Expr, ratio: Expr, pairs: Expr, form: FloorForm) -> Expr:
    """The rounding law over a residual by its form: int32x16, the stored result and `form.base`.

    Args:
        accumulator: int32x16.
        ratio: float32x16, the multipliers over 2^shift.
        pairs: int16x32, every stored residual twice.
        form: the layer's.
    """
    half, rest = form.factor // 2, form.factor - form.factor // 2
    factors = op.reinterpret("int16x32", constant(half << 16 | rest, "int32", LANES))
    start = op.reinterpret("float32x16", dot_pairs(constant(form.start, "int32", LANES), pairs, factors))
    total = multiply_add_down(accumulator.astype(f"float32x{LANES}"), ratio, start)
    return op.shift_right(op.reinterpret("int32x16", total), constant(form.digits, "int32", LANES))


def stored_floors(values: Sequence[Expr], rescale: Rescale, offset: int, form: FloorForm) -> Expr:
    """What one or two vectors that `floored` gives are stored as, in the order of packing."""
    lanes, lo, hi = LANES * len(values), rescale.lo + offset, rescale.hi + offset
    if len(values) == 2 and form.base + (1 << DIGITS - 1 - form.digits) <= 1 << 16:
        base = constant(form.base, "uint16", lanes)
        words = tirx.max(pack_unsigned(values[0], values[1]), base) - base  # ``vpsubusw``
        return clipped(words, lo, hi, "uint16", lanes).astype(f"uint8x{lanes}")
    results = [value - constant(form.base, "int32", LANES) for value in values]
    words, carrier = (results[0], "int32") if len(values) == 1 else (pack_unsigned(*results), "uint16")
    return clipped(words, lo, hi, carrier, lanes).astype(f"uint8x{lanes}")


def _total(products: Sequence[Factors]) -> Expr:
    first, *rest = (x * m for x, m in products)
    for product in rest:
        first = first + product
    return first


def _even(vector: Expr, lanes: int) -> Expr:
    """Even 32-bit lanes, sign extended: with `_odd` what ``vpmuldq`` reads."""
    places = constant(32, "int64", lanes // 2)
    return op.shift_right(op.shift_left(op.reinterpret(f"int64x{lanes // 2}", vector), places), places)


def _odd(vector: Expr, lanes: int) -> Expr:
    return op.shift_right(op.reinterpret(f"int64x{lanes // 2}", vector), constant(32, "int64", lanes // 2))


def _shifted_down(vector: Expr, places: int, lanes: int) -> Expr:
    return op.shift_right(vector, constant(places, "int64", lanes // 2))


def _lower(vector: Expr, lanes: int) -> Expr:
    return vector & constant((1 << 32) - 1, "int64", lanes // 2)


def _upper(vector: Expr, lanes: int) -> Expr:
    return vector & constant(-(1 << 32), "int64", lanes // 2)
