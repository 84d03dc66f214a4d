"""Kernels are called as within a network: their weights far, their input and scratch at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from hawq_tvm.backends.tvm import timing
from hawq_tvm.backends.tvm.chosen import ChosenKernel
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.backends.tvm.timing import KernelTime, TimedKernel, time_kernels

from .builders import integers_of
from .cpus import HOST


def timed_conv() -> TimedKernel:
    """The last convolution of a small network."""
    plan = plan_storages(integers_of("Residual"), HOST.target, HOST.vector_bits, batch=1, features=HOST.features)
    chosen = ChosenKernel.of_node(plan, "conv2")
    return chosen.timed(chosen.offer.build())


@pytest.mark.parametrize("threads", [1, 2])
def test_every_line_is_read_by_all_threads(threads: int) -> None:
    lines = np.zeros((37, 8), np.int64)
    lines[:, 0] = 3 ** np.arange(37)  # sums tell which lines are in them
    library = tvm.compile(
        tvm.IRModule({"read": timing._reader(threads).with_attr("global_symbol", "read")}), target=HOST.tvm_target
    )
    sums = tvm.runtime.tensor(np.zeros(threads, np.int64))
    library["read"](tvm.runtime.tensor(lines), sums)
    assert sums.numpy().tolist() == [int(lines.sum())] * threads


@pytest.mark.parametrize("shape", [(1,), (7, 9), (64,), (3, 5, 2)])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_an_array_is_what_it_was_and_lies_in_lines_of_its_own(shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    lines = timing._lines(array)
    assert lines.ctypes.data % 64 == 0
    assert lines.shape == (-(-array.nbytes // 64), 8)
    assert lines.tobytes().startswith(array.tobytes())
    memory = timing._in_lines(array)
    assert np.array_equal(memory.numpy(), array)
    assert memory.dtype == dtype


def test_a_call_that_is_timed_comes_behind_one_with_weights_elsewhere() -> None:
    """And before that its own weights are used, and other memory is read."""
    kernel, happened = timed_conv(), []

    def function(*arguments: Any) -> None:
        happened.append([np.from_dlpack(argument).ctypes.data for argument in arguments])

    call = timing._Call(function, kernel, lambda: happened.append([]))
    assert call.seconds() > 0
    own, read, before, timed = happened
    assert own == timed
    assert read == []
    inputs, weights = slice(kernel.inputs), slice(kernel.inputs, -1)
    assert (own[inputs], own[-1]) == (before[inputs], before[-1])
    assert len(set(own[weights]) | set(before[weights])) == 2 * (len(own) - kernel.inputs - 1) > 0


@pytest.mark.parametrize("size", [0, 100_000])
def test_kernels_take_turns_and_each_round_is_told(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    seconds = timing._Call.seconds

    def watched(call: timing._Call) -> float:
        order.append(id(call))
        return seconds(call)

    monkeypatch.setattr(timing._Call, "seconds", watched)
    kernel = timed_conv()
    told: list[tuple[int, int]] = []
    taken = time_kernels(
        [kernel, kernel],
        HOST,
        threads=1,
        network_bytes=size,
        rounds=3,
        progress=lambda done, total: told.append((done, total)),
    )
    first, second = order[:2]
    assert order == [first, second] * 3
    assert [len(time.seconds) for time in taken] == [3, 3]
    assert min(min(time.seconds) for time in taken) > 0
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_time_is_the_median_and_its_spread() -> None:
    taken = KernelTime((3e-6, 1e-6, 2e-6), 1)
    assert taken.median_us == pytest.approx(2.0)
    assert taken.spread_us == pytest.approx((1.2, 2.8))
