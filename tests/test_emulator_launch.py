"""Kernels alone: what `run` takes, what it gives back, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.emulator.launch import load_kernel, run

from .emulated import cuda, needs_compiler

pytestmark = needs_compiler

I32 = np.iinfo(np.int32)


def test_arrays_are_changed_in_place_and_numbers_are_passed() -> None:
    body = "y_ptr[blockIdx.x * blockDim.x + threadIdx.x] += (int)(scale * factor) + gridDim.x * 1000;"
    text = cuda("int* __restrict__ y_ptr, int factor, const float scale", body)
    y = np.arange(12, dtype=np.int32)
    run(text, "kernel", {"y": y, "factor": 3, "scale": 2.5}, (3,), (4,))
    assert np.array_equal(y, np.arange(12) + 7 + 3000)


def test_threads_know_where_they_are() -> None:
    body = """
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  y_ptr[block * 24 + thread] = where(block, thread);"""
    before = (
        "__device__ int where(int block, int thread)"
        " { return (int)threadIdx.z * 100 + (int)blockIdx.z * 1000 + block * 10000 + thread; }"
    )
    y = np.zeros((6, 24), np.int32)
    run(cuda("int* y_ptr", body, before=before), "kernel", [y], (1, 2, 3), (2, 3, 4))
    block, thread = np.mgrid[:6, :24]
    assert np.array_equal(y, thread // 6 * 100 + block // 2 * 1000 + block * 10000 + thread)


def test_constants_are_read() -> None:
    body = "y_ptr[threadIdx.x] = table[x_ptr[threadIdx.x]] + other[x_ptr[threadIdx.x] + 1];"
    before = "__constant__ int table[4] = {5, 6, 7, 8};\nstatic const short other[5] = {0, 10, 20, 30, 40};"
    x, y = np.array([3, 0, 2, 1], np.int32), np.zeros(4, np.int32)
    run(cuda("int* x_ptr, int* y_ptr", body, before=before), "kernel", [x, y], (1,), (4,))
    assert y.tolist() == [48, 15, 37, 26]


@settings(max_examples=30)
@given(st.integers(I32.min, I32.max), st.integers(I32.min, I32.max))
def test_integers_wrap_around(a: int, b: int) -> None:
    text = cuda("int* x_ptr, int* y_ptr", "y_ptr[0] = x_ptr[0] + x_ptr[1]; y_ptr[1] = x_ptr[0] * x_ptr[1];")
    y = np.zeros(2, np.int32)
    run(text, "kernel", [np.array([a, b], np.int32), y], (1,), (1,))
    wrapped = [(value - I32.min) % 2**32 + I32.min for value in (a + b, a * b)]
    assert y.tolist() == wrapped


REVERSE = """
  __shared__ alignas(16) int values[64];
  values[threadIdx.x] = x_ptr[threadIdx.x];
  {barrier}
  x_ptr[threadIdx.x] = values[63 - threadIdx.x];"""


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("checked", [True, False])
def test_a_barrier_orders_threads(checked: bool, order: int) -> None:
    x = np.arange(64, dtype=np.int32)
    text = cuda("int* x_ptr", REVERSE.format(barrier="__syncthreads();"))
    run(text, "kernel", [x], (1,), (64,), checked=checked, order=order)
    assert np.array_equal(x, np.arange(64)[::-1])


@pytest.mark.parametrize("order", range(4))
def test_a_race_is_found_in_every_order(order: int) -> None:
    """What is found does not depend on who really came first."""
    text = cuda("int* x_ptr", REVERSE.format(barrier=""))
    with pytest.raises(EmulatorError, match=r"race: it (reads|writes) shared values\[\d+\].* with no barrier between"):
        run(text, "kernel", [np.arange(64, dtype=np.int32)], (1,), (64,), order=order)


def test_a_warp_barrier_orders_its_warp_alone() -> None:
    body = """
  __shared__ int values[64];
  values[threadIdx.x] = x_ptr[threadIdx.x];
  __syncwarp();
  x_ptr[threadIdx.x] = values[threadIdx.x ^ {distance}];"""
    x = np.arange(64, dtype=np.int32)
    run(cuda("int* x_ptr", body.format(distance=31)), "kernel", [x], (1,), (64,))
    assert np.array_equal(x, np.arange(64) ^ 31)
    with pytest.raises(EmulatorError, match="race: it (reads|writes) shared values"):
        run(cuda("int* x_ptr", body.format(distance=32)), "kernel", [x], (1,), (64,))


def test_a_warp_barrier_orders_nothing_that_comes_after_it() -> None:
    body = "__shared__ int value[1]; __syncwarp(); value[0] = threadIdx.x; x_ptr[threadIdx.x] = 0;"
    with pytest.raises(EmulatorError, match=r"race: it writes shared value\[0\].* thread \(\d+, 0, 0\) wrote"):
        run(cuda("int* x_ptr", body), "kernel", [np.zeros(32, np.int32)], (1,), (32,))


def test_a_warp_barrier_orders_nothing_of_other_warps() -> None:
    body = """
  __shared__ int values[32];
  if (threadIdx.x < 32) values[threadIdx.x] = 1;
  __syncwarp();
  if (threadIdx.x >= 32) x_ptr[threadIdx.x] = values[threadIdx.x - 32];"""
    with pytest.raises(EmulatorError, match=r"race: it reads shared values\[\d+\].* thread \(\d+, 0, 0\) wrote"):
        run(cuda("int* x_ptr", body), "kernel", [np.zeros(64, np.int32)], (1,), (64,))


def test_a_write_after_others_have_read_is_a_race() -> None:
    body = """
  __shared__ int value[1];
  if (threadIdx.x == 0) value[0] = 7;
  __syncthreads();
  x_ptr[threadIdx.x] = value[0];
  if (threadIdx.x == 40) value[0] = 8;"""
    message = r"thread \(40, 0, 0\): race: it writes shared value\[0\].* which threads of several warps read"
    with pytest.raises(EmulatorError, match=message):
        run(cuda("int* x_ptr", body), "kernel", [np.zeros(64, np.int32)], (1,), (64,))


@pytest.mark.parametrize("barrier", ["__syncthreads();", ""])
def test_races_are_found_after_a_million_barriers(barrier: str) -> None:
    """The clock of the checks has 20 bits."""
    body = f"""
  __shared__ int values[2];
  for (int i = 0; i < 1100000; ++i) __syncthreads();
  values[threadIdx.x] = threadIdx.x;
  {barrier}
  x_ptr[threadIdx.x] = values[1 - threadIdx.x];"""
    x = np.zeros(2, np.int32)
    if barrier:
        run(cuda("int* x_ptr", body), "kernel", [x], (1,), (2,))
        assert x.tolist() == [1, 0]
        return
    with pytest.raises(EmulatorError, match="race: it (reads|writes) shared values"):
        run(cuda("int* x_ptr", body), "kernel", [x], (1,), (2,))


def test_more_warp_barriers_than_can_be_counted() -> None:
    text = cuda("int* x_ptr", "for (int i = 0; i < 1100000; ++i) __syncwarp();")
    with pytest.raises(EmulatorError, match="more than 1048574 __syncwarp between two barriers"):
        run(text, "kernel", [np.zeros(1, np.int32)], (1,), (1,))


def test_bytes_of_one_word_are_apart() -> None:
    body = """
  __shared__ signed char values[64];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  x_ptr[threadIdx.x] = values[63 - threadIdx.x];"""
    x = np.zeros(64, np.int32)
    run(cuda("int* x_ptr", body), "kernel", [x], (1,), (64,))
    assert np.array_equal(x, np.arange(64)[::-1])


def test_blocks_that_write_what_others_read_race() -> None:
    text = cuda("int* x_ptr", "x_ptr[blockIdx.x] = x_ptr[(blockIdx.x + 1) % 4];")
    with pytest.raises(EmulatorError, match=r"race: it (reads|writes) x_ptr\[\d\].* in the same launch"):
        run(text, "kernel", [np.arange(4, dtype=np.int32)], (4,), (1,))
    x = np.arange(4, dtype=np.int32)
    run(cuda("int* x_ptr", "x_ptr[blockIdx.x] = x_ptr[blockIdx.x] * 2;"), "kernel", [x], (4,), (1,))
    assert x.tolist() == [0, 2, 4, 6]


def test_atomic_functions_may_meet() -> None:
    body = """
  __shared__ int highest[1];
  if (threadIdx.x == 0) highest[0] = 0;
  __syncthreads();
  atomicMax(&highest[0], (int)threadIdx.x);
  __syncthreads();
  atomicAdd(&x_ptr[0], highest[0]);
  atomicAdd(&y_ptr[0], 0.5f);"""
    x, y = np.zeros(1, np.int32), np.zeros(1, np.float32)
    run(cuda("int* x_ptr, float* y_ptr", body), "kernel", [x, y], (10,), (50,))
    assert (x[0], y[0]) == (10 * 50 * 49, 250)
    racing = cuda("int* x_ptr", "if (blockIdx.x == 0) x_ptr[0] = 1; else atomicAdd(&x_ptr[0], 1);")
    with pytest.raises(EmulatorError, match="race"):
        run(racing, "kernel", [x], (2,), (1,))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("index", "access"), [(8, "y_ptr[i] = 1;"), (-1, "y_ptr[i] = 1;"), (3_000_000, "y_ptr[0] = y_ptr[i];")]
)
def test_out_of_bounds(index: int, access: str, checked: bool) -> None:
    """Without checks, bytes beside a buffer are looked at after the launch, and pages beyond cannot be touched."""
    text = cuda("int* y_ptr, int i", access)
    with pytest.raises(EmulatorError, match="kernel 'kernel', "):
        run(text, "kernel", [np.zeros(8, np.int32), index], (1,), (1,), checked=checked)


def test_out_of_bounds_names_block_thread_buffer_and_index() -> None:
    text = cuda("int* x_ptr, short* y_ptr", "y_ptr[blockIdx.x * 16 + threadIdx.x] = 0;")
    expected = (
        "kernel 'kernel', block (1, 0, 0), thread (4, 0, 0): write of 2 bytes out of bounds at "
        "y_ptr[20] (20 elements of 2 bytes; byte 40 of 40)"
    )
    with pytest.raises(EmulatorError, match=re.escape(expected)):
        run(text, "kernel", [np.zeros(4, np.int32), np.zeros(20, np.int16)], (2,), (16,), workers=1)


def test_one_shared_array_does_not_run_into_the_next() -> None:
    body = """
  __shared__ int first[4];
  __shared__ int second[4];
  second[threadIdx.x] = 1;
  int* p = first;
  p[threadIdx.x < 3 ? threadIdx.x : 3 + i] = 2;
  x_ptr[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];"""
    x = np.zeros(4, np.int32)
    run(cuda("int* x_ptr, int i", body), "kernel", [x, 0], (1,), (4,))
    assert x.tolist() == [3, 3, 3, 3]
    with pytest.raises(EmulatorError, match=r"write of 4 bytes out of bounds at shared first\[4\]"):
        run(cuda("int* x_ptr, int i", body), "kernel", [x, 1], (1,), (4,))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "*(int4*)(x_ptr + 1) = make_int4(1, 2, 3, 4);",
            "misaligned access, which needs a multiple of 16 bytes, at x_ptr[1]",
        ),
        ("int r[4]; r[i] = 1; x_ptr[0] = r[i - 1];", "an index outside of an array"),
        ("x_ptr[0] = 1 << (i + 28);", "a shift by a negative number of bits, or by as many"),
        ("x_ptr[0] = 1 / (i - 4);", "a division by zero"),
        ("x_ptr[0] = (int)(1e30f * i);", "a float beyond the integer type"),
    ],
)
def test_what_is_undefined_is_told(body: str, message: str, checked: bool) -> None:
    with pytest.raises(EmulatorError, match=re.escape(message)):
        run(cuda("int* x_ptr, int i", body), "kernel", [np.zeros(8, np.int32), 4], (1,), (1,), checked=checked)


def test_the_line_is_that_of_the_text() -> None:
    text = cuda("int* x_ptr", "\n\n  x_ptr[0] = 1 << (x_ptr[0] + 32);")
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "1 <<" in row)
    with pytest.raises(EmulatorError, match=f"in line {line} of its text"):
        run(text, "kernel", [np.zeros(1, np.int32)], (1,), (1,))


def test_memory_and_registers_that_were_never_written_hold_no_zeros() -> None:
    body = """
  __shared__ int values[4];
  int r[4];
  x_ptr[threadIdx.x] = values[threadIdx.x];
  x_ptr[threadIdx.x + 4] = r[threadIdx.x + x_ptr[8]];"""
    x = np.zeros(9, np.int32)
    run(cuda("int* x_ptr", body), "kernel", [x], (1,), (4,))
    assert (x[:8] != 0).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 40) __syncthreads();", "threads diverge at a barrier: 40 wait there, 24 of 64 have ended"),
        ("if (threadIdx.x % 2) __syncwarp();", "this one waits at __syncwarp, which others of it never reach"),
        ("if (threadIdx.x % 2) __syncwarp(); else __shfl_sync(-1, 1, 0);", "threads of one warp diverge"),
        ("__syncwarp(1);", "__syncwarp of a part of a warp"),
        ('asm volatile("bar.sync 1;");', "the emulator does not know barriers other than number 0"),
        ("((int*)(long)x_ptr[0])[threadIdx.x] = 1;", "which is no memory of the device"),
        (
            "int deep[100000]; deep[x_ptr[0]] = 1; x_ptr[0] = deep[x_ptr[0] + 99999];",
            "the thread's own registers or stack",
        ),
    ],
)
def test_threads_that_part_are_told(body: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=re.escape(message)):
        run(cuda("int* x_ptr", body), "kernel", [np.zeros(1, np.int32)], (1,), (64,))


def test_shuffles_and_votes() -> None:
    body = """
  int t = threadIdx.x;
  int* y = y_ptr + t * 6;
  y[0] = __shfl_sync(-1, t, t + 1);
  y[1] = __shfl_up_sync(-1, t, 1, 8);
  y[2] = __shfl_down_sync(-1, t, 3);
  y[3] = __shfl_xor_sync(-1, t, 5);
  y[4] = __ballot_sync(-1, t % 3 == 0);
  y[5] = __any_sync(-1, t == 40) + 2 * __all_sync(-1, t < 32);"""
    y = np.zeros((64, 6), np.int32)
    run(cuda("int* y_ptr", body), "kernel", [y], (1,), (64,))
    t = np.arange(64)
    warp, lane = t // 32 * 32, t % 32
    assert np.array_equal(y[:, 0], warp + (lane + 1) % 32)
    assert np.array_equal(y[:, 1], np.where(t % 8 == 0, t, t - 1))
    assert np.array_equal(y[:, 2], np.where(lane < 29, t + 3, t))
    assert np.array_equal(y[:, 3], t ^ 5)
    votes = [sum(1 << i for i in range(32) if (w + i) % 3 == 0) for w in (0, 32)]
    assert np.array_equal(y[:, 4].view(np.uint32), np.repeat(votes, 32))
    assert np.array_equal(y[:, 5], np.repeat([2, 1], 32))


@pytest.mark.parametrize(
    ("arguments", "grid", "block", "message"),
    [
        ({"x": np.zeros(4, np.int32)}, (1,), (1,), "takes x_ptr, n, got x"),
        ([np.zeros(4, np.int32)], (1,), (1,), "takes 2 arguments (x_ptr, n), got 1"),
        ([[1, 2], 1], (1,), (1,), "'x_ptr' is a pointer and takes a writable C-contiguous numpy array"),
        ([np.zeros((4, 4), np.int32).T, 1], (1,), (1,), "C-contiguous"),
        ([np.zeros(4, np.int32), 1], (1,), (65,), "65 threads a block, of at most 64"),
        ([np.zeros(4, np.int32), 1], (0,), (1,), "a launch without threads"),
        ([np.zeros(4, np.int32), 1], (1, 1, 1, 1), (1,), "one to three dimensions"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, grid: tuple[int, ...], block: tuple[int, ...], message: str) -> None:
    text = cuda("int* x_ptr, int n", "x_ptr[0] = n;", threads=64)
    with pytest.raises(EmulatorError, match=re.escape(message)):
        run(text, "kernel", arguments, grid, block)


def test_a_kernel_that_is_not_there() -> None:
    with pytest.raises(EmulatorError, match="has no kernel 'other'; it has kernel"):
        load_kernel(cuda("int* x_ptr", ""), "other")


def test_after_a_failure_the_next_kernel_runs() -> None:
    text = cuda("int* x_ptr, int i", "x_ptr[i] = 5;")
    kernel = load_kernel(text, "kernel")
    x = np.zeros(4, np.int32)
    for _ in range(3):
        with pytest.raises(EmulatorError):
            kernel.run([x, 4], (1,), (1,))
        kernel.run([x, 3], (1,), (1,))
    assert x.tolist() == [0, 0, 0, 5]
