"""Small kernels for the GPU, written in TVM, whose CUDA text the emulator's tests run and break."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.target import Target

BLOCK_ROWS = BLOCK_COLUMNS = 32
TILE_BYTES = 64  # of a row, in one step over the depth
THREADS = 64
STAGES = 3


@dataclass(frozen=True)
class Product:
    """C[M, N] = A[M, K] B[N, K]^T on tensor cores: int32 sums of packed integers.

    Attributes:
        rows: M, which need not fill the blocks.
        columns: N, a multiple of 32.
        depth: K in elements, a multiple of 64 bytes.
        bits: of an element, 8 or 4.
        a_signed: whether A is signed; B is.
        tall: mma of 16 rows, with copies by cp.async, as from sm_80 on; else of 8 rows, as sm_75 has them.
    """

    rows: int
    columns: int
    depth: int
    bits: int = 8
    a_signed: bool = True
    tall: bool = False

    @property
    def row_words(self) -> int:
        return self.depth * self.bits // 32

    @property
    def grid(self) -> tuple[int, int]:
        return self.columns // BLOCK_COLUMNS, -(-self.rows // BLOCK_ROWS)

    @property
    def shared_bytes(self) -> int:
        return (STAGES if self.tall else 2) * (BLOCK_ROWS + BLOCK_COLUMNS) * TILE_BYTES

    def operands(self, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """A and B as integers, of their full range."""
        random = np.random.default_rng(seed)
        half = 1 << (self.bits - 1)
        low, high = (-half, half) if self.a_signed else (0, 2 * half)
        return random.integers(low, high, (self.rows, self.depth)), random.integers(
            -half, half, (self.columns, self.depth)
        )

    def arguments(self, seed: int) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
        """What the kernel takes, by name, and the product that C must hold."""
        a, b = self.operands(seed)
        c = np.full((self.rows, self.columns), 0x5A5A5A5A, np.int32)
        return {"a_": pack(a, self.bits), "b_": pack(b, self.bits), "c": c}, (a @ b.T).astype(np.int32)


def pack(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Integers [rows, n] as int32 words [rows, n * bits / 32], the first value lowest."""
    per_word = 32 // bits
    fields = (values & ((1 << bits) - 1)).astype(np.uint32).reshape(len(values), -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    return np.ascontiguousarray(np.bitwise_or.reduce(fields << shifts, axis=2).view(np.int32))


def target(architecture: str) -> Any:
    return Target(
        {"kind": "cuda", "arch": architecture, "max_shared_memory_per_block": 65536, "max_threads_per_block": 1024,
         "thread_warp_size": 32},
        host={"kind": "llvm", "mtriple": "x86_64-linux-gnu"},
    )  # fmt: skip


def cuda_text(function: Any, architecture: str, pipeline: str) -> str:
    """CUDA C++ of a PrimFunc."""
    with target(architecture):
        built = tvm.tirx.build(tvm.IRModule({"main": function}), target=target(architecture), pipeline=pipeline)
    return str(built.imports[0].inspect_source())


@cache
def product_text(product: Product) -> str:
    return cuda_text(product_kernel(product), "sm_80" if product.tall else "sm_75", "tirx")


def product_kernel(product: Product, name: str = "main") -> Any:
    """The kernel of a product, `main_kernel` in its text."""
    rows, columns, words, bits = product.rows, product.columns, product.row_words, product.bits
    steps = words * 4 // TILE_BYTES
    row = TILE_BYTES // 4  # int32 words
    b_part, stage = BLOCK_ROWS * row, (BLOCK_ROWS + BLOCK_COLUMNS) * row
    element = f"{'s' if product.a_signed else 'u'}{bits}.s{bits}.s32"
    mma8 = f"mma.sync.aligned.m8n8k{128 // bits}.row.col.s32.{element}"
    mma16 = f"mma.sync.aligned.m16n8k{256 // bits}.row.col.s32.{element}"
    tall = product.tall

    @T.prim_func
    def main(a_: T.Buffer((rows, words), "int32"), b_: T.Buffer((columns, words), "int32"),
             c: T.Buffer((rows, columns), "int32")):  # fmt: skip
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        T.device_entry()
        a = T.decl_buffer((rows * words,), "int32", data=a_.data)
        b = T.decl_buffer((columns * words,), "int32", data=b_.data)
        bx, by = T.cta_id([columns // BLOCK_COLUMNS, -(-rows // BLOCK_ROWS)])
        tx = T.thread_id([THREADS])
        shared = T.alloc_buffer((product.shared_bytes // 4,), "int32", scope="shared.dyn", align=128)
        staged_a = T.alloc_local((8,), "uint32")
        staged_b = T.alloc_local((2,), "int32x4")
        sums = T.alloc_local((16,), "uint32")
        of_a = T.alloc_local((4,), "uint32")
        of_b = T.alloc_local((4,), "uint32")
        warp: T.let = tx // 32
        lane: T.let = tx % 32
        for i in T.unroll(16):
            sums[i] = T.uint32(0)

        @T.inline
        def load(step):
            for i in T.unroll(2):
                r: T.let = (i * THREADS + tx) // 4
                for j in T.unroll(4):
                    staged_a[i * 4 + j] = T.uint32(0)
                T.ptx["ld.global.nc.v4.b32"](
                    staged_a[i * 4], staged_a[i * 4 + 1], staged_a[i * 4 + 2], staged_a[i * 4 + 3],
                    a.ptr_to([(by * BLOCK_ROWS + r) * words + step * row + (tx % 4) * 4]),
                    pred=by * BLOCK_ROWS + r < rows, preserve_dst=True)  # fmt: skip
                staged_b[i] = b.vload([(bx * BLOCK_COLUMNS + r) * words + step * row + (tx % 4) * 4], dtype="int32x4")

        @T.inline
        def store(at):
            for i in T.unroll(2):
                r: T.let = (i * THREADS + tx) // 4
                T.ptx["st.shared.v4.b32"](
                    shared.ptr_to([at * stage + r * row + ((tx % 4) ^ ((r // 2) % 4)) * 4]),
                    staged_a[i * 4], staged_a[i * 4 + 1], staged_a[i * 4 + 2], staged_a[i * 4 + 3])  # fmt: skip
                shared.vstore([at * stage + b_part + r * row + ((tx % 4) ^ ((r // 2) % 4)) * 4], staged_b[i])

        @T.inline
        def copy(step, at):
            for i in T.unroll(2):
                r: T.let = (i * THREADS + tx) // 4
                there: T.let = by * BLOCK_ROWS + r < rows
                T.ptx["cp.async.cg.shared.global.L2::128B"](
                    shared.ptr_to([at * stage + r * row + ((tx % 4) ^ ((r // 2) % 4)) * 4]),
                    a.ptr_to([T.if_then_else(there, (by * BLOCK_ROWS + r) * words + step * row + (tx % 4) * 4, 0)]),
                    16, T.if_then_else(there, T.uint32(16), T.uint32(0)))  # fmt: skip
                T.ptx["cp.async.cg.shared.global.L2::128B"](
                    shared.ptr_to([at * stage + b_part + r * row + ((tx % 4) ^ ((r // 2) % 4)) * 4]),
                    b.ptr_to([(bx * BLOCK_COLUMNS + r) * words + step * row + (tx % 4) * 4]), 16)  # fmt: skip

        @T.inline
        def multiply8(at):
            for chunk in T.unroll(4):
                T.ptx["ldmatrix.sync.aligned.m8n8.x2.shared.b16"](
                    of_a[0], of_a[1],
                    shared.ptr_to([at * stage + (warp * 16 + lane % 16) * row
                                   + (chunk ^ ((lane % 16 // 2) % 4)) * 4]))  # fmt: skip
                T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](
                    of_b[0], of_b[1], of_b[2], of_b[3],
                    shared.ptr_to([at * stage + b_part + lane * row + (chunk ^ ((lane // 2) % 4)) * 4]))  # fmt: skip
                for i in T.unroll(2):
                    for j in T.unroll(4):
                        T.ptx[mma8](sums[i * 8 + j * 2], sums[i * 8 + j * 2 + 1], of_a[i], of_b[j],
                                    sums[i * 8 + j * 2], sums[i * 8 + j * 2 + 1])  # fmt: skip

        @T.inline
        def multiply16(at):
            for pair in T.unroll(2):
                T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](
                    of_a[0], of_a[1], of_a[2], of_a[3],
                    shared.ptr_to([at * stage + (warp * 16 + lane % 16) * row
                                   + ((pair * 2 + lane // 16) ^ ((lane % 16 // 2) % 4)) * 4]))  # fmt: skip
                for half in T.unroll(2):
                    r: T.let = half * 16 + (lane // 16) * 8 + lane % 8
                    T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](
                        of_b[0], of_b[1], of_b[2], of_b[3],
                        shared.ptr_to([at * stage + b_part + r * row
                                       + ((pair * 2 + (lane // 8) % 2) ^ ((r // 2) % 4)) * 4]))  # fmt: skip
                    for j in T.unroll(2):
                        first: T.let = (half * 2 + j) * 2
                        T.ptx[mma16](sums[first], sums[first + 1], sums[8 + first], sums[9 + first],
                                     of_a[0], of_a[1], of_a[2], of_a[3], of_b[j * 2], of_b[j * 2 + 1],
                                     sums[first], sums[first + 1], sums[8 + first], sums[9 + first])  # fmt: skip

        if not tall:
            load(0)
            store(0)
            T.cuda.cta_sync()
            for step in T.serial(steps, annotations={"disable_unroll": True}):
                if step + 1 < steps:
                    load(step + 1)
                multiply8(step % 2)
                if step + 1 < steps:
                    store((step + 1) % 2)
                T.cuda.cta_sync()
        else:
            for step in T.unroll(STAGES - 1):
                if step < steps:
                    copy(step, step)
                T.ptx.cp.async_.commit_group()
            for step in T.serial(steps, annotations={"disable_unroll": True}):
                T.ptx.cp.async_.wait_group(STAGES - 2)
                T.cuda.cta_sync()
                if step + STAGES - 1 < steps:
                    copy(step + STAGES - 1, (step + STAGES - 1) % STAGES)
                T.ptx.cp.async_.commit_group()
                multiply16(step % STAGES)

        for i in T.unroll(2):
            r: T.let = by * BLOCK_ROWS + warp * 16 + i * 8 + lane // 4
            if r < rows:
                for j in T.unroll(4):
                    for e in T.unroll(2):
                        c[r, bx * BLOCK_COLUMNS + j * 8 + (lane % 4) * 2 + e] = T.Cast("int32", sums[i * 8 + j * 2 + e])

    return main
