"""The product by WMMA, whose fragments are opaque: 16x16x16 for 8 bits, 8x8x32 for 4.

Which lane holds what is the GPU's business ("CUDA C++ Programming Guide", "Warp Matrix Functions"), so the sums go
through shared memory before they are finished. Both operands are signed: unsigned inputs are shifted (`Gemm.added`).
It is slower than `mma.sync`, which it shares everything else with, and relies on less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.kernels.cuda import ptx
from hawq_tvm.kernels.cuda.gemm import Gemm
from hawq_tvm.kernels.cuda.gemm_kernel import Sums
from hawq_tvm.kernels.cuda.gemm_shared import Layout
from hawq_tvm.kernels.cuda.registers import load_channels, local
from hawq_tvm.kernels.cuda.storages import CHUNK_WORDS
from hawq_tvm.kernels.generic.expressions import Expr


@dataclass(frozen=True, eq=False)
class Fragments:
    """A warp's part of the product.

    Attributes:
        sums: where the sums end up, in registers.
        a: fragments of the left operand.
        b: of the right operand.
        c: of the sums.
        bias: uint32 registers, one a channel of the lane.
    """

    sums: Sums
    a: Any
    b: Any
    c: Any
    bias: Any

    @classmethod
    def of(cls, gemm: Gemm, layout: Layout, thread: Expr) -> Fragments:
        tile, dtype = layout.tile, f"int{gemm.bits}"
        depth = gemm.chunk_elements
        assert tile.slices == 1, "slices are added up in registers"
        return cls(
            Sums.of(gemm, layout, thread),
            T.alloc_buffer((tile.warp_m * depth,), dtype, scope="wmma.matrix_a"),
            T.alloc_buffer((tile.warp_n * depth,), dtype, scope="wmma.matrix_b"),
            T.alloc_buffer((tile.warp_m * tile.warp_n,), "int32", scope="wmma.accumulator"),
            local(tile.lane_channels, "uint32"),
        )

    @property
    def layout(self) -> Layout:
        return self.sums.layout

    @property
    def _shape(self) -> tuple[int, int, int]:
        side = _side(self.sums.gemm)
        return side, side, self.sums.gemm.chunk_elements

    @property
    def _counts(self) -> tuple[int, int]:
        """Fragments of the warp's rows and of its columns."""
        side = _side(self.sums.gemm)
        return self.layout.tile.warp_m // side, self.layout.tile.warp_n // side

    def start(self, bias: Any, first_channel: Expr) -> None:
        """All sums from 0; the bias is added in the end."""
        load_channels(self.bias, bias, first_channel)
        rows, columns = self._counts
        for index in range(rows * columns):
            T.evaluate(T.tvm_fill_fragment(self.c.data, *self._shape, index, tirx.const(0, "int32")))

    def multiply(self, shared: Any, start: Expr) -> None:
        """Add the products of the step that lies in shared memory from word `start` on."""
        tile, side = self.layout.tile, _side(self.sums.gemm)
        rows, columns = self._counts
        for chunk in range(tile.k):
            for i in range(rows):
                place = start + self.layout.place(tile.m, self.sums.first_row + i * side, chunk)
                self._load(self.a, i, shared, place, "row_major")
            for j in range(columns):
                place = (
                    start + self.layout.a_words + self.layout.place(tile.n, self.sums.first_column + j * side, chunk)
                )
                self._load(self.b, j, shared, place, "col_major")
            for i in range(rows):
                for j in range(columns):
                    c = i * columns + j
                    T.evaluate(T.tvm_mma_sync(self.c.data, c, self.a.data, i, self.b.data, j, self.c.data, c))

    def _load(self, fragment: Any, index: int, shared: Any, place: Expr, order: str) -> None:
        """Rows of 16 bytes, one after the other, from a word of shared memory on."""
        # Bytes are read through a pointer to bytes, 4-bit values through one to words. It is no `address_of`, with
        # which TVM takes the load for one without effect, and drops it.
        bytes_ = self.sums.gemm.bits == 8
        view = (
            T.decl_buffer((4 * int(shared.shape[0]),), "int8", data=shared.data, scope="shared") if bytes_ else shared
        )
        pointer = view.access_ptr("r", offset=place * 4 if bytes_ else place)
        stride = self.sums.gemm.chunk_elements
        T.evaluate(T.tvm_load_matrix_sync(fragment.data, *self._shape, index, pointer, stride, order))

    def finish(self, shared: Any) -> Sums:
        """The sums with their bias in the lanes' registers, by way of shared memory.

        Args:
            shared: `Layout.finish_words`, which no warp reads any more once all have come here.
        """
        sums, tile, side = self.sums, self.layout.tile, _side(self.sums.gemm)
        rows, columns = self._counts
        words = T.decl_buffer((int(shared.shape[0]),), "int32", data=shared.data, scope="shared")
        first = sums.first_row * tile.n + sums.first_column * tile.warp_m  # a warp's own m x n
        ptx.barrier()
        for i in range(rows):
            for j in range(columns):
                pointer = words.ptr_to([first + i * side * tile.warp_n + j * side])
                index = i * columns + j
                T.evaluate(T.tvm_store_matrix_sync(self.c.data, *self._shape, index, pointer, tile.warp_n, "row_major"))
        ptx.barrier()
        for block in range(sums.row_blocks):
            row = block * 8 + sums.lane // 4
            for start in range(0, tile.lane_channels, CHUNK_WORDS):
                place = first + row * tile.warp_n + sums.lane % 4 * tile.lane_channels + start
                indices = [block * tile.lane_channels + start + i for i in range(CHUNK_WORDS)]
                ptx.load_shared([sums.registers[index] for index in indices], shared.ptr_to([place]))
                for i, index in enumerate(indices):
                    T.buffer_store(sums.registers, sums.registers[index] + self.bias[start + i], [index])
        return sums


def _side(gemm: Gemm) -> int:
    """Rows and columns of a fragment."""
    return 16 if gemm.bits == 8 else 8
