"""Vectors in TIR, of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op

from hawq_tvm.kernels.generic.expressions import Expr

LANE_BYTES = 4
"""Of the lanes that products are added to."""

LINE_BYTES = 64
"""Of a cache line."""


def ramp(start: Expr, lanes: int) -> Expr:
    """Indices of `lanes` neighbours."""
    return tirx.Ramp(tirx.const(start, "int32") if isinstance(start, int) else start, tirx.const(1, "int32"), lanes)


def constant(value: float, dtype: str, lanes: int) -> Expr:
    """A vector of one number."""
    return tirx.Broadcast(tirx.const(value, dtype), lanes)


def clipped(vector: Expr, lo: int, hi: int, dtype: str, lanes: int) -> Expr:
    """Lanes between two numbers; in saturating conversions LLVM finds the limits of their type again."""
    return tirx.max(tirx.min(vector, constant(hi, dtype, lanes)), constant(lo, dtype, lanes))


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """The lanes of those numbers, in that order, counted through all vectors."""
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])


def in_all_lanes(four: Expr, lanes: int) -> Expr:
    """Four bytes, int8x4 or uint8x4, in each 32-bit lane: int8 of four times `lanes`."""
    return op.reinterpret(f"int8x{LANE_BYTES * lanes}", tirx.Broadcast(op.reinterpret("int32", four), lanes))


def halves_of_bytes(packed: Expr, half: int, count: int) -> Expr:
    """The low or high four bits of each byte, sign extended: int8 from uint8 of that `count`."""
    bits = packed >> constant(4, "uint8", count) if half else packed & constant(15, "uint8", count)
    eight = constant(8, "uint8", count)
    return op.reinterpret(f"int8x{count}", (bits ^ eight) - eight)


def prefetch(address: Any) -> None:
    """Ask for the cache line of a buffer's element; no fault, wherever it lies."""
    read, keep, data = tirx.const(0, "int32"), tirx.const(3, "int32"), tirx.const(1, "int32")
    T.evaluate(op.call_llvm_intrin("void", "llvm.prefetch", op.address_of(address), read, keep, data))


class Wrapping:
    """A vector of integers that wrap around, kept by a name so that what uses it twice computes it once.

    TVM tells LLVM of its own sums of 32 bits that they never overflow (``nsw``). These are intrinsics with all lanes
    switched on, of which LLVM assumes nothing, and makes the same instructions.
    """

    def __init__(self, value: Expr, dtype: str, lanes: int) -> None:
        self.value, self._dtype, self._lanes = T.bind(value), dtype, lanes

    def __add__(self, other: Wrapping) -> Wrapping:
        return self._with("add", other.value)

    def __sub__(self, other: Wrapping) -> Wrapping:
        return self._with("sub", other.value)

    def __mul__(self, factor: int) -> Wrapping:
        return self._with("mul", constant(factor, self._dtype, self._lanes))

    def _with(self, operation: str, other: Expr) -> Wrapping:
        dtype, lanes, all_lanes = self._dtype, self._lanes, constant(True, "bool", self._lanes)
        operands = self.value, other, all_lanes, tirx.const(lanes, "int32")
        result = op.call_llvm_pure_intrin(f"{dtype}x{lanes}", f"llvm.vp.{operation}", *operands)
        return Wrapping(result, dtype, lanes)


class Registers:
    """Vectors that LLVM keeps in registers: accumulators, int32 unless told otherwise.

    They are to be made inside the loop over tasks.

    There is a buffer for each. TVM puts one of a kilobyte and more on the heap, and one of scope "local" there, too:
    then every prefetch would have LLVM write all of them to memory first.
    """

    def __init__(self, count: int, lanes: int, dtype: str = "int32") -> None:
        self._lanes = lanes
        self._buffers = [T.alloc_buffer((lanes,), dtype, align=64) for _ in range(count)]

    def __getitem__(self, number: int) -> Expr:
        return self._buffers[number][ramp(0, self._lanes)]

    def __setitem__(self, number: int, value: Expr) -> None:
        T.buffer_store(self._buffers[number], value, [ramp(0, self._lanes)])


def flat(buffer: Any) -> Any:
    """The same memory as one row of elements."""
    size = 1
    for extent in buffer.shape:
        size *= int(extent)
    return T.decl_buffer((size,), buffer.dtype, data=buffer.data)
