"""When a kernel's loops are spread over threads, and what each thread does and has for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import Call, Op, PointerType, PrimType
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op

MIN_MACS = 2_000_000
"""Multiply-accumulates from which threads pay: about 20 us of one core, where waking the pool takes 5 to 50."""

MIN_ELEMENTS = 100_000
"""Elements from which they pay in an operator without weights."""


def spread(schedule: Any, loop: Any, worth_it: bool) -> Any:
    """Run a loop's iterations on all threads where that pays; returns the loop."""
    if worth_it:
        schedule.parallel(loop)
    return loop


@contextmanager
def in_each_thread() -> Iterator[None]:
    """Begin what all threads do, each for itself, but for parallel loops within, whose iterations they share.

    They wait for each other at its end alone.
    """
    with T.attr(tirx.const(0, "int32"), "pragma_parallel_launch_point", tirx.const(1, "int32")):
        yield


@contextmanager
def memory_here(count: int, dtype: str) -> Iterator[Any]:
    """A buffer of whoever comes here, until its end: within `in_each_thread` of each thread, before it of all.

    An allocation that is left to TVM comes before it wherever it stands, one for all threads.

    Args:
        count: of its elements.
        dtype: of an element.
    """
    cpu, first, size = tirx.const(1, "int32"), tirx.const(0, "int32"), count * np.dtype(dtype).itemsize
    hints = tirx.const(0, "int32"), tirx.const(8, "int32")
    operands = [cpu, first, tirx.const(size, "uint64"), *hints]
    pointer = PointerType(PrimType(dtype), "global")
    memory = T.bind(Call(Op.get("tirx.TVMBackendAllocWorkspace"), operands, ret_ty=pointer))
    with T.If(op.isnullptr(memory)), T.Then():
        T.evaluate(op.tvm_throw_last_error())
    yield T.decl_buffer((count,), dtype, data=memory, align=64)
    T.evaluate(op.TVMBackendFreeWorkspace(cpu, first, memory))
