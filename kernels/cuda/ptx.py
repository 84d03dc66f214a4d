"""The PTX that the Tensor Core kernels use, as statements.

Sections are of the PTX ISA 9.0 manual (https://docs.nvidia.com/cuda/parallel-thread-execution/). Registers are uint32
elements of a buffer of scope ``local`` at constant indices; pointers are ``buffer.ptr_to([index])``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.kernels.generic.expressions import Expr


@cache
def _instruction(name: str) -> Callable[..., Expr]:
    """What emits an instruction; looked up once, since TVM's table is searched word by word."""
    found: Callable[..., Expr] = T.ptx[name]
    return found


def uint32(value: int) -> Expr:
    return tirx.const(value, "uint32")


def _vector(count: int) -> str:
    return {1: "", 2: ".v2", 4: ".v4"}[count]


def load_global(registers: Sequence[Expr], pointer: Expr, condition: Expr = None) -> None:
    """Read 1, 2 or 4 words that no thread of the kernel writes (``ld.global.nc``, 9.7.9.10).

    Args:
        registers: what is read; unchanged where the condition is false.
        pointer: a multiple of all their bytes; not looked at where the condition is false.
        condition: whether to read; none for always.
    """
    given = {} if condition is None else {"pred": condition, "preserve_dst": True}
    T.evaluate(_instruction(f"ld.global.nc{_vector(len(registers))}.b32")(*registers, pointer, **given))


def store_global(registers: Sequence[Expr], pointer: Expr) -> None:
    """Write 1, 2 or 4 words (``st.global``, 9.7.9.12); the pointer is a multiple of all their bytes."""
    T.evaluate(_instruction(f"st.global{_vector(len(registers))}.b32")(pointer, *registers))


def load_shared(registers: Sequence[Expr], pointer: Expr) -> None:
    """Read 1, 2 or 4 words of shared memory (``ld.shared``, 9.7.9.8)."""
    T.evaluate(_instruction(f"ld.shared{_vector(len(registers))}.b32")(*registers, pointer))


def store_shared(registers: Sequence[Expr], pointer: Expr) -> None:
    """Write 1, 2 or 4 words to shared memory (``st.shared``, 9.7.9.12)."""
    T.evaluate(_instruction(f"st.shared{_vector(len(registers))}.b32")(pointer, *registers))


def copy_async(shared: Expr, pointer: Expr, words: int, condition: Expr = None) -> None:
    """Start a copy of 1 or 4 words from global to shared memory (``cp.async``, 9.7.9.25.3).

    Args:
        shared: where to, a multiple of all its bytes.
        pointer: where from, likewise, and in a buffer whatever the condition.
        words: how many; 4 leave the first-level cache out.
        condition: whether to read; where it is false, zeros are written. None for always.
    """
    size = 4 * words
    instruction = f"cp.async.{'cg' if words == 4 else 'ca'}.shared.global"
    given = () if condition is None else (tirx.Select(condition, uint32(size), uint32(0)),)
    T.evaluate(_instruction(instruction)(shared, pointer, size, *given))


def commit_copies() -> None:
    """The copies that were started since the last call are a group (``cp.async.commit_group``, 9.7.9.25.3.2)."""
    T.evaluate(_instruction("cp.async.commit_group")())


def wait_copies(newest: int) -> None:
    """Wait for all groups of the thread's copies but the `newest` (``cp.async.wait_group``, 9.7.9.25.3.3)."""
    T.evaluate(_instruction("cp.async.wait_group")(newest))


def load_matrix(registers: Sequence[Expr], pointer: Expr) -> None:
    """Read 1, 2 or 4 matrices of 8 rows of 16 bytes (``ldmatrix``, 9.7.14.5.15).

    Lane l names row l % 8 of matrix l / 8; it gets word l % 4 of row l / 4 of each.
    """
    T.evaluate(_instruction(f"ldmatrix.sync.aligned.m8n8.x{len(registers)}.shared.b16")(*registers, pointer))


def multiply(shape: str, a_type: str, b_type: str, sums: Sequence[Expr], a: Sequence[Expr], b: Sequence[Expr]) -> None:
    """Add a product of matrices to int32 sums, which wrap around (``mma.sync``, 9.7.14.5.14).

    Args:
        shape: as PTX names it: ``m8n8k16``.
        a_type: ``s8``, ``u8``, ``s4`` or ``u4``.
        b_type: the same for the second operand.
        sums: two registers for every 8 rows; lane l holds columns l % 4 * 2 and the next of row l / 4 of each.
        a: one register for every 8 rows and 16 bytes of a row; lane l holds bytes l % 4 * 4 and on of row l / 4.
        b: one register for every 16 bytes of a column; lane l holds bytes l % 4 * 4 and on of column l / 4.
    """
    instruction = f"mma.sync.aligned.{shape}.row.col.s32.{a_type}.{b_type}.s32"
    T.evaluate(_instruction(instruction)(*sums, *a, *b, *sums))


def permute_bytes(result: Expr, first: Expr, second: Expr, selector: Expr) -> None:
    """Four of the eight bytes of two words, those of `second` numbered 4 to 7 (``prmt.b32``, 9.7.9.7).

    Args:
        result: a register.
        first: uint32.
        second: uint32.
        selector: uint32, the number of each byte of the result in four bits, the lowest byte's in the lowest.
    """
    T.evaluate(_instruction("prmt.b32")(result, first, second, selector))


def dot_bytes(total: Expr, a: Expr, b: Expr, *, unsigned: bool) -> None:
    """Add the product of four bytes with four signed ones to an int32 sum (``dp4a``, 9.7.1.23).

    Args:
        total: an int32 register.
        a: uint32, four bytes.
        b: int32, four signed bytes.
        unsigned: whether those of `a` are unsigned.
    """
    bytes_ = a if unsigned else tirx.reinterpret("int32", a)
    T.evaluate(_instruction(f"dp4a.{'u' if unsigned else 's'}32.s32")(total, bytes_, b, total))


def pack_saturated(result: Expr, high: Expr, low: Expr, rest: Expr, bits: int, signed: bool) -> None:
    """Clip two int32 to a type and put them below what is packed already (``cvt.pack.sat``, 9.7.10.25).

    ``result = rest << 2 bits | clip(high) << bits | clip(low)``

    Args:
        result: a register.
        high: int32.
        low: int32.
        rest: a register, or 0.
        bits: 4 or 8.
        signed: whether the type is.
    """
    T.evaluate(_instruction(f"cvt_pack.sat.{'s' if signed else 'u'}{bits}.s32.b32")(result, high, low, rest))


def barrier() -> None:
    """Wait for all threads of the block (``bar.sync``, 9.7.13.1)."""
    T.evaluate(T.cuda.cta_sync())
