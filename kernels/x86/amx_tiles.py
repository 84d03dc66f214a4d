"""The AMX instructions, as TIR, and the permission that Linux wants to be asked for.

Eight tiles of up to 16 rows of 64 bytes are state of a thread, configured by ``ldtilecfg``. A process must ask for that
state once: without permission the first tile instruction is an illegal one. Asking again costs 0.1 us, so each kernel
asks by itself, in a library that then needs nothing of the program it is loaded into.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter "Programming with Intel
Advanced Matrix Extensions", and volume 2, LDTILECFG, TILELOADD, TILESTORED, TDPBUSD; Linux,
Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op

from hawq_tvm.kernels.generic.expressions import Expr, int64
from hawq_tvm.kernels.x86.storages import AVX512_VNNI

AMX_INT8 = AVX512_VNNI | {"amx-tile", "amx-int8", "avx512vbmi", "avx512ifma"}
"""What these kernels are made of: tiles, and what every CPU with tiles has for the rescale."""

ROWS, ROW_BYTES = 16, 64
"""Of every tile, as `configure` makes them."""

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18
"""The system call's number on x86-64, the request, and the component of the extended state that tiles are."""


def instruction(name: str, *operands: Expr) -> None:
    """Emit one tile instruction, by the name of LLVM's intrinsic."""
    T.evaluate(op.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


def permission() -> Expr:
    """Asks Linux for tiles; int64, 0 where they may be used."""
    return op.call_extern("int64", "syscall", *map(int64, (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA)))


def configure() -> None:
    """Make eight tiles of 16 rows of 64 bytes, all zero; the 64 bytes that say so are built on the stack."""
    configuration = T.alloc_buffer((8,), "int64")
    palette, columns, rows = 1, 0x0040_0040_0040_0040, 0x1010_1010_1010_1010
    for index, word in enumerate((palette, 0, columns, columns, 0, 0, rows, 0)):
        T.buffer_store(configuration, int64(word), [index])
    instruction("ldtilecfg", op.address_of(configuration[0]))


def release() -> None:
    """Give the tiles back, so that switching threads need not save them."""
    instruction("tilerelease")


def load(tile: int, buffer: Any, start: Expr, stride: Expr) -> None:
    """Rows of 64 bytes, `stride` bytes apart, from the element `start` of a flat buffer."""
    instruction("tileloadd64", _number(tile), op.address_of(buffer[start]), int64(stride))


def store(tile: int, buffer: Any, start: Expr, stride: Expr) -> None:
    """As `load`, into memory."""
    instruction("tilestored64", _number(tile), op.address_of(buffer[start]), int64(stride))


def dot(accumulator: int, unsigned: int, signed: int) -> None:
    """Add the products of 16 rows of 64 unsigned bytes with 16 columns of 64 signed ones, int32 that wraps."""
    instruction("tdpbusd", _number(accumulator), _number(unsigned), _number(signed))


def _number(tile: int) -> Expr:
    return tirx.const(tile, "int8")
