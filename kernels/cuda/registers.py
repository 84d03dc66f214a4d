"""A thread's registers: local buffers, which the compiler keeps in registers as long as every index is a constant."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.kernels.cuda import ptx
from hawq_tvm.kernels.cuda.storages import CHUNK_WORDS
from hawq_tvm.kernels.generic.expressions import Expr


def local(count: int, dtype: str) -> Any:
    """So many registers, which hold anything."""
    return T.alloc_buffer((count,), dtype, scope="local")


def accumulators(count: int, first: int) -> Any:
    """Registers of int32 that all hold `first`."""
    buffer = local(count, "int32")
    for lane in range(count):
        T.buffer_store(buffer, tirx.const(first, "int32"), [lane])
    return buffer


def load_channels(registers: Any, buffer: Any, *index: Expr) -> Any:
    """Read neighbouring elements of 32 bits, a whole number of chunks, into all registers; returns them.

    Args:
        registers: of `local`.
        buffer: a constant whose last axis are channels.
        index: of the first element; its last part is a multiple of a chunk.
    """
    *outer, first = index
    for start in range(0, int(registers.shape[0]), CHUNK_WORDS):
        given = [registers[start + i] for i in range(CHUNK_WORDS)]
        ptx.load_global(given, buffer.ptr_to([*outer, first + start]))
    return registers
