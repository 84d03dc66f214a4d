"""How the operands of a product reach shared memory: predicated loads of pixels, plain copies of weights.

Thread x copies, for i = 0, 1, ..., chunk x % k of row i * (threads / k) + x / k of a tile. The rows' places in the
image are found once; a step then adds the offset of its window tap, and loads nothing where that lies outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.kernels.cuda import ptx
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_shared import Layout
from hawq_tvm.kernels.cuda.ptx import uint32
from hawq_tvm.kernels.cuda.registers import local
from hawq_tvm.kernels.cuda.storages import CHUNK_WORDS
from hawq_tvm.kernels.cuda.values import int32
from hawq_tvm.kernels.generic.expressions import Expr

OUTSIDE = -(2**24)
"""The row of pixels that are none: no window reaches from it into an image."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Words that lie together, of one of a thread's chunks.

    Attributes:
        chunk: its number among the thread's.
        word: the piece's first word in it.
        count: its words.
        place: its first word in memory.
        condition: whether it is there; what is not is zero. None for always.
    """

    chunk: int
    word: int
    count: int
    place: Expr
    condition: Expr


@dataclass(frozen=True, eq=False)
class Pixels:
    """The left operand: rows of A, gathered from the image.

    Either `load` to registers and `store` to shared memory, or `copy` there without registers.

    Attributes:
        gemm: the product.
        layout: how a step lies in shared memory.
        words: the image as uint32 words.
        thread: the thread's number in its block.
        count: chunks that a thread copies in a step.
        row: int32 registers: of each chunk's output pixel, the first image row that its window sees, or `OUTSIDE`.
        column: the first image column.
        base: the word at which that pixel starts; negative where it lies outside.
        loaded: uint32 registers: the words of a step that are on their way.
    """

    gemm: Gemm
    layout: Layout
    words: Any
    thread: Expr
    count: int
    row: Any
    column: Any
    base: Any
    loaded: Any

    @classmethod
    def of(cls, gemm: Gemm, layout: Layout, words: Any, first_row: Expr, thread: Expr) -> Pixels:
        """Find the places of a block's rows, the first of which is output pixel `first_row`."""
        tile = layout.tile
        count = tile.copied_chunks(tile.m)
        row, column, base = local(count, "int32"), local(count, "int32"), local(count, "int32")
        pixels = cls(gemm, layout, words, thread, count, row, column, base, local(count * CHUNK_WORDS, "uint32"))
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

    @property
    def tile(self) -> Tile:
        return self.layout.tile

    def tile_row(self, i: int) -> Expr:
        """The row of the tile that the thread's chunk `i` belongs to."""
        return i * (self.tile.threads // self.tile.k) + self.thread // self.tile.k

    def load(self, step: Expr) -> None:
        """Start reading the thread's chunks of a step into registers."""
        for piece in self._pieces(step):
            registers = [self.loaded[piece.chunk * CHUNK_WORDS + piece.word + i] for i in range(piece.count)]
            if piece.condition is not None:
                for i in range(piece.count):
                    T.buffer_store(self.loaded, uint32(0), [piece.chunk * CHUNK_WORDS + piece.word + i])
            ptx.load_global(registers, self.words.ptr_to([piece.place]), piece.condition)

    def copy(self, step: Expr, shared: Any, start: Expr) -> None:
        """Start copying the thread's chunks of a step to shared memory, from word `start` on."""
        for piece in self._pieces(step):
            place = piece.place if piece.condition is None else tirx.Select(piece.condition, piece.place, int32(0))
            to = shared.ptr_to([start + self._shared_place(piece.chunk) + piece.word])
            ptx.copy_async(to, self.words.ptr_to([place]), piece.count, piece.condition)

    def _pieces(self, step: Expr) -> Iterator[Piece]:
        """What a thread reads in a step: a piece a chunk, or one for each of its taps."""
        gemm, words = self.gemm, self.gemm.loaded_words
        chunk = T.bind(step * self.tile.k + self.thread % self.tile.k)
        if gemm.taps_per_chunk == 1:
            tap, within = self._tap_of(step, chunk, gemm.channels // gemm.chunk_elements)
            for i in range(self.count):
                yield self._piece(i, 0, words, tap, within * words, chunk < gemm.chunks)
        else:
            count = words // gemm.taps_per_chunk
            for part in range(gemm.taps_per_chunk):
                tap = T.bind(chunk * gemm.taps_per_chunk + part)
                for i in range(self.count):
                    yield self._piece(i, part * count, count, tap, int32(0), tap < gemm.taps)

    def _tap_of(self, step: Expr, chunk: Expr, a_tap: int) -> tuple[Expr, Expr]:
        """The window tap of a chunk and its number in it, where a tap has `a_tap` chunks."""
        if self.gemm.taps == 1:
            return int32(0), chunk
        if a_tap % self.tile.k == 0:  # a step is of one tap: the same for all threads
            steps = a_tap // self.tile.k
            return T.bind(step // steps), T.bind(step % steps * self.tile.k + self.thread % self.tile.k)
        return T.bind(chunk // a_tap), T.bind(chunk % a_tap)

    def _piece(self, i: int, word: int, count: int, tap: Expr, offset: Expr, there: Expr) -> Piece:
        """`count` words of a tap's pixel from word `offset` on, read where the pixel is in the image."""
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
        return Piece(i, word, count, place, _all(conditions))

    def _shared_place(self, i: int) -> Expr:
        """The word of a stage at which the thread's chunk `i` lies."""
        return self.layout.place(self.tile.m, self.tile_row(i), self.thread % self.tile.k)

    def store(self, shared: Any, start: Expr) -> None:
        """Write the chunks that were loaded to shared memory, from word `start` on."""
        for i in range(self.count):
            ptx.store_shared(self._multiplied(i), shared.ptr_to([start + self._shared_place(i)]))

    def _multiplied(self, i: int) -> list[Expr]:
        """The thread's chunk `i` as it is multiplied.

        Where it widens, a word of eight 4-bit values becomes two of bytes: its even values, then its odd ones.
        """
        words = [self.loaded[i * CHUNK_WORDS + word] for word in range(self.gemm.loaded_words)]
        if self.gemm.flipped:
            words = [word ^ uint32(self.gemm.flipped) for word in words]
        if not self.gemm.widens:
            return words
        low = uint32(0x0F0F0F0F)
        return [part for word in words for part in (word & low, (word >> uint32(4)) & low)]


def _within(value: Expr, size: int) -> Expr:
    """0 <= value < size, in one comparison: negative values are large as unsigned ones."""
    return value.astype("uint32") < uint32(size)


def _all(conditions: Sequence[Expr]) -> Expr:
    """All of them; None for none."""
    if len(conditions) < 2:
        return conditions[0] if conditions else None
    return tirx.all(*conditions)


def _or_outside(condition: Expr, row: Expr) -> Expr:
    return tirx.Select(condition, row, int32(OUTSIDE))


@dataclass(frozen=True, eq=False)
class Weights:
    """The right operand: steps of a tile as `gemm_weights.pack_weights` orders them.

    Attributes:
        layout: how a step lies in shared memory.
        words: the packed weights, uint32 [channel tiles, steps, words of a step].
        column: the block's number among the channel tiles.
        thread: the thread's number in its block.
        count: chunks that a thread copies in a step.
        loaded: uint32 registers: the words of a step that are on their way.
    """

    layout: Layout
    words: Any
    column: Expr
    thread: Expr
    count: int
    loaded: Any

    @classmethod
    def of(cls, layout: Layout, words: Any, column: Expr, thread: Expr) -> Weights:
        count = layout.tile.copied_chunks(layout.tile.n)
        return cls(layout, words, column, thread, count, local(count * CHUNK_WORDS, "uint32"))

    def _registers(self, i: int) -> list[Expr]:
        return [self.loaded[i * CHUNK_WORDS + word] for word in range(CHUNK_WORDS)]

    def _number(self, i: int) -> Expr:
        """The number of the thread's chunk `i` in the step."""
        return i * self.layout.tile.threads + self.thread

    def _pointer(self, step: Expr, i: int) -> Expr:
        return self.words.ptr_to([self.column, step, self._number(i) * CHUNK_WORDS])

    def load(self, step: Expr) -> None:
        """Start reading the thread's chunks of a step."""
        for i in range(self.count):
            ptx.load_global(self._registers(i), self._pointer(step, i))

    def copy(self, step: Expr, shared: Any, start: Expr) -> None:
        """Start copying the thread's chunks of a step to shared memory, from word `start` on."""
        for i in range(self.count):
            to = shared.ptr_to([start + self.layout.copied_place(self._number(i))])
            ptx.copy_async(to, self._pointer(step, i), CHUNK_WORDS)

    def store(self, shared: Any, start: Expr) -> None:
        """Write the chunks that were loaded to shared memory, from word `start` on."""
        for i in range(self.count):
            to = shared.ptr_to([start + self.layout.copied_place(self._number(i))])
            ptx.store_shared(self._registers(i), to)
