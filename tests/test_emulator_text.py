"""CUDA text taken apart: kernels, parameters, shared arrays; and WMMA, which the text uses as a class."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.emulator.launch import run
from hawq_tvm.emulator.text import Parameter, split_kernels

from .emulated import cuda, needs_compiler

TWO = """
#define uint unsigned int
__device__ int twice(int x) { return 2 * x; }
extern "C" __global__ void __launch_bounds__(128, 2) first(int* __restrict__ a_ptr, const float scale);
extern "C" __global__ void __launch_bounds__(128, 2) first(int* __restrict__ a_ptr, const float scale) {
  if (a_ptr[0] > 0) { a_ptr[0] = twice(a_ptr[0]); }  // } is no end
}
__device__ int thrice(int x) { return 3 * x; }
extern "C" __global__ void second(void* p) { asm volatile("bar.sync 0;"); }
"""


def test_kernels_their_parameters_and_what_they_share() -> None:
    kernels = split_kernels(TWO)
    assert list(kernels) == ["first", "second"]
    assert kernels["first"].parameters == (Parameter("a_ptr", "int* __restrict__"), Parameter("scale", "const float"))
    assert [p.is_pointer for p in kernels["first"].parameters] == [True, False]
    assert kernels["second"].parameters == (Parameter("p", "void*"),)
    for kernel in kernels.values():
        assert "int twice(int x)" in kernel.prologue and "int thrice(int x)" in kernel.prologue
        assert "__global__" not in kernel.prologue
    assert "twice(a_ptr[0])" not in kernels["second"].unit()
    assert "128, EMULATOR_CHECKED" in kernels["first"].source and "0, EMULATOR_CHECKED" in kernels["second"].source


def test_the_prologue_keeps_its_lines() -> None:
    lines = TWO.splitlines()
    prologue = split_kernels(TWO)["first"].prologue.splitlines()[1:]  # after the line that counts them anew
    assert prologue[lines.index("__device__ int thrice(int x) { return 3 * x; }")].startswith("__device__ int thrice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int x;", "has no kernel"),
        ('extern "C" __global__ void k(int* a_ptr) { a_ptr[0] = 1;', "without its partner"),
        ('extern "C" __global__ void k(int* a_ptr)', "ends within kernel 'k'"),
        ('extern "C" __global__ void k(...) {}', "parameter that is not understood: '...'"),
        ('extern "C" __global__ void k() { __shared__ Odd<int> x; }', "kernel 'k' declares shared memory in a way"),
    ],
)
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=re.escape(message)):
        split_kernels(text)


@needs_compiler
def test_shared_arrays_lie_apart_and_aligned() -> None:
    body = """
  __shared__ signed char odd[3];
  __shared__ alignas(128) int aligned[5];
  __shared__ __align__(64) int4 vectors[2];
  extern __shared__ __align__(1024) uint dynamic[];
  if (threadIdx.x == 0) {
    y_ptr[0] = __cvta_generic_to_shared(odd);
    y_ptr[1] = __cvta_generic_to_shared(aligned) % 128;
    y_ptr[2] = __cvta_generic_to_shared(vectors) % 64;
    y_ptr[3] = __cvta_generic_to_shared(dynamic) % 1024;
    y_ptr[4] = sizeof(odd) + sizeof(aligned) + sizeof(vectors);
    dynamic[7] = 5;
    y_ptr[5] = dynamic[7];
  }"""
    y = np.full(6, -1, np.int32)
    run(cuda("int* y_ptr", body), "kernel", [y], (1,), (1,), shared_bytes=32)
    assert y.tolist() == [0, 0, 0, 0, 3 + 20 + 32, 5]


# ---- WMMA ------------------------------------------------------------------------------------------------------------

WMMA = """
  using namespace nvcuda;
  __shared__ alignas(128) {element} a[{a_bytes}];
  __shared__ alignas(128) {element} b[{b_bytes}];
  __shared__ alignas(128) int c[{c_words}];
  for (int i = threadIdx.x; i < {a_bytes}; i += 32) a[i] = a_ptr[i];
  for (int i = threadIdx.x; i < {b_bytes}; i += 32) b[i] = b_ptr[i];
  for (int i = threadIdx.x; i < {c_words}; i += 32) c[i] = c_ptr[i];
  __syncthreads();
  wmma::fragment<wmma::matrix_a, {m}, {n}, {k}, {type}, wmma::{a_layout}> fa;
  wmma::fragment<wmma::matrix_b, {m}, {n}, {k}, {type}, wmma::{b_layout}> fb;
  wmma::fragment<wmma::accumulator, {m}, {n}, {k}, int> fc, zero;
  wmma::load_matrix_sync(fa, a, {a_leading});
  wmma::load_matrix_sync(fb, b, {b_leading});
  wmma::load_matrix_sync(fc, c, {n}, wmma::mem_row_major);
  wmma::fill_fragment(zero, 0x0p+0f);
  wmma::mma_sync(fc, fa, fb, fc);
  __syncthreads();
  {sync}
  wmma::store_matrix_sync(c, fc, {m}, wmma::mem_col_major);
  {after}
  for (int i = threadIdx.x; i < {c_words}; i += 32) c_ptr[i] = c[i];"""

ROWS_BY_COLUMNS, COLUMNS_BY_ROWS = ("row_major", "col_major"), ("col_major", "row_major")
CASES = [
    ((16, 16, 16, 8), ROWS_BY_COLUMNS),
    ((16, 16, 16, 8), COLUMNS_BY_ROWS),
    ((32, 8, 16, 8), ROWS_BY_COLUMNS),
    ((8, 32, 16, 8), ROWS_BY_COLUMNS),
    ((8, 8, 32, 4), ROWS_BY_COLUMNS),
]


def wmma_text(m: int, n: int, k: int, bits: int, signed: bool, a_layout: str, b_layout: str, **changes: str) -> str:
    sub_byte = f"wmma::experimental::precision::{'s' if signed else 'u'}4"
    names = {
        "m": m, "n": n, "k": k, "a_bytes": m * k * bits // 8, "b_bytes": n * k * bits // 8, "c_words": m * n,
        "type": sub_byte if bits == 4 else f"{'signed' if signed else 'unsigned'} char", "element": "unsigned char",
        "a_layout": a_layout, "b_layout": b_layout, "a_leading": m if a_layout == "col_major" else k,
        "b_leading": n if b_layout == "row_major" else k, "sync": "", "after": "__syncthreads();", **changes,
    }  # fmt: skip
    parameters = "unsigned char* a_ptr, unsigned char* b_ptr, int* c_ptr"
    return cuda(parameters, WMMA.format(**names), before="#include <mma.h>")


def pack_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """A matrix as memory holds it, row by row; of two 4-bit values the first is the lower half of the byte."""
    flat = (values.reshape(-1) & ((1 << bits) - 1)).astype(np.uint8)
    return flat if bits == 8 else flat[0::2] | flat[1::2] << 4


@needs_compiler
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("shape", "layouts"), CASES, ids=str)
def test_wmma_is_the_product(shape: tuple[int, int, int, int], layouts: tuple[str, str], signed: bool) -> None:
    m, n, k, bits = shape
    random = np.random.default_rng(m)
    half = 1 << (bits - 1)
    low, high = (-half, half) if signed else (0, 2 * half)
    a, b = random.integers(low, high, (m, k)), random.integers(low, high, (k, n))
    c = random.integers(-(2**31), 2**31, (m, n)).astype(np.int32)
    expected = (a @ b + c).astype(np.int32).T.reshape(-1)  # stored by columns
    stored = c.reshape(-1).copy()
    arrays = {
        "a": pack_bytes(a if layouts[0] == "row_major" else a.T, bits),
        "b": pack_bytes(b if layouts[1] == "row_major" else b.T, bits),
        "c": stored,
    }
    run(wmma_text(*shape, signed, *layouts), "kernel", arrays, (1,), (32,))
    assert np.array_equal(stored, expected)


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": ""}, "race: it reads shared c"),
        ({"sync": "for (int i = threadIdx.x; i < 16; i += 32) c[i] = 1;"}, "race: it writes shared c"),
        ({"a_leading": "17"}, "leading dimension is not a multiple of 16 bytes"),
        ({"a_leading": "16 + 16 * (threadIdx.x / 31)"}, "different pointers or leading dimensions"),
        ({"b_leading": "32"}, "read of 16 bytes out of bounds at shared b[256]"),
        ({"sync": "if (threadIdx.x < 16)"}, "of one warp diverge"),
    ],
)
def test_wmma_that_breaks_a_rule(changes: dict[str, str], message: str) -> None:
    zeros = [np.zeros(256, np.uint8), np.zeros(256, np.uint8), np.zeros(256, np.int32)]
    with pytest.raises(EmulatorError, match=re.escape(message)):
        run(wmma_text(16, 16, 16, 8, True, "row_major", "col_major", **changes), "kernel", zeros, (1,), (32,))
