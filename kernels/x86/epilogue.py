"""From accumulators to stored bytes: residual, the rounding law, clip and offset, sixteen lanes an instruction.

x86 multiplies 32-bit lanes to 64 bits in even lanes alone (``vpmuldq``), so a vector goes through as its even and its
odd lanes. With a shift of 33 and more the law needs only the high halves of the sums: 2^(s-1) is a multiple of 2^32, so

    floor((total + 2^(s-1)) / 2^s) = floor((floor(total / 2^32) + 2^(s-33)) / 2^(s-32))

which is 32-bit arithmetic again. Smaller shifts are done in 64 bits. `Bounds` proves that no sum overflows and that
every rounded one fits 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx import op

from hawq_tvm.core.ir import Rescale
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.x86.vectors import LANES, constant, pack_signed, pack_unsigned

Product = tuple[Expr, Expr]
"""Two int32x16 whose lanes are multiplied to 64 bits."""

HIGH_HALF_SHIFT = 33
"""From this shift on, the high halves decide."""


def rounded(products: Sequence[Product], rescale: Rescale) -> Expr:
    """The rounding law on a sum of products, before its clip: int32x16."""
    even, odd = (_total([(half(x), half(m)) for x, m in products]) for half in (_even, _odd))
    shift = rescale.shift
    if shift >= HIGH_HALF_SHIFT:
        high = op.reinterpret("int32x16", _lower(_shifted_down(even, 32)) | _upper(odd))
        return op.shift_right(high + constant(1 << (shift - 33), "int32"), constant(shift - 32, "int32"))
    half_unit, places = constant(1 << (shift - 1), "int64", 8), constant(shift, "int64", 8)
    even, odd = (op.shift_right(total + half_unit, places) for total in (even, odd))
    return op.reinterpret("int32x16", _lower(even) | op.shift_left(odd, constant(32, "int64", 8)))


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
            return _clipped(values[0], rescale.lo, rescale.hi, "int32").astype(f"uint8x{lanes}")
        packed = tirx.min(pack_unsigned(*values), constant(rescale.hi, "uint16", lanes))
        if rescale.lo:
            packed = tirx.max(packed, constant(rescale.lo, "uint16", lanes))
        return packed.astype(f"uint8x{lanes}")
    carrier = "int32" if len(values) == 1 else "int16"
    packed = values[0] if len(values) == 1 else pack_signed(*values)
    signed = _clipped(packed, rescale.lo, rescale.hi, carrier).astype(f"int8x{lanes}")
    return op.reinterpret(f"uint8x{lanes}", signed) ^ constant(offset, "uint8", lanes)


def _clipped(values: Expr, lo: int, hi: int, dtype: str) -> Expr:
    lanes = LANES if dtype == "int32" else 2 * LANES
    return tirx.max(tirx.min(values, constant(hi, dtype, lanes)), constant(lo, dtype, lanes))


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
