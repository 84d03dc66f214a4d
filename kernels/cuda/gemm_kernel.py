"""The product on Tensor Cores: tiles in shared memory, two steps of them, and the sums in registers.

start the sums with the bias
for each step over the chunks:
start loading the next step from memory        into registers
multiply this step                             shared memory -> ldmatrix -> mma
store the next step to the other half of shared memory, and wait for all threads
finish the sums and store them                     gemm_epilogue
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.gpu import WARP_SIZE
from hawq_tvm.kernels.cuda import ptx
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_operands import Pixels, Weights
from hawq_tvm.kernels.cuda.gemm_shared import Layout
from hawq_tvm.kernels.cuda.ptx import uint32
from hawq_tvm.kernels.cuda.registers import load_channels, local
from hawq_tvm.kernels.cuda.values import int32
from hawq_tvm.kernels.generic.expressions import Expr

STAGES = 2
ASYNC_STAGES = 3
"""Steps in shared memory at once: while one is multiplied, and where copies do not pass through registers."""


@dataclass(frozen=True, eq=False)
class Sums:
    """A warp's part of the product: [warp_m / 8 rows of blocks, warp_n / 8 blocks, 2 columns a lane].

    Attributes:
        gemm: the product.
        layout: how a step lies in shared memory.
        registers: the sums; uint32, since that is how `ptx.multiply` takes them.
        a: registers of the left operand's rows, a word for 8 rows and 16 bytes.
        b: registers of the right operand's.
        lane: the thread's number in its warp.
        slice: which part of each step the warp sums over.
        first_row: the warp's first row of the tile.
        first_column: the warp's first column of the tile.
        row_blocks: eights of rows of the warp.
    """

    gemm: Gemm
    layout: Layout
    registers: Any
    a: Any
    b: Any
    lane: Expr
    slice: Expr
    first_row: Expr
    first_column: Expr
    row_blocks: int

    @classmethod
    def of(cls, gemm: Gemm, layout: Layout, thread: Expr) -> Sums:
        tile = layout.tile
        row_blocks, column_blocks = tile.warp_m // 8, tile.warp_n // 8
        warps = tile.warps_m * tile.warps_n
        warp = T.bind(thread // WARP_SIZE % warps)
        return cls(
            gemm,
            layout,
            local(row_blocks * column_blocks * 2, "uint32"),
            local(row_blocks * gemm.chunks_at_once, "uint32"),
            local(column_blocks * gemm.chunks_at_once, "uint32"),
            T.bind(thread % WARP_SIZE),
            T.bind(thread // (WARP_SIZE * warps)) if tile.slices > 1 else int32(0),
            warp // tile.warps_n * tile.warp_m,
            warp % tile.warps_n * tile.warp_n,
            row_blocks,
        )

    @property
    def tile(self) -> Tile:
        return self.layout.tile

    @property
    def column_blocks(self) -> int:
        return self.tile.warp_n // 8

    def at(self, row_block: int, channel: int) -> Expr:
        """The sum of row lane / 4 of a block of rows and the lane's channel of that number."""
        return self.registers[(row_block * self.column_blocks + channel // 2) * 2 + channel % 2]

    def start(self, bias: Any, first_channel: Expr) -> None:
        """Put the bias of each channel into its sums, those of the first slice."""
        values = load_channels(local(self.tile.lane_channels, "uint32"), bias, first_channel)
        for row_block in range(self.row_blocks):
            for channel in range(self.tile.lane_channels):
                index = (row_block * self.column_blocks + channel // 2) * 2 + channel % 2
                value = values[channel]
                if self.tile.slices > 1:
                    value = tirx.Select(self.slice == 0, value, uint32(0))
                T.buffer_store(self.registers, value, [index])

    def multiply(self, shared: Any, start: Expr) -> None:
        """Add the products of the step that lies in shared memory from word `start` on."""
        for part in range(0, self.tile.slice_k, self.gemm.chunks_at_once):
            chunk = self.slice * self.tile.slice_k + part
            if self.gemm.chunks_at_once == 1:
                self._load_narrow(self.a, shared, start, self.tile.m, self.first_row, chunk)
                self._load_narrow(self.b, shared, start + self.layout.a_words, self.tile.n, self.first_column, chunk)
            else:
                self._load_a_wide(shared, start, chunk)
                self._load_b_wide(shared, start + self.layout.a_words, chunk)
            self._multiply_chunk()

    def _load_narrow(self, registers: Any, shared: Any, start: Expr, rows: int, first: Expr, chunk: Expr) -> None:
        """One chunk of the warp's rows, from row `first` of the operand on: a register for each eight of them."""
        for block in range(0, int(registers.shape[0]), 4):
            place = self.layout.place(rows, first + block * 8 + self.lane, chunk)
            ptx.load_matrix([registers[block + i] for i in range(4)], shared.ptr_to([start + place]))

    def _load_a_wide(self, shared: Any, start: Expr, chunk: Expr) -> None:
        """Two chunks of sixteens of rows; registers: both eights of the first chunk, then those of the second."""
        for block in range(0, self.row_blocks, 2):
            row = self.first_row + block * 8 + self.lane % 16
            place = self.layout.place(self.tile.m, row, chunk + self.lane // 16)
            ptx.load_matrix([self.a[block * 2 + i] for i in range(4)], shared.ptr_to([start + place]))

    def _load_b_wide(self, shared: Any, start: Expr, chunk: Expr) -> None:
        """Two chunks of eights of rows: an eight's registers are its first and its second chunk."""
        for block in range(0, self.column_blocks, 2):
            row = self.first_column + block * 8 + self.lane // 16 * 8 + self.lane % 8
            place = self.layout.place(self.tile.n, row, chunk + self.lane // 8 % 2)
            ptx.load_matrix([self.b[block * 2 + i] for i in range(4)], shared.ptr_to([start + place]))

    def finish(self, shared: Any) -> Sums:
        """The sums of all slices, added up: each warp gets some of its row blocks.

        Args:
            shared: `Layout.finish_words`, which no warp reads any more once all have come here.

        Returns:
            What is left to this warp; warps of slices past the last row block have none (`has_rows`).
        """
        tile = self.tile
        if tile.slices == 1:
            return self
        of_block = self.column_blocks * 2  # registers of a row block
        rows_a_slice = max(1, self.row_blocks // tile.slices)
        warps, held = tile.warps_m * tile.warps_n, self.row_blocks * of_block
        warp = self.first_row // tile.warp_m * tile.warps_n + self.first_column // tile.warp_n

        def place(slice: Expr, register: Expr) -> Expr:
            return ((slice * warps + warp) * held + register) * WARP_SIZE + self.lane

        ptx.barrier()
        for register in range(held):
            ptx.store_shared([self.registers[register]], shared.ptr_to([place(self.slice, register)]))
        ptx.barrier()
        first = self.slice * rows_a_slice
        total, read = local(rows_a_slice * of_block, "uint32"), local(1, "uint32")
        mine = replace(self, registers=total, first_row=self.first_row + first * 8, row_blocks=rows_a_slice)
        with T.If(mine.has_rows), T.Then():
            for register in range(rows_a_slice * of_block):
                T.buffer_store(total, uint32(0), [register])
                for slice in range(tile.slices):
                    ptx.load_shared([read[0]], shared.ptr_to([place(slice, first * of_block + register)]))
                    T.buffer_store(total, total[register] + read[0], [register])
        return mine

    @property
    def has_rows(self) -> Expr:
        """Whether `finish` left any rows to this warp."""
        return self.slice < self.tile.warp_m // 8

    def _multiply_chunk(self) -> None:
        rows = self.gemm.shape.m // 8
        for row_block in range(0, self.row_blocks, rows):
            for column in range(self.column_blocks):
                ptx.multiply(
                    self.gemm.shape.ptx,
                    self.gemm.a_type,
                    self.gemm.b_type,
                    [self.at(row_block + i, column * 2 + e) for i in range(rows) for e in range(2)],
                    [self.a[row_block * self.gemm.chunks_at_once + i] for i in range(rows * self.gemm.chunks_at_once)],
                    [self.b[column * self.gemm.chunks_at_once + i] for i in range(self.gemm.chunks_at_once)],
                )


def first_channel(tile: Tile, thread: Expr) -> Expr:
    """A lane's first channel of its tile."""
    warp, lane = thread // WARP_SIZE, thread % WARP_SIZE
    return warp % tile.warps_n * tile.warp_n + lane % 4 * tile.lane_channels


class Products(Protocol):
    """What multiplies the steps of a tile: `Sums`, or `gemm_wmma.Fragments`."""

    @property
    def layout(self) -> Layout: ...

    def start(self, bias: Any, first_channel: Expr) -> None:
        """Set all sums to what they start from."""

    def multiply(self, shared: Any, start: Expr) -> None:
        """Add the products of the step that lies in shared memory from word `start` on."""

    def finish(self, shared: Any) -> Sums:
        """The sums that are left to this warp, in its lanes' registers; no warp reads `shared` any more."""


def resident_steps(gemm: Gemm) -> int:
    """Steps that shared memory holds at once, where a product has as many."""
    return ASYNC_STAGES if gemm.copies else STAGES


def shared_words(gemm: Gemm, layout: Layout) -> int:
    """Words of shared memory of a block."""
    stages = min(resident_steps(gemm), gemm.steps(layout.tile))
    return max(stages * layout.stage_words, layout.finish_words)


def accumulate(gemm: Gemm, products: Products, pixels: Pixels, weights: Weights) -> Sums:
    """All products of a block's tile; gives the finished sums."""
    layout = products.layout
    steps = gemm.steps(layout.tile)
    shared = T.alloc_buffer((shared_words(gemm, layout),), "uint32", scope="shared", align=128)
    if gemm.copies:
        _accumulate_copied(products, pixels, weights, shared, steps, min(resident_steps(gemm), steps))
    else:
        _accumulate_loaded(products, pixels, weights, shared, steps)
    return products.finish(shared)


def _accumulate_loaded(products: Products, pixels: Pixels, weights: Weights, shared: Any, steps: int) -> None:
    """With the next step on its way through registers while this one is multiplied."""
    layout = products.layout

    def store(stage: Expr) -> None:
        pixels.store(shared, stage * layout.stage_words)
        weights.store(shared, stage * layout.stage_words + layout.a_words)
        ptx.barrier()

    pixels.load(0)
    weights.load(0)
    store(0)
    if steps == 1:
        products.multiply(shared, 0)
        return
    with T.serial(steps - 1, annotations={"disable_unroll": True}) as step:
        pixels.load(step + 1)
        weights.load(step + 1)
        products.multiply(shared, step % STAGES * layout.stage_words)
        store((step + 1) % STAGES)
    products.multiply(shared, (steps - 1) % STAGES * layout.stage_words)


def _accumulate_copied(
    products: Products, pixels: Pixels, weights: Weights, shared: Any, steps: int, stages: int
) -> None:
    """With as many steps on their way to shared memory as there are stages, less one.

    The barrier of a step says two things: everyone's copies of this step have landed, and everyone has multiplied the
    step before, whose place the next copies take.
    """
    layout = products.layout

    def copy(step: Expr, stage: Expr) -> None:
        pixels.copy(step, shared, stage * layout.stage_words)
        weights.copy(step, shared, stage * layout.stage_words + layout.a_words)
        ptx.commit_copies()

    ahead = max(stages - 1, 1)
    for step in range(ahead):
        copy(step, step)
    with T.serial(steps, annotations={"disable_unroll": True}) as step:
        ptx.wait_copies(ahead - 1)
        ptx.barrier()
        if steps > ahead:
            with T.If(step + ahead < steps):
                with T.Then():
                    copy(step + ahead, (step + ahead) % stages)
                with T.Else():
                    ptx.commit_copies()  # an empty group, so that waiting counts steps
        products.multiply(shared, step % stages * layout.stage_words)
