"""Vectors in TIR: neighbouring elements, one value in every lane, LLVM's intrinsics, buffers seen as one row."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.kernels.generic.expressions import Expr


def ramp(start: Expr, lanes: int) -> Expr:
    """Indices of neighbouring elements."""
    start = tirx.const(start, "int32") if isinstance(start, int) else start
    return tirx.Ramp(start, tirx.const(1, "int32"), lanes)


def broadcast(value: Expr, lanes: int) -> Expr:
    """One value in every lane."""
    return tirx.Broadcast(value, lanes)


def every(value: int, dtype: str, lanes: int) -> Expr:
    """One constant in every lane."""
    return broadcast(tirx.const(value, dtype), lanes)


def pure(dtype: str, name: str, *operands: Expr) -> Expr:
    """A call of one of LLVM's intrinsics that touches no memory."""
    return tir.call_llvm_pure_intrin(dtype, name, *operands)


def flat(buffer: Any) -> Any:
    """The same memory with one index."""
    return T.decl_buffer((prod(int(size) for size in buffer.shape),), buffer.dtype, data=buffer.data)
