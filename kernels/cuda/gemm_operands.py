"""How the operands of a product reach shared memory: predicated loads of pixels, plain copies of weights.

Thread x copies, for i = 0, 1, ..., chunk x % k of row i * (threads / k) + x / k of a tile. The rows' places in the
image are found once; a step then adds the offset of its window tap, and loads nothing where that lies outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.kernels.cuda import ptx
from hawq_tvm.kernels.cuda.gemm import CHUNK_WORDS, Gemm, Tile
from hawq_tvm.kernels.cuda.values import int32
from hawq_tvm.kernels.generic.expressions import Expr

OUTSIDE = -(2**24)
"""The row of pixels that are none: no window reaches from it into an image."""


def uint32(value: int) -> Expr:
    return tirx.const(value, "uint32")


def local(count: int, dtype: str) -> Any:
    """Registers of a thread, as long as every index is a constant."""
    return T.alloc_buffer((count,), dtype, scope="local")


@dataclass(frozen=True, eq=False)
class Pixels:
    """The left operand: rows of A, gathered from the image.

    Attributes:
        gemm: the product.
        tile: how it is cut.
        words: the image as uint32 words.
        thread: the thread's number in its block.
        count: chunks that a thread copies in a step.
        row: int32 registers: of each chunk's output pixel, the first image row that its window sees, or `OUTSIDE`.
        column: the first image column.
        base: the word at which that pixel starts; negative where it lies outside.
        loaded: uint32 registers: the words of a step that are on their way.
    """

    gemm: Gemm
    tile: Tile
    words: Any
    thread: Expr
    count: int
    row: Any
    column: Any
    base: Any
    loaded: Any

    @classmethod
    def of(cls, gemm: Gemm, tile: Tile, words: Any, first_row: Expr, thread: Expr) -> Pixels:
        """Find the places of a block's rows, the first of which is output pixel `first_row`."""
        count = tile.m * tile.k // tile.threads
        row, column, base = local(count, "int32"), local(count, "int32"), local(count, "int32")
        pixels = cls(gemm, tile, words, thread, count, row, column, base, local(count * CHUNK_WORDS, "uint32"))
        (height, width), (out_height, out_width) = gemm.size, gemm.out_size
        (sy, sx), (top, left, _, _) = gemm.window.strides, gemm.window.pads
        for i in range(count):
            pixel = T.bind(first_row + pixels.tile_row(i))
            y = pixel // out_width % out_height * sy - top
            T.buffer_store(row, y if gemm.rows % tile.m == 0 else _or_outside(pixel < gemm.rows, y), [i])
            T.buffer_store(column, pixel % out_width * sx - left, [i])
            first = (pixel // (out_height * out_width) * height + y) * width + column[i]
            T.buffer_store(base, first * gemm.pixel_words, [i])
        return pixels

    def tile_row(self, i: int) -> Expr:
        """The row of the tile that the thread's chunk `i` belongs to."""
        return i * (self.tile.threads // self.tile.k) + self.thread // self.tile.k

    def load(self, step: Expr) -> None:
        """Start reading the thread's chunks of a step."""
        gemm, words = self.gemm, self.gemm.loaded_words
        chunk = T.bind(step * self.tile.k + self.thread % self.tile.k)
        for i in range(self.count):
            for word in range(words):
                T.buffer_store(self.loaded, uint32(0), [i * CHUNK_WORDS + word])
        if gemm.taps_per_chunk == 1:
            a_tap = gemm.channels // gemm.chunk_elements
            tap, within = self._tap_of(step, chunk, a_tap)
            for i in range(self.count):
                self._load_tap(i, 0, words, tap, within * words, chunk < gemm.chunks)
        else:
            one = words // gemm.taps_per_chunk
            for part in range(gemm.taps_per_chunk):
                tap = T.bind(chunk * gemm.taps_per_chunk + part)
                for i in range(self.count):
                    self._load_tap(i, part * one, one, tap, int32(0), tap < gemm.taps)

    def _tap_of(self, step: Expr, chunk: Expr, a_tap: int) -> tuple[Expr, Expr]:
        """The window tap of a chunk and its number in it, where a tap has `a_tap` chunks."""
        if self.gemm.taps == 1:
            return int32(0), chunk
        if a_tap % self.tile.k == 0:  # a step is of one tap: the same for all threads
            steps = a_tap // self.tile.k
            return T.bind(step // steps), T.bind(step % steps * self.tile.k + self.thread % self.tile.k)
        return T.bind(chunk // a_tap), T.bind(chunk % a_tap)

    def _load_tap(self, i: int, register: int, count: int, tap: Expr, offset: Expr, there: Expr) -> None:
        """Read `count` words of a tap's pixel from word `offset` on, where the pixel is in the image."""
        window, (height, width) = self.gemm.window, self.gemm.size
        dy, dx = window.dilations
        y, x = tap // window.kernel[1] * dy, tap % window.kernel[1] * dx
        place = self.base[i] + (y * width + x) * self.gemm.pixel_words + offset
        conditions = []
        if self.gemm.chunks % self.tile.k or self.gemm.taps_per_chunk > 1:
            conditions.append(there)
        if any(window.pads) or self.gemm.rows % self.tile.m:
            conditions.append(_within(self.row[i] + y, height))
        if any(window.pads):
            conditions.append(_within(self.column[i] + x, width))
        condition = None if not conditions else conditions[0] if len(conditions) == 1 else tirx.all(*conditions)
        registers = [self.loaded[i * CHUNK_WORDS + register + word] for word in range(count)]
        ptx.load_global(registers, self.words.ptr_to([place]), condition)

    def store(self, shared: Any, start: Expr) -> None:
        """Write the chunks that were loaded to shared memory, from word `start` on."""
        for i in range(self.count):
            row = self.tile_row(i)
            place = (row * self.tile.k + self.tile.swizzled(row, self.thread % self.tile.k)) * CHUNK_WORDS
            registers = [self.loaded[i * CHUNK_WORDS + word] for word in range(CHUNK_WORDS)]
            if self.gemm.widens:
                registers = self._widened(i)
            ptx.store_shared(registers, shared.ptr_to([start + place]))

    def _widened(self, i: int) -> list[Expr]:
        """Two words of eight 4-bit values each as four of bytes: of each word its even values, then its odd ones."""
        found = []
        for word in range(self.gemm.loaded_words):
            packed = self.loaded[i * CHUNK_WORDS + word]
            if self.gemm.shifted:  # -8..7 become 0..15
                packed = packed ^ uint32(0x88888888)
            found += [packed & uint32(0x0F0F0F0F), (packed >> uint32(4)) & uint32(0x0F0F0F0F)]
        return found


def _within(value: Expr, size: int) -> Expr:
    """0 <= value < size, in one comparison: negative values are large as unsigned ones."""
    return value.astype("uint32") < uint32(size)


def _or_outside(condition: Expr, row: Expr) -> Expr:
    return tirx.Select(condition, row, int32(OUTSIDE))


@dataclass(frozen=True, eq=False)
class Weights:
    """The right operand: steps of a tile as `gemm_weights.pack_weights` lays them out.

    Attributes:
        tile: how the product is cut.
        words: the packed weights, uint32 [channel tiles, steps, words of a step].
        column: the block's number among the channel tiles.
        thread: the thread's number in its block.
        loaded: uint32 registers: the words of a step that are on their way.
    """

    tile: Tile
    words: Any
    column: Expr
    thread: Expr
    loaded: Any

    @classmethod
    def of(cls, tile: Tile, words: Any, column: Expr, thread: Expr) -> Weights:
        return cls(tile, words, column, thread, local(tile.n * tile.k // tile.threads * CHUNK_WORDS, "uint32"))

    @property
    def count(self) -> int:
        """Chunks that a thread copies in a step."""
        return self.tile.n * self.tile.k // self.tile.threads

    def _registers(self, i: int) -> list[Expr]:
        return [self.loaded[i * CHUNK_WORDS + word] for word in range(CHUNK_WORDS)]

    def _place(self, i: int) -> Expr:
        return (i * self.tile.threads + self.thread) * CHUNK_WORDS

    def load(self, step: Expr) -> None:
        """Start reading the thread's chunks of a step."""
        for i in range(self.count):
            ptx.load_global(self._registers(i), self.words.ptr_to([self.column, step, self._place(i)]))

    def store(self, shared: Any, start: Expr) -> None:
        """Write the chunks that were loaded to shared memory, from word `start` on."""
        for i in range(self.count):
            ptx.store_shared(self._registers(i), shared.ptr_to([start + self._place(i)]))
