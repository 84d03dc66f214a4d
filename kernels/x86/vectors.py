"""The few x86 instructions that LLVM is told to use by name.

Everything else is plain vector arithmetic, which LLVM turns into the instructions that `kernels/x86/epilogue.py` names.
Sources: Intel SDM volume 2 for the instructions; LLVM's ``IntrinsicsX86.td`` for the names and operand types.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx import op

from hawq_tvm.kernels.dot.vectors import constant, shuffle
from hawq_tvm.kernels.generic.expressions import Expr

LANES = 16
"""32-bit lanes of AVX-512's vectors; AVX2's have half of them."""


def dot(accumulator: Expr, activations: Expr, weights: Expr, lanes: int = LANES) -> Expr:
    """``vpdpbusd``: to each 32-bit lane, four products of unsigned by signed bytes are added, modulo 2^32.

    Args:
        accumulator: int32 of so many `lanes`: 16, or 8.
        activations: int8, taken as unsigned, of four times as many.
        weights: int8.
        lanes: of the vectors.
    """
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return op.call_llvm_pure_intrin(f"int32x{lanes}", name, accumulator, activations, weights)


def dot_of_pairs(accumulator: Expr, activations: Expr, weights: Expr, lanes: int) -> Expr:
    """As `dot`, by ``vpmaddubsw``, which adds two products in 16 bits and saturates: only where none leaves them."""
    sums = _multiply_add_bytes(activations, weights, lanes)
    ones = constant(1, "int16", 2 * lanes)
    return accumulator + _multiply_add_words(sums, ones, lanes)


def dot_of_words(accumulator: Expr, activations: Expr, weights: Expr, lanes: int) -> Expr:
    """As `dot`, by ``vpmaddwd`` on even and odd bytes apart, which are 16 bits each: exact whatever they are."""
    words = f"int16x{2 * lanes}"
    eight = constant(8, "int16", 2 * lanes)
    x, w = op.reinterpret(words, activations), op.reinterpret(words, weights)
    low, high = constant(255, "int16", 2 * lanes), constant(8, "uint16", 2 * lanes)
    odd = op.reinterpret(words, op.shift_right(op.reinterpret(f"u{words}", activations), high))
    even_weights, odd_weights = op.shift_right(op.shift_left(w, eight), eight), op.shift_right(w, eight)
    even_sums = _multiply_add_words(x & low, even_weights, lanes)
    return accumulator + (even_sums + _multiply_add_words(odd, odd_weights, lanes))


def _multiply_add_bytes(unsigned: Expr, signed: Expr, lanes: int) -> Expr:
    """``vpmaddubsw``: int16 of twice as many lanes."""
    name = "llvm.x86.avx512.pmaddubs.w.512" if lanes == LANES else "llvm.x86.avx2.pmadd.ub.sw"
    return op.call_llvm_pure_intrin(f"int16x{2 * lanes}", name, unsigned, signed)


def _multiply_add_words(x: Expr, y: Expr, lanes: int) -> Expr:
    """``vpmaddwd``: int32 of so many lanes."""
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == LANES else "llvm.x86.avx2.pmadd.wd"
    return op.call_llvm_pure_intrin(f"int32x{lanes}", name, x, y)


def dot_pairs(accumulator: Expr, x: Expr, y: Expr) -> Expr:
    """``vpdpwssd``: to each of 16 lanes, two products of signed 16-bit numbers, int16x32, are added, modulo 2^32."""
    return op.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpwssd.512", accumulator, x, y)


def dot_pairs_of_bytes(accumulator: Expr, x: Expr, y: Expr) -> Expr:
    """`dot_pairs` of numbers of which the first are given as bytes, int8x64."""
    return dot_pairs(accumulator, op.reinterpret("int16x32", x), y)


def multiply_add_down(x: Expr, y: Expr, z: Expr) -> Expr:
    """``vfmadd213ps`` with ``{rd-sae}``: x * y + z, float32x16, rounded once, toward minus infinity."""
    down_and_no_exceptions = tirx.const(1 | 8, "int32")
    operands = x, y, z, down_and_no_exceptions
    return op.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.vfmadd.ps.512", *operands)


def nibbles(packed: Expr, half: int, lanes: int = LANES) -> Expr:
    """``vgf2p8affineqb``: the low or high four bits of each byte, sign extended; int8 from uint8, four a lane.

    Bit i of a result is the parity of the byte under row i of an 8x8 matrix of bits, whose rows lie from the highest
    byte of 64 bits down. Rows 0 to 3 pick the four bits, rows 4 to 7 the sign.
    """
    matrix = (0x0102040808080808, 0x1020408080808080)[half]
    bytes_ = f"int8x{4 * lanes}"
    rows = op.reinterpret(bytes_, constant(matrix, "int64", lanes // 2))
    name = f"llvm.x86.vgf2p8affineqb.{32 * lanes}"
    return op.call_llvm_pure_intrin(bytes_, name, op.reinterpret(bytes_, packed), rows, tirx.const(0, "int8"))


def multiply_add_52(total: Expr, x: Expr, y: Expr) -> Expr:
    """``vpmadd52luq``: the low 52 bits of a product of unsigned 52-bit numbers, added to int64x8."""
    return op.call_llvm_pure_intrin("int64x8", "llvm.x86.avx512.vpmadd52l.uq.512", total, x, y)


def bytes_in_quads(bytes_: Expr, lanes: Sequence[int]) -> Expr:
    """Eight of 32 bytes, each zero extended to 64 bits: int64x8.

    ``vpshufb`` puts bytes anywhere, and zeros beside them, but within 128 bits: so the four eights of bytes are first
    spread over the four parts of a vector.

    Args:
        bytes_: uint8x32.
        lanes: which eight; two of each eight, in order.
    """
    spread = shuffle([bytes_, bytes_], [8 * part + byte % 8 for part in range(4) for byte in range(16)])
    zero, places = 64, [16 * (lane // 8) + lane % 8 for lane in lanes]
    order = [index for place in places for index in (place, *[zero] * 7)]
    return op.reinterpret("int64x8", shuffle([spread, constant(0, "uint8", 64)], order))


def pack_unsigned(low: Expr, high: Expr, lanes: int = LANES) -> Expr:
    """``vpackusdw``: int32 of so many lanes twice as uint16 of twice as many, saturated, interleaved in fours."""
    name = "llvm.x86.avx512.packusdw.512" if lanes == LANES else "llvm.x86.avx2.packusdw"
    return op.call_llvm_pure_intrin(f"uint16x{2 * lanes}", name, low, high)


def pack_signed(low: Expr, high: Expr, lanes: int = LANES) -> Expr:
    """``vpackssdw``: int32 of so many lanes twice as int16 of twice as many, saturated, interleaved in fours."""
    name = "llvm.x86.avx512.packssdw.512" if lanes == LANES else "llvm.x86.avx2.packssdw"
    return op.call_llvm_pure_intrin(f"int16x{2 * lanes}", name, low, high)


def packed_lanes(lanes: int) -> tuple[int, ...]:
    """Where `pack_unsigned` and `pack_signed` put each lane of the first vector, then of the second.

    They work in 128 bits: four of the first, four of the second, and so on.
    """
    return tuple(8 * (lane // 4) + lane % 4 + half for half in (0, 4) for lane in range(lanes))
