"""The proofs about PrimFuncs that the kernels' tests rely on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.kernels.dot.vectors import constant, ramp
from hawq_tvm.kernels.generic.functions import function
from hawq_tvm.kernels.generic.parallel import in_each_thread, memory_here

from .accesses import shared_between_threads


def writer(place: Any, lanes: int) -> Any:
    """Eight tasks that write a buffer of 64 elements, made outside, at `place(task, i)` for i from 0 to 3."""

    def body(result: Any) -> None:
        scratch = T.alloc_buffer((64,), "int32", align=64)
        with T.parallel(8) as task, T.serial(4) as i:
            T.buffer_store(scratch, constant(1, "int32", lanes), [ramp(place(task, i), lanes)])
        T.buffer_store(result, scratch[0], [0])

    return function([("result", (1,), "int32")], body)


@pytest.mark.parametrize(
    ("place", "lanes", "apart"),
    [
        (lambda task, i: task * 8 + i, 4, True),
        (lambda task, i: task * 8 + i + 1, 4, True),
        (lambda task, i: task * 8 + i + 2, 4, False),
        (lambda task, i: task * 6 + i, 4, False),
        (lambda task, i: i * 8, 4, False),
        (lambda task, i: tirx.min(task * 8, 40) + i, 4, False),
        (lambda task, i: task // 2 * 8 + i, 4, False),
        (lambda task, i: i * 16 + task * 2, 2, True),
        (lambda task, i: i * 16 + task, 2, False),
        (lambda task, i: i * 12 + task * 2, 2, False),
    ],
)
def test_tasks_that_write_parts_of_their_own_share_nothing(place: Any, lanes: int, apart: bool) -> None:
    assert (shared_between_threads(writer(place, lanes)) == []) == apart


def test_stores_must_keep_to_the_same_parts() -> None:
    """Each alone would do: every task its own eighth, and every task its own pair in each quarter."""

    def body(result: Any) -> None:
        scratch = T.alloc_buffer((64,), "int32", align=64)
        with T.parallel(8) as task, T.serial(4) as i:
            T.buffer_store(scratch, tirx.const(1, "int32"), [task * 8 + i])
            T.buffer_store(scratch, tirx.const(1, "int32"), [i * 16 + task * 2])
        T.buffer_store(result, scratch[0], [0])

    assert shared_between_threads(function([("result", (1,), "int32")], body)) != []


def test_buffers_of_a_task_are_not_shared() -> None:
    def body(result: Any) -> None:
        with T.parallel(8) as task:
            scratch = T.alloc_buffer((64,), "int32", align=64)
            T.buffer_store(scratch, tirx.const(1, "int32"), [0])
            T.buffer_store(result, scratch[0], [task])

    assert shared_between_threads(function([("result", (8,), "int32")], body)) == []


@pytest.mark.parametrize("own", [True, False])
def test_what_all_threads_write_is_shared_unless_it_is_their_own(own: bool) -> None:
    """An allocation among what each thread does is one for all: TVM moves it to before that."""

    @contextmanager
    def allocated(count: int, dtype: str) -> Iterator[Any]:
        yield T.alloc_buffer((count,), dtype, align=64)

    def body(result: Any) -> None:
        with in_each_thread(), (memory_here if own else allocated)(64, "int32") as scratch:
            T.buffer_store(scratch, tirx.const(1, "int32"), [0])
            with T.parallel(8) as task:
                T.buffer_store(result, scratch[0], [task])

    assert (shared_between_threads(function([("result", (8,), "int32")], body)) == []) == own


def test_memory_taken_before_threads_part_is_of_all() -> None:
    def body(result: Any) -> None:
        with memory_here(64, "int32") as scratch:
            with T.parallel(8) as task:
                T.buffer_store(scratch, tirx.const(1, "int32"), [task // 2])
            T.buffer_store(result, scratch[0], [0])

    assert shared_between_threads(function([("result", (1,), "int32")], body)) != []


def test_the_result_is_shared_where_all_threads_write_it() -> None:
    def body(result: Any) -> None:
        with in_each_thread():
            T.buffer_store(result, tirx.const(1, "int32"), [0])
            with T.parallel(7) as task:
                T.buffer_store(result, tirx.const(1, "int32"), [task + 1])

    assert shared_between_threads(function([("result", (8,), "int32")], body)) != []
