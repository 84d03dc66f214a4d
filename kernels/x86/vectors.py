"""Vectors in TIR, and the few x86 instructions that LLVM is told to use by name.

Everything else is plain vector arithmetic, which LLVM turns into the instructions that `kernels/x86/epilogue.py` names.
Sources: Intel SDM volume 2 for the instructions; LLVM's ``IntrinsicsX86.td`` for the names and operand types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op

from hawq_tvm.kernels.generic.expressions import Expr

LANES = 16
"""32-bit lanes of a vector register; a vector of weights holds four channels for each."""


def ramp(start: Expr, lanes: int) -> Expr:
    """Indices of `lanes` neighbours."""
    return tirx.Ramp(tirx.const(start, "int32") if isinstance(start, int) else start, tirx.const(1, "int32"), lanes)


def constant(value: float, dtype: str, lanes: int = LANES) -> Expr:
    """A vector of one number."""
    return tirx.Broadcast(tirx.const(value, dtype), lanes)


def clipped(vector: Expr, lo: int, hi: int, dtype: str, lanes: int = LANES) -> Expr:
    """Lanes between two numbers; in saturating conversions LLVM finds the limits of their type again."""
    return tirx.max(tirx.min(vector, constant(hi, dtype, lanes)), constant(lo, dtype, lanes))


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """The lanes of those numbers, in that order, counted through all vectors."""
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])


def in_all_lanes(four: Expr) -> Expr:
    """Four bytes, uint8x4, in each 32-bit lane: int8x64."""
    return op.reinterpret("int8x64", tirx.Broadcast(op.reinterpret("int32", four), LANES))


def dot(accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """``vpdpbusd``: to each 32-bit lane, four products of unsigned by signed bytes are added, modulo 2^32.

    Args:
        accumulator: int32x16.
        activations: int8x64, taken as unsigned.
        weights: int8x64.
    """
    return op.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, activations, weights)


def dot_pairs(accumulator: Expr, x: Expr, y: Expr) -> Expr:
    """``vpdpwssd``: to each 32-bit lane, two products of signed 16-bit numbers, int16x32, are added, modulo 2^32."""
    return op.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpwssd.512", accumulator, x, y)


def multiply_add_down(x: Expr, y: Expr, z: Expr) -> Expr:
    """``vfmadd213ps`` with ``{rd-sae}``: x * y + z, float32x16, rounded once, toward minus infinity."""
    down_and_no_exceptions = tirx.const(1 | 8, "int32")
    operands = x, y, z, down_and_no_exceptions
    return op.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.vfmadd.ps.512", *operands)


def nibbles(packed: Expr, half: int) -> Expr:
    """``vgf2p8affineqb``: the low or high four bits of each byte, sign extended; int8x64 from uint8x64.

    Bit i of a result is the parity of the byte under row i of an 8x8 matrix of bits, whose rows lie from the highest
    byte of 64 bits down. Rows 0 to 3 pick the four bits, rows 4 to 7 the sign.
    """
    matrix = (0x0102040808080808, 0x1020408080808080)[half]
    rows = op.reinterpret("int8x64", constant(matrix, "int64", 8))
    bytes_ = op.reinterpret("int8x64", packed)
    return op.call_llvm_pure_intrin("int8x64", "llvm.x86.vgf2p8affineqb.512", bytes_, rows, tirx.const(0, "int8"))


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


def pack_unsigned(low: Expr, high: Expr) -> Expr:
    """``vpackusdw``: int32x16 twice as uint16x32, saturated, interleaved in fours."""
    return op.call_llvm_pure_intrin("uint16x32", "llvm.x86.avx512.packusdw.512", low, high)


def pack_signed(low: Expr, high: Expr) -> Expr:
    """``vpackssdw``: int32x16 twice as int16x32, saturated, interleaved in fours."""
    return op.call_llvm_pure_intrin("int16x32", "llvm.x86.avx512.packssdw.512", low, high)


PACKED_LANES = tuple(8 * (lane // 4) + lane % 4 + half for half in (0, 4) for lane in range(LANES))
"""Where `pack_unsigned` and `pack_signed` put each lane of the first vector, then of the second.

They work in 128 bits: four of the first, four of the second, and so on.
"""


def prefetch(address: Any) -> None:
    """Ask for the cache line of a buffer's element; no fault, wherever it lies."""
    read, keep, data = tirx.const(0, "int32"), tirx.const(3, "int32"), tirx.const(1, "int32")
    T.evaluate(op.call_llvm_intrin("void", "llvm.prefetch", op.address_of(address), read, keep, data))


class Registers:
    """Accumulators, int32x16 each, that LLVM keeps in registers; to be made inside the loop over tasks.

    There is a buffer for each. TVM puts one of a kilobyte and more on the heap, and one of scope "local" there, too:
    then every prefetch would have LLVM write all of them to memory first.
    """

    def __init__(self, count: int) -> None:
        self._buffers = [T.alloc_buffer((LANES,), "int32", align=64) for _ in range(count)]

    def __getitem__(self, number: int) -> Expr:
        return self._buffers[number][ramp(0, LANES)]

    def __setitem__(self, number: int, value: Expr) -> None:
        T.buffer_store(self._buffers[number], value, [ramp(0, LANES)])


def flat(buffer: Any) -> Any:
    """The same memory as one row of elements."""
    size = 1
    for extent in buffer.shape:
        size *= int(extent)
    return T.decl_buffer((size,), buffer.dtype, data=buffer.data)
